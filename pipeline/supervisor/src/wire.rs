//! One connection between two programs of fcpipe on this host: messages as JSON in the frames of the guest's protocol,
//! and descriptors beside them.
//!
//! A message travels as a control frame (see `fcpipe_proto::frame`). Descriptors go with its first byte (SCM_RIGHTS).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fcpipe_proto::ProtoError;
use fcpipe_proto::frame::Frame;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message: a process with all the arguments and the environment that a kernel takes, as JSON.
const MAX_MESSAGE: usize = 8 << 20;
/// The most descriptors that go with one message: a process's three streams.
const MAX_FDS: usize = 3;

fn io_error(action: &'static str, error: &io::Error) -> ProtoError {
    ProtoError::Io {
        action,
        kind: error.kind(),
        reason: error.to_string(),
    }
}

/// Sends one message. Nothing else may be sending on the same connection.
pub(crate) fn send(
    mut stream: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ProtoError> {
    let failed = |e: io::Error| io_error("sending", &e);
    let json = serde_json::to_vec(message).map_err(|e| failed(e.into()))?;
    if json.len() > MAX_MESSAGE {
        return Err(ProtoError::TooLarge {
            what: "a message",
            bytes: json.len(),
            limit: MAX_MESSAGE,
        });
    }
    let mut bytes = Vec::with_capacity(json.len() + fcpipe_proto::frame::HEADER);
    Frame::Control(json).encode(&mut bytes);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ProtoError::TooLarge {
            what: "a message's descriptors",
            bytes: fds.len(),
            limit: MAX_FDS,
        });
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            stream.as_fd(),
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
    });
    let sent = sent.map_err(|e| failed(e.into()))?;
    stream.write_all(&bytes[sent..]).map_err(failed)
}

/// The receiving end.
pub(crate) struct Receiver {
    stream: UnixStream,
    fds: VecDeque<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Receiver {
            stream,
            fds: VecDeque::new(),
        }
    }

    /// The next message and what came with it; `None` at the end of the connection.
    pub(crate) fn receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ProtoError> {
        match Frame::read(self, MAX_MESSAGE)? {
            None => Ok(None),
            Some(Frame::Control(json)) => {
                let message = fcpipe_proto::message::parse(&json)?;
                Ok(Some((message, self.fds.drain(..).collect())))
            }
            Some(_) => Err(ProtoError::Broken {
                reason: "a frame that is no message".to_owned(),
            }),
        }
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                self.stream.as_fd(),
                &mut [IoSliceMut::new(buffer)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // Whoever sends more than a message's is not one of ours.
        if self.fds.len() > MAX_FDS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(got.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(&a, &"one", &[]).unwrap();
        send(&a, &"two", &[write.as_fd(), write.as_fd()]).unwrap();
        send(&a, &"three", &[]).unwrap();
        drop((a, write));
        let mut receiver = Receiver::new(b);
        let (text, fds) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("one", 0));
        let (text, fds) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("two", 2));
        rustix::io::write(&fds[1], b"x").unwrap();
        assert_eq!(rustix::io::read(&read, &mut [0; 4]).unwrap(), 1);
        let (text, fds) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("three", 0));
        assert!(receiver.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn a_large_message_goes_through_a_small_socket() {
        let (a, b) = UnixStream::pair().unwrap();
        let text = "x".repeat(3 << 20);
        let sent = text.clone();
        let sender = std::thread::spawn(move || send(&a, &sent, &[]).unwrap());
        let (got, _) = Receiver::new(b).receive::<String>().unwrap().unwrap();
        sender.join().unwrap();
        assert!(got == text);
    }

    #[test]
    fn what_is_no_message_ends_the_connection() {
        for bytes in [
            &b"\xff\xff\xff\xff\x01\0\0\0\0"[..],
            b"\x01\0\0\0\x02\x04\0\0\0x",
            b"\x02\0\0\0\x01\0\0\0\0{]",
            b"\x09\0\0\0",
        ] {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(bytes).unwrap();
            drop(a);
            let result = Receiver::new(b).receive::<String>();
            assert!(result.is_err(), "{}", bytes.escape_ascii());
        }
    }
}
