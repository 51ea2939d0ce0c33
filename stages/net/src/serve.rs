//! The thread that looks after a machine's network while it runs: it answers DHCP, and notices when the namespace or an interface goes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::attach::{Attached, Attachment};
use crate::dhcp::{Answerer, FRAME_MAX};
use crate::error::NetError;
use crate::filter::to_responder;
use crate::links;
use crate::namespace::Namespace;
use crate::netlink::Netlink;
use crate::sys;

/// Between two looks at whether everything is still there. A name can go without a sign that could be waited for.
const LOOK: Duration = Duration::from_secs(1);

/// Answers in a second; what a guest asks beyond that is not heard.
const ANSWERS: u32 = 50;

/// What happened to a network under a running machine, in words; each thing once.
#[derive(Debug, Clone, Default)]
pub struct News(Arc<Mutex<Vec<String>>>);

impl News {
    /// What has happened since it was last asked.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, what: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Service {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    news: News,
}

impl Service {
    /// Starts it. `dns` is what DHCP tells of resolvers.
    pub fn start(
        namespace: &Namespace,
        attachment: &Attachment,
        attached: &Attached,
        dns: &[IpAddr],
    ) -> Result<Service, NetError> {
        let mut desks = Vec::new();
        let (netlink, sockets) = namespace.inside(|| {
            let mut sockets = Vec::new();
            for (wire, &tap) in attachment.wires.iter().zip(&attached.taps) {
                let what = format!("{}: a packet socket", wire.tap);
                let socket = sys::packet_socket(tap, &to_responder(wire.mac));
                sockets.push(socket.map_err(NetError::kernel(what))?);
            }
            Ok((Netlink::open()?, sockets))
        })?;
        for (wire, socket) in attachment.wires.iter().zip(sockets) {
            desks.push(Desk {
                socket,
                answerer: Answerer::new(wire, dns),
            });
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(|e| NetError::kernel("an eventfd")(e.into()))?;
        let stop = Arc::new(stop);
        let news = News::default();
        let watch = Watch {
            namespace: namespace.clone(),
            netlink,
            links: attachment
                .wires
                .iter()
                .map(|wire| (wire.uplink.index, wire.uplink.name.clone()))
                .collect(),
            named: true,
            news: news.clone(),
        };
        let end = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || serve(&desks, watch, &end))
            .map_err(NetError::kernel("starting a thread"))?;
        Ok(Service {
            stop,
            thread: Some(thread),
            news,
        })
    }

    pub fn news(&self) -> News {
        self.news.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The counter is far from full.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where one interface of the guest asks.
struct Desk {
    socket: OwnedFd,
    answerer: Answerer,
}

fn serve(desks: &[Desk], mut watch: Watch, stop: &OwnedFd) {
    let mut looked = Instant::now();
    let mut answers = 0;
    loop {
        let mut polled = vec![PollFd::new(stop, PollFlags::IN)];
        // A guest that asks without end waits for the next second.
        if answers < ANSWERS {
            let sockets = desks.iter().map(|desk| &desk.socket);
            polled.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
        }
        let left = LOOK.saturating_sub(looked.elapsed());
        let wait = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if !polled[0].revents().is_empty() {
            return;
        }
        let heard: Vec<bool> = polled[1..]
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect();
        for (desk, _) in desks.iter().zip(heard).filter(|(_, heard)| *heard) {
            if desk.answer().is_ok() {
                answers += 1;
            }
        }
        if looked.elapsed() >= LOOK {
            watch.look();
            looked = Instant::now();
            answers = 0;
        }
    }
}

impl Desk {
    fn answer(&self) -> io::Result<()> {
        let mut frame = [0; FRAME_MAX];
        // Reading also clears the socket's error when the TAP goes down.
        let (_, read) = recv(self.socket.as_fd(), &mut frame[..], RecvFlags::TRUNC)?;
        // A longer one than a client may send.
        let Some(frame) = frame.get(..read) else {
            return Ok(());
        };
        if let Some(answer) = self.answerer.answer(frame) {
            // A guest whose queue is full asks again.
            let _ = send(&self.socket, &answer, SendFlags::DONTWAIT);
        }
        Ok(())
    }
}

/// What has to stay while the machine runs.
struct Watch {
    namespace: Namespace,
    netlink: Netlink,
    links: Vec<(u32, String)>,
    named: bool,
    news: News,
}

impl Watch {
    fn look(&mut self) {
        if self.named && !self.namespace.is_there() {
            self.named = false;
            self.news.add(format!(
                "{}: the network namespace was removed under the running machine, which keeps it until its end",
                self.namespace.path().display()
            ));
        }
        if self.links.is_empty() {
            return;
        }
        // If the kernel does not say, nothing is known to be gone.
        let Ok(found) = links::readable(&mut self.netlink) else {
            return;
        };
        let news = &self.news;
        self.links.retain(|(index, name)| {
            let there = found.iter().any(|link| link.index == *index);
            if !there {
                news.add(format!(
                    "{name}: the interface was removed under the running machine, which has no network any more"
                ));
            }
            there
        });
    }
}
