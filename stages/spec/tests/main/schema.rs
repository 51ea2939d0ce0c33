//! The schema and the reader say the same of a launch file's form; somebody else's validator judges by the schema.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::{Bench, set};

/// What the validator has against it.
fn faults(spec: &Value) -> Vec<String> {
    static SCHEMA: LazyLock<jsonschema::Validator> =
        LazyLock::new(|| jsonschema::validator_for(&fcpipe_spec::launch_file_schema()).unwrap());
    let faults = SCHEMA.iter_errors(spec);
    faults
        .map(|fault| format!("{}: {fault}", fault.instance_path()))
        .collect()
}

fn valid(spec: &Value) -> bool {
    faults(spec).is_empty()
}

/// Every field that a launch file has.
fn full() -> Value {
    json!({
        "version": 1,
        "rootfs": {"path": "./rootfs", "readonly": true, "trust": "full", "exclude": ["*.o"],
                   "owner": "0:0", "idmap": ["0:100000:65536"]},
        "process": {"args": ["/bin/sh"], "env": ["A=b"], "cwd": "/", "terminal": false,
                    "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}},
        "mounts": [
            {"source": "./code", "destination": "/mnt/code", "policy": "copy", "trust": "auto",
             "exclude": [".git"], "digest": "v1", "options": ["ro"]},
            {"destination": "/scratch", "type": "tmpfs", "options": ["size=64m"]},
        ],
        "hostname": "a", "domainname": "b",
        "machine": {"vcpus": 2, "memory": "512MiB", "balloon": {"size": 1_048_576}},
        "disk": {"group": "auto", "writes": "copy", "size": "4 GiB", "journal": false,
                 "rate_limit": {"bandwidth": "1M", "ops": 10}},
        "network": {"mode": "none"},
    })
}

#[test]
fn what_the_reader_takes_is_valid_and_what_it_refuses_is_not() {
    let bench = Bench::new();
    let read = |spec: &Value| bench.load("launch.json", spec.to_string()).map(drop);
    assert_eq!(faults(&full()), [""; 0]);
    read(&full()).unwrap();
    for (pointer, value) in [
        ("/rootfs", json!("./rootfs")),
        ("/rootfs/idmap", json!("u:0:1000:1")),
        ("/machine/memory", json!(536_870_912)),
        ("/disk", json!(null)),
        // The least is taken in its place, and said.
        ("/machine/vcpus", json!(0)),
        ("/machine/memory", json!(0)),
        ("/machine/vcpus", json!(u64::MAX)),
        ("/hostname", json!("a".repeat(64))),
        ("/process/user/uid", json!(u32::MAX)),
        ("/process/user/umask", json!(0o777)),
        ("/process/env/0", json!("A=")),
        ("/process/oomScoreAdj", json!(-1000)),
        (
            "/process/consoleSize",
            json!({"height": 65_535, "width": 0}),
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}]),
        ),
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_OF_TOMORROW"]}),
        ),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"})),
        ("/mounts/0/destination", json!("...")),
        (
            "/mounts/0/options",
            json!([
                "rbind",
                "x-fcpipe.policy=live",
                "x-fcpipe.immutable",
                "x-fcpipe.owner=0:0"
            ]),
        ),
        ("/mounts/0/type", json!("bind")),
        ("/mounts/0/type", json!("")),
        ("/mounts/0/type", json!(null)),
        ("/mounts/0/recursive", json!(true)),
        ("/mounts/1/policy", json!(null)),
        (
            "/mounts/1",
            json!({"source": "./a", "destination": "/a", "type": "ext4", "options": ["bind"]}),
        ),
        (
            "/mounts/1",
            json!({"source": "", "destination": "/a", "type": "proc"}),
        ),
        ("/network/search", json!("a, b")),
        ("/network/dns", json!(["::1", "10.0.0.1"])),
        ("/network/pool", json!("10.0.0.0/30")),
        ("/network/tap_prefix", json!("b9fc_")),
    ] {
        let mut spec = full();
        set(&mut spec, pointer, value);
        assert!(
            valid(&spec),
            "{pointer}: {}",
            spec.pointer(pointer).unwrap()
        );
        read(&spec).unwrap_or_else(|e| panic!("{pointer}: {e}"));
    }
    for (pointer, value) in [
        ("/mashine", json!({})),
        ("/machine/cpus", json!(2)),
        ("/version", json!(2)),
        ("/mounts/0", json!({"source": "./code"})),
        ("/rootfs/writable", json!(true)),
        ("/mounts/0/destinaton", json!("/x")),
        ("/process/user/name", json!("root")),
        ("/machine/memory", json!("512MB")),
        ("/machine/vcpus", json!("two")),
        ("/disk/writes", json!("reflink")),
        ("/rootfs/owner", json!("root")),
        ("/rootfs/idmap", json!(["0:1"])),
        ("/process/args", json!("sh")),
        ("/process/args", json!([])),
        ("/process/args", json!(null)),
        ("/process", json!({})),
        ("/rootfs", json!({"readonly": true})),
        ("/rootfs", json!("")),
        ("/rootfs/idmap", json!("0:1000:0")),
        ("/hostname", json!("a".repeat(65))),
        ("/process/user/uid", json!(1_u64 << 32)),
        ("/process/user/uid", json!(-1)),
        ("/process/user/umask", json!(0o1000)),
        ("/process/user/additionalGids", json!([1_u64 << 32])),
        ("/process/env/0", json!("A")),
        ("/process/env/0", json!("=b")),
        ("/process/cwd", json!("tmp")),
        ("/process/oomScoreAdj", json!(1001)),
        ("/process/consoleSize", json!({"height": 65_536})),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 1}]),
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_OF_TOMORROW", "soft": 1, "hard": 1}]),
        ),
        (
            "/process/rlimits",
            json!([{"type": null, "soft": 1, "hard": 1}]),
        ),
        ("/mounts/0/source", json!(null)),
        ("/mounts/0/source", json!("")),
        ("/mounts/0", json!({"destination": "/x"})),
        ("/mounts/0", json!({"destination": "/x", "type": "bind"})),
        (
            "/mounts/0",
            json!({"destination": "/x", "type": "tmpfs", "options": ["bind"]}),
        ),
        ("/mounts/0/destination", json!("")),
        ("/mounts/0/destination", json!("/")),
        ("/mounts/0/destination", json!("/.././")),
        ("/mounts/0/digest", json!("  ")),
        ("/mounts/0/type", json!("none")),
        ("/mounts/0/options", json!(["x-fcpipe.polcy=copy"])),
        ("/mounts/0/options", json!(["x-fcpipe.policy=move"])),
        ("/mounts/0/options", json!(["x-fcpipe.policy"])),
        ("/mounts/0/options", json!(["x-fcpipe.immutable=yes"])),
        ("/mounts/1/policy", json!("copy")),
        ("/mounts/1/recursive", json!(false)),
        ("/mounts/1/options", json!(["x-fcpipe.policy=copy"])),
        ("/machine/balloon", json!({"deflate_on_oom": true})),
        ("/network/dns", json!(["one"])),
        ("/network/dns", json!(vec!["::1"; 65])),
        ("/network/addresses", json!(["10.0.0.1/33"])),
        ("/network/pool", json!("10.0.0.0/31")),
        ("/network/tap_prefix", json!("-x")),
    ] {
        let mut spec = full();
        set(&mut spec, pointer, value);
        assert!(
            !valid(&spec),
            "{pointer}: {}",
            spec.pointer(pointer).unwrap()
        );
        assert!(
            read(&spec).is_err(),
            "{pointer}: {}",
            spec.pointer(pointer).unwrap()
        );
    }
    // What only the whole can tell, or a text's meaning.
    for (pointer, value) in [
        ("/mounts/0/destination", json!("/a/..")),
        ("/machine/balloon/size", json!("1T")),
        ("/machine/memory", json!("99999999999T")),
        ("/rootfs/owner", json!("4294967295:0")),
        ("/network/dns", json!("one")),
        ("/network/mode", json!("redirect")),
        ("/network/pool", json!("10.0.0.1/16")),
    ] {
        let mut spec = full();
        set(&mut spec, pointer, value);
        assert!(valid(&spec), "{pointer}");
        assert!(read(&spec).is_err(), "{pointer}");
    }
    let mut rootless = full();
    rootless.as_object_mut().unwrap().remove("rootfs");
    assert!(!valid(&rootless));
    assert!(read(&rootless).is_err());
    rootless["bundle"] = json!("./bundle");
    assert!(valid(&rootless));
}
