//! What cannot be: no machine starts, and nothing is touched.

use std::fs;
use std::process::Command;

use super::platform::{Platform, assert_same, bundle, sh, skip_without_namespaces};
use crate::world::{Leftovers, World, assert_code, skip_without_machine};

/// Runs a launch that must fail before its machine starts; what it says.
#[track_caller]
fn refused(world: &World, netns: &std::path::Path, through: &[&str]) -> String {
    let bundle = bundle(world, netns, &["true"], &[]);
    let run = world.with_kernel();
    let mut command = match through {
        [] => world.with_kernel(),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(run.get_program());
            command.envs(run.get_envs().filter_map(|(k, v)| Some((k, v?))));
            command
        }
    };
    command.args(["--progress", "quiet", "run", "--id", "web-1"]);
    let output = command.arg(bundle).output().unwrap();
    assert_code(&output, 125);
    Leftovers::of(world).assert_none();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn qemu_needs_root_row_40_no_machine_starts_without_its_namespace() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let before = platform.container_state(0);
    let missing = world.path("missing");
    let said = refused(&world, &missing, &[]);
    assert!(
        said.contains("missing: the network namespace cannot be opened"),
        "{said}"
    );
    let file = world.path("file");
    fs::write(&file, "").unwrap();
    let said = refused(&world, &file, &[]);
    assert!(said.contains("file: not a network namespace"), "{said}");
    let said = refused(&world, "/proc/self/ns/uts".as_ref(), &[]);
    assert!(said.contains("a namespace of another kind"), "{said}");
    // Root without the right to enter it.
    let drop = [
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
    ];
    let said = refused(&world, &platform.path(0), &drop);
    assert!(said.contains("cannot be entered"), "{said}");
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    // A namespace that nobody has set up.
    let name = format!("{}-empty", platform.containers[0]);
    sh(&format!("ip netns add {name}"));
    let said = refused(&world, format!("/run/netns/{name}").as_ref(), &[]);
    sh(&format!("ip netns del {name}"));
    assert!(said.contains("no veth interface"), "{said}");
    assert_same(&platform.container_state(0), &before, "");
}

#[test]
fn qemu_needs_root_row_41_a_stranger_s_tap_is_not_touched() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let name = &platform.containers[0];
    sh(&format!("ip -n {name} tuntap add b9fc_web-1 mode tap"));
    let before = platform.container_state(0);
    let said = refused(&world, &platform.path(0), &[]);
    assert!(
        said.contains("b9fc_web-1 is taken by somebody else"),
        "{said}"
    );
    assert_same(&platform.container_state(0), &before, "");
}
