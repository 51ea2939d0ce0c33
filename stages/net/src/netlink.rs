//! rtnetlink without an event loop: a request goes out, and its answer is read.
//!
//! A socket belongs to the namespace that it was opened in, whichever thread uses it.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use crate::error::NetError;

/// The kernel sends dumps in pieces of 32 KiB at most.
const BUFFER: usize = 64 << 10;

/// How often a dump is asked for where others change what is listed all the time.
const DUMPS: usize = 10;

/// What comes of an answer that the library cannot read: names of interfaces are any bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Fails,
    IsLeftOut,
}

pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// One thing to ask of the kernel.
pub(crate) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    /// In words, for the error.
    what: String,
}

impl Request {
    /// Changes or removes what is there.
    pub(crate) fn change(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            message,
            flags: 0,
            what: what.into(),
        }
    }

    /// Makes what may be there already, just so.
    pub(crate) fn ensure(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            flags: NLM_F_CREATE,
            ..Self::change(message, what)
        }
    }

    /// Makes what must not be there yet.
    pub(crate) fn create(message: RouteNetlinkMessage, what: impl Into<String>) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_EXCL,
            ..Self::change(message, what)
        }
    }
}

impl Netlink {
    /// Of the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetError> {
        let open = || -> io::Result<OwnedFd> {
            // No protocol is 0, NETLINK_ROUTE.
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(NetError::kernel("opening a netlink socket"))?,
            sequence: 0,
        })
    }

    /// Does `requests` in their order, and nothing after one that failed: what comes later may be safe only with what came before. (Sent as
    /// one, the kernel would go on.)
    pub(crate) fn all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<(), NetError> {
        let mut requests = requests.into_iter();
        requests.try_for_each(|request| self.one(request))
    }

    pub(crate) fn one(&mut self, request: Request) -> Result<(), NetError> {
        let flags = request.flags | NLM_F_ACK;
        self.ask(request.message, flags, Unreadable::Fails, &request.what)
            .map(drop)
    }

    /// Everything of a kind.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        self.dump_with(message, Unreadable::Fails, what)
    }

    /// The same, of which only what is ours matters: what the library cannot read is a stranger's.
    pub(crate) fn dump_readable(
        &mut self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        self.dump_with(message, Unreadable::IsLeftOut, what)
    }

    /// Asked again where the list changed meanwhile: it may lack what was there all the time.
    fn dump_with(
        &mut self,
        message: RouteNetlinkMessage,
        unreadable: Unreadable,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        for _ in 1..DUMPS {
            let (found, changed) = self.ask(message.clone(), NLM_F_DUMP, unreadable, what)?;
            if !changed {
                return Ok(found);
            }
        }
        // The best that can be had on so busy a host.
        let (found, _) = self.ask(message, NLM_F_DUMP, unreadable, what)?;
        Ok(found)
    }

    /// The answer to a question about one thing; empty where there is no such thing.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Option<RouteNetlinkMessage>, NetError> {
        match self.ask(message, NLM_F_ACK, Unreadable::Fails, what) {
            Ok((mut found, _)) => Ok(found.pop()),
            Err(NetError::Kernel { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(libc::ENODEV | libc::ENOENT | libc::ENXIO)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        unreadable: Unreadable,
        what: &str,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetError> {
        let failed = |source| NetError::Kernel {
            what: what.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        self.write(message, flags, &mut bytes);
        self.send(&bytes).map_err(failed)?;
        let mut found = Vec::new();
        let (mut done, mut changed) = (false, false);
        while !done {
            self.receive(|header, payload| {
                changed |= header.flags() & NLM_F_DUMP_INTR != 0;
                if payload.is_err() && unreadable == Unreadable::IsLeftOut {
                    return Ok(());
                }
                match payload? {
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) => {
                        done = true;
                        if error.code.is_some() {
                            return Err(error.to_io());
                        }
                    }
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    _ => {}
                }
                Ok(())
            })
            .map_err(failed)?;
        }
        Ok((found, changed))
    }

    fn write(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        // Each begins at a multiple of 4 (netlink(7), NLMSG_ALIGN).
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// Reads one datagram and gives each message in it to `each`, with its header.
    fn receive(
        &self,
        mut each: impl FnMut(
            &NetlinkBuffer<&[u8]>,
            io::Result<NetlinkPayload<RouteNetlinkMessage>>,
        ) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let (read, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..read];
        let mut result = Ok(());
        while !rest.is_empty() {
            let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
            let header = NetlinkBuffer::new_checked(rest).map_err(|e| invalid(e.to_string()))?;
            let length = (header.length() as usize).next_multiple_of(4);
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map(|message| message.payload)
                .map_err(|e| invalid(e.to_string()));
            rest = rest.get(length..).unwrap_or_default();
            // The rest of the answers is read even so, or the next question would get them.
            result = result.and(each(&header, message));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;
    use crate::links::{self, Change};
    use crate::namespace::Namespace;

    #[test]
    fn needs_root_what_comes_after_a_failure_is_not_done() {
        if !rustix::process::geteuid().is_root() {
            let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!ci, "missing under CI: root");
            println!("skipped: not root");
            return;
        }
        let namespace = Namespace::new("/proc/self/fd".as_ref()).unwrap();
        let mut netlink = namespace.inside(Netlink::open).unwrap();
        let bridge = |name: &str| {
            let made = Change::of(0, format!("making {name}"));
            made.kind(InfoKind::Bridge).name(name).create()
        };
        let failed = netlink.all([bridge("one"), bridge("one"), bridge("two")]);
        let failed = failed.unwrap_err();
        let exists = matches!(&failed, NetError::Kernel { what, source }
            if what == "making one" && source.raw_os_error() == Some(libc::EEXIST));
        assert!(exists, "{failed}");
        let mut there = |name| links::by_name(&mut netlink, name).unwrap().is_some();
        assert_eq!((there("one"), there("two")), (true, false));
    }
}
