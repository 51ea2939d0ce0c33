//! Row 2, and that nothing panics: limits, bombs, and random bytes and mutations.

use std::fmt::Write as _;

use fcpipe_spec::{MAX_SPEC, SpecError};
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::{Bench, at, config, with, with_mount};

#[test]
fn row_02_a_spec_of_100_mb_is_refused_unparsed() {
    let bench = Bench::new();
    for name in ["config.json", "launch.yaml"] {
        let path = bench.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(100_000_000).unwrap();
        let error = fcpipe_spec::load(&path, &crate::options()).unwrap_err();
        assert!(
            matches!(
                error,
                SpecError::TooLarge {
                    limit: MAX_SPEC,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(error.file(), Some(&*path));
    }
    // At the limit it is read.
    let mut text = config().to_string();
    let fill = MAX_SPEC as usize - text.len();
    text.push_str(&" ".repeat(fill));
    bench.load("config.json", &text).unwrap();
    text.push(' ');
    bench.load("config.json", &text).unwrap_err();
}

#[test]
fn row_02_nesting_of_10_000_is_refused() {
    let bench = Bench::new();
    let deep = 10_000;
    let indented: String = (0..deep)
        .map(|i| format!("{}a:\n", " ".repeat(i % 600)))
        .collect();
    let mut indented_well = String::new();
    for i in 0..2_000 {
        let _ = writeln!(indented_well, "{}a:", " ".repeat(i));
    }
    for (name, text) in [
        ("config.json", "[".repeat(deep)),
        ("config.json", "{\"a\":".repeat(deep)),
        (
            "config.json",
            format!("{}1{}", "[".repeat(deep), "]".repeat(deep)),
        ),
        ("l.yaml", "[".repeat(deep)),
        ("l.yaml", "{a: ".repeat(deep)),
        ("l.yaml", "- ".repeat(deep)),
        ("l.yaml", "? ".repeat(deep)),
        ("l.yaml", indented),
        ("l.yaml", indented_well),
        (
            "l.yaml",
            format!("{}1{}", "[".repeat(deep), "]".repeat(deep)),
        ),
    ] {
        let error = bench.load(name, &text).unwrap_err();
        let limit = matches!(error, SpecError::Limit { .. });
        assert!(
            limit || text.starts_with('?') || text.contains("  a:"),
            "{name}: {error}"
        );
    }
    let error = bench.load("config.json", "[".repeat(deep)).unwrap_err();
    at(&error, &bench.path().join("config.json"), 1, 65, "");
    // 64 deep is a matter of taste, and of the types.
    for name in ["config.json", "l.yaml"] {
        let text = format!("{}{}", "[".repeat(64), "]".repeat(64));
        let error = bench.load(name, text).unwrap_err();
        assert!(matches!(error, SpecError::Invalid { .. }), "{error}");
    }
}

#[test]
fn row_02_aliases_cost_what_they_stand_for() {
    let bench = Bench::new();
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..30 {
        let nine = vec![format!("*a{}", i - 1); 9].join(",");
        let _ = writeln!(bomb, "a{i}: &a{i} [{nine}]");
    }
    let mut stairs = "a0: &a0 [x]\n".to_owned();
    for i in 1..10_000 {
        let _ = writeln!(stairs, "a{i}: &a{i} [*a{}]", i - 1);
    }
    let text = format!(
        "a: &a \"{}\"\nb:\n{}",
        "x".repeat(4 << 20),
        "- *a\n".repeat(100_000)
    );
    let anchors = format!(
        "{}{}{}",
        "&a [".repeat(63),
        "x,".repeat(100_000),
        "]".repeat(63)
    );
    for (text, says) in [
        (bomb, "holds too much"),
        (stairs, "nested more than 64 deep"),
        (text, "holds too much"),
        (anchors, "holds too much"),
    ] {
        let error = bench.load("l.yaml", &text).unwrap_err();
        assert!(matches!(error, SpecError::Limit { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = bench.load("l.yaml", "a: &a [*a]\n").unwrap_err();
    assert!(matches!(error, SpecError::Syntax { .. }), "{error}");
}

#[test]
fn row_02_nothing_below_the_limit_takes_long() {
    let bench = Bench::new();
    let many = |count: usize, one: &dyn Fn(usize) -> Value| -> Vec<Value> {
        (0..count).map(one).collect()
    };
    let configs = [
        with(
            "/process/env",
            json!(many(400_000, &|i| json!(format!("A{i}=x")))),
        ),
        with(
            "/linux/namespaces",
            json!(many(200_000, &|i| json!({"type": i.to_string()}))),
        ),
        // On one line, each with a warning.
        with(
            "/mounts",
            json!(many(
                60_000,
                &|i| json!({"destination": format!("{i}"), "type": "tmpfs"})
            )),
        ),
        with(
            "/annotations",
            Value::Object(
                (0..100_000)
                    .map(|i| (format!("dev.fcpipe.{i}"), json!("")))
                    .collect(),
            ),
        ),
        with(
            "/linux/uidMappings",
            json!(many(
                100_000,
                &|i| json!({"containerID": i, "hostID": i, "size": 1})
            )),
        ),
        with_mount(json!({
            "destination": "/a", "source": "/s",
            "options": (0..400_000).map(|_| "nosuid").collect::<Vec<_>>(),
        })),
    ];
    for config in configs {
        let text = config.to_string();
        assert!(text.len() as u64 <= MAX_SPEC);
        // The processor's time, which no other program's work adds to.
        let seconds = || clock_gettime(ClockId::ThreadCPUTime).tv_sec;
        let before = seconds();
        let result = bench.load("config.json", &text);
        // Seconds on any machine in any profile; the quadratic ways that were here took minutes.
        let used = seconds() - before;
        assert!(used < 30, "{used} s: {}", &text[..200]);
        if let Ok(spec) = result {
            assert!(spec.warnings.len() <= 101);
        }
    }
}

/// A config with something in every field that is read.
fn rich() -> Value {
    let mut config = config();
    for (pointer, value) in [
        ("/process/env", json!(["A=1"])),
        (
            "/process/user",
            json!({"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}),
        ),
        (
            "/mounts",
            json!([
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
                {"destination": "/a", "source": "a", "options": ["rbind", "x-fcpipe.owner=1:2", "x-fcpipe.idmap=0:0:9"],
                 "uidMappings": [{"containerID": 0, "hostID": 5, "size": 10}]},
            ]),
        ),
        (
            "/linux",
            json!({
                "namespaces": [{"type": "user"}, {"type": "network", "path": "/n"}],
                "uidMappings": [{"containerID": 0, "hostID": 5, "size": 10}],
                "cgroupsPath": "x", "resources": {"cpu": {"quota": 1, "period": 2}, "memory": {"limit": 9}},
            }),
        ),
        (
            "/annotations",
            json!({"dev.fcpipe.disk.size": "1GiB", "dev.fcpipe.machine.balloon.size": "1"}),
        ),
    ] {
        crate::set(&mut config, pointer, value);
    }
    config
}

const RICH_YAML: &str = "version: 1\nrootfs: {path: rootfs, owner: 0:0, idmap: [u:0:1:2, \"g:0:1:2\"], exclude: &e [a, b]}\n\
    process: {args: [a, 1], env: [A=1], cwd: /, user: {uid: 1, umask: 0o22}}\nmounts:\n  - source: a\n    \
    destination: /a\n    policy: lazy\n    exclude: *e\n  - {destination: /t, type: tmpfs, options: [ro]}\n\
    machine: {vcpus: 2, memory: 1GiB, balloon: {size: 1MiB}}\ndisk: {rate_limit: {ops: 3}}\nnetwork: {mode: own}\n";

/// Values that sit on an edge of some type or rule.
const EDGES: &[&str] = &[
    "null",
    "true",
    "-1",
    "0",
    "1",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "1.5",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[]",
    "{}",
    "[null]",
    "{\"\": null}",
    "\"..\"",
    "\"/\"",
    "[[[]]]",
    "\"0:0:0\"",
    "\"99999999999999999999TiB\"",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), json in any::<bool>()) {
        let bench = Bench::new();
        let _ = bench.load(if json { "config.json" } else { "l.yaml" }, bytes);
    }

    #[test]
    fn random_words_never_panic(
        words in proptest::collection::vec(proptest::sample::select(
            [EDGES, &["{", "}", "[", "]", ":", ",", "- ", "? ", "\n", "  ", "&a ", "*a", "|\n", "\"", "'", "#", "---\n", "%",
                "\"ociVersion\"", "rootfs: ", "mounts: ", "\u{feff}", "\u{2028}", "é", "!t "]].concat()), 0..40),
        json in any::<bool>(),
    ) {
        let bench = Bench::new();
        let result = bench.load(if json { "config.json" } else { "l.yaml" }, words.concat());
        if let Err(error) = result {
            prop_assert!(error.to_string().chars().all(|c| !c.is_control()), "{error:?}");
        }
    }

    /// A valid spec with a piece cut out, doubled, or replaced.
    #[test]
    fn mutated_specs_never_panic(
        json in any::<bool>(), at in any::<proptest::sample::Index>(), length in 0usize..30,
        with in proptest::sample::select(EDGES), doubled in any::<bool>(),
    ) {
        let text = if json { rich().to_string() } else { RICH_YAML.to_owned() };
        let start = at.index(text.len());
        let end = (start + length).min(text.len());
        let mut bytes = text.as_bytes()[..start].to_vec();
        if doubled {
            bytes.extend(&text.as_bytes()[start..end]);
            bytes.extend(&text.as_bytes()[start..]);
        } else {
            bytes.extend(with.as_bytes());
            bytes.extend(&text.as_bytes()[end..]);
        }
        let bench = Bench::new();
        let _ = bench.load(if json { "config.json" } else { "l.yaml" }, bytes);
    }

    /// Each value of a valid config in turn replaced by one on an edge: an error names a field.
    #[test]
    fn edge_values_give_a_spec_or_an_error_with_a_field(
        at in any::<proptest::sample::Index>(), edge in proptest::sample::select(EDGES),
    ) {
        let mut config = rich();
        let mut pointers = Vec::new();
        leaves(&config, String::new(), &mut pointers);
        let pointer = at.get(&pointers).clone();
        *config.pointer_mut(&pointer).unwrap() = json!("@@");
        let text = config.to_string().replacen("\"@@\"", edge, 1);
        let bench = Bench::new();
        if let Err(error) = bench.load("config.json", text) {
            prop_assert!(error.field().is_some(), "{pointer} = {edge}: {error}");
            prop_assert!(error.line().is_some() && error.column().is_some());
        }
    }
}

/// Pointers to everything below `value`.
fn leaves(value: &Value, at: String, out: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (k.replace('~', "~0").replace('/', "~1"), v))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in inner {
        let at = format!("{at}/{key}");
        out.push(at.clone());
        leaves(value, at, out);
    }
}

#[test]
fn the_rich_specs_of_these_tests_are_valid() {
    let bench = Bench::new();
    bench.oci(&rich()).unwrap();
    bench.load("l.yaml", RICH_YAML).unwrap();
}
