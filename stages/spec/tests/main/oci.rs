//! An OCI config as it is: rows 3, 4 and 5, and what each of its fields becomes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use fcpipe_spec::{CpuQuota, IdRange, LoadOptions, NetworkMode, SpecError, Writes, load};
use serde_json::{Value, json};

use crate::{Bench, at, bind, config, options, set, with};

#[test]
fn the_least_config_has_defaults() {
    let bench = Bench::new();
    let spec = bench.oci(&config()).unwrap();
    assert_eq!(spec.file, bench.path().join("config.json"));
    assert_eq!(spec.root.path, bench.path().join("rootfs"));
    assert_eq!(spec.process.args, ["true"]);
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (1, 512 << 20));
    assert_eq!(spec.network.mode, NetworkMode::Auto);
    assert!(spec.mounts.is_empty() && spec.warnings.is_empty() && !spec.root.readonly);
    // The bundle's directory means the same.
    assert_eq!(load(&bench.path(), &options()).unwrap(), spec);
}

#[test]
fn every_field_that_is_read() {
    let bench = Bench::new();
    let mut config = config();
    for (pointer, value) in [
        ("/root/readonly", json!(true)),
        ("/hostname", json!("h")),
        ("/domainname", json!("d.example")),
        (
            "/process",
            json!({
                "terminal": true, "noNewPrivileges": true, "cwd": "/home/../srv", "args": ["sh", "-c", "x"],
                "env": ["A=1", "B=2", "A=3"],
                "user": {"uid": 4294967294u32, "gid": 7, "umask": 18, "additionalGids": [1, 2]},
            }),
        ),
        ("/linux/cgroupsPath", json!("/a/../../b")),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "network", "path": "/var/run/netns/c1"}]),
        ),
        (
            "/linux/resources/cpu",
            json!({"quota": 50000, "period": 100000}),
        ),
        ("/linux/resources/memory", json!({"limit": 1 << 30})),
        (
            "/annotations",
            json!({"other": "x", "dev.fcpipe.disk.writes": "clone", "dev.fcpipe.disk.journal": "true"}),
        ),
    ] {
        set(&mut config, pointer, value);
    }
    let spec = bench.oci(&config).unwrap();
    assert!(spec.root.readonly && spec.process.terminal && spec.process.no_new_privileges);
    assert_eq!(spec.hostname.as_deref(), Some("h"));
    assert_eq!(spec.domainname.as_deref(), Some("d.example"));
    assert_eq!(spec.process.env, ["B=2", "A=3"]);
    assert_eq!(spec.process.cwd, Path::new("/srv"));
    assert_eq!((spec.process.uid, spec.process.gid), (4_294_967_294, 7));
    assert_eq!(spec.process.umask, Some(0o022));
    assert_eq!(spec.process.additional_gids, [1, 2]);
    assert_eq!(spec.cgroups_path.as_deref(), Some(Path::new("/b")));
    assert_eq!(
        spec.network.netns.as_deref(),
        Some(Path::new("/var/run/netns/c1"))
    );
    let quota = CpuQuota {
        quota_us: 50_000,
        period_us: 100_000,
    };
    assert_eq!(
        (spec.machine.vcpus, spec.machine.cpu_quota),
        (1, Some(quota))
    );
    assert_eq!(spec.machine.memory, 1 << 30);
    assert_eq!((spec.disk.writes, spec.disk.journal), (Writes::Clone, true));
    assert_eq!(spec.annotations.len(), 3);
    assert!(spec.warnings.is_empty(), "{:?}", spec.warnings);
}

#[test]
fn rules_about_devices_are_told_to_have_no_effect_where_a_process_could_notice() {
    let bench = Bench::new();
    let warned = |rules: Value, capabilities: Value| {
        let mut config = with("/linux/resources/devices", rules);
        set(&mut config, "/process/capabilities", capabilities);
        let spec = bench.oci(&config).unwrap();
        let about = |warning: &&String| warning.contains("linux.resources.devices");
        spec.warnings.iter().filter(about).count()
    };
    let usual = || json!([{"allow": false, "access": "rwm"}]);
    let mknod = || json!({"bounding": ["CAP_MKNOD"]});
    assert_eq!(warned(usual(), mknod()), 1);
    assert_eq!(warned(usual(), json!({"bounding": ["CAP_KILL"]})), 0);
    assert_eq!(warned(json!([{"allow": true}]), mknod()), 0);
}

#[test]
fn a_relative_cgroup_stays_below_where_the_runtime_puts_its_own() {
    let bench = Bench::new();
    let spec = bench
        .oci(&with("/linux/cgroupsPath", json!("../../pods/./x")))
        .unwrap();
    assert_eq!(spec.cgroups_path.as_deref(), Some(Path::new("pods/x")));
}

#[test]
fn row_03_unknown_fields_of_an_oci_config_are_ignored() {
    let bench = Bench::new();
    let plain = bench.oci(&config()).unwrap();
    for pointer in [
        "/surprise",
        "/root/surprise",
        "/process/surprise",
        "/linux/surprise",
        "/annotations/surprise",
    ] {
        let value = match pointer {
            "/annotations/surprise" => json!("x"),
            _ => json!({"deep": [1, null, {"er": 1.5e300}]}),
        };
        let mut spec = bench.oci(&with(pointer, value)).unwrap();
        spec.annotations.clear();
        assert_eq!(spec, plain, "{pointer}");
    }
    // Go writes null for what is empty.
    for pointer in [
        "/mounts",
        "/linux",
        "/annotations",
        "/hostname",
        "/process/env",
        "/process/user",
        "/linux/resources",
    ] {
        assert_eq!(
            bench.oci(&with(pointer, Value::Null)).unwrap(),
            plain,
            "{pointer}"
        );
    }
}

#[test]
fn row_03_unknown_annotations_of_ours_name_the_nearest() {
    let bench = Bench::new();
    for (name, nearest) in [
        ("dev.fcpipe.disk.bakcing", Some("dev.fcpipe.disk.backing")),
        ("dev.fcpipe.dsk.backing", Some("dev.fcpipe.disk")),
        ("dev.fcpipe.zebra", None),
    ] {
        let error = bench
            .oci(&with("/annotations", json!({ name: "file" })))
            .unwrap_err();
        assert!(matches!(error, SpecError::Unknown { .. }), "{error}");
        assert!(error.to_string().ends_with("there is no such annotation"));
        assert_eq!(
            error.hint(),
            nearest.map(|name| format!("did you mean `{name}`?"))
        );
        if nearest.is_some_and(|nearest| nearest.contains("backing")) {
            assert_eq!(error.field(), Some(&*format!("annotations[\"{name}\"]")));
        }
    }
    for name in ["dev.fcpipe.", "dev.fcpipe..x", "dev.fcpipe.disk"] {
        let error = bench
            .oci(&with("/annotations", json!({ name: "file" })))
            .unwrap_err();
        assert!(error.field().unwrap().starts_with("annotations"), "{error}");
    }
}

#[test]
fn an_annotations_value_is_named_by_its_own_place() {
    let bench = Bench::new();
    let text = "{\"ociVersion\": \"1.0.0\", \"root\": {\"path\": \"rootfs\"},\n \"annotations\": {\n  \"dev.fcpipe.machine.balloon.size\": \"much\"}}";
    let error = bench.load("config.json", text).unwrap_err();
    at(
        &error,
        &bench.path().join("config.json"),
        3,
        38,
        "annotations[\"dev.fcpipe.machine.balloon.size\"]",
    );
}

#[test]
fn row_04_the_oci_version_is_checked() {
    let bench = Bench::new();
    let mut missing = config();
    missing.as_object_mut().unwrap().remove("ociVersion");
    let error = bench.oci(&missing).unwrap_err();
    at(
        &error,
        &bench.path().join("config.json"),
        1,
        1,
        "ociVersion",
    );
    // By its content, whatever its name is.
    let error = bench.load("bundle.json", missing.to_string()).unwrap_err();
    assert_eq!(error.field(), Some("ociVersion"));
    for version in [
        "2.0.0", "0.9.0", "", "1", "1.0", "v1.0.0", "1..0", "1.0.0.0", "latest",
    ] {
        let error = bench.oci(&with("/ociVersion", json!(version))).unwrap_err();
        assert_eq!(error.field(), Some("ociVersion"), "{version}");
    }
    for version in ["1.0.0", "1.0.2-dev", "1.3.0", "1.0.0-rc5+x"] {
        bench.oci(&with("/ociVersion", json!(version))).unwrap();
    }
}

#[test]
fn row_04_arguments_are_checked() {
    let bench = Bench::new();
    for (pointer, value, field) in [
        ("/process", Value::Null, "process.args"),
        ("/process/args", Value::Null, "process.args"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a", "b\0c"]), "process.args[1]"),
        ("/process/env", json!(["A=\0"]), "process.env[0]"),
        ("/process/env", json!(["A=1", "B"]), "process.env[1]"),
        ("/process/env", json!(["=x"]), "process.env[0]"),
        ("/process/cwd", json!("srv"), "process.cwd"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/user/umask", json!(512), "process.user.umask"),
        ("/hostname", json!("a".repeat(65)), "hostname"),
        ("/root", Value::Null, "root"),
        ("/root", json!({}), "root.path"),
        ("/root/path", json!(""), "root.path"),
        ("/root/path", json!("a\0b"), "root.path"),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "pid"}]),
            "linux.namespaces[1].type",
        ),
        ("/linux/namespaces", json!([{}]), "linux.namespaces[0].type"),
    ] {
        let error = bench.oci(&with(pointer, value.clone())).unwrap_err();
        assert_eq!(error.field(), Some(field), "{pointer} {value}: {error}");
        assert!(!error.to_string().contains('\0'));
    }
}

#[test]
fn row_05_the_root_must_be_a_directory_and_its_symlink_is_followed() {
    let bench = Bench::new();
    let path = bench.path();
    fs::write(path.join("file"), "").unwrap();
    symlink("file", path.join("to-file")).unwrap();
    symlink("rootfs", path.join("one")).unwrap();
    symlink("one", path.join("two")).unwrap();
    symlink("loop", path.join("loop")).unwrap();
    for root in ["nothing", "file", "to-file", "loop", "file/x"] {
        let error = bench.oci(&with("/root/path", json!(root))).unwrap_err();
        assert!(matches!(error, SpecError::Host { .. }), "{error}");
        assert_eq!(error.field(), Some("root.path"));
        let named = path.join(root);
        assert!(
            error.to_string().contains(named.to_str().unwrap()),
            "{error}"
        );
    }
    for root in ["one", "two", "./rootfs/.", "rootfs/../one"] {
        let spec = bench.oci(&with("/root/path", json!(root))).unwrap();
        assert_eq!(spec.root.path, path.join("rootfs"), "{root}");
    }
}

#[test]
fn ids_are_mapped_only_by_a_user_namespace() {
    let bench = Bench::new();
    let mut config = with(
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": 100000, "size": 65536}]),
    );
    set(
        &mut config,
        "/linux/gidMappings",
        json!([{"containerID": 0, "hostID": 200000, "size": 1}]),
    );
    set(
        &mut config,
        "/mounts",
        json!([{"destination": "/a", "source": "a", "options": ["bind"]}]),
    );
    let spec = bench.oci(&config).unwrap();
    assert!(spec.root.content.uid_map.is_empty() && spec.warnings.len() == 1);
    set(&mut config, "/linux/namespaces", json!([{"type": "user"}]));
    let spec = bench.oci(&config).unwrap();
    let uid = [IdRange {
        inside: 0,
        host: 100_000,
        size: 65_536,
    }];
    let gid = [IdRange {
        inside: 0,
        host: 200_000,
        size: 1,
    }];
    for content in [&spec.root.content, &bind(&spec, 0).content] {
        assert_eq!(
            (&content.uid_map[..], &content.gid_map[..]),
            (&uid[..], &gid[..])
        );
    }
    set(
        &mut config,
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": 1, "size": 0}]),
    );
    assert_eq!(
        bench.oci(&config).unwrap_err().field(),
        Some("linux.uidMappings[0]")
    );
}

#[test]
fn an_idmapped_mount_is_seen_through_the_user_namespace() {
    let bench = Bench::new();
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 1000}]);
    let mut config = with("/linux/uidMappings", map.clone());
    set(&mut config, "/linux/gidMappings", map);
    set(&mut config, "/linux/namespaces", json!([{"type": "user"}]));
    set(
        &mut config,
        "/mounts",
        json!([
            {"destination": "/a", "source": "a", "options": ["bind", "idmap"]},
            {"destination": "/b", "source": "a", "options": ["bind"],
             "uidMappings": [{"containerID": 500, "hostID": 100900, "size": 200}]},
        ]),
    );
    let spec = bench.oci(&config).unwrap();
    // With the namespace's own ranges ids on disk are those inside.
    assert_eq!(
        bind(&spec, 0).content.uid_map,
        [IdRange {
            inside: 0,
            host: 0,
            size: 1000
        }]
    );
    // What the namespace has no id for falls away.
    assert_eq!(
        bind(&spec, 1).content.uid_map,
        [IdRange {
            inside: 900,
            host: 500,
            size: 100
        }]
    );
}

#[test]
fn strict_makes_an_error_of_a_warning() {
    let bench = Bench::new();
    let config = with("/linux/resources/cpu", json!({"quota": 100000}));
    assert_eq!(bench.oci(&config).unwrap().warnings.len(), 1);
    let strict = LoadOptions {
        strict: true,
        ..options()
    };
    let error = load(&bench.path(), &strict).unwrap_err();
    assert!(matches!(error, SpecError::Strict { .. }));
    assert_eq!(error.field(), Some("linux.resources.cpu.quota"));
}
