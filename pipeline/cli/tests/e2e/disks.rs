//! Where a machine's writes go: in each way the guest sees the source's tree, writes what it likes, and changes nothing
//! that anybody else sees.

mod base;
mod bed;
mod kills;
mod near;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::mounts::MountPoint;
use crate::probe::probe;
use crate::world::{Leftovers, World, assert_code, not_root, skip, skip_without_machine};

use bed::{Mounted, compare, contents, images, lines, run, walk, world_with_tree, xfs};

fn the_guest_sees_the_source(way: &str, on: Option<&Mounted>) {
    let (world, bundle, source) = world_with_tree(fcpipe_treegen::seed());
    let guest = run(&world, way, &bundle, on).output().unwrap();
    compare(source, lines(guest));
    Leftovers::of(&world).assert_none();
}

#[test]
fn needs_root_qemu_the_guest_sees_the_source_with_snapshot() {
    if !skip(not_root()) && !skip_without_machine() {
        the_guest_sees_the_source("snapshot", None);
    }
}

/// The guest's kernel makes sure of each value that is not beside its name, and does so in its own version's way.
#[test]
fn needs_root_qemu_row_21_large_attributes_with_any_names_are_read_by_the_guest() {
    // An ext4 of the host's may have no room for what is larger than a block.
    let Some(xfs) = (!skip_without_machine()).then(xfs).flatten() else {
        return;
    };
    let source = xfs.path("tree");
    for (file, name) in [
        ("plain", "user.plain"),
        ("umlaut", "user.für"),
        ("kanji", "user.名"),
    ] {
        fs::create_dir_all(&source).unwrap();
        let file = source.join(file);
        fs::write(&file, "").unwrap();
        for (number, size) in [(1, 3000), (2, 3500), (3, 60_000)] {
            let name = format!("{name}{number}");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&file, name, &vec![b'x'; size], flags).unwrap();
        }
    }
    let world = World::new();
    let mount = json!({"destination": "/mnt", "type": "bind", "source": &source});
    let bundle = world.bundle(&["/bin/probe", "walk", "/mnt"], &[mount]);
    fs::copy(probe(), bundle.join("rootfs/bin/probe")).unwrap();
    let output = world
        .with_kernel()
        .arg("run")
        .arg(&bundle)
        .output()
        .unwrap();
    compare(walk(&source, &[]), lines(output));
    Leftovers::of(&world).assert_none();
}

#[test]
fn needs_root_qemu_the_guest_sees_the_source_with_copy() {
    if !skip(not_root()) && !skip_without_machine() {
        the_guest_sees_the_source("copy", None);
    }
}

#[test]
fn needs_root_qemu_the_guest_sees_the_source_with_clone_on_xfs_and_btrfs() {
    if skip_without_machine() {
        return;
    }
    if let Some(xfs) = xfs() {
        the_guest_sees_the_source("clone", Some(&xfs));
    }
    if not_root().is_none()
        && let Some(btrfs) = Mounted::new(&["mkfs.btrfs", "-q"], 1024)
    {
        the_guest_sees_the_source("clone", Some(&btrfs));
    }
}

/// Where the kernel's XFS calls data a hole (docs/scan.md), no byte is missing for that.
#[test]
fn needs_root_row_19_a_shared_file_of_xfs_that_was_written_to_is_whole_in_the_image() {
    let Some(xfs) = xfs() else { return };
    let source = xfs.path("source");
    fs::create_dir(&source).unwrap();
    let script = "truncate -s 32M a
        dd if=/dev/urandom of=a bs=4096 seek=516 count=2000 conv=notrunc oflag=direct status=none
        sync; cp --reflink=always a b
        dd if=/dev/urandom of=b bs=4096 seek=526 count=1 conv=notrunc oflag=direct status=none";
    let mut sh = Command::new("sh");
    sh.args(["-ec", script]).current_dir(&source);
    assert!(sh.status().unwrap().success());

    let world = World::new();
    let mount =
        json!({"destination": "/mnt", "type": "bind", "source": &source, "options": ["bind"]});
    let bundle = world.bundle(&["true"], &[mount]);
    let (image, on) = (world.path("image"), world.path("on"));
    let built = world
        .fcpipe()
        .arg("build")
        .arg(bundle)
        .arg("-o")
        .arg(&image)
        .output();
    assert_code(&built.unwrap(), 0);
    fs::create_dir(&on).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-o", "loop,ro"]).args([&image, &on]);
    assert!(mount.status().unwrap().success());
    let same = ["a", "b"].map(|name| {
        let mut cmp = Command::new("cmp");
        let files = [source.join(name), on.join("mnt").join(name)];
        cmp.args(files).status().unwrap().success()
    });
    let _ = Command::new("umount").arg(&on).status();
    assert_eq!(same, [true, true]);
}

/// What an overlay file system hides of the image, as docs/disks.md lists it.
#[test]
fn needs_root_qemu_the_guest_sees_the_source_with_overlay_but_for_the_listed_differences() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    let (world, bundle, mut source) = world_with_tree(fcpipe_treegen::seed());
    let odd = bundle.join("rootfs/tmp");
    let ran = |command: &mut Command| assert!(command.status().is_ok_and(|s| s.success()));
    ran(Command::new("mknod")
        .arg(odd.join("zero"))
        .args(["c", "0", "0"]));
    ran(Command::new("setfattr")
        .args(["-n", "trusted.overlay.mine", "-v", "x"])
        .arg(bundle.join("rootfs/etc/passwd")));
    source.retain(|line| !line.starts_with("/tmp "));
    source.extend(walk(&odd, &[]).into_iter().filter_map(|line| {
        // The test's own tree may hold such devices too, and they go the same way.
        Some(format!("/tmp {}", line.strip_prefix("/ ")?))
    }));
    source.retain(|line| !line.ends_with(" device=0x0") && !line.contains(" device=0x0 "));
    let mut guest = lines(run(&world, "overlay", &bundle, None).output().unwrap());
    guest.retain(|line| !line.ends_with(" gone"));
    compare(source, guest);
}

/// A guest that fills its disk, and writes to every file that was there.
const FILL: &str = "busybox dd if=/dev/zero of=/fill bs=1M 2>/dev/null; busybox sync; busybox rm /fill; \
    find / -xdev -type f ! -path '/bin/*' -exec sh -c 'echo changed >> \"$0\"' {} ';' ; \
    busybox mkdir /new && busybox mv /etc /new/etc && busybox sync && cat /new/etc/passwd | wc -l";

fn nobody_else_sees_writes(way: &str, on: Option<&Mounted>) {
    let world = World::new();
    let cache = on.map_or(world.path("cache"), |on| on.path("cache"));
    let bundle = world.bundle(&["sh", "-c", FILL], &[]);
    let first = run(&world, way, &bundle, on).output().unwrap();
    assert_code(&first, 0);
    assert_eq!(first.stdout, b"2\n");
    let before = contents(&cache);
    assert_code(&run(&world, way, &bundle, on).output().unwrap(), 0);
    assert_eq!(contents(&cache), before, "the image was written to");
    let bundle = world.bundle(&["sh", "-c", "ls -a /; cat /etc/passwd; ls /etc"], &[]);
    let next = run(&world, way, &bundle, on).output().unwrap();
    let seen = String::from_utf8(next.stdout).unwrap();
    assert!(
        !seen.contains("changed") && !seen.contains("new\n"),
        "{seen}"
    );
    assert!(seen.contains("root:x:0"), "{seen}");
    // What was written is not in the image either: a store that was built anew is the same.
    assert_eq!(contents(&cache), before);
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_nobody_else_sees_writes_with_snapshot() {
    if !skip_without_machine() {
        nobody_else_sees_writes("snapshot", None);
    }
}

#[test]
fn qemu_nobody_else_sees_writes_with_overlay() {
    if !skip_without_machine() {
        nobody_else_sees_writes("overlay", None);
    }
}

#[test]
fn qemu_nobody_else_sees_writes_with_copy() {
    if !skip_without_machine() {
        nobody_else_sees_writes("copy", None);
    }
}

#[test]
fn needs_root_qemu_nobody_else_sees_writes_with_clone() {
    if !skip_without_machine()
        && let Some(xfs) = xfs()
    {
        nobody_else_sees_writes("clone", Some(&xfs));
    }
}

/// A launch that is told when to go on, through its standard input.
struct Guided {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Guided {
    fn start(command: &mut Command) -> Guided {
        let mut child = command
            .arg("-i")
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Guided { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    fn go_on(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
}

#[test]
fn qemu_two_machines_on_one_image_do_not_see_each_others_writes() {
    if skip_without_machine() {
        return;
    }
    for way in ["snapshot", "overlay", "copy"] {
        let world = World::new();
        let script = "read mine; echo $mine > /own; echo $mine > /$mine; busybox sync; echo ready; \
                      read word; cat /own; ls -d /mine-*";
        let bundle = world.bundle(&["sh", "-c", script], &[]);
        let start = |name: &str| {
            let mut guest = Guided::start(&mut run(&world, way, &bundle, None));
            let stdin = guest.child.stdin.as_mut().unwrap();
            writeln!(stdin, "{name}").unwrap();
            assert_eq!(guest.line(), "ready\n");
            guest
        };
        let (mut a, mut b) = (start("mine-a"), start("mine-b"));
        assert_eq!(images(&world.path("cache")).len(), 1, "not one image");
        for (guest, name) in [(&mut a, "mine-a"), (&mut b, "mine-b")] {
            guest.go_on();
            let seen = (guest.line(), guest.line(), guest.line());
            assert_eq!(
                seen,
                (format!("{name}\n"), format!("/{name}\n"), String::new()),
                "{way}"
            );
            assert!(guest.child.wait().unwrap().success());
        }
        Leftovers::of(&world).assert_none();
    }
}

#[test]
fn row_33_50_qemu_an_image_in_use_stays_and_sigkill_leaves_nothing() {
    if skip_without_machine() {
        return;
    }
    for way in ["snapshot", "overlay"] {
        let world = World::new();
        let bundle = world.bundle(&["sh", "-c", "echo x > /x; echo ready; sleep 100"], &[]);
        let mut guest = Guided::start(&mut run(&world, way, &bundle, None));
        assert_eq!(guest.line(), "ready\n");
        let collect = || {
            let collected = world
                .fcpipe()
                .args(["cache", "gc", "--max-size", "0"])
                .output();
            assert_code(&collected.unwrap(), 0);
            images(&world.path("cache")).len()
        };
        assert_eq!(collect(), 1, "a running machine's image was collected");
        guest.child.kill().unwrap();
        guest.child.wait().unwrap();
        assert_code(&world.with_kernel().arg("doctor").output().unwrap(), 0);
        Leftovers::of(&world).assert_none();
        assert_eq!(collect(), 0, "the lease outlived its launch");
    }
}

#[test]
fn row_31_needs_root_qemu_a_full_host_disk_is_an_error_in_the_guest() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    for way in ["snapshot", "overlay", "copy"] {
        let world = World::new();
        let small = world.path("small");
        let mounted = MountPoint::tmpfs(small.clone(), "size=24m");
        let script = "busybox dd if=/dev/zero of=/f bs=1M count=60 conv=fsync 2>&1; echo $?";
        let bundle = world.bundle(&["sh", "-c", script], &[]);
        let mut fcpipe = run(&world, way, &bundle, None);
        fcpipe.env("FCPIPE_STATE_DIR", small.join("state"));
        // The guest is told, and goes on; QEMU's own way is to stop it until somebody comes.
        let mut command = Command::new("timeout");
        command.arg("300").arg(fcpipe.get_program());
        command.args(fcpipe.get_args());
        command.envs(fcpipe.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let output = command.output();
        let left = walk(&small.join("state"), &[".lock"]).len();
        drop(mounted);
        let output = output.unwrap();
        assert_code(&output, 0);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains("Input/output error") && said.ends_with("1\n"),
            "{way}: {said}"
        );
        assert_eq!(left, 1, "{way}: more than the directory itself");
    }
}

#[test]
fn qemu_a_read_only_root_and_mounts_are_that_whatever_the_way() {
    if skip_without_machine() {
        return;
    }
    for way in ["snapshot", "overlay", "copy"] {
        let world = World::new();
        let (ro, rw) = (world.path("ro"), world.path("rw"));
        for dir in [&ro, &rw] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("file"), "text\n").unwrap();
        }
        let mounts = [
            json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/run/ro", "type": "bind", "source": ro, "options": ["bind", "ro", "nosuid", "nodev", "noexec"]}),
            json!({"destination": "/rw", "type": "bind", "source": rw, "options": ["rbind"]}),
        ];
        let script = "for f in /f /run/ro/file /rw/file /run/f; do (echo x >> $f) 2>/dev/null && echo $f; done; \
                      cat /run/ro/file; grep ' /run/ro ' /proc/self/mounts";
        let bundle = world.bundle(&["sh", "-c", script], &mounts);
        edit(&bundle, |config| config["root"]["readonly"] = json!(true));
        let output = run(&world, way, &bundle, None).output().unwrap();
        assert_code(&output, 0);
        let said = String::from_utf8(output.stdout).unwrap();
        let Some(mount) = said.strip_prefix("/rw/file\n/run/f\ntext\n") else {
            panic!("{way}: {said}");
        };
        let options = mount.split(' ').nth(3).unwrap();
        assert!(
            options.starts_with("ro,nosuid,nodev,noexec,"),
            "{way}: {mount}"
        );
        assert_eq!(fs::read_to_string(rw.join("file")).unwrap(), "text\n");
    }
}

fn edit(bundle: &Path, change: impl FnOnce(&mut Value)) {
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Whether the test directory's file system shares blocks; `cp` tries.
fn clones_here(world: &World) -> bool {
    fs::write(world.path("one"), [1; 8192]).unwrap();
    let mut cp = Command::new("cp");
    cp.arg("--reflink=always")
        .arg(world.path("one"))
        .arg(world.path("two"));
    cp.output().unwrap().status.success()
}

#[test]
fn qemu_plan_says_where_writes_go_and_why() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let plan = |way: &str, on: Option<&Mounted>| {
        let mut command = world.with_kernel();
        if let Some(on) = on {
            on.put(&mut command);
        }
        command.args(["--format", "json", "plan", "--set"]);
        command.arg(format!("disk.writes={way}")).arg(&bundle);
        command.output().unwrap()
    };
    let disk = |output: Output| {
        assert_code(&output, 0);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |name: &str| json["disk"][name].as_str().unwrap().to_owned();
        (text("writes"), text("why"))
    };
    for way in ["snapshot", "overlay", "copy"] {
        assert_eq!(disk(plan(way, None)).0, way);
    }
    if !clones_here(&world) {
        let (way, why) = disk(plan("auto", None));
        assert_eq!(way, "snapshot");
        assert!(
            why.contains("share") && why.contains("dm_snapshot"),
            "{why}"
        );
        let refused = plan("clone", None);
        assert_code(&refused, 1);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            said.contains("clone was asked for, but") && said.contains("disk.writes"),
            "{said}"
        );
    }
    if let Some(xfs) = xfs() {
        assert_eq!(
            disk(plan("auto", Some(&xfs))),
            (
                "clone".to_owned(),
                "XFS shares the image's blocks".to_owned()
            )
        );
        // The store on one file system, the launches on another.
        let mut command = world.with_kernel();
        command
            .env("FCPIPE_CACHE_DIR", xfs.path("cache"))
            .args(["--format", "json", "plan"]);
        let (way, why) = disk(command.arg(&bundle).output().unwrap());
        assert_eq!(way, "snapshot");
        assert!(
            why.contains("different file systems") && why.contains("XFS"),
            "{why}"
        );
    }
}
