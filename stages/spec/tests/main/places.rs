//! Row 1 and 3: an error says where, in both syntaxes and for all three kinds.

use fcpipe_spec::{LoadOptions, SpecError, load};

use crate::{Bench, at, options};

#[test]
fn row_01_text_that_is_no_json_or_yaml_names_line_column_and_field() {
    let bench = Bench::new();
    let file = bench.path().join("config.json");
    for (text, line, column, field) in [
        ("", 1, 1, ""),
        ("garbage", 1, 1, ""),
        (
            "{\n  \"ociVersion\": \"1.0.2\",\n  \"process\": {\"args\": [\"a\", tru",
            3,
            29,
            "process.args[1]",
        ),
        ("{\"ociVersion\": \"1.0", 1, 16, "ociVersion"),
        ("{\"root\": {\"path\": \"rootfs\"}", 1, 28, ""),
        ("{\"a\": 1,}", 1, 9, ""),
        ("{\"a\": 01}", 1, 8, "a"),
        ("{\"a\": \"\u{1}\"}", 1, 8, "a"),
        ("{\"a\": [1 2]}", 1, 10, "a"),
        ("{'a': 1}", 1, 2, ""),
        ("{\"a\": NaN}", 1, 7, "a"),
        ("{\"a\": 1} x", 1, 10, ""),
        ("{\"ä\": 1, \"b\" 2}", 1, 14, "b"),
        ("{\"a\": 1, // no\n \"b\": 2}", 1, 10, ""),
    ] {
        let error = bench.load("config.json", text).unwrap_err();
        assert!(matches!(error, SpecError::Syntax { .. }), "{text}: {error}");
        at(&error, &file, line, column, field);
    }
    let file = bench.path().join("launch.yaml");
    for (text, line, column, field) in [
        ("", 1, 1, ""),
        ("version: 1\nmounts: [{source: a", 2, 10, "mounts[0]"),
        (
            "version: 1\nprocess:\n  args: [a, \"b",
            3,
            13,
            "process.args[1]",
        ),
        ("version: 1\nmounts:\n\t- 2\n", 3, 2, "mounts"),
        ("version: 1\n---\nversion: 1\n", 2, 1, ""),
        ("version: !!int 1\n", 1, 16, "version"),
        ("rootfs: *nowhere\n", 1, 9, "rootfs"),
        ("? [a]\n: b\n", 1, 3, ""),
    ] {
        let error = bench.load("launch.yaml", text).unwrap_err();
        assert!(matches!(error, SpecError::Syntax { .. }), "{text}: {error}");
        at(&error, &file, line, column, field);
    }
}

#[test]
fn row_01_bytes_that_are_no_text_are_named_with_their_place() {
    let bench = Bench::new();
    for name in ["config.json", "launch.yaml"] {
        let error = bench.load(name, b"{\"a\":\n  \"\xff\"}").unwrap_err();
        at(&error, &bench.path().join(name), 2, 4, "");
        assert!(error.to_string().ends_with("byte 0xff is not UTF-8 here"));
    }
}

#[test]
fn row_01_a_name_that_stands_twice_is_refused() {
    let bench = Bench::new();
    let error = bench
        .load(
            "config.json",
            "{\"root\": {\"path\": \"a\",\n \"path\": \"b\"}}",
        )
        .unwrap_err();
    at(&error, &bench.path().join("config.json"), 2, 2, "root.path");
    let error = bench
        .load("launch.yaml", "machine:\n  smt: true\n  smt: false\n")
        .unwrap_err();
    at(
        &error,
        &bench.path().join("launch.yaml"),
        3,
        3,
        "machine.smt",
    );
}

#[test]
fn row_01_wrong_types_name_line_column_and_field() {
    let bench = Bench::new();
    let file = bench.path().join("config.json");
    for (text, column, field, says) in [
        ("[]", 1, "", "expected an object, found a list"),
        (
            "{\"ociVersion\": 1}",
            16,
            "ociVersion",
            "expected a string, found 1",
        ),
        (
            "{\"mounts\": {}}",
            12,
            "mounts",
            "expected a list, found an object",
        ),
        (
            "{\"mounts\": [3]}",
            13,
            "mounts[0]",
            "expected an object, found 3",
        ),
        (
            "{\"mounts\": [{\"options\": [\"ro\", 7]}]}",
            32,
            "mounts[0].options[1]",
            "expected a string, found 7",
        ),
        (
            "{\"process\": {\"user\": {\"uid\": -1}}}",
            30,
            "process.user.uid",
            "expected a whole number from 0 to 4294967295, found -1",
        ),
        (
            "{\"process\": {\"user\": {\"uid\": 1.5}}}",
            30,
            "process.user.uid",
            "expected a whole number from 0 to 4294967295, found 1.5",
        ),
        (
            "{\"process\": {\"terminal\": \"yes\"}}",
            26,
            "process.terminal",
            "expected true or false, found `yes`",
        ),
        (
            "{\"linux\": {\"resources\": {\"memory\": {\"limit\": 1e3}}}}",
            46,
            "linux.resources.memory.limit",
            "expected a whole number of at most 63 bits, found 1000",
        ),
        (
            "{\"annotations\": {\"a.b\": 1}}",
            25,
            "annotations[\"a.b\"]",
            "expected a string, found 1",
        ),
    ] {
        let error = bench.load("config.json", text).unwrap_err();
        at(&error, &file, 1, column, field);
        assert!(error.to_string().ends_with(says), "{error}");
    }
    let file = bench.path().join("launch.yaml");
    for (text, line, column, field) in [
        ("- a\n", 1, 1, ""),
        ("version: one\n", 1, 10, "version"),
        ("mounts:\n  - source: [a]\n", 2, 13, "mounts[0].source"),
        ("machine:\n  memory: lots\n", 2, 11, "machine.memory"),
        ("machine:\n  memory: -1\n", 2, 11, "machine.memory"),
        ("machine: {smt: yes}\n", 1, 16, "machine.smt"),
        ("machine: {balloon: {}}\n", 1, 20, "machine.balloon.size"),
        ("rootfs: [a]\n", 1, 9, "rootfs"),
        ("rootfs: {owner: 0}\n", 1, 17, "rootfs.owner"),
        ("disk: {size: 4GB}\n", 1, 14, "disk.size"),
        (
            "mounts: [{idmap: [\"0:0:1\", x]}]\n",
            1,
            18,
            "mounts[0].idmap",
        ),
    ] {
        let error = bench.load("launch.yaml", text).unwrap_err();
        assert!(
            matches!(error, SpecError::Invalid { .. }),
            "{text}: {error}"
        );
        at(&error, &file, line, column, field);
    }
}

#[test]
fn row_01_a_choice_that_is_none_has_a_hint() {
    let bench = Bench::new();
    let error = bench
        .load("launch.yaml", "disk: {writes: snapshto}\n")
        .unwrap_err();
    at(
        &error,
        &bench.path().join("launch.yaml"),
        1,
        16,
        "disk.writes",
    );
    assert_eq!(error.hint().as_deref(), Some("did you mean `snapshot`?"));
}

#[test]
fn row_01_a_file_that_cannot_be_read_is_named() {
    let bench = Bench::new();
    for (name, read) in [
        ("nothing.yaml", "nothing.yaml"),
        ("rootfs", "rootfs/config.json"),
    ] {
        let error = load(&bench.path().join(name), &options()).unwrap_err();
        assert_eq!(error.file(), Some(bench.path().join(read).as_path()));
        assert!(matches!(error, SpecError::Read { .. }), "{error}");
    }
    assert!(load("".as_ref(), &options()).is_err());
}

#[test]
fn row_03_an_unknown_field_of_a_launch_file_names_the_nearest() {
    let bench = Bench::new();
    let file = bench.path().join("launch.yaml");
    for (text, line, column, field, hint) in [
        ("rootf: a\n", 1, 1, "rootf", "rootfs"),
        (
            "version: 1\nmounts:\n  - destnation: /a\n",
            3,
            5,
            "mounts[0].destnation",
            "destination",
        ),
        ("machine: {mem: 1GiB}\n", 1, 11, "machine.mem", "memory"),
        (
            "process: {noNewPriviliges: true}\n",
            1,
            11,
            "process.noNewPriviliges",
            "noNewPrivileges",
        ),
        ("rootfs: {pth: a}\n", 1, 10, "rootfs.pth", "path"),
        (
            "disk: {rate_limit: {opps: 1}}\n",
            1,
            21,
            "disk.rate_limit.opps",
            "ops",
        ),
    ] {
        let error = bench.load("launch.yaml", text).unwrap_err();
        assert!(matches!(error, SpecError::Unknown { .. }), "{error}");
        at(&error, &file, line, column, field);
        assert_eq!(error.hint(), Some(format!("did you mean `{hint}`?")));
    }
    let error = bench.load("launch.yaml", "quux: null\n").unwrap_err();
    at(&error, &file, 1, 1, "quux");
    assert_eq!(error.hint(), None);
    // The same file as JSON.
    let error = bench
        .load("launch.json", "{\"version\": 1,\n \"rootf\": \"a\"}")
        .unwrap_err();
    at(&error, &bench.path().join("launch.json"), 2, 2, "rootf");
}

#[test]
fn row_15_names_with_control_characters_are_escaped() {
    let bench = Bench::new();
    let error = bench
        .load("launch.yaml", "\"a\\e[2J\\n\": 1\n")
        .unwrap_err();
    assert_eq!(error.field(), Some("[\"a\\u{1b}[2J\\n\"]"));
    let error = bench
        .load("launch.yaml", "disk: {group: \"\\e]0;x\\a\"}\n")
        .unwrap_err();
    assert!(
        error.to_string().chars().all(|c| !c.is_control()),
        "{error:?}"
    );
    let error = bench.load("a\u{1b}.yaml", "quux: 1\n").unwrap_err();
    assert!(
        error.to_string().chars().all(|c| !c.is_control()),
        "{error:?}"
    );
}

#[test]
fn overrides_are_named_as_such() {
    let bench = Bench::new();
    let file = bench.write("config.json", crate::config().to_string());
    for (option, sentence, hint) in [
        (
            "machine.memory=lots",
            "--set: machine.memory: `lots` is no size; write a whole number with KiB, MiB, GiB or TiB, as in 512MiB",
            None,
        ),
        (
            "machine.memroy=1GiB",
            "--set: machine.memroy: there is no such field",
            Some("did you mean `memory`?"),
        ),
        (
            "machine.memory",
            "--set `machine.memory`: has no `=`",
            Some("write it as in `--set machine.memory=1GiB`"),
        ),
        (
            "version=1",
            "--set: version: can't be set from outside the file",
            None,
        ),
        (
            "rootfs=/nowhere/at/all",
            "--set: rootfs: /nowhere/at/all: cannot be used as the root: No such file or directory (os error 2)",
            None,
        ),
    ] {
        let options = LoadOptions {
            overrides: vec![option.to_owned()],
            ..options()
        };
        let error = load(&file, &options).unwrap_err();
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.hint().as_deref(), hint);
        assert_eq!(
            (error.file(), error.line(), error.column()),
            (None, None, None)
        );
    }
    for option in [
        "=1",
        ".=1",
        "machine..memory=1",
        "a.b.c.d.e.f.g.h.i=1",
        "disk.size=[1",
        "machine=[a: b]",
    ] {
        let options = LoadOptions {
            overrides: vec![option.to_owned()],
            ..options()
        };
        assert!(load(&file, &options).is_err(), "{option}");
    }
}
