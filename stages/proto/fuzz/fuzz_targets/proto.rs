//! Bytes → what a guest's agent says → the host's session, which must not panic, hang, or take more than was sent.
//!
//! `cargo xtask fuzz proto --seconds 600` runs it. The first byte says how far the guest is honest: not at all, to the
//! handshake, to the configuration, or to a process that runs. What follows is sent as it is, or as frames made of it.
#![no_main]

use std::io::{Read as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_proto::frame::{Frame, MAX_CONTROL_FROM_HOST};
use fcpipe_proto::host::{Session, Stdio};
use fcpipe_proto::{GuestConfig, PROTOCOL, Process, ProtoError, RootFs, Writes};
use libfuzzer_sys::fuzz_target;

const BOOT: &str = "boot";

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let before = threads();
    let body = if how & 4 == 0 {
        rest.to_vec()
    } else {
        frames(rest)
    };
    let sent = body.len();
    let (host, guest) = UnixStream::pair().expect("a pair of sockets");
    let agent = thread::spawn(move || play(guest, how & 3, &body));
    let taken = Arc::new(AtomicUsize::new(0));
    talk(host, &taken);
    agent.join().expect("the guest");
    assert!(taken.load(Ordering::Relaxed) <= sent);
    // The session's threads end by themselves, and they do end. One that is caught in the middle of its exit looks like a leak: what
    // it has registered to be done then is reachable from nowhere any more.
    let soon = Instant::now() + Duration::from_secs(20);
    while threads() > before {
        assert!(Instant::now() < soon, "a thread of the session stays");
        thread::sleep(Duration::from_micros(50));
    }
});

/// How many this process has, those with it that are about to be gone.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Everything that a launcher does with a session, each with a deadline that nothing here comes near to.
fn talk(host: UnixStream, taken: &Arc<AtomicUsize>) {
    let soon = Instant::now() + Duration::from_secs(20);
    let late = |error: &ProtoError| matches!(error, ProtoError::Timeout { .. });
    let session = match Session::connect(host, BOOT, soon) {
        Ok(session) => session,
        Err(error) => return assert!(!late(&error), "{error}"),
    };
    if let Err(error) = session.configure(&config(), soon) {
        return assert!(!late(&error), "{error}");
    }
    let stdio = Stdio {
        stdin: None,
        stdout: Box::new(Counted(Arc::clone(taken))),
        stderr: Box::new(Counted(Arc::clone(taken))),
    };
    let process = match session.start(&Process::new(["x"]), stdio, soon) {
        Ok(process) => process,
        Err(error) => return assert!(!late(&error), "{error}"),
    };
    match process.wait(Some(soon)) {
        // All threads that write have ended by now.
        Ok(Some(_)) => {}
        Ok(None) => panic!("the session neither ends nor goes on"),
        Err(error) => assert!(!late(&error), "{error}"),
    }
}

struct Counted(Arc<AtomicUsize>);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The guest: honest as far as `how` says, then the fuzzer's.
fn play(mut stream: UnixStream, how: u8, body: &[u8]) {
    let honest = [
        format!(r#"{{"type":"hello","protocol":{PROTOCOL},"program":"x","boot_id":"{BOOT}"}}"#),
        r#"{"type":"configured"}"#.to_owned(),
        r#"{"type":"started","process":1}"#.to_owned(),
    ];
    for answer in honest.iter().take(usize::from(how)) {
        // The host's next request.
        while !matches!(
            Frame::read(&mut stream, MAX_CONTROL_FROM_HOST),
            Ok(None) | Err(_) | Ok(Some(Frame::Control(_)))
        ) {}
        let mut bytes = Vec::new();
        Frame::Control(answer.clone().into_bytes()).encode(&mut bytes);
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
    // A host that hangs up is what is wanted.
    let _ = stream.write_all(body);
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

/// Frames with right lengths, of kinds and streams near to those that there are: most of what is sent raw does not come so far.
fn frames(mut data: &[u8]) -> Vec<u8> {
    const WORDS: [&str; 10] = [
        r#"{"type":"started","process":1}"#,
        r#"{"type":"exited","process":1,"status":{"how":"code","code":3}}"#,
        r#"{"type":"exited","process":1,"status":{"how":"signal","signal":9,"core":true}}"#,
        r#"{"type":"signalled","request":1,"outcome":"sent"}"#,
        r#"{"type":"stopped","clean":true}"#,
        r#"{"type":"pong"}"#,
        r#"{"type":"oom","kills":1}"#,
        r#"{"type":"stats","request":1,"stats":{}}"#,
        r#"{"type":"start_failed","process":1,"failure":{"kind":"setup","message":"m"}}"#,
        r#"{"type":"busy"}"#,
    ];
    let mut out = Vec::new();
    while let [kind, stream, len, rest @ ..] = data {
        let (payload, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        let kind = kind % 8;
        let stream = u32::from(stream % 16);
        let payload: &[u8] = match kind {
            0 => WORDS[usize::from(*len) % WORDS.len()].as_bytes(),
            3 | 5 => &[],
            _ => payload,
        };
        let (kind, stream) = if kind == 0 { (1, 0) } else { (kind, stream) };
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&stream.to_le_bytes());
        out.extend_from_slice(payload);
    }
    out
}

fn config() -> GuestConfig {
    let root = RootFs {
        disk: 0,
        fstype: "ext4".to_owned(),
        disk_readonly: false,
        readonly: false,
        writes: Writes::Direct,
        beside: Vec::new(),
    };
    GuestConfig::new(root, Vec::new())
}
