//! Nothing is left behind: after success, and after SIGKILL at any moment and one more command.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::world::{Leftovers, World, assert_code, skip_without_machine};

/// How many runs and kills: a tenth of the soak's number in an ordinary test.
fn runs() -> u32 {
    std::env::var("FCPIPE_SOAK_RUNS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2)
}

#[test]
fn row_33_50_qemu_sigkill_at_random_moments_leaves_nothing_after_the_next_command() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    std::fs::create_dir(world.path("code")).unwrap();
    let mount = json!({"destination": "/mnt", "type": "bind", "source": world.path("code"), "options": ["bind"]});
    let bundle = world.bundle(&["sleep", "100"], &[mount]);
    let mut seed = seed();
    println!("seed {seed} (FCPIPE_SEED repeats it)");
    // A first run says how long the way to the process takes here.
    let booted = time_to_boot(&world);
    for number in 0..runs() {
        std::fs::write(world.path("code/changed"), number.to_string()).unwrap();
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let after = booted.mul_f64((seed >> 33) as f64 / f64::from(1u32 << 31) * 1.2);
        let mut child = world
            .with_kernel()
            .arg("run")
            .arg(&bundle)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
        // Killed with it, at once or by the next command.
        let next = world
            .with_kernel()
            .arg("doctor")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_code(&next, 0);
        let left = Leftovers::of(&world);
        assert_eq!(left, Leftovers::default(), "killed after {after:?}");
    }
    let script = world.run_script("echo fine");
    assert_code(&script, 0);
    assert_eq!(script.stdout, b"fine\n");
}

#[test]
fn qemu_runs_in_a_row_leave_nothing() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    for number in 0..runs() {
        let output = world.run_script(&format!("echo {number}"));
        assert_code(&output, 0);
        assert_eq!(output.stdout, format!("{number}\n").as_bytes());
        Leftovers::of(&world).assert_none();
    }
}

fn time_to_boot(world: &World) -> Duration {
    let bundle = world.bundle(&["sleep", "100"], &[]);
    let receipt = world.path("first.json");
    let quick = world.bundle(&["true"], &[]);
    let begun = Instant::now();
    let output = world
        .with_kernel()
        .arg("run")
        .arg(quick)
        .arg("--timings")
        .arg(receipt)
        .output()
        .unwrap();
    assert_code(&output, 0);
    // Back to the sleeping process: config.json is read at every run.
    assert_eq!(bundle, world.bundle(&["sleep", "100"], &[]));
    begun.elapsed()
}

fn seed() -> u64 {
    let clock = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(1, |time| time.as_nanos() as u64)
    };
    std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(clock)
}
