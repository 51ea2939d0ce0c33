//! The agent: one VM's container, and the host's requests about it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fcpipe_proto::guest::{Connection, linger};
use fcpipe_proto::message::{GuestMessage, HelloReply, HostMessage, SignalOutcome, Start};
use fcpipe_proto::mux::Mux;
use fcpipe_proto::process::Signal;
use fcpipe_proto::{Failure, FailureKind, GuestConfig, PROTOCOL, ProcessId, ProtoError};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::cgroup::Cgroup;
use crate::console::say;
use crate::handoff::Container;
use crate::oom::{self, Kills};
use crate::processes::Processes;
use crate::root::Root;
use crate::spawn::{self, Place};
use crate::{net, stats, sys};

/// How long killed processes may take to end.
const END: Duration = Duration::from_secs(5);

/// How long a host may take to hang up once it has its last answer.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the agent finds itself in: a VM, or a test.
pub struct Settings {
    pub boot_id: String,
    /// This program, to run again as a container process.
    pub program: PathBuf,
    /// The directory below which the container's root is mounted.
    pub base: PathBuf,
    /// The device of a disk by its number; `None` for numbers that no disk has.
    pub disk: Box<dyn Fn(u32) -> Option<PathBuf> + Send + Sync>,
    pub cgroup: Option<Cgroup>,
}

/// The agent's state, shared by its threads.
pub struct Agent {
    pub(crate) settings: Settings,
    pub(crate) processes: Processes,
    oom_kills: Kills,
    /// When this agent was made, on the clock of the kernel's run.
    born: Duration,
    container: Mutex<ContainerState>,
    /// The connection that is served: one at a time.
    session: Mutex<Session>,
}

#[derive(Default)]
enum ContainerState {
    #[default]
    None,
    Ready {
        root: Root,
        config: Box<GuestConfig>,
    },
    Over,
}

enum Session {
    /// Nobody is served since then.
    None(Instant),
    /// Somebody shakes hands.
    Claimed,
    Served(Arc<Mux>),
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended; another may come.
    Lost(ProtoError),
    /// It asked for the end, and that is done: the machine is to be reset.
    Shutdown,
}

impl Agent {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Agent {
            settings,
            processes: Processes::default(),
            oom_kills: Kills::default(),
            born: stats::uptime(),
            container: Mutex::default(),
            session: Mutex::new(Session::None(Instant::now())),
        }
    }

    /// Starts the threads that wait for every process that ends, and for the kernel's killing for want of memory.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start_watching(self: &Arc<Self>) -> io::Result<()> {
        if let Some(cgroup) = &self.settings.cgroup
            && let Err(e) = oom::watch(self, cgroup)
        {
            say(&format!("nobody will tell of a lack of memory: {e}"));
        }
        let agent = Arc::clone(self);
        let thread = thread::Builder::new().name("reaper".to_owned());
        thread.spawn(move || {
            // A death for want of memory is told before the exit that it caused.
            let killed = || agent.look_for_oom();
            agent.processes.reap(killed, |process, status| {
                agent.tell(|| GuestMessage::Exited { process, status });
            });
        })?;
        Ok(())
    }

    /// Tells the host, if there is one, what `news` says by then. One that has gone learns it no more.
    fn tell(&self, news: impl FnOnce() -> GuestMessage) {
        if let Session::Served(mux) = &*self.session() {
            let _ = mux.send(&news(), "news");
        }
    }

    pub(crate) fn look_for_oom(&self) {
        let cgroup = self.settings.cgroup.as_ref();
        if cgroup.is_some_and(|cgroup| self.oom_kills.grown(cgroup)) {
            self.tell_oom();
        }
    }

    /// Several threads do: they are counted when it is one's turn, so that none tells fewer than another before it.
    fn tell_oom(&self) {
        self.tell(|| GuestMessage::Oom {
            kills: self.oom_kills.get(),
        });
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self) -> MutexGuard<'_, ContainerState> {
        self.container
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How long nobody has been served.
    #[must_use]
    pub fn alone_for(&self) -> Option<Duration> {
        match &*self.session() {
            Session::None(since) => Some(since.elapsed()),
            Session::Claimed | Session::Served(_) => None,
        }
    }

    /// Serves one connection to its end. While another is being served, it is refused.
    pub fn serve_one<S: fcpipe_proto::Stream>(self: &Arc<Self>, stream: S) -> Outcome {
        let mut claimed = false;
        let accepted = Connection::accept(stream, || {
            claimed = self.claim();
            claimed.then(|| self.hello())
        });
        let outcome = match accepted {
            Ok(connection) => {
                *self.session() = Session::Served(Arc::clone(connection.mux()));
                // The handshake told what was so when it began.
                self.tell_oom();
                self.serve_requests(connection)
            }
            Err(e) => Outcome::Lost(e),
        };
        if claimed {
            *self.session() = Session::None(Instant::now());
        }
        outcome
    }

    fn claim(&self) -> bool {
        let mut session = self.session();
        let free = matches!(*session, Session::None(_));
        if free {
            *session = Session::Claimed;
        }
        free
    }

    fn hello(&self) -> HelloReply {
        HelloReply {
            protocol: PROTOCOL,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.settings.boot_id.clone(),
            configured: !matches!(*self.container(), ContainerState::None),
            running: self.processes.running(),
            oom_kills: self.oom_kills.get(),
        }
    }

    /// Reads requests. What may take long is done on other threads, so that the host's next
    /// request, a kill or a question whether anybody is alive, is always answered.
    fn serve_requests(self: &Arc<Self>, mut connection: Connection) -> Outcome {
        let mut ending = None;
        loop {
            let handled = match connection.request() {
                Err(lost) => match ending {
                    None => return Outcome::Lost(lost),
                    Some(ending) => {
                        // A thread that panicked has reset the machine.
                        let _ = JoinHandle::join(ending);
                        return Outcome::Shutdown;
                    }
                },
                Ok(HostMessage::Configure(config)) => self
                    .aside(&connection, move |agent, mux| {
                        let answer = match agent.configure(config) {
                            Ok(()) => GuestMessage::Configured,
                            Err(failure) => GuestMessage::ConfigureFailed { failure },
                        };
                        // A host that has gone needs no answer.
                        let _ = mux.send(&answer, "an answer");
                    })
                    .map(drop),
                Ok(HostMessage::Start(start)) => self.start(&connection, *start),
                Ok(HostMessage::Signal {
                    request,
                    process,
                    signal,
                    all,
                }) => {
                    let outcome = self.signal(process, signal, all);
                    connection.answer(&GuestMessage::Signalled { request, outcome })
                }
                Ok(HostMessage::Resize { process, size }) => {
                    self.processes.resize(process, size);
                    Ok(())
                }
                Ok(HostMessage::Stats { request }) => {
                    let cgroup = self.settings.cgroup.as_ref();
                    let stats = Box::new(stats::read(cgroup, self.born));
                    connection.answer(&GuestMessage::Stats { request, stats })
                }
                Ok(HostMessage::Shutdown) if ending.is_none() => {
                    let end = self.aside(&connection, |agent, mux| {
                        let clean = agent.end();
                        // Without a host the machine is reset as well.
                        let _ = mux.send(&GuestMessage::Stopped { clean }, "an answer");
                        linger(mux, FAREWELL);
                    });
                    end.map(|thread| ending = Some(thread))
                }
                Ok(HostMessage::Shutdown | HostMessage::Hello(_) | HostMessage::Ping) => Ok(()),
            };
            if let Err(e) = handled {
                connection.mux().end(e);
            }
        }
    }

    fn aside(
        self: &Arc<Self>,
        connection: &Connection,
        work: impl FnOnce(&Self, &Mux) + Send + 'static,
    ) -> Result<JoinHandle<()>, ProtoError> {
        let (agent, mux) = (Arc::clone(self), Arc::clone(connection.mux()));
        let thread = thread::Builder::new().name("request".to_owned());
        let started = thread.spawn(move || work(&agent, &mux));
        started.map_err(|e| ProtoError::Io {
            action: "starting a thread",
            kind: e.kind(),
            reason: e.to_string(),
        })
    }

    fn configure(&self, config: Box<GuestConfig>) -> Result<(), Failure> {
        let mut container = self.container();
        if !matches!(*container, ContainerState::None) {
            return Err(refusal("this boot has its configuration already"));
        }
        if let Some(clock) = &config.wall_clock {
            let time = Timespec {
                tv_sec: clock.seconds,
                tv_nsec: i64::from(clock.nanoseconds),
            };
            if let Err(e) = clock_settime(ClockId::Realtime, time) {
                say(&format!("the clock stays as it is: {e}"));
            }
        }
        if let Some(digits) = &config.entropy
            && let Err(e) = add_entropy(digits)
        {
            say(&format!("no entropy from the host: {e}"));
        }
        if let Some(cgroup) = &self.settings.cgroup {
            cgroup.apply(&config.confinement.limits)?;
        }
        let disk = |number| {
            (self.settings.disk)(number)
                .ok_or_else(|| refusal(&format!("there is no disk {number}")))
        };
        if let Some(network) = &config.network {
            net::set_up(network)?;
        }
        let root = Root::mount(&self.settings.base, &disk, &config.root)?;
        if let Some(conf) = config.network.as_ref().and_then(|n| n.resolv_conf.as_ref()) {
            net::resolvers(root.path(), conf);
        }
        *container = ContainerState::Ready { root, config };
        Ok(())
    }

    fn start(self: &Arc<Self>, connection: &Connection, start: Start) -> Result<(), ProtoError> {
        let id = start.id;
        match self.place(&start) {
            Ok(place) => spawn::spawn(self, connection.mux(), start, place),
            Err(failure) => spawn::refuse(connection.mux(), id, failure),
        }
    }

    fn signal(&self, process: ProcessId, signal: Signal, all: bool) -> SignalOutcome {
        // The kernel is faster than a fork bomb; whoever looks for processes one by one is not.
        if all
            && signal == Signal::KILL
            && self.processes.is_running(process)
            && self.settings.cgroup.as_ref().is_some_and(Cgroup::kill)
        {
            return SignalOutcome::Sent;
        }
        self.processes.signal(process, signal, all)
    }

    fn place(&self, start: &Start) -> Result<Place, Failure> {
        if start.id != ProcessId::INIT {
            let init = self.processes.init();
            return init
                .map(Place::Beside)
                .ok_or_else(|| refusal("the container does not run"));
        }
        let container = match &*self.container() {
            ContainerState::Ready { root, config } => Container {
                root: root.path().to_owned(),
                config: (**config).clone(),
            },
            _ => return Err(refusal("the container has no root")),
        };
        if !self.processes.claim_init() {
            return Err(refusal("the container has run its first process already"));
        }
        Ok(Place::New(Box::new(container)))
    }

    /// Ends the container and writes everything back; `true` when that worked.
    pub fn end(&self) -> bool {
        let ended = self.processes.end_all(Instant::now() + END);
        if let Some(cgroup) = &self.settings.cgroup {
            cgroup.kill();
        }
        let container = std::mem::replace(&mut *self.container(), ContainerState::Over);
        if !ended {
            say("processes of the container do not end");
        }
        let released = match container {
            ContainerState::Ready { root, .. } => root.release(),
            ContainerState::None | ContainerState::Over => Ok(()),
        };
        if let Err(e) = &released {
            say(&format!("the root disk is still in use: {e}"));
        }
        ended && released.is_ok()
    }

    /// The same where no host has asked for it: one that is there gets the news of it, and hangs up or asks now. What has not left the
    /// machine when it resets is lost.
    pub(crate) fn end_unasked(&self) {
        self.end();
        let served = match &*self.session() {
            Session::Served(mux) => Some(Arc::clone(mux)),
            Session::None(_) | Session::Claimed => None,
        };
        if let Some(mux) = served {
            linger(&mux, FAREWELL);
        }
    }
}

fn refusal(why: &str) -> Failure {
    Failure::new(FailureKind::Protocol, None, why)
}

fn add_entropy(digits: &str) -> io::Result<()> {
    let bytes = from_hex(digits).ok_or(io::ErrorKind::InvalidData)?;
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    sys::credit_entropy(random.as_fd(), &bytes)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || digits.len() > sys::MAX_ENTROPY * 2 {
        return None;
    }
    let digit = |d: &u8| char::from(*d).to_digit(16);
    let pairs = digits.as_bytes().as_chunks::<2>().0.iter();
    pairs
        .map(|pair| u8::try_from(digit(&pair[0])? * 16 + digit(&pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use fcpipe_proto::frame::{Frame, MAX_CONTROL_FROM_GUEST};
    use fcpipe_proto::mux::Side;

    use super::*;

    /// Without a container, or anything else.
    fn agent() -> Agent {
        Agent::new(Settings {
            boot_id: String::new(),
            program: PathBuf::new(),
            base: PathBuf::new(),
            disk: Box::new(|_| None),
            cgroup: None,
        })
    }

    /// A host takes fewer deaths than before for a lie, and hangs up.
    #[test]
    fn row_62_deaths_for_want_of_memory_are_told_in_their_order_whoever_tells() {
        const THREADS: usize = 4;
        // All of it fits into what may wait to be sent.
        const EACH: usize = 1000;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let agent = agent();
        let mux = Mux::new(&ours, Side::Guest, MAX_CONTROL_FROM_GUEST).unwrap();
        *agent.session() = Session::Served(Arc::clone(&mux));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        agent.oom_kills.add(1);
                        agent.tell_oom();
                    }
                });
            }
            let mut most = 0;
            for _ in 0..THREADS * EACH {
                let Ok(Some(Frame::Control(json))) =
                    Frame::read(&mut theirs, MAX_CONTROL_FROM_GUEST)
                else {
                    panic!("nothing more is told");
                };
                let told = fcpipe_proto::message::parse(&json).unwrap();
                let GuestMessage::Oom { kills } = told else {
                    panic!("{told:?}");
                };
                assert!(kills >= most, "{kills} after {most}");
                most = kills;
            }
            assert_eq!(most, (THREADS * EACH) as u64);
        });
        mux.end(ProtoError::Ended);
    }

    #[test]
    fn an_end_that_nobody_asked_for_waits_until_the_host_has_the_news() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let agent = agent();
        let mux = Mux::new(&ours, Side::Guest, MAX_CONTROL_FROM_GUEST).unwrap();
        *agent.session() = Session::Served(Arc::clone(&mux));
        let begun = Instant::now();
        let host = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            let hung_up = begun.elapsed();
            // As whoever reads from it would see it.
            mux.end(ProtoError::Closed);
            hung_up
        });
        agent.end_unasked();
        let ended = begun.elapsed();
        let hung_up = host.join().unwrap();
        assert!(ended >= hung_up.min(FAREWELL), "{ended:?} {hung_up:?}");
        // And with nobody there, for nobody.
        *agent.session() = Session::None(Instant::now());
        agent.end_unasked();
    }

    #[test]
    fn hexadecimal_digits_are_read() {
        assert_eq!(from_hex("00fFa0"), Some(vec![0, 255, 160]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0x"), None);
        assert_eq!(from_hex(&"0".repeat(1026)), None);
    }
}
