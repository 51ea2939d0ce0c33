//! A guest without a VM: it speaks the protocol and runs threads for processes.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_proto::frame::{Stdio, StreamId};
use fcpipe_proto::guest::{Connection, linger};
use fcpipe_proto::host::{self, Session};
use fcpipe_proto::message::{GuestMessage, HelloReply, HostMessage, SignalOutcome, Start};
use fcpipe_proto::mux::{Inlet, Mux, Outlet};
use fcpipe_proto::process::Signal;
use fcpipe_proto::{
    ExitStatus, Failure, FailureKind, GuestConfig, GuestMount, PROTOCOL, ProtoError, RootFs, Stats,
    Writes,
};

pub(crate) const BOOT: &str = "boot-1";

/// Far more than anything here needs: it is reached by what hangs.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn hello() -> HelloReply {
    HelloReply {
        protocol: PROTOCOL,
        program: "test".to_owned(),
        boot_id: BOOT.to_owned(),
        configured: false,
        running: Vec::new(),
        oom_kills: 0,
    }
}

pub(crate) fn config() -> GuestConfig {
    GuestConfig::new(
        RootFs {
            disk: 0,
            fstype: "ext4".to_owned(),
            disk_readonly: false,
            readonly: false,
            beside: Vec::new(),
            writes: Writes::Direct,
        },
        GuestMount::defaults(),
    )
}

/// A session with a fake guest, configured. The guest's thread gives why its connection ended.
pub(crate) fn session() -> (Session, thread::JoinHandle<ProtoError>) {
    let (host, guest) = UnixStream::pair().unwrap();
    let guest = thread::spawn(move || run(guest));
    let session = Session::connect(host, BOOT, soon()).unwrap();
    session.configure(&config(), soon()).unwrap();
    (session, guest)
}

pub(crate) fn stdio(
    stdout: impl std::io::Write + Send + 'static,
    stderr: impl std::io::Write + Send + 'static,
) -> host::Stdio {
    host::Stdio {
        stdin: None,
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
    }
}

/// The bytes of stream `seed`, from `at` on.
pub(crate) fn pattern(seed: u8, at: usize, len: usize) -> Vec<u8> {
    (at..at + len)
        .map(|i| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7] ^ seed)
        .collect()
}

struct Process {
    outputs: [Arc<Outlet>; 2],
    stdin: Option<Arc<Inlet>>,
    killed: Arc<AtomicBool>,
}

fn run(stream: UnixStream) -> ProtoError {
    let mut connection = match Connection::accept(stream, || Some(hello())) {
        Ok(connection) => connection,
        Err(e) => return e,
    };
    let mut processes = Vec::new();
    loop {
        let answer = match connection.request() {
            Err(e) => return e,
            Ok(HostMessage::Configure(_)) => GuestMessage::Configured,
            Ok(HostMessage::Start(start)) => match begin(connection.mux(), &start) {
                Ok(process) => {
                    processes.push((start.id, process));
                    continue;
                }
                Err(failure) => {
                    connection.mux().retire(start.id);
                    let process = start.id;
                    GuestMessage::StartFailed { process, failure }
                }
            },
            Ok(HostMessage::Signal {
                request,
                process: id,
                signal,
                ..
            }) => {
                for (_, process) in processes.iter().filter(|(p, _)| *p == id) {
                    process.killed.store(true, Ordering::SeqCst);
                    process.outputs.iter().for_each(|o| o.finish());
                    if let Some(stdin) = &process.stdin {
                        stdin.close();
                    }
                    let status = ExitStatus::Signal {
                        signal,
                        core: false,
                    };
                    let process = id;
                    connection
                        .answer(&GuestMessage::Exited { process, status })
                        .unwrap();
                }
                let outcome = SignalOutcome::Sent;
                GuestMessage::Signalled { request, outcome }
            }
            Ok(HostMessage::Stats { request }) => {
                let mut stats = Box::new(Stats::default());
                stats.memory.oom_kills = 3;
                connection.answer(&GuestMessage::Oom { kills: 3 }).unwrap();
                GuestMessage::Stats { request, stats }
            }
            Ok(HostMessage::Resize { .. }) => continue,
            Ok(HostMessage::Shutdown) => {
                connection
                    .answer(&GuestMessage::Stopped { clean: true })
                    .unwrap();
                let mux = Arc::clone(connection.mux());
                thread::spawn(move || linger(&mux, Duration::from_secs(60)));
                continue;
            }
            Ok(other) => panic!("{other:?}"),
        };
        connection.answer(&answer).unwrap();
    }
}

/// The programs: `emit OUT ERR` (bytes), `cat`, `deaf` (reads nothing), `yes` (for ever).
fn begin(mux: &Arc<Mux>, start: &Start) -> Result<Process, Failure> {
    let args: Vec<&str> = start.process.args.iter().map(String::as_str).collect();
    let stream = |stdio| StreamId::new(start.id, stdio);
    let out = mux.open_out(stream(Stdio::Out)).unwrap();
    let err = mux.open_out(stream(Stdio::Err)).unwrap();
    let stdin = start.stdin.then(|| mux.open_in(stream(Stdio::In)).unwrap());
    let (id, mux) = (start.id, Arc::clone(mux));
    let killed = Arc::new(AtomicBool::new(false));
    let process = Process {
        outputs: [Arc::clone(&out), Arc::clone(&err)],
        stdin: stdin.clone(),
        killed: Arc::clone(&killed),
    };
    let started = GuestMessage::Started { process: id };
    let exited = move |mux: &Mux, code| {
        if !killed.load(Ordering::SeqCst) {
            let status = ExitStatus::Code { code };
            let _ = mux.send(
                &GuestMessage::Exited {
                    process: id,
                    status,
                },
                "an exit",
            );
        }
    };
    match args[..] {
        ["emit", o, e] => {
            let (o, e): (usize, usize) = (o.parse().unwrap(), e.parse().unwrap());
            mux.send(&started, "a start").unwrap();
            let outs = thread::spawn(move || emit(&out, 1, o));
            let errs = thread::spawn(move || emit(&err, 2, e));
            thread::spawn(move || {
                let broken = [outs.join().unwrap(), errs.join().unwrap()];
                // What a program that gets SIGPIPE answers.
                exited(&mux, if broken.contains(&true) { 141 } else { 7 });
            });
        }
        ["cat"] => {
            mux.send(&started, "a start").unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 1000];
                while let Ok(n @ 1..) = stdin.as_ref().unwrap().read(&mut buffer) {
                    out.write(&buffer[..n]).unwrap();
                }
                out.finish();
                err.finish();
                exited(&mux, 0);
            });
        }
        ["deaf"] => mux.send(&started, "a start").unwrap(),
        ["yes"] => {
            mux.send(&started, "a start").unwrap();
            thread::spawn(move || while out.write(b"y\n").is_ok() {});
        }
        _ => {
            let name = args.first().copied();
            return Err(Failure::new(FailureKind::NotFound, name, "not found"));
        }
    }
    Ok(process)
}

/// Whether the stream was reset.
fn emit(to: &Outlet, seed: u8, len: usize) -> bool {
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(30_011);
        if to.write(&pattern(seed, at, piece)).is_err() {
            to.finish();
            return true;
        }
        at += piece;
    }
    to.finish();
    false
}

pub(crate) const KILL: Signal = Signal::KILL;
