//! What the agent and a new container process say to each other before the program runs.
//!
//! The process is born with one descriptor of use, a socket as its standard input. Over it come
//! its orders and its real standard streams; back goes a report. That the socket then closes by
//! itself, in execve(2), is how the agent knows that the program runs.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use fcpipe_proto::{Failure, GuestConfig, Process};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The pidfd of the process to join, and standard streams.
pub(crate) const MAX_FDS: usize = 4;
/// Above what a host's message can be.
const MAX_MESSAGE: usize = 16 << 20;

/// What the process is to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) process: Process,
    /// The container to make; `None`: it joins the one of the first descriptor. The next three are its standard
    /// streams, unless it has a terminal.
    pub(crate) container: Option<Container>,
}

/// What a container is made of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    /// Where the root is mounted.
    pub(crate) root: PathBuf,
    pub(crate) config: GuestConfig,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The descriptor with it is the agent's end of the terminal.
    Terminal,
    /// The next system call is execve(2).
    Exec,
    /// It did not come so far, or execve(2) failed.
    Failed(Failure),
}

/// Sends a message, with descriptors at its first byte.
pub(crate) fn send(
    to: &mut UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let len = u32::try_from(bytes.len() - 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if fds.is_empty() {
        // By write(2), which no filter of system calls is without.
        return to.write_all(&bytes);
    }
    let sent = sendmsg(
        &*to,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    to.write_all(&bytes[sent..])
}

/// Receives a message and its descriptors; `None` at the other end's close.
pub(crate) fn receive<T: DeserializeOwned>(
    from: &mut UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut len = [0; 4];
    let got = recvmsg(
        &*from,
        &mut [IoSliceMut::new(&mut len)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    from.read_exact(&mut len[got.bytes..])?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_carry_descriptors() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let report = Report::Failed(Failure::new(
            fcpipe_proto::FailureKind::Setup,
            None,
            "x".repeat(4000),
        ));
        send(&mut a, &report, &[write.as_fd()]).unwrap();
        drop((a, write));
        let (got, fds) = receive::<Report>(&mut b).unwrap().unwrap();
        assert!(matches!(got, Report::Failed(f) if f.message.len() == 4000));
        rustix::io::write(&fds[0], b"hi").unwrap();
        let mut buffer = [0; 4];
        assert_eq!(rustix::io::read(&read, &mut buffer).unwrap(), 2);
        assert!(receive::<Report>(&mut b).unwrap().is_none());
    }
}
