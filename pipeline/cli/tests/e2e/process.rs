//! The process in the machine: its output, status, input and signals are the caller's.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::world::{
    Leftovers, World, assert_code, ended, not_root, skip, skip_without_machine, with_input,
};

#[test]
fn qemu_exit_status_and_streams_are_the_process_s_own() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let output = world.run_script("echo out; echo err >&2; exit 7");
    assert_code(&output, 7);
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.windows(4).any(|w| w == b"err\n"));
    // The process is PID 1 of its own, in a machine with the bundle's host name.
    let output = world.run_script("echo $$ $(hostname) $(id -u)");
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"1 world 0\n");
}

#[test]
fn qemu_second_run_hits_every_build_stage() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let run = |timings: &str| {
        let timings = world.path(timings);
        let output = world
            .with_kernel()
            .arg("run")
            .arg(&bundle)
            .arg("--timings")
            .arg(&timings)
            .output()
            .unwrap();
        assert_code(&output, 0);
        let receipt: serde_json::Value =
            serde_json::from_slice(&fs::read(timings).unwrap()).unwrap();
        receipt
    };
    let outcome = |receipt: &serde_json::Value, id: &str| {
        let stages = receipt["stages"].as_array().unwrap();
        let stage = stages
            .iter()
            .find(|stage| stage["id"] == id)
            .unwrap_or_else(|| panic!("no {id}"));
        stage["outcome"].as_str().unwrap().to_owned()
    };
    let (first, second) = (run("1.json"), run("2.json"));
    let id = second["id"].as_str().unwrap();
    let why = world.with_kernel().args(["report", id]).output().unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    assert_eq!(first["schema"], "fcpipe.receipt/1");
    for stage in ["scan:/", "layout", "allocate", "copy", "seal", "initrd"] {
        assert_eq!(outcome(&first, stage), "ran", "{stage}");
        assert_eq!(outcome(&second, stage), "hit", "{stage}\n{why}");
    }
    for effect in ["disk", "machine", "boot", "process"] {
        assert_eq!(outcome(&second, effect), "ran", "{effect}");
    }
}

#[test]
fn qemu_death_by_signal_missing_and_unrunnable_commands_have_docker_s_codes() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    assert_code(&world.run_script("kill -TERM $$; sleep 5; exit 3"), 3); // PID 1 ignores what it does not handle.
    assert_code(&world.run_script("sh -c 'kill -TERM $$'; exit $?"), 143);
    let bundle = world.bundle(&["no-such-program"], &[]);
    let output = world
        .with_kernel()
        .arg("run")
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&output, 127);
    assert!(output.stderr.windows(15).any(|w| w == b"no-such-program"));
    let bundle = world.bundle(&["/etc/passwd"], &[]);
    assert_code(
        &world
            .with_kernel()
            .arg("run")
            .arg(&bundle)
            .output()
            .unwrap(),
        126,
    );
}

#[test]
fn qemu_ten_mebibytes_of_random_bytes_arrive_whole_and_apart() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let mut random = vec![0u8; 11 << 20];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut random)
        .unwrap();
    let (out, err) = random.split_at(10 << 20);
    let data = world.path("data-mount");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("out"), out).unwrap();
    fs::write(data.join("err"), err).unwrap();
    let mount =
        json!({"destination": "/data", "type": "bind", "source": data, "options": ["bind"]});
    let bundle = world.bundle(
        &["sh", "-c", "cat /data/out & cat /data/err >&2; wait"],
        &[mount],
    );
    let output = world
        .with_kernel()
        .args(["--progress", "quiet", "run"])
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert!(output.stdout == out, "stdout differs");
    assert!(output.stderr == err, "stderr differs");
}

#[test]
fn qemu_standard_input_reaches_the_process_with_i_only() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["cat"], &[]);
    let output = with_input(
        world.with_kernel().args(["run", "-i"]).arg(&bundle),
        b"hi\n",
    );
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"hi\n");
    let output = with_input(world.with_kernel().arg("run").arg(&bundle), b"hi\n");
    assert_code(&output, 0);
    assert_eq!(output.stdout, b"");
}

#[test]
fn row_62_qemu_kill_all_as_root_ends_the_process_at_most() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    // The shell is PID 1 of its own PID namespace: the signal reaches all but it, and never the agent.
    let output = world.run_script("(sleep 100 & kill -9 -1); echo survived; exit 5");
    assert_code(&output, 5);
    assert_eq!(output.stdout, b"survived\n");
}

#[test]
fn row_49_qemu_a_signal_goes_to_the_process_and_a_second_ends_the_machine() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let (status, out) = signalled(&world, script, false);
    assert_eq!((status, out.as_str()), (Some(9), "ready\ncaught\n"));
    let script = "trap 'echo caught' TERM; echo ready; while :; do sleep 0.1; done";
    let (status, _) = signalled(&world, script, true);
    assert_eq!(status, Some(143));
    Leftovers::of(&world).assert_none();
}

/// Sends SIGTERM once the script is ready, and `again` when it has caught that; gives the status and stdout.
fn signalled(world: &World, script: &str, again: bool) -> (Option<i32>, String) {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    let mut child = world
        .with_kernel()
        .arg("run")
        .arg(bundle)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut said = String::new();
    for word in ["ready\n", "caught\n"].iter().take(1 + usize::from(again)) {
        let mut read = vec![0; word.len()];
        stdout.read_exact(&mut read).unwrap();
        assert_eq!(read, word.as_bytes());
        said.push_str(word);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    let status = ended(&mut child);
    stdout.read_to_string(&mut said).unwrap();
    (status.code(), said)
}

#[test]
fn row_56_qemu_a_closed_stdout_is_a_quiet_end() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh", "-c", "while echo line; do :; done; exit 0"], &[]);
    let script = format!(
        "timeout -k 10 120 '{}' --progress quiet run '{}' | head -n 3; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_fcpipe"),
        bundle.display()
    );
    let mut bash = Command::new("bash");
    for (name, value) in world.with_kernel().get_envs() {
        bash.env(name, value.unwrap());
    }
    let output = bash.args(["-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "line\nline\nline\n0\n");
    // As PID 1 the shell has no default action for SIGPIPE: it sees the error and says so itself.
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.lines()
            .all(|line| line == "sh: write error: Broken pipe"),
        "{said}"
    );
}

#[test]
fn row_52_qemu_a_state_directory_deeper_than_a_socket_path() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let deep = world.path(&"deep-directory/".repeat(12));
    let output = world
        .with_kernel()
        .env("FCPIPE_STATE_DIR", &deep)
        .arg("run")
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
}

#[test]
fn row_45_qemu_a_guest_that_never_answers_is_an_error_with_its_console() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let output = world
        .with_kernel()
        .args(["run", "--boot-timeout", "1"])
        .arg(bundle)
        .process_group(0)
        .output()
        .unwrap();
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("did not answer"), "{said}");
    Leftovers::of(&world).assert_none();
}

/// A Debian root and three mounts: every file that was mounted has the host's checksum.
#[test]
fn qemu_root_a_debootstrapped_bundle_sees_every_byte_of_its_mounts() {
    if skip_without_machine() || skip(not_root()) {
        return;
    }
    let Some(debian) = debian_root() else { return };
    let world = World::new();
    let mut mounts = Vec::new();
    for (name, megabytes) in [("code", 1), ("data", 20), ("model", 60)] {
        let dir = world.path(name);
        fs::create_dir_all(dir.join("deep/er")).unwrap();
        for number in 0..5 {
            let mut bytes = vec![0; megabytes * 200_000 + number];
            fs::File::open("/dev/urandom")
                .unwrap()
                .read_exact(&mut bytes)
                .unwrap();
            fs::write(dir.join(format!("deep/er/file {number}")), bytes).unwrap();
        }
        fs::write(dir.join("empty"), "").unwrap();
        mounts.push(json!({
            "destination": format!("/mnt/{name}"), "type": "bind", "source": dir, "options": ["rbind"],
        }));
    }
    let script = "cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let bundle = world.bundle(&["/bin/sh", "-c", script], &mounts);
    fs::remove_dir_all(bundle.join("rootfs")).unwrap();
    std::os::unix::fs::symlink(debian, bundle.join("rootfs")).unwrap();
    let config = fs::read_to_string(bundle.join("config.json")).unwrap();
    fs::write(
        bundle.join("config.json"),
        config.replace("PATH=/bin", "PATH=/usr/bin:/bin"),
    )
    .unwrap();
    let host = Command::new("sh")
        .args(["-c", "find code data model -type f -print0 | sed -z 's,^,./,' | sort -z | xargs -0 sha256sum"])
        .env("LC_ALL", "C")
        .current_dir(world.dir.path())
        .output()
        .unwrap();
    let output = world
        .with_kernel()
        .arg("run")
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(host.stdout).unwrap()
    );
}

/// `debootstrap --variant=minbase`, made once and kept below the target directory; or what FCPIPE_TEST_DEBIAN_ROOT names.
fn debian_root() -> Option<std::path::PathBuf> {
    if let Some(named) = std::env::var_os("FCPIPE_TEST_DEBIAN_ROOT") {
        return Some(named.into());
    }
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
    if dir.join("done").exists() {
        return Some(dir.join("root"));
    }
    if !std::path::Path::new("/usr/sbin/debootstrap").exists() {
        skip(Some("debootstrap is not installed".to_owned()));
        return None;
    }
    // Half of one is no use.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let status = Command::new("/usr/sbin/debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(dir.join("root"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "debootstrap: {status}");
    fs::write(dir.join("done"), "").unwrap();
    Some(dir.join("root"))
}
