//! Mounts: what makes a bind, options, and row 6's destinations.

use std::path::Path;

use fcpipe_spec::{Content, IdRange, MountKind, Policy, SpecError};
use serde_json::{Value, json};

use crate::{Bench, bind, with_mount};

fn one(mount: Value) -> Result<fcpipe_spec::LaunchSpec, SpecError> {
    Bench::new().oci(&with_mount(mount))
}

#[test]
fn what_makes_a_bind() {
    for (kind, options, recursive) in [
        (json!("bind"), json!([]), false),
        (json!("none"), json!(["bind"]), false),
        (json!("none"), json!(["rbind"]), true),
        (json!("bind"), json!(["rbind"]), true),
        (json!("tmpfs"), json!(["rbind", "bind"]), true),
        (Value::Null, json!(["ro", "bind"]), false),
    ] {
        let spec =
            one(json!({"destination": "/a", "source": "/s", "type": kind, "options": options}))
                .unwrap();
        assert_eq!(bind(&spec, 0).recursive, recursive, "{kind} {options}");
        assert_eq!(bind(&spec, 0).source, Path::new("/s"));
    }
    for (kind, options) in [
        ("tmpfs", json!(["nosuid", "size=64k"])),
        ("proc", Value::Null),
    ] {
        let spec = one(json!({"destination": "/a", "type": kind, "options": options})).unwrap();
        let MountKind::Guest {
            fstype,
            source,
            options: kept,
        } = &spec.mounts[0].kind
        else {
            panic!("{spec:?}");
        };
        assert_eq!((fstype.as_str(), source.as_str()), (kind, kind));
        assert_eq!(
            json!(kept),
            if options.is_null() {
                json!([])
            } else {
                options
            }
        );
    }
}

#[test]
fn a_mount_that_says_too_little_is_named() {
    for (mount, field) in [
        (
            json!({"source": "a", "type": "bind"}),
            "mounts[0].destination",
        ),
        (
            json!({"destination": "", "type": "tmpfs"}),
            "mounts[0].destination",
        ),
        (
            json!({"destination": "/a", "type": "bind"}),
            "mounts[0].source",
        ),
        (
            json!({"destination": "/a", "type": "bind", "source": ""}),
            "mounts[0].source",
        ),
        (
            json!({"destination": "/a", "source": "/s"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/a", "source": "/s", "type": "none"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/a\0", "type": "tmpfs"}),
            "mounts[0].destination",
        ),
        (
            json!({"destination": "/a", "type": "tm\0pfs"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/a", "type": "tmpfs", "options": ["a\0"]}),
            "mounts[0].options[0]",
        ),
        (
            json!({"destination": "/a", "type": "bind", "source": "s",
                   "uidMappings": [{"containerID": 1, "hostID": 4294967295u32, "size": 1}]}),
            "mounts[0].uidMappings[0]",
        ),
    ] {
        let error = one(mount.clone()).unwrap_err();
        assert_eq!(error.field(), Some(field), "{mount}: {error}");
    }
}

#[test]
fn a_missing_source_is_no_matter_here() {
    let bench = Bench::new();
    let spec = bench
        .oci(&with_mount(
            json!({"destination": "/a", "source": "no/./where/", "options": ["bind"]}),
        ))
        .unwrap();
    assert_eq!(bind(&spec, 0).source, bench.path().join("no/where"));
    assert!(spec.warnings.is_empty());
}

#[test]
fn options_of_a_bind() {
    let spec = one(json!({
        "destination": "/a", "source": "/s",
        "options": [
            "rbind", "ro", "nosuid", "rnodev", "noexec", "exec", "noatime", "relatime", "rprivate",
            "x-fcpipe.policy=live", "x-fcpipe.immutable", "x-fcpipe.exclude=*.o", "x-fcpipe.exclude=a,b=c",
            "x-fcpipe.owner=5:6", "x-fcpipe.idmap=u:0:1000:1", "x-fcpipe.trust=content",
            "x-fcpipe.digest=v1",
        ],
    }))
    .unwrap();
    let bind = bind(&spec, 0);
    assert!(bind.readonly && bind.recursive && bind.immutable);
    assert_eq!(bind.flags, ["nosuid", "nodev", "relatime", "rprivate"]);
    assert_eq!(bind.policy, Policy::Live);
    assert_eq!(bind.trust, fcpipe_spec::Trust::Content);
    assert_eq!(bind.digest.as_deref(), Some("v1"));
    let content = Content {
        exclude: vec!["*.o".to_owned(), "a,b=c".to_owned()],
        owner: Some((5, 6)),
        uid_map: vec![IdRange {
            inside: 0,
            host: 1000,
            size: 1,
        }],
        gid_map: vec![],
    };
    assert_eq!(bind.content, content);
    let spec = one(json!({"destination": "/a", "source": "/s", "options": ["bind", "ro", "rw", "x-fcpipe.immutable=false"]})).unwrap();
    assert!(!crate::bind(&spec, 0).readonly && !crate::bind(&spec, 0).immutable);
}

#[test]
fn row_03_unknown_options_of_ours_name_the_nearest() {
    for (option, hint) in [
        (
            "x-fcpipe.polcy=live",
            Some("did you mean `x-fcpipe.policy`?"),
        ),
        (
            "x-fcpipe.imutable",
            Some("did you mean `x-fcpipe.immutable`?"),
        ),
        ("x-fcpipe.", None),
        ("x-fcpipe.policy=lzay", Some("did you mean `lazy`?")),
        ("x-fcpipe.policy", None),
        ("x-fcpipe.immutable=maybe", None),
        ("x-fcpipe.trust=ful", Some("did you mean `full`?")),
        ("x-fcpipe.digest= ", None),
        ("x-fcpipe.owner=me", None),
        ("x-fcpipe.idmap=0", None),
    ] {
        let error = one(json!({"destination": "/a", "source": "/s", "options": ["bind", option]}))
            .unwrap_err();
        assert_eq!(error.field(), Some("mounts[0].options[1]"), "{error}");
        assert_eq!(error.hint().as_deref(), hint);
    }
    // Others' x- options are theirs.
    one(json!({"destination": "/a", "source": "/s", "options": ["bind", "x-systemd.automount"]}))
        .unwrap();
    let error =
        one(json!({"destination": "/a", "type": "tmpfs", "options": ["x-fcpipe.policy=live"]}))
            .unwrap_err();
    assert_eq!(error.field(), Some("mounts[0].options[0]"));
}

#[test]
fn row_06_destinations_never_leave_the_root() {
    for (destination, path, warns) in [
        ("/a/b", "/a/b", false),
        ("//a/./b//", "/a/b", false),
        ("a/b", "/a/b", true),
        ("./a", "/a", true),
        ("/a/../b", "/b", true),
        ("/../../etc/passwd", "/etc/passwd", true),
        ("../../../etc", "/etc", true),
        ("/a/...", "/a/...", false),
    ] {
        for mount in [
            json!({"destination": destination, "source": "/s", "options": ["bind"]}),
            json!({"destination": destination, "type": "tmpfs"}),
        ] {
            let spec = one(mount).unwrap();
            assert_eq!(spec.mounts[0].destination, Path::new(path), "{destination}");
            assert_eq!(!spec.warnings.is_empty(), warns, "{:?}", spec.warnings);
        }
    }
}

#[test]
fn row_06_the_root_is_no_destination() {
    for destination in ["/", "//", "/.", "/a/..", ".", "..", "a/../.."] {
        for mount in [
            json!({"destination": destination, "source": "/s", "options": ["bind"]}),
            json!({"destination": destination, "type": "tmpfs"}),
        ] {
            let error = one(mount).unwrap_err();
            assert_eq!(
                error.field(),
                Some("mounts[0].destination"),
                "{destination}"
            );
            assert!(error.to_string().contains("the root itself"), "{error}");
            assert!(error.hint().unwrap().contains("root.path"));
        }
    }
}

#[test]
fn mounts_keep_their_order() {
    let bench = Bench::new();
    let mounts: Vec<Value> = ["/b", "/a", "/b", "/a/b"]
        .iter()
        .map(|d| json!({"destination": d, "type": "tmpfs"}))
        .collect();
    let spec = bench.oci(&crate::with("/mounts", json!(mounts))).unwrap();
    let order: Vec<_> = spec
        .mounts
        .iter()
        .map(|m| m.destination.to_str().unwrap())
        .collect();
    assert_eq!(order, ["/b", "/a", "/b", "/a/b"]);
}
