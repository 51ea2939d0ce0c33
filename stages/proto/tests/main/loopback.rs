//! A session with a guest that behaves.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fcpipe_proto::frame::{Frame, MAX_CONTROL_FROM_GUEST};
use fcpipe_proto::guest::Connection;
use fcpipe_proto::host::Session;
use fcpipe_proto::message::{GuestMessage, Hello, HostMessage};
use fcpipe_proto::{ExitStatus, PROTOCOL, Process, ProtoError};

use crate::fake::{self, BOOT, KILL, pattern, session, soon, stdio};

/// Keeps what is written, slowly.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<u8>>>, Duration);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        thread::sleep(self.1);
        let taken = bytes.len().min(100_000);
        self.0.lock().unwrap().extend(&bytes[..taken]);
        Ok(taken)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until the other end of the channel is dropped.
struct Blocked(mpsc::Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn row_46_much_output_to_slow_readers_loses_nothing() {
    const OUT: usize = 10 << 20;
    const ERR: usize = 1 << 20;
    let (session, _guest) = session();
    let out = Slow(Arc::default(), Duration::from_millis(1));
    let err = Slow(Arc::default(), Duration::from_millis(20));
    let process = Process::new(["emit", &OUT.to_string(), &ERR.to_string()]);
    let running = session
        .start(&process, stdio(out.clone(), err.clone()), soon())
        .unwrap();
    let status = running.wait(Some(soon())).unwrap();
    assert_eq!(status, Some(ExitStatus::Code { code: 7 }));
    assert!(
        *out.0.lock().unwrap() == pattern(1, 0, OUT),
        "stdout differs"
    );
    assert!(
        *err.0.lock().unwrap() == pattern(2, 0, ERR),
        "stderr differs"
    );
    assert!(running.output_errors().is_empty());
}

#[test]
fn row_46_a_session_settles_when_all_output_has_been_written() {
    const OUT: usize = 1 << 20;
    let (session, _guest) = session();
    assert!(session.settle(soon()));
    let out = Slow(Arc::default(), Duration::from_millis(20));
    let process = Process::new(["emit", &OUT.to_string(), "0"]);
    let running = session
        .start(&process, stdio(out.clone(), io::sink()), soon())
        .unwrap();
    assert!(session.settle(soon()));
    assert!(*out.0.lock().unwrap() == pattern(1, 0, OUT));
    assert!(running.exit_status().is_some());
    // One that does not end is waited for as long as was said.
    let _deaf = session.start(
        &Process::new(["deaf"]),
        stdio(io::sink(), io::sink()),
        soon(),
    );
    let late = std::time::Instant::now() + Duration::from_millis(50);
    assert!(!session.settle(late));
    session.close();
    assert!(!session.settle(soon()));
}

#[test]
fn row_64_a_kill_is_answered_though_stdout_is_blocked() {
    let (session, _guest) = session();
    let (unblock, blocked) = mpsc::channel();
    let out = stdio(Blocked(blocked), io::sink());
    let running = session.start(&Process::new(["yes"]), out, soon()).unwrap();
    // Nothing is read on the host: the guest's writes have come to a stop.
    thread::sleep(Duration::from_millis(200));
    // Another process starts and ends beside it.
    let beside = session
        .start(
            &Process::new(["emit", "10", "0"]),
            stdio(io::sink(), io::sink()),
            soon(),
        )
        .unwrap();
    assert_eq!(
        beside.wait(Some(soon())).unwrap(),
        Some(ExitStatus::Code { code: 7 })
    );
    running.signal(KILL, false).unwrap();
    assert_eq!(running.exit_status().unwrap().shell_code(), 137);
    drop(unblock);
    let status = running.wait(Some(soon())).unwrap().unwrap();
    assert_eq!(status.shell_code(), 137);
}

#[test]
fn row_56_stdout_closed_early_ends_the_process_with_its_own_status() {
    struct Head(usize);
    impl Write for Head {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0 -= 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (session, _guest) = session();
    let process = Process::new(["emit", "100000000", "0"]);
    let running = session
        .start(&process, stdio(Head(2), io::sink()), soon())
        .unwrap();
    let status = running.wait(Some(soon())).unwrap();
    assert_eq!(status, Some(ExitStatus::Code { code: 141 }));
    let errors = running.output_errors();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind, io::ErrorKind::BrokenPipe);
}

#[test]
fn stdin_comes_back_and_ends() {
    let (session, _guest) = session();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let out = Slow::default();
    let mut stdio = stdio(out.clone(), io::sink());
    stdio.stdin = Some(OwnedFd::from(theirs));
    let running = session
        .start(&Process::new(["cat"]), stdio, soon())
        .unwrap();
    let sent = pattern(9, 0, 3_000_000);
    ours.write_all(&sent).unwrap();
    drop(ours);
    let status = running.wait(Some(soon())).unwrap();
    assert_eq!(status, Some(ExitStatus::Code { code: 0 }));
    assert!(*out.0.lock().unwrap() == sent);
}

#[test]
fn a_stdin_that_never_has_anything_is_let_go_when_the_process_ends() {
    let (session, _guest) = session();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut stdio = stdio(io::sink(), io::sink());
    stdio.stdin = Some(OwnedFd::from(theirs));
    let running = session
        .start(&Process::new(["emit", "1", "1"]), stdio, soon())
        .unwrap();
    running.wait(Some(soon())).unwrap();
    // The thread that polled it is gone when its end is closed.
    ours.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stdin_that_nobody_reads_is_let_go_when_the_process_ends() {
    let (session, _guest) = session();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let mut stdio = stdio(io::sink(), io::sink());
    stdio.stdin = Some(OwnedFd::from(zero));
    let running = session
        .start(&Process::new(["deaf"]), stdio, soon())
        .unwrap();
    assert_eq!(running.wait(Some(std::time::Instant::now())).unwrap(), None);
    running.signal(KILL, true).unwrap();
    let status = running.wait(Some(soon())).unwrap().unwrap();
    assert_eq!(status.shell_code(), 137);
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|t| std::fs::read(t.ok()?.path().join("comm")).ok());
        // Only this test's process 1 has a standard input of this name for ever.
        names.filter(|n| n.starts_with(b"stdin-1")).count()
    };
    let until = soon();
    while threads() > 0 {
        assert!(std::time::Instant::now() < until, "its thread stays");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_that_is_not_found_is_a_failure_with_its_name() {
    let (session, _guest) = session();
    let result = session.start(
        &Process::new(["nosuch"]),
        stdio(io::sink(), io::sink()),
        soon(),
    );
    let Err(ProtoError::Failed(failure)) = result else {
        panic!("{:?}", result.err());
    };
    assert_eq!(
        (failure.shell_code(), failure.path.as_deref()),
        (127, Some("nosuch"))
    );
    // The session goes on.
    let next = session.start(
        &Process::new(["emit", "1", "1"]),
        stdio(io::sink(), io::sink()),
        soon(),
    );
    next.unwrap().wait(Some(soon())).unwrap();
}

#[test]
fn figures_and_deaths_for_want_of_memory_come() {
    let (session, _guest) = session();
    assert_eq!(session.oom_kills(), 0);
    let late = std::time::Instant::now();
    assert_eq!(session.wait_oom(0, Some(late)), Ok(None));
    let stats = session.stats(soon()).unwrap();
    assert_eq!(stats.memory.oom_kills, 3);
    assert_eq!(session.wait_oom(0, Some(soon())), Ok(Some(3)));
    session.close();
    assert_eq!(session.wait_oom(3, None), Err(ProtoError::Ended));
}

#[test]
fn shutdown_is_answered_before_the_connection_ends() {
    let (session, guest) = session();
    assert!(session.shutdown(soon()).unwrap());
    assert_eq!(guest.join().unwrap(), ProtoError::Closed);
}

#[test]
fn a_guest_of_another_version_is_refused() {
    let (host, guest) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || {
        let mut me = fake::hello();
        me.protocol += 1;
        Connection::accept(guest, || Some(me)).err()
    });
    let error = Session::connect(host, BOOT, soon()).err();
    let expected = ProtoError::Version {
        host: PROTOCOL,
        guest: PROTOCOL + 1,
        guest_program: "test".to_owned(),
    };
    assert_eq!(error, Some(expected));
    // This one only says that it is: to its own code the host fits.
    assert_eq!(guest.join().unwrap(), None);
}

/// A host of another version is answered all the same, or it could not say what does not fit.
#[test]
fn a_host_of_another_version_is_answered_and_not_served() {
    let (mut host, guest) = UnixStream::pair().unwrap();
    let hello = HostMessage::Hello(Hello {
        protocol: PROTOCOL + 1,
        program: String::new(),
        boot_id: BOOT.to_owned(),
    });
    let mut bytes = Vec::new();
    Frame::Control(serde_json::to_vec(&hello).unwrap()).encode(&mut bytes);
    host.write_all(&bytes).unwrap();
    let refused = Connection::accept(guest, || Some(fake::hello())).err();
    let expected = ProtoError::Version {
        host: PROTOCOL + 1,
        guest: PROTOCOL,
        guest_program: "test".to_owned(),
    };
    assert_eq!(refused, Some(expected));
    let Ok(Some(Frame::Control(answer))) = Frame::read(&mut host, MAX_CONTROL_FROM_GUEST) else {
        panic!("no answer");
    };
    let answer: GuestMessage = fcpipe_proto::message::parse(&answer).unwrap();
    assert_eq!(answer, GuestMessage::Hello(fake::hello()));
    assert_eq!(Frame::read(&mut host, MAX_CONTROL_FROM_GUEST), Ok(None));
}

#[test]
fn a_guest_of_another_boot_is_refused_at_both_ends() {
    let (host, guest) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || {
        let mut me = fake::hello();
        me.boot_id = "other".to_owned();
        Connection::accept(guest, || Some(me)).err()
    });
    let of_boots = |expected: &str, got: &str| ProtoError::BootId {
        expected: expected.to_owned(),
        got: got.to_owned(),
    };
    let error = Session::connect(host, BOOT, soon()).err();
    assert_eq!(error, Some(of_boots(BOOT, "other")));
    assert_eq!(guest.join().unwrap(), Some(of_boots("other", BOOT)));
}

#[test]
fn a_second_host_is_told_that_the_agent_is_busy() {
    let (host, guest) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || Connection::accept(guest, || None).err());
    let error = Session::connect(host, BOOT, soon()).err();
    assert_eq!(error, Some(ProtoError::Busy));
    assert_eq!(guest.join().unwrap(), Some(ProtoError::Busy));
}

#[test]
fn row_45_an_agent_that_says_nothing_is_a_timeout() {
    let (host, _guest) = UnixStream::pair().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_millis(50);
    let error = Session::connect(host, BOOT, deadline).err();
    assert!(
        matches!(error, Some(ProtoError::Timeout { .. })),
        "{error:?}"
    );
}

/// What a thread comes to, within the time that [`soon`] gives.
#[track_caller]
fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    let end = soon();
    while !thread.is_finished() {
        assert!(std::time::Instant::now() < end, "it waits still");
        thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap()
}

#[test]
fn row_49_a_closed_session_ends_every_wait() {
    let (session, guest) = session();
    let running = session
        .start(
            &Process::new(["deaf"]),
            stdio(io::sink(), io::sink()),
            soon(),
        )
        .unwrap();
    let waiting = thread::spawn(move || running.wait(None));
    thread::sleep(Duration::from_millis(20));
    session.close();
    assert_eq!(joined(waiting), Err(ProtoError::Ended));
    assert_eq!(joined(guest), ProtoError::Closed);
}
