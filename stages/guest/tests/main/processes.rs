//! Processes: what they are, what they do to each other, and what becomes of them.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use fcpipe_proto::message::SignalOutcome;
use fcpipe_proto::process::Signal;
use fcpipe_proto::{FailureKind, Process, ProtoError, Rlimit};

use crate::agent::{AWAKE, Guest, Kept, sh};

#[test]
fn streams_are_apart_and_the_exit_code_is_the_process_s_as_root() {
    let Some(guest) = Guest::new() else { return };
    let ended = guest.configured().sh("echo out; echo err >&2; exit 7");
    assert_eq!(
        (&*ended.out, &*ended.err, ended.code()),
        ("out\n", "err\n", 7)
    );
}

#[test]
fn row_46_bytes_pass_both_ways_unchanged_as_root() {
    let Some(guest) = Guest::new() else { return };
    let guest = guest.configured();
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes())
        .collect();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let running = guest
        .start(&Process::new(["/bin/cat"]), Some(OwnedFd::from(theirs)))
        .unwrap();
    ours.write_all(&bytes).unwrap();
    drop(ours);
    assert_eq!(
        running
            .process
            .wait(Some(crate::agent::soon()))
            .unwrap()
            .unwrap()
            .shell_code(),
        0
    );
    assert!(running.out.bytes() == bytes);
}

#[test]
fn without_a_stdin_there_is_dev_null_as_root() {
    let Some(guest) = Guest::new() else { return };
    let ended = guest.configured().sh("readlink /proc/self/fd/0; cat");
    assert_eq!((&*ended.out, ended.code()), ("/dev/null\n", 0));
}

#[test]
fn a_process_gets_what_its_orders_say_as_root() {
    let Some(guest) = Guest::new() else { return };
    let guest = guest.configured();
    let mut process = sh(
        "id -u; id -g; id -G; umask; pwd; echo $HOME; echo $$; hostname; ulimit -n; ulimit -Hn; \
         grep -E '^(SigIgn|SigBlk|NoNewPrivs|CapEff)' /proc/self/status; echo $(ls /proc/self/fd); \
         echo x >/dev/stdout; cat /proc/self/oom_score_adj",
    );
    process.uid = 33;
    process.gid = 44;
    process.additional_gids = vec![44, 70_000];
    process.umask = Some(0o027);
    process.cwd = "/made/for/it".to_owned();
    process.no_new_privileges = true;
    process.oom_score_adj = Some(500);
    process.rlimits = vec![Rlimit {
        kind: "RLIMIT_NOFILE".to_owned(),
        soft: 100,
        hard: 200,
    }];
    let ended = guest.start(&process, None).unwrap().end();
    let zero = "0000000000000000";
    let expected = format!(
        "33\n44\n44 70000\n0027\n/made/for/it\n/home/web\n1\ninside\n100\n200\n\
         SigBlk:\t{zero}\nSigIgn:\t{zero}\nCapEff:\t{zero}\nNoNewPrivs:\t1\n0 1 2 3\nx\n500\n"
    );
    // The fourth descriptor is the directory that ls reads.
    assert_eq!(ended.out, expected, "{}", ended.err);
}

#[test]
fn programs_that_cannot_be_run_are_told_apart_as_root() {
    for (name, kind) in [
        ("nosuch", FailureKind::NotFound),
        ("/bin/nosuch", FailureKind::NotFound),
        ("/bin/text", FailureKind::NotExecutable),
        ("/etc", FailureKind::NotExecutable),
    ] {
        let Some(guest) = Guest::new() else { return };
        let mut process = Process::new([name]);
        process.env = vec!["PATH=/etc:/bin".to_owned()];
        match guest.configured().start(&process, None) {
            Err(ProtoError::Failed(failure)) => {
                assert_eq!(failure.kind, kind, "{failure}");
                assert_eq!(failure.path.as_deref(), Some(name));
            }
            other => panic!("{name}: {:?}", other.err()),
        }
    }
}

#[test]
fn row_62_kill_everything_as_root_of_the_container_leaves_the_agent_as_root() {
    let Some(mut guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let ended = guest.sh("sleep 1000 & kill -9 -1; exit 3");
    assert_eq!(ended.code(), 3, "{}", ended.err);
    assert!(guest.shutdown());
}

#[test]
fn signals_reach_the_process_and_say_whether_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let running = guest
        .start(
            &sh("trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.01; done"),
            None,
        )
        .unwrap();
    running.out.wait_for("up");
    let outcome = running.process.signal(Signal::TERM, false).unwrap();
    assert_eq!(outcome, SignalOutcome::Sent);
    running.out.wait_for("term");
    assert_eq!(
        running
            .process
            .wait(Some(crate::agent::soon()))
            .unwrap()
            .unwrap()
            .shell_code(),
        5
    );
    let outcome = running.process.signal(Signal::TERM, false).unwrap();
    assert_eq!(outcome, SignalOutcome::NotRunning);
}

#[test]
fn a_signal_that_the_first_process_takes_no_notice_of_is_told_as_root() {
    for (script, signal, outcome) in [
        ("", Signal::TERM, SignalOutcome::Dropped),
        ("trap '' TERM;", Signal::TERM, SignalOutcome::Dropped),
        ("trap : TERM;", Signal::TERM, SignalOutcome::Sent),
        ("trap : TERM;", Signal::HUP, SignalOutcome::Dropped),
        // It ends nobody who does nothing about it.
        ("", Signal::new(28).unwrap(), SignalOutcome::Sent),
        ("", Signal::KILL, SignalOutcome::Sent),
    ] {
        let Some(guest) = Guest::new().map(Guest::configured) else {
            return;
        };
        let script = format!("{script} echo up; while :; do sleep 0.01; done");
        let running = guest.start(&sh(&script), None).unwrap();
        running.out.wait_for("up");
        let told = running.process.signal(signal, false).unwrap();
        assert_eq!(told, outcome, "{script} {signal:?}");
        // What was dropped has ended nobody.
        let ends = signal == Signal::KILL;
        let end = Some(if ends {
            crate::agent::soon()
        } else {
            Instant::now()
        });
        let ended = running.process.wait(end).unwrap();
        assert_eq!(ended.is_some(), ends, "{script} {signal:?}");
        if !ends {
            // Beside others, nothing is known.
            let all = running.process.signal(signal, true).unwrap();
            assert_eq!(all, SignalOutcome::Sent, "{script} {signal:?}");
        }
    }
}

#[test]
fn row_55_others_run_in_the_same_container_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let init = guest
        .start(&sh("touch /here; echo up; exec sleep 1000"), None)
        .unwrap();
    init.out.wait_for("up");
    let script = format!("ls /here; {AWAKE}; cat /proc/1/cmdline; hostname; exit 4");
    let beside = guest.sh(&script);
    assert_eq!(beside.code(), 4);
    assert_eq!(
        beside.out, "/here\nsleep\x001000\0inside\n",
        "{}",
        beside.err
    );
    // One that leaves a child behind, which holds its output open, ends all the same.
    assert_eq!(guest.sh("sleep 1000 & echo done").out, "done\n");
    // A real-time signal, to everything in the container.
    let other = guest.start(&sh("echo up; exec sleep 1000"), None).unwrap();
    other.out.wait_for("up");
    init.process.signal(Signal::new(40).unwrap(), true).unwrap();
    assert_eq!(other.end().code(), 128 + 40);
    // PID 1 has no handler for it: only KILL reaches it.
    assert_eq!(init.process.exit_status(), None);
    init.process.signal(Signal::KILL, false).unwrap();
    assert_eq!(init.end().code(), 137);
    match guest.start(&sh("true"), None) {
        Err(ProtoError::Failed(failure)) => assert_eq!(failure.kind, FailureKind::Protocol),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn what_the_container_leaves_behind_does_not_hold_its_exit_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let ended = guest.sh("sleep 1000 & echo hi");
    assert_eq!((&*ended.out, ended.code()), ("hi\n", 0));
}

#[test]
fn row_64_a_blocked_stdout_keeps_nobody_else_waiting_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    struct Never;
    impl Write for Never {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let stdio = fcpipe_proto::host::Stdio {
        stdin: Some(OwnedFd::from(File::open("/dev/zero").unwrap())),
        stdout: Box::new(Never),
        stderr: Box::new(Never),
    };
    let soon = crate::agent::soon;
    let init = guest
        .session()
        .start(&sh("yes & yes >&2"), stdio, soon())
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(guest.sh("exit 9").code(), 9);
    init.signal(Signal::KILL, true).unwrap();
    let until = soon();
    while init.exit_status().is_none() {
        assert!(std::time::Instant::now() < until, "it lives still");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(init.exit_status().unwrap().shell_code(), 137);
}

#[test]
fn row_46_what_waits_in_the_pipe_at_the_exit_still_comes_as_root() {
    /// Keeps what is written, once the other end of the channel is dropped.
    struct Late(std::sync::mpsc::Receiver<()>, Kept);
    impl Write for Late {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // The first byte blocks the reader, the next ones use up the window and block the agent; the
    // last ones stay in the pipe, which holds 64 KiB.
    const SCRIPT: &str =
        "echo; sleep 0.3; head -c 272144 /dev/zero; sleep 0.3; head -c 20000 /dev/zero";
    const BYTES: usize = 1 + 272_144 + 20_000;
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let (go, late) = std::sync::mpsc::channel();
    let kept = Kept::default();
    let stdio = fcpipe_proto::host::Stdio {
        stdin: None,
        stdout: Box::new(Late(late, kept.clone())),
        stderr: Box::new(std::io::sink()),
    };
    let soon = crate::agent::soon;
    let running = guest.session().start(&sh(SCRIPT), stdio, soon()).unwrap();
    let until = soon();
    while running.exit_status().is_none() {
        assert!(std::time::Instant::now() < until, "it cannot end");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    drop(go);
    running.wait(Some(soon())).unwrap();
    assert_eq!(kept.bytes().len(), BYTES);
}

#[test]
fn row_56_a_closed_stdout_is_a_broken_pipe_inside_as_root() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    // PID 1 gets no default action from signals: a child of it does.
    let stdio = fcpipe_proto::host::Stdio {
        stdin: None,
        stdout: Box::new(Closed),
        stderr: Box::new(std::io::sink()),
    };
    let soon = crate::agent::soon;
    let init = guest
        .session()
        .start(&sh("(yes); exit $?"), stdio, soon())
        .unwrap();
    assert_eq!(init.wait(Some(soon())).unwrap().unwrap().shell_code(), 141);
}
