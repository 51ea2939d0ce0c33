//! Runs commands in a VM that has booted with the guest program, as a launcher would:
//!
//! ```sh
//! cargo run -p fcpipe-proto --example run_in_guest -- /tmp/vm/vsock BOOT-ID -- /bin/ls -l /
//! ```
//!
//! The VM's first disk is its root, an ext4; with `overlay` or `snapshot` the second is its scratch. Several commands, each after `--`, run at once: the
//! first is the container's PID 1. Standard input goes to the first. `-- :kill SECONDS SIGNAL`
//! sends a signal to the first. With `bell`, start it before the VM. The answer is the first command's exit code.

use std::error::Error;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fcpipe_proto::host::{Doorbell, Session, Stdio, dial};
use fcpipe_proto::process::Signal;
use fcpipe_proto::{
    AGENT_PORT, GuestConfig, GuestMount, Process, ProtoError, RootFs, WallClock, Writes,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut commands = args.split(|a| a == "--");
    let Some([socket, boot_id, options @ ..]) = commands.next() else {
        return Err(
            "usage: run_in_guest SOCKET BOOT-ID [bell] [ro] [overlay|snapshot] -- COMMAND [-- COMMAND]…"
                .into(),
        );
    };
    let has = |option: &str| options.iter().any(|o| o == option);
    let began = Instant::now();
    let deadline = began + Duration::from_secs(60);
    let say = |what: &str| {
        writeln!(
            io::stderr(),
            "[{:7.3} s] {what}",
            began.elapsed().as_secs_f64()
        )
    };

    let alive = || Ok::<_, ProtoError>(());
    if has("bell") {
        let bell = Doorbell::new(Path::new(socket))?;
        bell.wait(deadline, alive)?;
        say("the guest rang")?;
    }
    let stream = dial(Path::new(socket), AGENT_PORT, deadline, alive)?;
    say("the guest accepted")?;
    let session = Session::connect(stream, boot_id, deadline)?;
    say("hands shaken")?;
    let config = GuestConfig {
        hostname: Some("guest".to_owned()),
        wall_clock: Some(WallClock::now()),
        ..GuestConfig::new(
            RootFs {
                disk: 0,
                fstype: "ext4".to_owned(),
                disk_readonly: has("ro"),
                readonly: has("ro"),
                beside: Vec::new(),
                writes: if has("overlay") {
                    Writes::Overlay { scratch: 1 }
                } else if has("snapshot") {
                    Writes::Snapshot {
                        scratch: 1,
                        changes: false,
                    }
                } else {
                    Writes::Direct
                },
            },
            GuestMount::defaults(),
        )
    };
    session.configure(&config, deadline)?;
    say("configured")?;

    let mut running = Vec::new();
    let mut code = 0;
    for command in commands {
        if let [":kill", seconds, signal] =
            command.iter().map(String::as_str).collect::<Vec<_>>()[..]
        {
            std::thread::sleep(Duration::from_secs_f64(seconds.parse()?));
            let signal = Signal::new(signal.parse()?).ok_or("no such signal")?;
            let first: &fcpipe_proto::host::RunningProcess =
                running.first().ok_or("nothing to kill")?;
            let outcome = first.signal(signal, false)?;
            say(&format!("signal: {outcome:?}"))?;
            continue;
        }
        let mut process = Process::new(command.iter().cloned());
        process.env = vec!["PATH=/bin:/sbin:/usr/bin".to_owned()];
        let stdin = if running.is_empty() {
            Some(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            None
        };
        let stdio = Stdio {
            stdin,
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        };
        match session.start(&process, stdio, deadline) {
            Ok(process) => running.push(process),
            Err(ProtoError::Failed(failure)) => {
                say(&format!("not started: {failure}"))?;
                code = failure.shell_code();
            }
            Err(e) => return Err(e.into()),
        }
    }
    say("started")?;
    for (number, process) in running.iter().enumerate().rev() {
        let Some(status) = process.wait(None)? else {
            continue;
        };
        say(&format!("process {}: {status}", process.id()))?;
        if number == 0 {
            code = status.shell_code();
        }
    }
    let clean = session.shutdown(Instant::now() + Duration::from_secs(30))?;
    say(if clean {
        "shut down"
    } else {
        "shut down, not cleanly"
    })?;
    Ok(ExitCode::from(code))
}
