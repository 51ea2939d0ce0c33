//! Images near an earlier one, and one image for each source: the guest sees what it would see with one image made from nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::Guided;
use super::bed::{Mounted, WALK, compare, contents, lines, walk, world_with_tree, xfs};
use crate::probe::probe;
use crate::world::{Leftovers, World, assert_code, not_root, skip, skip_without_machine};

pub(super) fn run(world: &World, bundle: &Path, sets: &[&str], on: Option<&Mounted>) -> Command {
    let mut command = world.with_kernel();
    if let Some(on) = on {
        on.put(&mut command);
    }
    command.arg("run");
    for set in sets {
        command.args(["--set", set]);
    }
    command
        .arg("--timings")
        .arg(world.path("timings"))
        .arg(bundle);
    command.stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    command
}

/// The rows of the last run's receipt.
pub(super) fn rows(world: &World) -> Vec<Value> {
    let text = fs::read(world.path("timings")).unwrap();
    let receipt: Value = serde_json::from_slice(&text).unwrap();
    receipt["stages"].as_array().unwrap().clone()
}

pub(super) fn row(world: &World, id: &str) -> Value {
    let rows = rows(world);
    let found = rows.iter().find(|row| row["id"] == id);
    found
        .unwrap_or_else(|| panic!("no {id} in {rows:#?}"))
        .clone()
}

pub(super) fn objects(cache: &Path, name: &str) -> usize {
    let listed = Command::new("find")
        .arg(cache.join("v1/objects"))
        .args(["-name", name])
        .output();
    lines(listed.unwrap()).len()
}

/// Edits of each kind in a directory with files of the test's own.
pub(super) fn edit(dir: &Path, round: u32) {
    let at = |name: &str| dir.join(name);
    let again = format!("round {round}");
    fs::write(at("changed"), &again).unwrap();
    fs::write(at(&format!("new-{round}")), again.repeat(2000)).unwrap();
    fs::write(at("grown"), again.repeat(1 + 900 * round as usize)).unwrap();
    let _ = fs::remove_file(at(&format!("new-{}", round.wrapping_sub(1))));
    let turned = at("turned");
    if round.is_multiple_of(2) {
        let _ = fs::remove_file(&turned);
        fs::create_dir(&turned).unwrap();
        fs::write(turned.join("inside"), "x").unwrap();
    } else {
        let _ = fs::remove_dir_all(&turned);
        symlink(&again, &turned).unwrap();
    }
    fs::set_permissions(at("grown"), fs::Permissions::from_mode(0o640 + round)).unwrap();
    let _ = fs::hard_link(at("grown"), at(&format!("linked-{round}")));
}

/// Launches again and again after edits; each guest must see the source.
fn edits_are_seen(sets: &[&str], on: Option<&Mounted>, forms: impl Fn(&World, u32)) {
    let (world, bundle, _) = world_with_tree(fcpipe_treegen::seed());
    let rootfs = bundle.join("rootfs");
    let dir = rootfs.join("root/work");
    fs::create_dir(&dir).unwrap();
    for round in 0..4 {
        edit(&dir, round);
        let mut source = walk(&rootfs, &["proc", "dev", "sys", "mnt"]);
        source.retain(|line| !line.starts_with("/mnt"));
        let guest = run(&world, &bundle, sets, on).output().unwrap();
        assert!(guest.status.success(), "{}", guest.stderr.escape_ascii());
        let mut seen = lines(guest);
        seen.retain(|line| !line.starts_with("/mnt"));
        compare(source, seen);
        forms(&world, round);
    }
    Leftovers::of(&world).assert_none();
}

#[test]
fn needs_root_qemu_edits_are_seen_through_a_disk_of_changes() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    edits_are_seen(
        &["disk.group=single", "disk.writes=snapshot"],
        None,
        |world, round| {
            let cache = world.path("cache");
            assert_eq!(objects(&cache, "root.ext4.*"), 1, "the base alone");
            assert_eq!(objects(&cache, "changes.cow.*"), round as usize);
            let written = row(world, "copy")["bytes_written"].as_u64().unwrap();
            assert!(round == 0 || written < 1 << 20, "{written}");
        },
    );
}

#[test]
fn needs_root_qemu_edits_are_seen_through_a_copy_of_image_and_changes() {
    if !skip(not_root()) && !skip_without_machine() {
        edits_are_seen(&["disk.group=single", "disk.writes=copy"], None, |_, _| {});
    }
}

#[test]
fn needs_root_qemu_edits_are_seen_through_clones() {
    if skip_without_machine() {
        return;
    }
    if let Some(xfs) = xfs() {
        edits_are_seen(
            &["disk.group=single", "disk.writes=clone"],
            Some(&xfs),
            |world, round| {
                let cache = xfs.path("cache");
                assert_eq!(objects(&cache, "root.ext4.*"), 1 + round as usize);
                assert_eq!(objects(&cache, "imprint.*"), 1);
                let written = row(world, "copy")["bytes_written"].as_u64().unwrap();
                assert!(round == 0 || written < 1 << 20, "{written}");
            },
        );
    }
}

/// A bundle with mounts of each kind: a directory, one inside of it, a file, one over a link, one that is not there.
fn many_mounts() -> (World, std::path::PathBuf) {
    let (world, bundle, _) = world_with_tree(fcpipe_treegen::seed());
    let source = world.path("sources");
    fs::create_dir_all(source.join("inner/deep")).unwrap();
    fs::write(source.join("inner/deep/file"), "inner").unwrap();
    fs::write(source.join("motd"), "a file\n").unwrap();
    fs::create_dir(source.join("linked")).unwrap();
    fs::write(source.join("linked/there"), "linked").unwrap();
    let rootfs = bundle.join("rootfs");
    symlink("/root/target", rootfs.join("root/link")).unwrap();
    fs::create_dir(rootfs.join("root/target")).unwrap();
    let bind = |from: &str, to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": source.join(from), "options": options});
    let tree = json!({
        "destination": "/mnt/tree", "type": "bind", "source": world.path("tree"), "options": ["bind"]
    });
    let mounts = [
        tree,
        bind("inner", "/mnt/tree/over/here", &["bind"]),
        bind("motd", "/etc/motd", &["bind"]),
        bind("motd", "/made/for/motd", &["bind", "ro"]),
        bind("linked", "/root/link/below", &["bind"]),
        bind("not there", "/mnt/nothing", &["bind"]),
    ];
    let bundle = world.bundle(&WALK, &mounts);
    (world, bundle)
}

#[test]
fn needs_root_qemu_the_guest_sees_the_same_tree_with_one_image_and_with_one_per_source() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    let (world, bundle) = many_mounts();
    let guest = |group: &str, way: &str| {
        let sets = [format!("disk.group={group}"), format!("disk.writes={way}")];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let output = run(&world, &bundle, &sets, None).output().unwrap();
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        lines(output)
    };
    let single = guest("single", "snapshot");
    assert!(
        single
            .iter()
            .any(|line| line.starts_with("/mnt/tree/over/here/deep/file "))
    );
    assert!(
        single
            .iter()
            .any(|line| line.starts_with("/root/target/below/there "))
    );
    compare(single.clone(), guest("per-source", "snapshot"));
    assert!(row(&world, "copy:/")["bytes_written"].as_u64().unwrap() > 0);
    compare(single, guest("per-source", "copy"));
    Leftovers::of(&world).assert_none();
}

/// What a guest with several images does to each of them.
const WRITE: &str = "for dir in / /mnt/tree /mnt/code; do \
    find $dir -xdev -type f ! -path '/bin/*' -size -64k -exec sh -c 'echo changed >> \"$0\"' {} ';' ; \
    echo new > $dir/new-file; done; busybox sync; cat /new-file /mnt/tree/new-file /mnt/code/new-file";

fn writes_reach_nobody_else(way: &str, on: Option<&Mounted>) {
    let (world, _, _) = world_with_tree(fcpipe_treegen::seed());
    let cache = on.map_or(world.path("cache"), |on| on.path("cache"));
    let code = world.path("code");
    fs::create_dir(&code).unwrap();
    fs::write(code.join("main"), "first").unwrap();
    let bind = |source: &Path, to: &str| json!({"destination": to, "type": "bind", "source": source, "options": ["bind"]});
    let mounts = [
        bind(&world.path("tree"), "/mnt/tree"),
        bind(&code, "/mnt/code"),
    ];
    let write = world.bundle(&["sh", "-c", WRITE], &mounts);
    let group = "disk.group=per-source";
    let writes = format!("disk.writes={way}");
    let sets = [group, writes.as_str()];
    assert_code(&run(&world, &write, &sets, on).output().unwrap(), 0);
    // The second is near the first.
    fs::write(code.join("main"), "second").unwrap();
    let output = run(&world, &write, &sets, on).output().unwrap();
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"new\nnew\nnew\n");
    let before = contents(&cache);
    let look = "cat /mnt/code/main; ls /mnt/code /mnt/tree | grep -c new-file";
    let bundle = world.bundle(&["sh", "-c", look], &mounts);
    let output = run(&world, &bundle, &sets, on).output().unwrap();
    assert_eq!(output.stdout.escape_ascii().to_string(), "second0\\n");
    assert_eq!(contents(&cache), before, "an image was written to");
    Leftovers::of(&world).assert_none();
}

#[test]
fn needs_root_qemu_writes_to_several_images_reach_nobody_else_with_snapshot() {
    if !skip(not_root()) && !skip_without_machine() {
        writes_reach_nobody_else("snapshot", None);
    }
}

#[test]
fn needs_root_qemu_writes_to_several_images_reach_nobody_else_with_overlay() {
    if !skip(not_root()) && !skip_without_machine() {
        writes_reach_nobody_else("overlay", None);
    }
}

#[test]
fn needs_root_qemu_writes_to_several_images_reach_nobody_else_with_clone() {
    if !skip_without_machine()
        && let Some(xfs) = xfs()
    {
        writes_reach_nobody_else("clone", Some(&xfs));
    }
}

/// Only what changed is looked at and written.
#[test]
fn qemu_a_mount_that_did_not_change_costs_nothing_when_another_does() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let (model, code) = (world.path("model"), world.path("code"));
    for dir in [&model, &code] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(model.join("weights"), vec![7; 9 << 20]).unwrap();
    fs::write(code.join("main"), "one").unwrap();
    let bind = |source: &Path, to: &str| json!({"destination": to, "type": "bind", "source": source, "options": ["bind"]});
    let mounts = [bind(&model, "/mnt/model"), bind(&code, "/mnt/code")];
    let bundle = world.bundle(&["sh", "-c", "cat /mnt/code/main; ls /mnt/model"], &mounts);
    let go = || -> Output { run(&world, &bundle, &[], None).output().unwrap() };
    assert_code(&go(), 0);
    fs::write(code.join("main"), "two").unwrap();
    let output = go();
    assert_eq!(output.stdout, b"twoweights\n");
    for id in ["copy:/", "copy:/mnt/model"] {
        assert_eq!(row(&world, id)["outcome"], "hit", "{id}");
    }
    assert_eq!(row(&world, "copy:/mnt/code")["outcome"], "ran");
    let planned = world
        .with_kernel()
        .arg("plan")
        .arg(&bundle)
        .output()
        .unwrap();
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(
        planned.contains("disk: per-source (3 images): "),
        "{planned}"
    );
}

/// A machine that runs on a base is not disturbed by images near it, nor by the collector.
#[test]
fn needs_root_qemu_a_machine_on_the_base_is_not_disturbed() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    let (world, _, _) = world_with_tree(fcpipe_treegen::seed());
    let bundle = world.bundle(
        &[
            "sh",
            "-c",
            "echo ready; read go; cat /bin/probe | md5sum; cat /etc/linked",
        ],
        &[],
    );
    let rootfs = bundle.join("rootfs");
    let mut first = Guided::start(&mut run(&world, &bundle, &["disk.writes=snapshot"], None));
    assert_eq!(first.line(), "ready\n");
    for round in 0..2 {
        fs::write(rootfs.join("etc/linked"), format!("round {round}")).unwrap();
        let mut other = Guided::start(&mut run(&world, &bundle, &["disk.writes=snapshot"], None));
        assert_eq!(other.line(), "ready\n");
        other.go_on();
        other.line();
        assert_eq!(other.line(), format!("round {round}"));
        assert!(other.child.wait().unwrap().success());
        let gc = world
            .fcpipe()
            .args(["cache", "gc", "--max-size", "0"])
            .output()
            .unwrap();
        assert_code(&gc, 0);
    }
    first.go_on();
    let sum = Command::new("md5sum").arg(probe()).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(first.line()[..32], sum[..32]);
    assert_eq!(first.line(), "two names");
    assert!(first.child.wait().unwrap().success());
    Leftovers::of(&world).assert_none();
}
