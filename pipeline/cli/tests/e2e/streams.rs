//! Output that is read slowly, or never; many processes at once; and what a guest may do about memory: the machine stays
//! in hand.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{Leftovers, World, assert_code, skip_in_emulation, skip_without_machine};

/// A count that a soak makes larger.
fn count(name: &str, usual: u64) -> u64 {
    let told = std::env::var(name).ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// The resident memory of the world's programs of fcpipe, KiB.
fn memory(world: &World) -> Vec<u64> {
    let of = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    world
        .process_ids("fcpipe")
        .into_iter()
        .filter_map(of)
        .collect()
}

fn run(world: &World, arguments: &[&str], script: &str) -> std::process::Child {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    let mut command = world.with_kernel();
    command
        .args(["--progress", "quiet", "run", "--id", "s1"])
        .args(arguments)
        .arg(bundle);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn fcpipe(world: &World, arguments: &[&str]) -> std::process::Output {
    world.with_kernel().args(arguments).output().unwrap()
}

fn until_running(world: &World) {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let state = fcpipe(world, &["state", "s1"]);
        let state: Value = serde_json::from_slice(&state.stdout).unwrap_or_default();
        if state["status"] == "running" {
            return;
        }
        assert!(Instant::now() < end, "{state}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn row_46_qemu_a_slow_reader_gets_every_byte_and_nobody_fills_up() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bytes = count("FCPIPE_SOAK_BYTES", 48 << 20) / 16 * 16;
    let script = format!("yes 0123456789abcde | head -c {bytes}");
    let mut child = run(&world, &[], &script);
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 256 << 10];
    let (mut got, mut most, mut looks) = (0u64, 0, 0);
    loop {
        let n = stdout.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        let line = b"0123456789abcde\n";
        let right = buffer[..n]
            .iter()
            .enumerate()
            .all(|(i, b)| *b == line[((got + i as u64) % 16) as usize]);
        assert!(right, "after {got} bytes");
        got += n as u64;
        if looks % 64 == 0 {
            most = most.max(memory(&world).into_iter().max().unwrap_or(0));
            std::thread::sleep(Duration::from_millis(20));
        }
        looks += 1;
    }
    assert_eq!(got, bytes);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    println!("{bytes} bytes; at most {most} KiB resident in client and supervisor");
    assert!(most > 0 && most < 64 << 10, "{most} KiB");
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_64_qemu_a_stdout_that_is_never_read_holds_up_neither_exec_nor_kill() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let mut child = run(&world, &[], "yes");
    until_running(&world);
    // Until every buffer on the way is full.
    std::thread::sleep(Duration::from_secs(1));
    let output = fcpipe(&world, &["exec", "s1", "echo", "beside"]);
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"beside\n");
    let begun = Instant::now();
    assert_code(&fcpipe(&world, &["kill", "s1", "KILL"]), 0);
    println!("kill answered after {:?}", begun.elapsed());
    // What was on its way is still there to be read.
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(b"y\ny\n"));
    assert_eq!(child.wait().unwrap().code(), Some(137));
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_many_processes_at_once() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let mut child = run(&world, &[], "sleep 1000");
    until_running(&world);
    let many = count("FCPIPE_SOAK_EXECS", 10);
    let begun = Instant::now();
    let processes: Vec<_> = (0..many)
        .map(|number| {
            let mut command = world.with_kernel();
            let script = format!("echo {number}; exit {}", number % 100);
            command.args(["exec", "s1", "--", "sh", "-c", &script]);
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, process) in processes.into_iter().enumerate() {
        let output = process.wait_with_output().unwrap();
        assert_code(&output, number as i32 % 100);
        assert_eq!(output.stdout, format!("{number}\n").as_bytes());
    }
    println!(
        "{many} processes in {:?}; {:?} KiB",
        begun.elapsed(),
        memory(&world)
    );
    assert_code(&fcpipe(&world, &["kill", "s1", "KILL"]), 0);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn row_62_qemu_a_memory_bomb_and_a_fork_bomb_leave_the_agent_and_are_told_of() {
    if skip_without_machine() || skip_in_emulation() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sleep", "1000"], &[]);
    let mut detached = world.with_kernel();
    detached
        .args(["--progress", "quiet", "run", "--detach", "--id", "s1"])
        .arg(bundle);
    assert_code(&detached.output().unwrap(), 0);
    // A line without end, which it keeps.
    let output = fcpipe(
        &world,
        &["exec", "s1", "--", "busybox", "tail", "/dev/zero"],
    );
    assert_code(&output, 137);
    let mut forks = world
        .with_kernel()
        .args(["exec", "s1", "--", "sh", "-c", "b() { b | b & }; b"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    assert_code(&fcpipe(&world, &["kill", "s1", "KILL", "--all"]), 0);
    println!("kill answered after {:?}", begun.elapsed());
    let waited = fcpipe(&world, &["wait", "s1"]);
    assert_eq!(waited.stdout, b"137\n");
    let _ = forks.kill();
    let _ = forks.wait();
    let events = String::from_utf8(fcpipe(&world, &["events", "s1"]).stdout).unwrap();
    let told = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["type"] == "oom" && event["where"] == "guest"
    };
    assert!(events.lines().any(told), "{events}");
    assert_code(&fcpipe(&world, &["delete", "s1"]), 0);
    Leftovers::of(&world).assert_none();
}
