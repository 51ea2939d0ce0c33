//! Processes with a terminal.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use fcpipe_proto::{FailureKind, ProtoError, WindowSize};

use crate::agent::{Guest, Running, sh};

const SIZE: WindowSize = WindowSize {
    rows: 33,
    columns: 101,
};

/// A shell script on a terminal, and who types on it.
fn on_terminal(guest: &Guest, script: &str) -> (Running, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut process = sh(script);
    process.terminal = true;
    process.console_size = Some(SIZE);
    let running = guest.start(&process, Some(OwnedFd::from(theirs)));
    (running.unwrap(), ours)
}

#[test]
fn the_first_process_has_its_terminal_as_console_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let (running, mut typist) = on_terminal(
        &guest,
        "tty; stty size; [ -t 0 -a -t 1 -a -t 2 ] && echo all; echo err >&2; echo x > /dev/tty; echo y > /dev/console; \
         ls /proc/self/fd | wc -l; stat -c '%u %g %a' /dev/pts/0; read line; echo got $line; stty size; exit 6",
    );
    running.out.wait_for("0 5 620\r\n");
    running
        .process
        .resize(WindowSize {
            rows: 50,
            columns: 60,
        })
        .unwrap();
    typist.write_all(b"typed\n").unwrap();
    let ended = running.end();
    // ls has its directory open beside the three.
    assert_eq!(
        ended.out,
        "/dev/pts/0\r\n33 101\r\nall\r\nerr\r\nx\r\ny\r\n4\r\n0 5 620\r\ntyped\r\ngot typed\r\n50 60\r\n"
    );
    assert_eq!((&*ended.err, ended.code()), ("", 6));
}

#[test]
fn others_have_terminals_of_their_own_and_keys_are_signals_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let init = guest.start(&sh("echo up; exec sleep 1000"), None).unwrap();
    init.out.wait_for("up");
    let (first, mut typist) = on_terminal(&guest, "tty; sleep 1000");
    first.out.wait_for("/dev/pts/0");
    let (second, _typist) = on_terminal(&guest, "tty; [ -e /dev/console ] || echo no console");
    assert_eq!(second.end().out, "/dev/pts/1\r\nno console\r\n");
    typist.write_all(b"\x03").unwrap();
    assert_eq!(first.end().code(), 130);
}

#[test]
fn a_user_owns_the_terminal_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let mut process =
        sh("stat -c %u /dev/pts/0; echo x > /dev/tty; exec 3<>/dev/pts/0 && echo opened");
    process.terminal = true;
    process.uid = 33;
    let ended = guest.start(&process, None).unwrap().end();
    assert_eq!(ended.out, "33\r\nx\r\nopened\r\n");
}

/// All that a program wrote before its end, though the terminal's buffers are small.
#[test]
fn row_46_much_output_on_a_terminal_comes_whole_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let (running, _typist) = on_terminal(&guest, "stty -opost; seq 1 100000");
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(running.end().out == expected);
}

#[test]
fn the_end_of_the_input_is_typed_as_root() {
    for text in ["", "line\n", "no line"] {
        let Some(guest) = Guest::new().map(Guest::configured) else {
            return;
        };
        let (running, mut typist) = on_terminal(&guest, "stty -echo; echo up; cat; echo over");
        running.out.wait_for("up");
        typist.write_all(text.as_bytes()).unwrap();
        drop(typist);
        let ended = running.end();
        let text = text.replace('\n', "\r\n");
        assert_eq!(ended.out, format!("up\r\n{text}over\r\n"));
    }
}

#[test]
fn row_57_a_host_that_wants_no_more_hangs_up_as_root() {
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
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let stdio = fcpipe_proto::host::Stdio {
        stdin: Some(theirs.into()),
        stdout: Box::new(Closed),
        stderr: Box::new(std::io::sink()),
    };
    let mut process = sh("trap 'exit 8' HUP; while :; do echo more; sleep 0.01; done");
    process.terminal = true;
    let soon = crate::agent::soon;
    let init = guest.session().start(&process, stdio, soon()).unwrap();
    assert_eq!(init.wait(Some(soon())).unwrap().unwrap().shell_code(), 8);
}

#[test]
fn a_ptmx_that_is_none_is_refused_as_root() {
    let guest = Guest::with_root(|root| {
        std::fs::create_dir(root.join("dev")).unwrap();
        std::fs::write(root.join("dev/ptmx"), "").unwrap();
    });
    let Some(mut guest) = guest else { return };
    let mut config = crate::agent::config();
    config.mounts.retain(|m| m.fstype == "proc");
    let session = guest.connect().unwrap();
    session.configure(&config, crate::agent::soon()).unwrap();
    guest.session = Some(session);
    let mut process = sh("true");
    process.terminal = true;
    match guest.start(&process, None) {
        Err(ProtoError::Failed(failure)) => {
            assert_eq!(failure.kind, FailureKind::Setup);
            assert!(failure.to_string().contains("/dev/ptmx"), "{failure}");
        }
        other => panic!("{:?}", other.err()),
    }
}
