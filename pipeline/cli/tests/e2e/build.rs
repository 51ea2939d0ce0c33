//! `fcpipe build`: images that e2fsck accepts, the same bytes every time, and nothing left on failure.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::mounts::MountPoint;
use crate::world::{Leftovers, World, assert_code, not_root, skip};

fn build(world: &World, bundle: &Path, image: &str, more: &[&str]) -> Output {
    world
        .fcpipe()
        .args(["--format", "json", "build"])
        .arg(bundle)
        .arg("-o")
        .arg(world.path(image))
        .args(more)
        .output()
        .unwrap()
}

fn result(output: &Output) -> Value {
    assert_code(output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn e2fsck(image: &Path) {
    let output = Command::new("/sbin/e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .unwrap();
    assert_code(&output, 0);
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("/sbin/debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_image_holds_the_root_and_every_mount() {
    let world = World::new();
    let code = world.path("code");
    fs::create_dir(&code).unwrap();
    fs::write(code.join("hello.txt"), "hello\n").unwrap();
    fs::write(world.path("motd"), "a file mount\n").unwrap();
    let bundle = world.bundle(
        &["true"],
        &[
            json!({"destination": "/mnt/code", "type": "bind", "source": code, "options": ["bind"]}),
            json!({"destination": "/etc/motd", "type": "bind", "source": world.path("motd"), "options": ["bind"]}),
            json!({"destination": "/mnt/later", "type": "bind", "source": world.path("missing"), "options": ["bind"]}),
        ],
    );
    let output = build(&world, &bundle, "a.img", &["--digest"]);
    // Row 10: a missing source is an empty directory, and said.
    assert!(
        String::from_utf8(output.stderr.clone())
            .unwrap()
            .contains("does not exist")
    );
    let built = result(&output);
    assert_eq!(built["outcome"], "ran");
    assert!(built["digest"].as_str().unwrap().starts_with("blake3:"));
    let image = world.path("a.img");
    assert_eq!(built["size"], image.metadata().unwrap().len());
    e2fsck(&image);
    assert_eq!(debugfs(&image, "cat /mnt/code/hello.txt"), "hello\n");
    assert_eq!(debugfs(&image, "cat /etc/motd"), "a file mount\n");
    assert!(debugfs(&image, "stat /mnt/later").contains("Type: directory"));
    let output = build(&world, &bundle, "b.img", &["--strict"]);
    assert_code(&output, 1);
    assert!(!world.path("b.img").exists());
}

#[test]
fn a_second_build_is_a_hit_until_something_changes() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let outcome = |more: &[&str]| result(&build(&world, &bundle, "a.img", more))["outcome"].clone();
    assert_eq!(outcome(&[]), "ran");
    assert_eq!(outcome(&[]), "hit");
    assert_eq!(outcome(&["--cache", "require"]), "hit");
    fs::write(bundle.join("rootfs/etc/new"), "new\n").unwrap();
    assert_code(&build(&world, &bundle, "a.img", &["--cache", "require"]), 1);
    assert_eq!(outcome(&[]), "ran");
    assert_eq!(debugfs(&world.path("a.img"), "cat /etc/new"), "new\n");
    // Other bytes under the same size and mtime: only the file's ctime tells.
    let file = bundle.join("rootfs/etc/new");
    let mtime = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "wen\n").unwrap();
    let handle = fs::File::options().write(true).open(&file).unwrap();
    handle.set_modified(mtime).unwrap();
    drop(handle);
    assert_eq!(outcome(&[]), "ran");
    assert_eq!(debugfs(&world.path("a.img"), "cat /etc/new"), "wen\n");
    assert_eq!(outcome(&[]), "hit");
    // Somebody wrote to the image: it is not what was built any more.
    fs::write(world.path("a.img"), "not an image").unwrap();
    assert_eq!(outcome(&[]), "ran");
    e2fsck(&world.path("a.img"));
}

#[test]
fn root_mke2fs_makes_an_image_of_the_same_files() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    result(&build(&world, &bundle, "a.img", &["--builder", "mke2fs"]));
    e2fsck(&world.path("a.img"));
    assert_eq!(
        debugfs(&world.path("a.img"), "cat /etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\n"
    );
}

#[test]
fn row_8_a_destination_through_a_symlink_of_the_root_stays_inside() {
    let world = World::new();
    let code = world.path("code");
    fs::create_dir(&code).unwrap();
    fs::write(code.join("f"), "inside\n").unwrap();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let mount =
        json!({"destination": "/link/code", "type": "bind", "source": code, "options": ["bind"]});
    let bundle = world.bundle(&["true"], &[mount]);
    symlink(&outside, bundle.join("rootfs/link")).unwrap();
    result(&build(&world, &bundle, "a.img", &[]));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let inside = format!("cat {}/code/f", outside.display());
    assert_eq!(debugfs(&world.path("a.img"), &inside), "inside\n");
}

#[test]
fn row_12_a_fifo_as_mount_source_is_refused_and_never_opened() {
    let world = World::new();
    let fifo = world.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let mount =
        json!({"destination": "/mnt/f", "type": "bind", "source": fifo, "options": ["bind"]});
    let bundle = world.bundle(&["true"], &[mount]);
    let output = build(&world, &bundle, "a.img", &[]);
    assert_code(&output, 1);
    assert!(String::from_utf8(output.stderr).unwrap().contains("FIFO"));
}

#[test]
fn row_13_the_output_inside_a_source_does_not_go_into_itself() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let image = "bundle/rootfs/image.ext4";
    result(&build(&world, &bundle, image, &[]));
    // The second build finds the first one's output in its source.
    let output = build(&world, &bundle, image, &["--cache", "off"]);
    result(&output);
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("left out")
    );
    assert!(!debugfs(&world.path(image), "ls /").contains("image.ext4"));
}

/// What runc shows as nobody's belongs to nobody in the image.
#[test]
fn root_owners_that_a_user_namespace_leaves_out_become_65534_and_are_told_of_once() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    for (name, uid, gid) in [
        ("inside", 1_000, 1_007),
        ("outside", 5, 1_000),
        ("alien", 6, 7),
    ] {
        let path = bundle.join("rootfs/etc").join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
    }
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let map = json!([{"containerID": 0, "hostID": 1_000, "size": 10}]);
    spec["linux"] = json!({
        "namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map,
    });
    fs::write(&config, spec.to_string()).unwrap();
    let output = build(&world, &bundle, "a.img", &[]);
    assert_code(&output, 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("65534").count(), 1, "{said}");
    let owner = |name: &str| {
        let stat = debugfs(&world.path("a.img"), &format!("stat /etc/{name}"));
        let words: Vec<&str> = stat.split_whitespace().collect();
        let after = |what: &str| {
            let at = words.iter().position(|word| *word == what).unwrap();
            words[at + 1].parse::<u32>().unwrap()
        };
        (after("User:"), after("Group:"))
    };
    assert_eq!(owner("inside"), (0, 7));
    assert_eq!(owner("outside"), (65_534, 0));
    assert_eq!(owner("alien"), (65_534, 65_534));
    e2fsck(&world.path("a.img"));
}

#[test]
fn root_row_31_a_full_disk_leaves_the_output_as_it_was() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    fs::write(bundle.join("rootfs/big"), vec![1u8; 12 << 20]).unwrap();
    let small = world.path("small");
    let mounted = MountPoint::tmpfs(small.clone(), "size=6m");
    fs::write(small.join("a.img"), "the old one").unwrap();
    let output = build(&world, &bundle, "small/a.img", &[]);
    let left: Vec<_> = fs::read_dir(&small)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    let old = fs::read(small.join("a.img")).unwrap();
    drop(mounted);
    assert_code(&output, 1);
    assert_eq!(left, ["a.img"]);
    assert_eq!(old, b"the old one");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("needs") && said.contains("left"), "{said}");
    Leftovers::of(&world).assert_none();
}

/// A bundle where everybody may read (the target directory need not be such a place), with a copy of the program.
struct Open(tempfile::TempDir);

impl Open {
    fn new(mounts: &Value) -> Open {
        let place = tempfile::Builder::new()
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        let open = Open(place);
        fs::copy(env!("CARGO_BIN_EXE_fcpipe"), open.path("fcpipe")).unwrap();
        fs::create_dir_all(open.path("bundle/rootfs/etc")).unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": mounts,
        });
        fs::write(open.path("bundle/config.json"), config.to_string()).unwrap();
        open
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `fcpipe build` as this user, with directories of its own.
    fn build_as(&self, uid: u32) -> Output {
        let own = self.path(&uid.to_string());
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::chown(&own, Some(uid), Some(uid)).unwrap();
        Command::new("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--"])
            .arg(self.path("fcpipe"))
            .args(["--format", "json", "build", "--digest", "-o"])
            .arg(own.join("image"))
            .arg(self.path("bundle"))
            .env("FCPIPE_CACHE_DIR", own.join("cache"))
            .env("FCPIPE_STATE_DIR", own.join("state"))
            .env("FCPIPE_DATA_DIR", own.join("data"))
            .output()
            .unwrap()
    }
}

#[test]
fn root_another_user_builds_the_same_bytes() {
    if skip(not_root()) {
        return;
    }
    let open = Open::new(&json!([]));
    let etc = open.path("bundle/rootfs/etc");
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n").unwrap();
    symlink("hosts", etc.join("link")).unwrap();
    std::os::unix::fs::chown(etc.join("hosts"), Some(1234), Some(70_000)).unwrap();
    let digest = |uid| result(&open.build_as(uid))["digest"].clone();
    assert_eq!(digest(0), digest(65_534));
}

#[test]
fn root_row_11_a_source_that_cannot_be_read_is_named_and_never_left_out() {
    if skip(not_root()) {
        return;
    }
    for (what, unreadable) in [("a directory", "secret"), ("a file", "secret/key")] {
        let open = Open::new(&json!([
            {"destination": "/mnt", "type": "bind", "source": "../secret", "options": ["bind"]}
        ]));
        fs::create_dir(open.path("secret")).unwrap();
        fs::write(open.path("secret/key"), "key").unwrap();
        let closed = open.path(unreadable);
        fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
        let output = open.build_as(65_534);
        let said = output.stderr.escape_ascii().to_string().replace("\\n", " ");
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        // A terminal's width may break the line within a path.
        let line = said.split_whitespace().collect::<String>();
        assert!(line.contains(unreadable), "{what}: {said}");
        assert!(line.contains("ermissiondenied"), "{what}: {said}");
        assert!(!open.path("65534/image").exists(), "{what}");
        // Root may read it: the spec was not at fault.
        result(&open.build_as(0));
    }
}

/// What enters the image is a miss when it changes alone; what does not is a hit, so the bytes are equal.
#[test]
fn each_field_of_a_spec_is_in_the_key_or_not_as_it_is_in_the_image_or_not() {
    let world = World::new();
    let code = world.path("code");
    fs::create_dir(&code).unwrap();
    fs::write(code.join("app.py"), "app").unwrap();
    fs::write(code.join("notes.txt"), "notes").unwrap();
    let bundle = world.bundle(&["true"], &[]);
    let build = |change: &dyn Fn(&mut Value)| {
        let mut spec = json!({
            "version": 1,
            "bundle": bundle,
            "process": {"args": ["true"], "env": ["A=1"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [{"source": code, "destination": "/mnt/code"}],
            "machine": {"vcpus": 1, "memory": "512MiB"},
            "hostname": "one",
        });
        change(&mut spec);
        let path = world.path("spec.json");
        fs::write(&path, spec.to_string()).unwrap();
        let output = build(&world, &path, "a.img", &["--digest"]);
        let built = result(&output);
        (built["outcome"].clone(), built["digest"].clone())
    };
    let (outcome, digest) = build(&|_| ());
    assert_eq!(outcome, "ran");

    type Change = (&'static str, fn(&mut Value));
    let outside: [Change; 8] = [
        ("args", |s| s["process"]["args"] = json!(["false"])),
        ("env", |s| s["process"]["env"] = json!(["B=2"])),
        ("cwd", |s| s["process"]["cwd"] = json!("/tmp")),
        ("user", |s| {
            s["process"]["user"] = json!({"uid": 7, "gid": 7})
        }),
        ("vcpus", |s| s["machine"]["vcpus"] = json!(2)),
        ("memory", |s| s["machine"]["memory"] = json!("1GiB")),
        ("hostname", |s| s["hostname"] = json!("two")),
        ("writes", |s| s["disk"] = json!({"writes": "copy"})),
    ];
    for (name, change) in outside {
        assert_eq!(build(&change), ("hit".into(), digest.clone()), "{name}");
    }
    let inside: [Change; 6] = [
        ("destination", |s| {
            s["mounts"][0]["destination"] = json!("/mnt/other")
        }),
        ("exclude", |s| s["mounts"][0]["exclude"] = json!(["*.txt"])),
        ("owner", |s| s["mounts"][0]["owner"] = json!("5:6")),
        ("mounts", |s| s["mounts"] = json!([])),
        ("size", |s| s["disk"] = json!({"size": "256MiB"})),
        ("journal", |s| s["disk"] = json!({"journal": true})),
    ];
    for (name, change) in inside {
        let (outcome, changed) = build(&change);
        assert_eq!(outcome, "ran", "{name}");
        assert_ne!(changed, digest, "{name}");
    }
    // A build under a name replaces the one before; as it was at first, it is made of the same bytes.
    assert_eq!(build(&|_| ()).1, digest);
}

/// Programs are run from there, and files are written.
#[test]
fn row_37_a_data_directory_of_another_user_is_not_used_needs_root() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    result(&build(&world, &bundle, "image", &[]));
    let data = world.path("data");
    // What somebody may have put in the place of what past launches are noted in.
    let victim = world.path("victim");
    fs::write(&victim, "precious").unwrap();
    for entry in fs::read_dir(data.join("history")).unwrap() {
        let noted = entry.unwrap().path();
        fs::remove_file(&noted).unwrap();
        symlink(&victim, &noted).unwrap();
    }
    std::os::unix::fs::chown(&data, Some(12345), None).unwrap();
    let refused = |args: &[&str]| {
        let output = world.fcpipe().args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        let said = format!("{} is not used", data.display());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(&said), "{args:?}: {stderr}");
    };
    let spec = bundle.to_str().unwrap();
    let image = world.path("second");
    refused(&["build", spec, "-o", image.to_str().unwrap()]);
    for command in ["run", "plan", "explain", "report"] {
        refused(&[command, spec]);
    }
    refused(&["doctor"]);
    refused(&["kernel", "import", "/boot/vmlinuz"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}
