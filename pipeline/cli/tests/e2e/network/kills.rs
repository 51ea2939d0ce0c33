//! SIGKILL at random moments: nothing of the network is left after the next command, and the host never notices.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::platform::{Platform, assert_same, bundle, sh, skip_without_namespaces};
use crate::world::{Leftovers, World, assert_code, machine_program, skip_without_machine};

/// How many launches are killed: a tenth of the soak's number in an ordinary test.
fn kills() -> u32 {
    std::env::var("FCPIPE_SOAK_NET_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5)
}

fn seed() -> u64 {
    let given = std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64
    })
}

fn kill(pids: &[u32]) {
    for pid in pids {
        let pid = Pid::from_raw(*pid as i32).unwrap();
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn clean_up(world: &World) {
    let delete = ["delete", "--force", "web-1"];
    let done = world.with_kernel().args(delete).output().unwrap();
    if !done.status.success() {
        let journal = world.path("state/web-1/journal");
        println!("{}", std::fs::read_to_string(journal).unwrap_or_default());
    }
    assert_code(&done, 0);
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn machines(world: &World) -> usize {
    world.process_ids(machine_program()).len()
}

#[test]
fn qemu_needs_root_row_50_of_a_killed_launch_no_network_is_left() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let (host, inside) = (platform.host_state(), platform.container_state(0));
    let launch = bundle(&world, &platform.path(0), &["sleep", "10000"], &[]);
    for victim in ["fcpipe", machine_program()] {
        let mut run = world.with_kernel();
        run.args(["--progress", "quiet", "run", "--detach", "--id", "web-1"]);
        assert_code(&run.arg(&launch).output().unwrap(), 0);
        assert_ne!(platform.container_state(0), inside);
        kill(&world.process_ids(victim));
        eventually("the rest goes too", || {
            machines(&world) == 0 && world.process_ids("fcpipe").is_empty()
        });
        clean_up(&world);
        assert_same(
            &platform.container_state(0),
            &inside,
            &format!("after the end of {victim}"),
        );
        assert_same(
            &platform.host_state(),
            &host,
            &format!("after the end of {victim}"),
        );
        Leftovers::of(&world).assert_none();
    }
}

#[test]
fn qemu_needs_root_row_33_kills_at_random_moments_of_set_up_and_teardown() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let (host, inside) = (platform.host_state(), platform.container_state(0));
    let name = &platform.containers[0];
    let mut seed = seed();
    println!("seed {seed} (FCPIPE_SEED repeats it)");
    let mut random = move |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let launch = bundle(&world, &platform.path(0), &["true"], &[]);
    let run = || {
        let mut run = world.with_kernel();
        run.args(["--progress", "quiet", "run", "--id", "web-1"])
            .arg(&launch)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        run.spawn().unwrap()
    };
    // How long it takes until there is a TAP, and until it is gone again.
    let begun = Instant::now();
    let mut first = run();
    let there = || sh(&format!("ip -n {name} link show")).contains("b9fc_web-1");
    eventually("there is a TAP", there);
    let set_up = begun.elapsed().as_micros() as u64;
    eventually("the TAP is gone", || !there());
    let whole = begun.elapsed().as_micros() as u64;
    assert!(first.wait().unwrap().success());
    assert_same(&platform.container_state(0), &inside, "");

    let mut caught = 0;
    for number in 0..kills() {
        let mut child = run();
        let moment = match number % 2 {
            0 => random(set_up * 2),
            _ => whole - random(whole / 20),
        };
        std::thread::sleep(Duration::from_micros(moment));
        kill(&world.process_ids("fcpipe"));
        let _ = child.kill();
        let _ = child.wait();
        let context = format!("kill {number} after {moment} µs");
        eventually("all is over", || {
            machines(&world) == 0 && world.process_ids("fcpipe").is_empty()
        });
        caught += u32::from(platform.container_state(0) != inside);
        clean_up(&world);
        assert_same(&platform.container_state(0), &inside, &context);
        assert_same(&platform.host_state(), &host, &context);
    }
    println!("{} kills, {caught} with something to clean up", kills());
    Leftovers::of(&world).assert_none();
}
