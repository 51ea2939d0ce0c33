//! The schema and the reader say the same of a launch file's form; somebody else's validator judges by the schema.

use serde_json::{Value, json};

use crate::{Bench, set};

fn valid(spec: &Value) -> bool {
    let validator = jsonschema::validator_for(&fcpipe_spec::launch_file_schema()).unwrap();
    validator.is_valid(spec)
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
    assert!(valid(&full()));
    read(&full()).unwrap();
    for (pointer, value) in [
        ("/rootfs", json!("./rootfs")),
        ("/rootfs/idmap", json!("u:0:1000:1")),
        ("/machine/memory", json!(536_870_912)),
        ("/disk", json!(null)),
    ] {
        let mut spec = full();
        set(&mut spec, pointer, value);
        assert!(valid(&spec), "{pointer}");
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
    ] {
        let mut spec = full();
        set(&mut spec, pointer, value);
        assert!(!valid(&spec), "{pointer}");
        assert!(read(&spec).is_err(), "{pointer}");
    }
    let mut rootless = full();
    rootless.as_object_mut().unwrap().remove("rootfs");
    assert!(!valid(&rootless));
    assert!(read(&rootless).is_err());
    rootless["bundle"] = json!("./bundle");
    assert!(valid(&rootless));
}
