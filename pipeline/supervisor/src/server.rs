//! The control socket of a launch: `STATE/ID/control`. Each connection has a thread, and only root and the supervisor's
//! own user are listened to.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcpipe_launch::Streams;
use fcpipe_proto::host::{RunningProcess, short_path};
use fcpipe_proto::process::Signal;

use crate::life::{Life, refused};
use crate::message::{ExecProcess, Failed, Reply, Request};
use crate::wire::{Receiver, send};

/// The socket in a launch's directory.
pub(crate) const SOCKET: &str = "control";
/// Connections at once. A hundred processes beside each other are well below.
const MOST: usize = 1000;
/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a wait for a process looks whether its client is still there.
const STEP: Duration = Duration::from_millis(200);

/// Listens in a launch's directory. The thread ends with the program.
pub(crate) fn listen(dir: &Path, life: Arc<Life>) -> io::Result<()> {
    let path = dir.join(SOCKET);
    let listener = short_path(&path, |path| UnixListener::bind(path))?;
    let served = Arc::new(AtomicUsize::new(0));
    let thread = std::thread::Builder::new().name("control".to_owned());
    thread.spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: somebody will let one go.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if !is_allowed(&stream) {
                continue;
            }
            let (life, served) = (Arc::clone(&life), Arc::clone(&served));
            if served.fetch_add(1, Ordering::Relaxed) >= MOST {
                served.fetch_sub(1, Ordering::Relaxed);
                let failed = refused("the launch serves too many clients");
                let _ = stream.set_write_timeout(Some(STEP));
                let _ = send(&stream, &Reply::Failed { failed }, &[]);
                continue;
            }
            let counted = Arc::clone(&served);
            let thread = std::thread::Builder::new().name("client".to_owned());
            let spawned = thread.spawn(move || {
                serve(&stream, &life);
                counted.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                served.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

fn is_allowed(stream: &UnixStream) -> bool {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) => peer.uid.is_root() || peer.uid == rustix::process::geteuid(),
        Err(_) => false,
    }
}

/// One client. What can't be sent to it any more is nobody's.
fn serve(stream: &UnixStream, life: &Arc<Life>) {
    let Ok(reading) = stream.try_clone() else {
        return;
    };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let mut receiver = Receiver::new(reading);
    let Ok(Some((request, fds))) = receiver.receive::<Request>() else {
        return;
    };
    let done = |result: Result<(), Failed>| match result {
        Ok(()) => Reply::Done,
        Err(failed) => Reply::Failed { failed },
    };
    let reply = match request {
        Request::Start => done(life.start()),
        Request::Kill { signal, all } => done(life.kill(signal, all)),
        Request::End => {
            life.signal(9);
            life.cancel().cancel();
            Reply::Done
        }
        Request::Wait => match life.wait_over() {
            Ok(status) => Reply::Exited { status },
            Err(failed) => Reply::Failed { failed },
        },
        Request::Exec { process, stdin } => {
            let _ = stream.set_read_timeout(None);
            match exec(stream, receiver, life, *process, stdin, fds) {
                Ok(reply) => reply,
                Err(failed) => Reply::Failed { failed },
            }
        }
        Request::Stats => match crate::stats::Stats::of(life) {
            Ok(stats) => Reply::Stats {
                stats: Box::new(stats),
            },
            Err(failed) => Reply::Failed { failed },
        },
        Request::Signal { .. } | Request::Resize { .. } => Reply::Failed {
            failed: refused("this connection has no process"),
        },
    };
    let _ = send(stream, &reply, &[]);
}

/// Runs a process to its end. It ends with its client.
fn exec(
    stream: &UnixStream,
    receiver: Receiver,
    life: &Life,
    process: ExecProcess,
    stdin: bool,
    fds: Vec<OwnedFd>,
) -> Result<Reply, Failed> {
    let streams = streams(stdin, fds)?;
    let guest = life.guest()?;
    let process = guest
        .exec(&process.over(life.own_process()), streams)
        .map_err(|e| Failed::of_guest(&e))?;
    let process = Arc::new(process);
    let gone = follow(receiver, Arc::clone(&process))?;
    let lost = send(stream, &Reply::Started, &[]).is_err();
    if lost {
        kill(&process);
    }
    loop {
        let waited = process.wait(Some(Instant::now() + STEP));
        match waited {
            Ok(Some(status)) => return Ok(Reply::Exited { status }),
            Ok(None) => {}
            Err(error) => return Err(Failed::of_guest(&error)),
        }
        if gone.load(Ordering::Relaxed) > 0 && process.exit_status().is_none() {
            kill(&process);
        }
    }
}

/// The process's streams, from what a client sent.
fn streams(stdin: bool, fds: Vec<OwnedFd>) -> Result<Streams, Failed> {
    let mut fds = fds.into_iter().map(File::from);
    let mut next = || {
        fds.next()
            .ok_or_else(|| refused("the process's streams are missing"))
    };
    Ok(Streams {
        stdin: stdin.then(&mut next).transpose()?,
        stdout: Box::new(next()?),
        stderr: Box::new(next()?),
    })
}

fn kill(process: &RunningProcess) {
    // Where the agent does not answer, the session ends, and the process with it.
    let _ = process.signal(Signal::KILL, false);
}

/// Passes on what a client says about its process. The counter goes up when the client has gone.
fn follow(
    mut receiver: Receiver,
    process: Arc<RunningProcess>,
) -> Result<Arc<AtomicUsize>, Failed> {
    let gone = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&gone);
    let thread = std::thread::Builder::new().name("client-in".to_owned());
    thread
        .spawn(move || {
            while let Ok(Some((request, _))) = receiver.receive::<Request>() {
                pass_on(&request, &process);
            }
            noted.fetch_add(1, Ordering::Relaxed);
        })
        .map_err(refused)?;
    Ok(gone)
}

/// What a client says about a process that runs. It may have ended: then there is nobody to tell.
pub(crate) fn pass_on(request: &Request, process: &RunningProcess) {
    match request {
        Request::Signal { signal } => {
            if let Some(signal) = Signal::new(*signal) {
                let _ = process.signal(signal, false);
            }
        }
        Request::Resize { size } => {
            let _ = process.resize(*size);
        }
        _ => {}
    }
}
