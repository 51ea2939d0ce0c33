//! What becomes of a base: a new one is made behind a launch that is far from it, and it goes with an export.

use std::fs;

use super::Guided;
use super::bed::world_with_tree;
use super::near::{objects, row, run};
use crate::life::until;
use crate::world::{Leftovers, assert_code, not_root, skip, skip_without_machine};

const SETS: [&str; 2] = ["disk.group=single", "disk.writes=snapshot"];

/// Bytes that are not all zeros.
fn data(megabytes: usize) -> Vec<u8> {
    (0..megabytes << 20).map(|n| (n % 253) as u8 + 1).collect()
}

#[test]
fn needs_root_qemu_a_base_that_is_far_is_made_anew_behind_the_launch() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    let (world, _, _) = world_with_tree(fcpipe_treegen::seed());
    let bundle = world.bundle(&["sh", "-c", "echo ready; read go; cat /root/small"], &[]);
    let (cache, root) = (world.path("cache"), bundle.join("rootfs/root"));
    let launch = |small: &str, bases: usize| {
        fs::write(root.join("small"), small).unwrap();
        let mut guest = Guided::start(&mut run(&world, &bundle, &SETS, None));
        assert_eq!(guest.line(), "ready\n");
        // While the machine runs, so that nobody waits for it.
        until(|| objects(&cache, "imprint.*") == bases);
        guest.go_on();
        assert_eq!(guest.line(), small);
        assert!(guest.child.wait().unwrap().success());
        row(&world, "copy")["bytes_written"].as_u64().unwrap()
    };
    fs::write(root.join("rest"), data(48)).unwrap();
    launch("one", 1);
    // More than a base is good for, and less than half of the image.
    fs::write(root.join("large"), data(20)).unwrap();
    assert!(launch("two", 2) > 20 << 20);
    assert_eq!(objects(&cache, "changes.cow.*"), 1);
    // Near the new one: what is large is in that.
    assert!(launch("three", 2) < 1 << 20);
    assert_eq!(objects(&cache, "changes.cow.*"), 2);
    Leftovers::of(&world).assert_none();
}

#[test]
fn needs_root_qemu_an_export_of_a_changed_image_is_whole_elsewhere() {
    if skip(not_root()) || skip_without_machine() {
        return;
    }
    let (world, _, _) = world_with_tree(fcpipe_treegen::seed());
    let bundle = world.bundle(&["cat", "/root/small"], &[]);
    for small in ["one", "two"] {
        fs::write(bundle.join("rootfs/root/small"), small).unwrap();
        assert_code(&run(&world, &bundle, &SETS, None).output().unwrap(), 0);
    }
    assert_eq!(objects(&world.path("cache"), "changes.cow.*"), 1);
    let archive = world.path("out.tar");
    let mut export = world.fcpipe();
    export
        .args(["cache", "export"])
        .arg(&bundle)
        .arg("-o")
        .arg(&archive);
    for set in SETS {
        export.args(["--set", set]);
    }
    let exported = export.output().unwrap();
    assert_code(&exported, 0);
    let elsewhere = world.path("elsewhere");
    let mut import = world.fcpipe();
    import.arg("--cache-dir").arg(&elsewhere);
    import.args(["cache", "import"]).arg(&archive);
    assert_code(&import.output().unwrap(), 0);
    let mut there = run(&world, &bundle, &SETS, None);
    there.arg("--cache-dir").arg(&elsewhere);
    let output = there.output().unwrap();
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"two");
    for id in ["layout", "copy"] {
        assert_eq!(row(&world, id)["outcome"], "hit", "{id}");
    }
    Leftovers::of(&world).assert_none();
}
