//! What a process can do to its machine, and what it cannot: the agent lives, and exec and kill are answered.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use crate::probe::probe;
use crate::world::{
    Leftovers, World, assert_code, not_root, skip, skip_in_emulation, skip_without_machine,
};

/// A bundle whose root has the probe, and whose process is a shell script.
pub(crate) fn bundle(world: &World, script: &str) -> PathBuf {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    fs::copy(probe(), bundle.join("rootfs/probe")).unwrap();
    bundle
}

fn exec(world: &World, id: &str, args: &[&str]) -> Output {
    world
        .with_kernel()
        .args(["exec", id, "--"])
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn row_62_qemu_a_memory_bomb_ends_in_the_container_and_is_told() {
    if skip_without_machine() || skip_in_emulation() {
        return;
    }
    let world = World::new();
    // A child of PID 1, so that somebody is left to tell; the machine's own log has what the kernel killed.
    let bundle = bundle(
        &world,
        "/probe eat-memory; echo $?; /probe eat-memory; echo $?; exit 5",
    );
    let output = world.with_kernel().arg("run").arg(bundle).output().unwrap();
    assert_code(&output, 5);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "137\n137\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("too little memory (2 killed"), "{said}");
}

#[test]
fn row_62_qemu_a_fork_bomb_leaves_exec_and_kill() {
    if skip_without_machine() || skip_in_emulation() {
        return;
    }
    let world = World::new();
    let bundle = bundle(&world, "/probe fork-bomb & wait");
    let output = world
        .with_kernel()
        .args(["--progress", "quiet", "run", "--detach", "--id", "bomb"])
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    // Until there is no more to be had: then a new process can't fork either, but it can run.
    let full = |world: &World| {
        let script = "read now < /sys/fs/cgroup/pids.current; read most < /sys/fs/cgroup/pids.max; \
                      [ $now -ge $most ] && echo full";
        let output = exec(world, "bomb", &["sh", "-c", script]);
        String::from_utf8(output.stdout).unwrap() == "full\n"
    };
    let mut looks = 0;
    while !full(&world) {
        looks += 1;
        assert!(looks < 600, "the bomb is none");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let output = world
        .with_kernel()
        .args(["kill", "bomb", "KILL", "--all"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let output = world.with_kernel().args(["wait", "bomb"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "137");
    assert_code(
        &world
            .with_kernel()
            .args(["delete", "bomb"])
            .output()
            .unwrap(),
        0,
    );
}

#[test]
fn row_62_qemu_kill_everything_and_the_agent_s_port() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = bundle(
        &world,
        "sleep 1000 & kill -9 -1; /probe connect-agent=52; exit 4",
    );
    let output = world.with_kernel().arg("run").arg(bundle).output().unwrap();
    assert_code(&output, 4);
    let answers = String::from_utf8(output.stdout).unwrap();
    // By the loopback, by the machine's own number, by any: refused, or hung up on without a word. Where the kernel has no loopback
    // (Debian's has it in a module that nobody loads) it is the kernel that refuses; who a peer is, is tested beside `is_host`.
    assert_eq!(answers.lines().count(), 3, "{answers}");
    for line in answers.lines() {
        let refused = !line.contains(" bytes") || line.ends_with(": 0 bytes");
        assert!(refused, "{answers}");
    }
}

/// The host is as short of memory as its control group says: the machine goes, and it is told why.
#[test]
fn row_62_qemu_root_a_machine_that_the_host_kills_for_want_of_memory_is_told() {
    if skip_without_machine() || skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = bundle(&world, "sleep 1000");
    let output = world
        .with_kernel()
        .args(["--progress", "quiet", "run", "--detach", "--id", "poor"])
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let group = world.control_groups();
    let file = group.iter().find_map(|group| {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name));
        files.into_iter().find(|file| file.exists())
    });
    let Some(limit) = file else {
        println!("skipped: no tree of control groups has memory here");
        return;
    };
    let used = {
        let names = ["memory.usage_in_bytes", "memory.current"];
        let read = |name: &&str| fs::read_to_string(limit.with_file_name(name)).ok();
        names
            .iter()
            .find_map(read)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    // What it has, and a little more.
    fs::write(&limit, (used + (8 << 20)).to_string()).unwrap();
    // The client may see the end of its connection, or of its process.
    let _ = exec(&world, "poor", &["/probe", "eat-memory"]);
    let waited = world.with_kernel().args(["wait", "poor"]).output().unwrap();
    assert_ne!(waited.status.code(), Some(0));
    let events = world
        .with_kernel()
        .args(["events", "poor"])
        .output()
        .unwrap();
    let events = String::from_utf8(events.stdout).unwrap();
    let host = |line: &str| line.contains(r#""type":"oom""#) && line.contains(r#""where":"host""#);
    assert!(events.lines().any(host), "{events}");
    let output = world
        .with_kernel()
        .args(["delete", "poor"])
        .output()
        .unwrap();
    assert_code(&output, 0);
    Leftovers::of(&world).assert_none();
}
