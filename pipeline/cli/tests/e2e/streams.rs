//! Output that is read slowly, or never; many processes at once; and what a guest may do about memory: the machine stays
//! in hand.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fcpipe_treegen::count;
use serde_json::Value;

use crate::bombs;
use crate::life::until;
use crate::world::{Leftovers, World, assert_code, skip_in_emulation, skip_without_machine};

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

/// The memory that the guest's kernel could not give out, KiB; `None` where it does not answer: it may have just ended.
fn guest_memory(world: &World) -> Option<u64> {
    let output = fcpipe(world, &["--format", "json", "metrics", "s1"]);
    let figures: Value = serde_json::from_slice(&output.stdout).ok()?;
    let memory = &figures["stats"]["guest"]["memory"];
    Some((memory["total"].as_u64()? - memory["available"].as_u64()?) >> 10)
}

fn run(world: &World, arguments: &[&str], script: &str) -> std::process::Child {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    let mut command = world.with_kernel();
    command
        .args(["--progress", "quiet", "run", "--id", "s1"])
        .args(arguments)
        .arg(bundle);
    command.stdout(Stdio::piped());
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
    // Both say how they ended: the first by a pipe that nobody reads, 128 + 13.
    let script = format!(
        "(yes 0123456789abcde; echo yes $? >&2) | head -c {bytes}; code=$?; echo head $code >&2; exit $code"
    );
    let mut child = run(&world, &[], &script);
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 256 << 10];
    let (mut got, mut most, mut looks) = (0u64, 0, 0);
    // What the guest had in use when the first bytes were here, and the most since.
    let mut guest: Option<(u64, u64)> = None;
    let mut asked = 0;
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
        // Eight times on the way: the first soon, the last before the end.
        if got > asked * bytes / 8 {
            asked += 1;
            if let Some(now) = guest_memory(&world) {
                let (first, most) = guest.unwrap_or((now, now));
                guest = Some((first, most.max(now)));
            }
        }
    }
    let code = child.wait().unwrap().code();
    assert_eq!((got, code), (bytes, Some(0)));
    let (first, in_guest) = guest.unwrap();
    println!(
        "{bytes} bytes; at most {most} KiB resident in client and supervisor; in use in the guest {first} KiB, at most {in_guest} KiB"
    );
    assert!(most > 0 && most < 64 << 10, "{most} KiB");
    assert!(
        in_guest < first + (32 << 10),
        "{first} KiB, then {in_guest} KiB"
    );
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_64_qemu_a_stdout_that_is_never_read_holds_up_neither_exec_nor_kill() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = bombs::bundle(&world, "echo ready; exec /probe flood=1000000000");
    let mut child = world
        .with_kernel()
        .args(["--progress", "quiet", "run", "--id", "s1"])
        .arg(bundle)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    // Until every buffer on the way is full: its task waits in the pipe's write.
    until(|| {
        let script = "while read name value rest; do [ $name = State: ] && echo $value; done < /proc/1/status";
        fcpipe(&world, &["exec", "s1", "--", "sh", "-c", script]).stdout == b"S\n"
    });
    let begun = Instant::now();
    assert_code(&fcpipe(&world, &["kill", "s1", "KILL"]), 0);
    println!("kill answered after {:?}", begun.elapsed());
    // What was on its way is still there to be read: the beginning of what was written, without a gap.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    let expected = |at: usize| ((at % 65_536) % 251) as u8;
    let mut bytes = rest.iter().enumerate();
    assert!(bytes.all(|(at, byte)| *byte == expected(at)));
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

/// The first process's end is the end of all, and takes nothing from what they had written.
#[test]
fn row_46_qemu_a_process_beside_a_container_that_ends_has_all_its_output_and_its_status() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let script = "trap 'read n < /tmp/n; echo $n; exit 3' TERM; echo 0 > /tmp/n; while :; do sleep 0.1; done";
    let mut child = run(&world, &[], script);
    until_running(&world);
    let exec = |script: &str| {
        let mut exec = world.with_kernel();
        exec.args(["exec", "s1", "--", "sh", "-c", script]);
        exec.stdout(Stdio::piped()).spawn().unwrap()
    };
    // Nobody reads this one until all is over: it is held on the host by then.
    let mut late = exec("yes 0123456789abcde | head -c 200000; echo last; sleep 1000");
    // Nor this one: it comes to a stop, with lines on every part of the way, and has noted how many it wrote.
    let script = "p=$(busybox printf %01000d 0); i=0; \
                  while :; do i=$((i + 1)); echo $i $p; echo $i > /tmp/n; done";
    let mut exec = exec(script);
    let written = || fcpipe(&world, &["exec", "s1", "cat", "/tmp/n"]).stdout;
    let mut before = Vec::new();
    until(|| {
        std::thread::sleep(Duration::from_millis(200));
        let now = written();
        let same = now == before && !matches!(&now[..], b"" | b"0\n");
        before = now;
        same
    });
    assert_code(&fcpipe(&world, &["kill", "s1", "TERM"]), 0);
    let mut told = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut told).unwrap();
    let told: usize = told.trim().parse().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut got = String::new();
    let mut stdout = exec.stdout.take().unwrap();
    stdout.read_to_string(&mut got).unwrap();
    let whole = got
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let numbers: Vec<usize> = whole
        .map(|line| line.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()));
    assert!(numbers.len() >= told, "{} of {told}", numbers.len());
    // As runc has it: the kernel kills it.
    assert_eq!(exec.wait().unwrap().code(), Some(137));
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let mut got = Vec::new();
    let mut stdout = late.stdout.take().unwrap();
    stdout.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 200_005);
    assert!(got.ends_with(b"last\n"));
    assert_eq!(late.wait().unwrap().code(), Some(137));
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_62_qemu_a_memory_bomb_beside_the_container_is_told_as_an_event() {
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
    let bomb = ["exec", "s1", "--", "busybox", "tail", "/dev/zero"];
    assert_code(&fcpipe(&world, &bomb), 137);
    assert_code(&fcpipe(&world, &["kill", "s1", "KILL"]), 0);
    assert_eq!(fcpipe(&world, &["wait", "s1"]).stdout, b"137\n");
    // Of one that has ended: of another they go on.
    let events = String::from_utf8(fcpipe(&world, &["events", "s1"]).stdout).unwrap();
    let told = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["type"] == "oom" && event["where"] == "guest"
    };
    assert!(events.lines().any(told), "{events}");
    assert_code(&fcpipe(&world, &["delete", "s1"]), 0);
    Leftovers::of(&world).assert_none();
}
