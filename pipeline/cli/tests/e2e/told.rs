//! What a command tells its caller when something comes between: output that finds no room, a launch that ends or begins just now. The machine is
//! the fake one.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use fcpipe_engine::LaunchDir;
use fcpipe_proto::frame::Frame;
use fcpipe_proto::host::short_path;
use fcpipe_proto::message::parse;
use fcpipe_supervisor::Request;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::firecracker::{fake, fcpipe, run};
use crate::life::until;
use crate::mounts::MountPoint;
use crate::world::{Leftovers, World, assert_code, ended, not_root, skip, skip_without_kernel};

#[test]
fn output_that_finds_no_room_is_told_by_whoever_passes_it_on() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["cat"], &[]);
    let full = || fs::File::create("/dev/full").unwrap();
    let to_full = |arguments: &[&str], code: i32, words: &str| {
        let output = fcpipe(&world).args(arguments).stdout(full()).output();
        let output = output.unwrap();
        assert_code(&output, code);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{arguments:?}: {said}");
    };
    let bundle = bundle.to_str().unwrap();
    let launch = ["run", "--vmm", "firecracker", "-d", "--id", "f1", bundle];
    let sleeps = ["--set", "process.args=[sleep, \"1000\"]"];
    to_full(&[&launch[..], &sleeps].concat(), 125, "launch f1 runs");
    to_full(
        &["exec", "f1", "--", "echo", "hi"],
        0,
        "stdout was cut short",
    );
    let launch = ["run", "--vmm", "firecracker", "-d", "--id", "f2", bundle];
    let output = fcpipe(&world)
        .args(launch)
        .args(["--set", "process.args=[echo, logged]"])
        .output();
    assert_code(&output.unwrap(), 0);
    assert_code(&fcpipe(&world).args(["wait", "f2"]).output().unwrap(), 0);
    to_full(&["logs", "f2"], 1, "stdout: No space left");
    for id in ["f1", "f2"] {
        let output = fcpipe(&world).args(["delete", "-f", id]).output();
        assert_code(&output.unwrap(), 0);
    }
    Leftovers::of(&world).assert_none();
}

/// While another command takes away what a dead supervisor left, the launch's lock is held and its state is old.
#[test]
fn row_50_a_launch_that_is_being_cleaned_up_counts_as_stopped_and_not_as_what_it_was() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["cat"], &[]);
    for (command, words) in [
        (["start", "c1"].as_slice(), "in the stopped state"),
        (&["exec", "c1", "true"], "in a stopped container"),
        (&["kill", "c1"], "not running"),
        (&["wait", "c1"], "its supervisor was killed"),
    ] {
        let create = ["create", "c1", "--log", "--vmm", "firecracker", "--bundle"];
        let output = fcpipe(&world).args(create).arg(&bundle).output().unwrap();
        assert_code(&output, 0);
        let state = fs::read(world.path("state/c1/state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        let supervisor = state["supervisor"].to_string();
        let killed = Command::new("kill").args(["-9", &supervisor]).status();
        assert!(killed.unwrap().success());
        let lock = fs::File::open(world.path("state/c1/lock")).unwrap();
        lock.lock().unwrap();
        // Its socket may outlive its lock by a moment, in which it takes a connection to nobody.
        let socket = world.path("state/c1/control");
        until(|| UnixStream::connect(&socket).is_err());
        let mut asked = fcpipe(&world);
        asked
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let asked = asked.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        drop(lock);
        let output = asked.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(words),
            "{command:?}: {said}"
        );
        let output = fcpipe(&world).args(["delete", "-f", "c1"]).output();
        assert_code(&output.unwrap(), 0);
    }
}

#[test]
fn root_row_31_a_full_state_directory_is_named_and_keeps_nothing() {
    if skip(not_root()) || skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["true"], &[]);
    // One file more each time; with ten there is no room yet for a monitor's own.
    for files in 2..=10 {
        let options = format!("mode=700,nr_inodes={files}");
        let state = MountPoint::tmpfs(world.path("small"), &options);
        let mut run = fcpipe(&world);
        run.arg("--state-dir").arg(state.path());
        run.args(["run", "--vmm", "firecracker"]).arg(&bundle);
        let output = run.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{files}: {said}");
        let named = said.contains(state.path().to_str().unwrap());
        assert!(named && said.contains("free some space"), "{files}: {said}");
        let inside = fs::read_dir(state.path()).unwrap().flatten();
        assert_eq!(
            inside.filter(|e| e.path().is_dir()).count(),
            0,
            "{files}: {said}"
        );
    }
}

/// A first signal waits for it; who sends a second one wants the command to end.
#[test]
fn row_49_a_second_signal_ends_a_command_whose_supervisor_is_stopped() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["sleep", "1000"], &[]);
    let mut run = fcpipe(&world);
    run.args(["run", "--vmm", "firecracker", "--id", "c1"])
        .arg(&bundle);
    let mut exec = fcpipe(&world);
    exec.args(["exec", "c1", "sleep", "1000"]);
    // A file: of a pipe the supervisor would have the other end.
    let said = world.path("said");
    let spawn = |command: &mut Command| {
        let said = fs::File::create(&said).unwrap();
        command.stdout(Stdio::null()).stderr(said).spawn().unwrap()
    };
    let mut run = spawn(&mut run);
    let state = || {
        let state = fs::read(world.path("state/c1/state.json")).unwrap_or_default();
        serde_json::from_slice(&state).unwrap_or(Value::Null)
    };
    until(|| state()["status"] == "running");
    let supervisor = Pid::from_raw(state()["supervisor"].as_i64().unwrap() as i32).unwrap();
    kill_process(supervisor, Signal::STOP).unwrap();
    let mut exec = spawn(&mut exec);
    for command in [&mut exec, &mut run] {
        fs::write(&said, "").unwrap();
        // Blocked: passed on from here on, and no end by itself.
        let status = format!("/proc/{}/status", command.id());
        until(|| {
            let status = fs::read_to_string(&status).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
            [Signal::TERM, Signal::INT]
                .iter()
                .all(|signal| mask >> (signal.as_raw() - 1) & 1 == 1)
        });
        let client = Pid::from_child(command);
        kill_process(client, Signal::TERM).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(command.try_wait().unwrap().is_none(), "by the first");
        kill_process(client, Signal::INT).unwrap();
        assert_eq!(ended(command).code(), Some(130));
        let said = fs::read_to_string(&said).unwrap();
        assert!(
            said.contains("supervisor (fcpipe-super) hears nothing"),
            "{said}"
        );
    }
    kill_process(supervisor, Signal::CONT).unwrap();
    until(|| !world.path("state/c1").exists());
    Leftovers::of(&world).assert_none();
}

#[test]
fn row_31_a_limit_on_the_size_of_files_is_an_error_and_kills_nobody() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["true"], &[]);
    let limited = fcpipe(&world);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 8 && exec \"$0\" \"$@\""]);
    command.arg(limited.get_program());
    command.args(["run", "--vmm", "firecracker"]).arg(&bundle);
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("File too large"), "{said}");
    Leftovers::of(&world).assert_none();
}

/// The supervisor writes them, and its standard streams are not the caller's.
#[test]
fn the_timings_of_a_launch_go_to_a_file_and_to_nothing_else() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let output = run(&world, &["true"])
        .args(["--timings", "/proc/self/fd/1"])
        .output();
    let output = output.unwrap();
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--timings needs a file"), "{said}");
    let timings = world.path("timings.json");
    let output = run(&world, &["true"])
        .arg("--timings")
        .arg(&timings)
        .output();
    assert_code(&output.unwrap(), 0);
    let receipt: Value = serde_json::from_slice(&fs::read(timings).unwrap()).unwrap();
    assert_eq!(receipt["schema"], "fcpipe.receipt/1");
}

#[test]
fn row_55_a_launch_that_is_deleted_before_its_process_ran_says_by_what() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("guest mute");
    let mut client = run(&world, &["true"])
        .args(["--progress", "quiet", "--id", "d1", "--boot-timeout", "600"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(|| !world.process_ids("firecracker").is_empty());
    let deleted = fcpipe(&world).args(["delete", "-f", "d1"]).output();
    assert_code(&deleted.unwrap(), 0);
    assert_eq!(ended(&mut client).code(), Some(137));
    let mut said = String::new();
    client.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("`fcpipe delete --force` ended"), "{said}");
    Leftovers::of(&world).assert_none();
}

/// A supervisor locks the launch's directory before it listens there. This test is one.
#[test]
fn row_55_a_launch_that_has_only_just_begun_is_asked_to_end_once_it_listens() {
    let world = World::new();
    let launch = LaunchDir::claim(&world.path("state"), "d1").unwrap();
    let mut delete = world.fcpipe();
    let mut delete = delete.args(["delete", "-f", "d1"]).spawn().unwrap();
    // By then it has found nobody there, as good as always.
    std::thread::sleep(Duration::from_millis(300));
    let socket = launch.path().join("control");
    let listener = short_path(&socket, |path| UnixListener::bind(path)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut asked = None;
    until(|| {
        asked = listener.accept().ok();
        asked.is_some() || delete.try_wait().unwrap().is_some()
    });
    let (mut asked, _) = asked.expect("it has given up");
    asked.set_nonblocking(false).unwrap();
    let Ok(Some(Frame::Control(request))) = Frame::read(&mut asked, 100) else {
        panic!("no request");
    };
    assert!(matches!(parse(&request), Ok(Request::End)), "{request:?}");
    launch.remove().unwrap();
    assert!(ended(&mut delete).success());
    Leftovers::of(&world).assert_none();
}
