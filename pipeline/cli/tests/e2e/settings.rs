//! What a configuration file decides, and processes beside a launch that nobody waits for. The machines are the fake Firecracker's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Output;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::firecracker::{fake, fcpipe as command};
use crate::life::until;
use crate::world::{Leftovers, World, assert_code, kernel_package, skip_without_kernel};

fn output(world: &World, arguments: &[&str]) -> Output {
    command(world).args(arguments).output().unwrap()
}

#[test]
fn the_size_and_the_number_of_a_log_s_files_are_the_configuration_s() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let config = world.path("fcpipe.yaml");
    fs::write(&config, "log: {size: 64KiB, files: 2}\n").unwrap();
    let line = "x".repeat(300 << 10);
    let bundle = world.bundle(&["echo", &line], &[]);
    let ran = command(&world)
        .args(["--progress", "quiet", "--config"])
        .arg(&config)
        .args(["run", "--vmm", "firecracker", "--detach", "--id", "d1"])
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&ran, 0);
    assert_code(&output(&world, &["wait", "d1"]), 0);
    let size = |name: &str| fs::metadata(world.path("state/d1").join(name)).map(|meta| meta.len());
    for name in ["log", "log.1"] {
        let size = size(name).unwrap();
        // A file is left before it would be longer; one write that is longer itself goes through whole.
        assert!((1..=160 << 10).contains(&size), "{name}: {size}");
    }
    assert!(size("log.2").is_err());
    assert_code(&output(&world, &["delete", "d1"]), 0);
}

#[test]
fn a_configuration_s_kernel_is_imported_once_and_again_when_it_is_another() {
    let Some(kernel) = kernel_package() else {
        skip_without_kernel();
        return;
    };
    let world = fake("");
    let image = world.path("linux.deb");
    fs::copy(kernel, &image).unwrap();
    // However long the first launch takes: its last change is not over.
    let changed = |at: SystemTime| {
        let file = fs::File::options().write(true).open(&image).unwrap();
        file.set_modified(at).unwrap();
    };
    changed(SystemTime::now() + Duration::from_secs(3600));
    let config = world.path("fcpipe.json");
    fs::write(&config, json!({"kernel_image": image}).to_string()).unwrap();
    let run = || {
        let bundle = world.bundle(&["true"], &[]);
        command(&world)
            .env("FCPIPE_DATA_DIR", world.path("data"))
            .arg("--config")
            .arg(&config)
            .args(["run", "--vmm", "firecracker"])
            .arg(bundle)
            .output()
            .unwrap()
    };
    let note = || {
        let notes = fs::read_dir(world.path("data/kernel-images")).ok()?;
        notes.flatten().map(|entry| entry.path()).next()
    };
    assert_code(&run(), 0);
    assert_eq!(
        note(),
        None,
        "a file that has just been written is not believed"
    );
    changed(SystemTime::now());
    std::thread::sleep(Duration::from_secs(5));
    assert_code(&run(), 0);
    let note = note().expect("it is at rest");
    // Another content under the same stamp, as it stands in the note: it is not looked at.
    fs::write(&image, "no kernel").unwrap();
    let meta = fs::metadata(&image).unwrap();
    let mut known: Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    known["stamp"] = json!({
        "device": meta.dev(), "inode": meta.ino(), "size": meta.size(),
        "mtime": [meta.mtime(), meta.mtime_nsec()], "ctime": [meta.ctime(), meta.ctime_nsec()],
    });
    fs::write(&note, known.to_string()).unwrap();
    assert_code(&run(), 0);
    // Under another stamp it is.
    fs::write(&image, "no kernel, and longer").unwrap();
    let refused = run();
    assert_code(&refused, 125);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("linux.deb"), "{said}");
}

#[test]
fn a_detached_exec_goes_on_and_its_pid_stands_for_it() {
    if skip_without_kernel() {
        return;
    }
    let world = fake("");
    let bundle = world.bundle(&["sleep", "1000"], &[]).display().to_string();
    let quiet = ["--progress", "quiet"];
    let run = [
        "run",
        "--vmm",
        "firecracker",
        "--detach",
        "--id",
        "d1",
        &bundle,
    ];
    assert_code(&output(&world, &[&quiet[..], &run].concat()), 0);
    let pid_file = world.path("pid");
    let exec = |args: &[&str]| {
        let path = pid_file.display().to_string();
        let front = ["exec", "--detach", "--pid-file", &path, "d1", "--"];
        output(&world, &[&front[..], args].concat())
    };
    // Its output is the caller's, as long as there is any.
    let said = exec(&["echo", "out"]);
    assert_code(&said, 0);
    assert_eq!(said.stdout, b"out\n");
    assert_code(&exec(&["no-such-program"]), 127);
    let out = fs::File::create(world.path("out")).unwrap();
    let status = command(&world)
        .args(["exec", "-d", "--pid-file"])
        .arg(&pid_file)
        .args(["d1", "--", "sleep", "1000"])
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    assert!(status.success());
    let pid = fs::read_to_string(&pid_file)
        .unwrap()
        .parse::<i32>()
        .unwrap();
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !(stat.is_empty() || stat.contains(") Z "))
    };
    assert!(runs());
    // A signal to it is one for the process.
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until(|| !runs());
    assert_code(&output(&world, &["delete", "--force", "d1"]), 0);
    Leftovers::of(&world).assert_none();
}
