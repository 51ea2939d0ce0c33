//! Row 47: a guest that breaks the protocol. The host ends the connection, says why, and every
//! wait ends with that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_proto::frame::{Frame, MAX_CONTROL_FROM_HOST, MAX_DATA, StreamId, WINDOW};
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

    /// Skips to the next request of the host.
    fn request(&mut self) -> HostMessage {
        loop {
            let frame = Frame::read(&mut self.0, MAX_CONTROL_FROM_HOST).unwrap();
            if let Some(Frame::Control(json)) = frame {
                return fcpipe_proto::message::parse(&json).unwrap();
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
        let me = serde_json::to_string(&hello()).unwrap();
        raw.json(&me.replacen('{', r#"{"type":"hello","#, 1));
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
    for json in [
        r#"{"type":"configured"}"#,
        r#"{"type":"started","process":1}"#,
        r#"{"type":"stopped","clean":true}"#,
        r#"{"type":"hello","protocol":1,"program":"","boot_id":""}"#,
    ] {
        let error = breaks(|raw| raw.json(json));
        assert!(
            matches!(error, ProtoError::Broken { .. }),
            "{json}: {error}"
        );
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
    let began = Instant::now();
    broken(&breaks(|raw| raw.json(exit)), "neither comes nor ends");
    assert!(began.elapsed() < Duration::from_secs(60));
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
