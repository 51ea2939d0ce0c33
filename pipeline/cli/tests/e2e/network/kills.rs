//! SIGKILL at random moments: nothing of the network is left after the next command, and the host never notices.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use fcpipe_treegen::{Rng, count, seed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::platform::{Platform, assert_same, bundle, skip_without_namespaces};
use crate::life::until;
use crate::world::{Leftovers, World, assert_code, machine_program, skip_without_machine};

/// How many launches are killed: a tenth of the soak's number in an ordinary test.
fn kills() -> u64 {
    count("FCPIPE_SOAK_NET_KILLS", 5)
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
        until(|| machines(&world) == 0 && world.process_ids("fcpipe").is_empty());
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

/// What a launch's journal says so far.
struct Journal(PathBuf);

impl Journal {
    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        lines.collect()
    }

    /// The number of what was about to be made for a node.
    fn made(&self, node: &str) -> Option<u64> {
        let lines = self.lines();
        let made = lines.iter().map(|line| &line["made"]);
        let mut made = made.filter(|made| made["node"] == node);
        made.next()?["seq"].as_u64()
    }

    fn undone(&self, node: &str) -> bool {
        let Some(number) = self.made(node) else {
            return false;
        };
        self.lines().iter().any(|line| line["undone"] == number)
    }
}

/// Between two looks at a journal.
const LOOK: Duration = Duration::from_micros(50);

/// When it is so, to the next look; or when the launch is over, of whose last lines a late look sees nothing.
fn moment(launch: &mut Child, so: impl Fn() -> bool) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !so() && launch.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no sign of it in two minutes");
        std::thread::sleep(LOOK);
    }
    Instant::now()
}

/// The child of the program that was started, while that is there: its number could be another's later.
fn supervisor(run: &mut Child) -> Option<u32> {
    if run.try_wait().unwrap().is_some() {
        return None;
    }
    let id = run.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}

/// The TAP is made when the journal has the line about it and before it has the one about the machine, which waits for it; and it is taken
/// away between the first undoing, the boot's, and its own. How long both take is measured first, and launches are killed that long after those lines.
#[test]
fn qemu_needs_root_row_33_kills_at_random_moments_of_set_up_and_teardown() {
    if skip_without_machine() || skip_without_namespaces() {
        return;
    }
    let world = World::new();
    let platform = Platform::new();
    let (host, inside) = (platform.host_state(), platform.container_state(0));
    let mut rng = Rng::new(seed());
    let mut random =
        move |below: Duration| below.mul_f64(rng.below(1 << 31) as f64 / 2f64.powi(31));
    let launch = bundle(&world, &platform.path(0), &["true"], &[]);
    let journal = Journal(world.path("state/web-1/journal"));
    let run = || {
        let mut run = world.with_kernel();
        run.args(["--progress", "quiet", "run", "--id", "web-1"])
            .arg(&launch)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        run.spawn().unwrap()
    };
    let set_up_begins = || journal.made("tap").is_some();
    let teardown_begins = || journal.undone("boot");
    // The first makes an image besides, so the second is measured.
    let first = run().wait_with_output().unwrap();
    assert_code(&first, 0);
    let mut measured = run();
    let begun = moment(&mut measured, set_up_begins);
    let set_up = moment(&mut measured, || journal.made("machine").is_some()) - begun;
    let ending = moment(&mut measured, teardown_begins);
    let teardown = moment(&mut measured, || journal.undone("tap")) - ending;
    // Whoever looks late, because others want the processors, sees both lines at once.
    let set_up = set_up.max(Duration::from_millis(3));
    let teardown = teardown.max(Duration::from_millis(20));
    assert_code(&measured.wait_with_output().unwrap(), 0);
    assert_same(&platform.container_state(0), &inside, "");
    println!("set-up {set_up:?}, teardown {teardown:?}");

    let mut caught = 0;
    for number in 0..kills() {
        let mut child = run();
        let (what, delay) = if number % 2 == 0 {
            moment(&mut child, set_up_begins);
            ("set-up", random(set_up * 2))
        } else {
            moment(&mut child, teardown_begins);
            // Most of it is one wait in the kernel, which a kill does not end: what can be cut short is at the beginning.
            let soon = random(teardown);
            let soon = random(soon);
            ("teardown", random(soon))
        };
        let supervisor = supervisor(&mut child);
        std::thread::sleep(delay);
        kill(&Vec::from_iter(supervisor));
        let _ = child.kill();
        let _ = child.wait();
        let context = format!("kill {number}, {delay:?} after the beginning of {what}");
        until(|| machines(&world) == 0 && world.process_ids("fcpipe").is_empty());
        let met = platform.container_state(0) != inside;
        println!("{context}: something to clean up: {met}");
        caught += u32::from(met);
        clean_up(&world);
        assert_same(&platform.container_state(0), &inside, &context);
        assert_same(&platform.host_state(), &host, &context);
    }
    println!("{} kills, {caught} with something to clean up", kills());
    Leftovers::of(&world).assert_none();
}
