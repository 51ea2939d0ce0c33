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
use fcpipe_proto::host::{OutputError, RunningProcess, short_path};
use fcpipe_proto::message::SignalOutcome;
use fcpipe_proto::process::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::life::{Life, refused};
use crate::message::{ExecProcess, Failed, Reply, Request};
use crate::output::Output;
use crate::wire::{Receiver, send};

/// The socket in a launch's directory.
pub(crate) const SOCKET: &str = "control";
/// Connections at once. A hundred processes beside each other are well below.
const MOST: usize = 1000;
/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a wait looks whether its client is still there.
const STEP: Duration = Duration::from_millis(200);

/// How often somebody who waits for the last client looks.
const LOOK: Duration = Duration::from_millis(2);

/// The clients that are served now. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct Clients(Arc<AtomicUsize>);

/// One of them; it has gone when this is dropped.
struct Served(Clients);

impl Clients {
    /// `None`: there are too many.
    fn enter(&self) -> Option<Served> {
        let served = Served(self.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < MOST).then_some(served)
    }

    /// Waits until all have their answers, or `patience` is over.
    pub(crate) fn wait(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.0.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Listens in a launch's directory. The thread ends with the program.
pub(crate) fn listen(dir: &Path, life: Arc<Life>, clients: Clients) -> io::Result<()> {
    let path = dir.join(SOCKET);
    let listener = short_path(&path, |path| UnixListener::bind(path))?;
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
            let Some(served) = clients.enter() else {
                let failed = refused("the launch serves too many clients");
                let _ = stream.set_write_timeout(Some(STEP));
                let _ = send(&stream, &Reply::Failed { failed }, &[]);
                continue;
            };
            let life = Arc::clone(&life);
            let thread = std::thread::Builder::new().name("client".to_owned());
            // Without a thread the client sees the end of its connection.
            let _ = thread.spawn(move || {
                serve(&stream, &life);
                drop(served);
            });
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
        Request::Kill { signal, all } => match life.kill(signal, all) {
            Ok(SignalOutcome::Dropped) => Reply::Dropped,
            sent => done(sent.map(drop)),
        },
        Request::End => {
            life.signal(9);
            life.cancel().cancel();
            Reply::Done
        }
        Request::Wait => loop {
            match life.wait_over(STEP) {
                Some(Ok(status)) => break Reply::Exited { status },
                Some(Err(failed)) => break Reply::Failed { failed },
                // Whoever asks again and again, with a patience of its own, must not use up all places.
                None if has_gone(stream) => return,
                None => {}
            }
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

/// Whether a client has closed its end.
fn has_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
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
            Ok(Some(status)) => {
                let errors = process.output_errors();
                for complaint in errors.iter().filter_map(OutputError::complaint) {
                    let line = format!("warning: {complaint}");
                    let _ = send(stream, &Reply::Note { line }, &[]);
                }
                return Ok(Reply::Exited { status });
            }
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
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(|| refused("the process's streams are missing"))
    };
    Ok(Streams {
        stdin: stdin.then(&mut next).transpose()?.map(File::from),
        stdout: Box::new(Output::new(next()?)),
        stderr: Box::new(Output::new(next()?)),
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
                let Request::Signal { .. } = request else {
                    pass_on(&request, &process);
                    continue;
                };
                // Beside this thread: the agent may be slow to answer, and a client whose second signal is not read takes its supervisor for
                // stopped.
                let process = Arc::clone(&process);
                let thread = std::thread::Builder::new().name("signal".to_owned());
                // Where there is no room for a thread, there is none for the signal.
                let _ = thread.spawn(move || pass_on(&request, &process));
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

#[cfg(test)]
mod tests {
    use fcpipe_engine::CancelToken;
    use fcpipe_proto::{ExitStatus, Process};

    use super::*;
    use crate::events::Events;
    use crate::record::Record;
    use crate::tests::until;

    /// A launch without a machine, and where it listens.
    fn life(dir: &Path) -> (Arc<Life>, Clients) {
        let record = Record::new("one", Path::new("/bundle"), true, true);
        let events = Events::open(dir, "one").unwrap();
        let cancel = CancelToken::new().unwrap();
        let own = Process::new(["x"]);
        let life = Arc::new(Life::new(dir.to_owned(), record, events, own, cancel));
        let clients = Clients::default();
        listen(dir, Arc::clone(&life), clients.clone()).unwrap();
        (life, clients)
    }

    #[test]
    fn row_64_clients_that_waited_and_left_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let (life, clients) = life(dir.path());
        let served = || clients.0.load(Ordering::Relaxed);
        let ask = || {
            let stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
            send(&stream, &Request::Wait, &[]).unwrap();
            stream
        };
        let stays = ask();
        let leave: Vec<_> = (0..20).map(|_| ask()).collect();
        until("they are not served", || served() == 21);
        drop(leave);
        until("those that left are served still", || served() == 1);
        life.over(Some(ExitStatus::Code { code: 4 }), None);
        let (reply, _) = Receiver::new(stays).receive::<Reply>().unwrap().unwrap();
        let Reply::Exited { status } = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(status.shell_code(), 4);
        until("it is served still", || served() == 0);
    }
}
