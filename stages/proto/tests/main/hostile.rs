//! Row 47: a guest that breaks the protocol. The host ends the connection, says why, and every
//! wait ends with that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_proto::frame::{Frame, MAX_CONTROL_FROM_HOST, MAX_DATA, Stdio, StreamId, WINDOW};
use fcpipe_proto::guest::Connection;
use fcpipe_proto::host::{RunningProcess, Session};
use fcpipe_proto::message::HostMessage;
use fcpipe_proto::{Process, ProtoError};

use crate::fake::{BOOT, config, hello, soon, stdio};

/// A guest's raw end, and what a test plays on it.
struct Raw(UnixStream);

impl Raw {
    fn json(&mut self, json: &str) {
        self.frame(&Frame::Control(json.as_bytes().to_vec()));
    }

    fn frame(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        // The host may have hung up already.
        let _ = self.0.write_all(&bytes);
    }

    /// The answer to a hello.
    fn hello(&mut self) {
        let me = serde_json::to_string(&hello()).unwrap();
        self.json(&me.replacen('{', r#"{"type":"hello","#, 1));
    }

    /// Skips to the next request of the host.
    fn request(&mut self) -> HostMessage {
        self.next().unwrap()
    }

    /// The same, until the host hangs up.
    fn next(&mut self) -> Option<HostMessage> {
        loop {
            let frame = Frame::read(&mut self.0, MAX_CONTROL_FROM_HOST).ok()?;
            if let Frame::Control(json) = frame? {
                return Some(fcpipe_proto::message::parse(&json).unwrap());
            }
        }
    }
}

/// Shakes hands and configures; with `start`, starts process 1.
fn connect(start: bool) -> (Session, Option<RunningProcess>, Raw) {
    let (host, guest) = UnixStream::pair().unwrap();
    let mut raw = Raw(guest);
    let guest = thread::spawn(move || {
        raw.request();
        raw.hello();
        raw.request();
        raw.json(r#"{"type":"configured"}"#);
        if start {
            raw.request();
            raw.json(r#"{"type":"started","process":1}"#);
        }
        raw
    });
    let session = Session::connect(host, BOOT, soon()).unwrap();
    session.configure(&config(), soon()).unwrap();
    let running = start.then(|| {
        let process = Process::new(["x"]);
        session
            .start(&process, stdio(io::sink(), io::sink()), soon())
            .unwrap()
    });
    (session, running, guest.join().unwrap())
}

/// The guest does one thing that it must not, with a process that runs; the wait for it must end.
fn breaks(play: impl FnOnce(&mut Raw)) -> ProtoError {
    let (session, running, mut raw) = connect(true);
    play(&mut raw);
    let error = running.unwrap().wait(Some(soon())).unwrap_err();
    assert_eq!(session.ended(), Some(error.clone()));
    // Hung up, so that the guest cannot go on.
    raw.0
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut rest = Vec::new();
    let _ = raw.0.read_to_end(&mut rest);
    error
}

fn id(number: u32) -> StreamId {
    StreamId::from_wire(number).unwrap()
}

fn broken(error: &ProtoError, words: &str) {
    let ProtoError::Broken { reason } = error else {
        panic!("{error:?}");
    };
    assert!(reason.contains(words), "{reason:?} without {words:?}");
}

#[test]
fn row_47_garbage_ends_the_connection() {
    let error = breaks(|raw| raw.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap());
    broken(&error, "kind");
}

#[test]
fn row_47_huge_lengths_end_the_connection() {
    let error = breaks(|raw| {
        raw.0
            .write_all(&[255, 255, 255, 255, 2, 5, 0, 0, 0])
            .unwrap();
    });
    broken(&error, "4294967295 bytes");
}

#[test]
fn row_47_json_that_is_none_or_nested_deep_ends_the_connection() {
    broken(&breaks(|raw| raw.json("{\"type\":")), "control message");
    broken(
        &breaks(|raw| raw.json("{\"type\":\"sesame\"}")),
        "control message",
    );
    // What it said is told, and not at any length.
    let long = breaks(|raw| raw.json(&format!("{{\"type\":\"{}\"}}", "x".repeat(60_000))));
    broken(&long, "control message");
    assert!(long.to_string().len() < 1000, "{long}");
    let deep = "[".repeat(60_000);
    let json = format!("{{\"type\":\"stopped\",\"clean\":{deep}");
    broken(&breaks(|raw| raw.json(&json)), "control message");
}

#[test]
fn row_47_unknown_ids_end_the_connection() {
    let exit = r#"{"type":"exited","process":9,"status":{"how":"code","code":0}}"#;
    broken(&breaks(|raw| raw.json(exit)), "process 9");
    broken(
        &breaks(|raw| raw.json(r#"{"type":"started","process":2}"#)),
        "process 2",
    );
    let answer = r#"{"type":"signalled","request":7,"outcome":"sent"}"#;
    broken(&breaks(|raw| raw.json(answer)), "request 7");
    let answer = r#"{"type":"stats","request":8,"stats":{}}"#;
    broken(&breaks(|raw| raw.json(answer)), "request 8");
    let back = |raw: &mut Raw| {
        raw.json(r#"{"type":"oom","kills":3}"#);
        raw.json(r#"{"type":"oom","kills":2}"#);
    };
    broken(&breaks(back), "fewer deaths");
    broken(
        &breaks(|raw| raw.frame(&Frame::Data(id(37), vec![1]))),
        "process 9",
    );
    broken(
        &breaks(|raw| raw.frame(&Frame::Credit(id(36), 1))),
        "stream 36",
    );
}

#[test]
fn row_47_false_exits_end_the_connection() {
    for status in [
        r#"{"how":"code","code":300}"#,
        r#"{"how":"signal","signal":0,"core":false}"#,
    ] {
        let exit = format!(r#"{{"type":"exited","process":1,"status":{status}}}"#);
        broken(&breaks(|raw| raw.json(&exit)), "control message");
    }
    let failed = r#"{"type":"start_failed","process":1,"failure":{"kind":"setup","message":"x"}}"#;
    broken(&breaks(|raw| raw.json(failed)), "wrong time");
    let exit = r#"{"type":"exited","process":1,"status":{"how":"code","code":0}}"#;
    let twice = breaks(|raw| {
        raw.json(exit);
        raw.json(exit);
    });
    broken(&twice, "wrong time");
}

#[test]
fn row_47_messages_at_the_wrong_time_end_the_connection() {
    for (json, words) in [
        (r#"{"type":"configured"}"#, "no configuration"),
        (r#"{"type":"started","process":1}"#, "wrong time"),
        (r#"{"type":"stopped","clean":true}"#, "without being asked"),
        (
            r#"{"type":"hello","protocol":1,"program":"","boot_id":""}"#,
            "a second hello",
        ),
    ] {
        broken(&breaks(|raw| raw.json(json)), words);
    }
}

#[test]
fn row_47_data_where_none_may_be_ends_the_connection() {
    // On the stream that the host sends, after an end, and beyond the credit.
    broken(
        &breaks(|raw| raw.frame(&Frame::Data(id(4), vec![1]))),
        "not open",
    );
    broken(
        &breaks(|raw| raw.frame(&Frame::Credit(id(5), 1))),
        "not sent",
    );
    let late = breaks(|raw| {
        raw.frame(&Frame::Eof(id(5)));
        raw.frame(&Frame::Data(id(5), vec![1]));
    });
    broken(&late, "not open");
}

#[test]
fn row_47_output_before_the_start_ends_the_connection() {
    let (session, _, mut raw) = connect(false);
    let guest = thread::spawn(move || {
        raw.request();
        raw.frame(&Frame::Data(id(5), vec![1]));
        raw
    });
    let result = session.start(&Process::new(["x"]), stdio(io::sink(), io::sink()), soon());
    broken(&result.err().unwrap(), "not started");
    drop(guest.join());
}

/// No guest breaks a rule with these: an exit overtakes output, and nobody may ask about its process any more when that comes.
#[test]
fn row_56_what_comes_late_of_a_process_whose_readers_have_gone_harms_no_other() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (session, _, mut raw) = connect(false);
    let guest = thread::spawn(move || {
        raw.request();
        raw.json(r#"{"type":"started","process":1}"#);
        for stream in [5, 6] {
            raw.frame(&Frame::Data(id(stream), vec![1]));
        }
        raw.json(r#"{"type":"exited","process":1,"status":{"how":"code","code":0}}"#);
        raw
    });
    let process = Process::new(["x"]);
    let running = session.start(&process, stdio(Gone, Gone), soon()).unwrap();
    running.wait(Some(soon())).unwrap();
    drop(running);
    let mut raw = guest.join().unwrap();
    for stream in [5, 6] {
        raw.frame(&Frame::Data(id(stream), vec![2]));
        raw.frame(&Frame::Eof(id(stream)));
    }
    let guest = thread::spawn(move || {
        if let HostMessage::Stats { request } = raw.request() {
            raw.json(&format!(
                r#"{{"type":"stats","request":{request},"stats":{{}}}}"#
            ));
        }
        raw
    });
    session.stats(soon()).unwrap();
    // Twice is once too often.
    let mut raw = guest.join().unwrap();
    raw.frame(&Frame::Eof(id(5)));
    let ended = session.wait_oom(0, Some(soon())).unwrap_err();
    broken(&ended, "not open");
}

#[test]
fn row_46_a_guest_that_ignores_its_credit_is_cut_off() {
    // A writer that takes nothing, so that no credit is given back.
    struct Never;
    impl Write for Never {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                thread::park();
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (session, _, mut raw) = connect(false);
    let guest = thread::spawn(move || {
        raw.request();
        raw.json(r#"{"type":"started","process":1}"#);
        // The writer holds one buffer; the window bounds the rest.
        for _ in 0..(WINDOW as usize / MAX_DATA + 2) {
            raw.frame(&Frame::Data(id(5), vec![0; MAX_DATA]));
        }
        raw
    });
    let running = session
        .start(&Process::new(["x"]), stdio(Never, io::sink()), soon())
        .unwrap();
    broken(&running.wait(Some(soon())).unwrap_err(), "credit");
    drop(guest.join());
}

#[test]
fn row_46_a_guest_that_gives_credit_and_reads_nothing_is_cut_off() {
    let (session, _, mut raw) = connect(false);
    let guest = thread::spawn(move || {
        raw.request();
        raw.json(r#"{"type":"started","process":1}"#);
        // Each time the host has used up what it had.
        for _ in 0..40 {
            thread::sleep(Duration::from_millis(50));
            raw.frame(&Frame::Credit(id(4), WINDOW));
        }
        raw
    });
    let endless = std::fs::File::open("/dev/zero").unwrap();
    let stdio = fcpipe_proto::host::Stdio {
        stdin: Some(endless.into()),
        ..stdio(io::sink(), io::sink())
    };
    let running = session.start(&Process::new(["x"]), stdio, soon()).unwrap();
    broken(&running.wait(Some(soon())).unwrap_err(), "credit");
    drop(guest.join());
}

#[test]
fn row_47_an_end_before_the_exit_is_a_lost_agent() {
    assert_eq!(
        breaks(|raw| raw.0.shutdown(std::net::Shutdown::Both).unwrap()),
        ProtoError::Closed
    );
    // The exit was said, its output was still to come.
    let exit = r#"{"type":"exited","process":1,"status":{"how":"code","code":0}}"#;
    let lost = breaks(|raw| {
        raw.json(exit);
        raw.0.shutdown(std::net::Shutdown::Both).unwrap();
    });
    assert_eq!(lost, ProtoError::Closed);
}

#[test]
fn row_47_an_exit_whose_output_never_ends_is_not_waited_for() {
    let exit = r#"{"type":"exited","process":1,"status":{"how":"code","code":0}}"#;
    let error = breaks(|raw| {
        raw.json(exit);
        // It is alive, and says so whenever it is asked.
        let mut raw = Raw(raw.0.try_clone().unwrap());
        thread::spawn(move || {
            while let Some(HostMessage::Ping) = raw.next() {
                raw.json(r#"{"type":"pong"}"#);
            }
        });
    });
    broken(&error, "neither comes nor ends");
}

/// What comes of connecting to an agent that answers the hello by these bytes, one at a time, and never with the last.
fn connecting(
    answer: &'static [u8],
    patience: Duration,
    cancelled: impl Fn() -> bool + Send + Sync + 'static,
) -> ProtoError {
    let (host, mut guest) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        for byte in answer.iter().cycle() {
            thread::sleep(Duration::from_millis(10));
            if guest.write_all(&[*byte]).is_err() {
                return;
            }
        }
        // Nothing is said, and nobody hangs up.
        let _ = guest.read_to_end(&mut Vec::new());
    });
    let (tell, told) = std::sync::mpsc::channel();
    let deadline = Instant::now() + patience;
    thread::spawn(move || {
        tell.send(Session::connect_unless(host, BOOT, deadline, cancelled).err())
    });
    let told = told.recv_timeout(Duration::from_secs(60));
    told.expect("it is waited for still").unwrap()
}

/// The head of a long message, and what it might hold.
const DRIPS: &[u8] = b"\xff\xff\0\0\x01\0\0\0\0";

#[test]
fn row_45_a_hello_that_comes_in_drops_is_a_timeout() {
    for answer in [DRIPS, b""] {
        let error = connecting(answer, Duration::from_millis(300), || false);
        assert!(matches!(error, ProtoError::Timeout { .. }), "{error:?}");
    }
}

#[test]
fn row_49_a_cancelled_launch_waits_for_no_answer() {
    for answer in [DRIPS, b""] {
        let begun = Instant::now();
        let cancelled = move || begun.elapsed() > Duration::from_millis(100);
        let error = connecting(answer, Duration::from_secs(600), cancelled);
        assert_eq!(error, ProtoError::Ended);
    }
    // Nor later: an agent that shook hands, and says no more.
    let (host, guest) = UnixStream::pair().unwrap();
    let mut raw = Raw(guest);
    let guest = thread::spawn(move || {
        raw.request();
        raw.hello();
        raw
    });
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    let session = Session::connect_unless(host, BOOT, soon(), move || flag.load(Ordering::SeqCst));
    let session = session.unwrap();
    let _raw = guest.join().unwrap();
    let late = Instant::now() + Duration::from_millis(100);
    assert!(matches!(
        session.configure(&config(), late),
        Err(ProtoError::Timeout { .. })
    ));
    cancelled.store(true, Ordering::SeqCst);
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let far = || Instant::now() + Duration::from_secs(600);
        let start = session.start(&Process::new(["x"]), stdio(io::sink(), io::sink()), far());
        let _ = tell.send((start.err(), session.shutdown(far()).err()));
    });
    let told = told.recv_timeout(Duration::from_secs(60));
    let ended = Some(ProtoError::Ended);
    assert_eq!(
        told.expect("it is waited for still"),
        (ended.clone(), ended)
    );
}

#[test]
fn a_process_whose_start_comes_too_late_is_killed_and_holds_up_no_end() {
    let (session, _, mut raw) = connect(false);
    let late = Instant::now() + Duration::from_millis(50);
    let (read, output) = io::pipe().unwrap();
    let started = session.start(&Process::new(["x"]), stdio(output, io::sink()), late);
    let error = started.err();
    assert!(
        matches!(error, Some(ProtoError::Timeout { .. })),
        "{error:?}"
    );
    // Its caller's output is let go of at once, and nothing is waited for.
    assert_eq!({ read }.read(&mut [0; 1]).unwrap(), 0);
    assert!(session.settle(Instant::now() + Duration::from_secs(2)));
    let HostMessage::Start(start) = raw.request() else {
        panic!("no start");
    };
    let HostMessage::Signal {
        request,
        process,
        signal,
        all: false,
    } = raw.request()
    else {
        panic!("no signal");
    };
    assert_eq!((process, signal.get()), (start.id, 9));
    // Late, and as an agent should.
    raw.json(r#"{"type":"started","process":1}"#);
    raw.frame(&Frame::Data(
        StreamId::new(process, Stdio::Out),
        b"late".to_vec(),
    ));
    raw.json(&format!(
        r#"{{"type":"signalled","request":{request},"outcome":"sent"}}"#
    ));
    raw.json(r#"{"type":"exited","process":1,"status":{"how":"signal","signal":9,"core":false}}"#);
    for stdio in [Stdio::Out, Stdio::Err] {
        raw.frame(&Frame::Eof(StreamId::new(process, stdio)));
    }
    raw.json(r#"{"type":"oom","kills":1}"#);
    let end = Instant::now() + Duration::from_secs(60);
    while session.oom_kills() == 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((session.oom_kills(), session.ended()), (1, None));
}

/// The agent's end is as careful: its host is trusted, and may be another version's.
#[test]
fn row_47_a_host_that_begins_with_something_else_is_not_served() {
    for bytes in [&b"CONNECT 52\n"[..], b"\x02\0\0\0\x01\0\0\0\0{}"] {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(bytes).unwrap();
        drop(host);
        let error = Connection::accept(guest, || Some(hello())).err();
        assert!(
            matches!(error, Some(ProtoError::Broken { .. })),
            "{error:?}"
        );
    }
}
