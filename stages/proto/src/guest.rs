//! The guest's end: what the agent uses.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::PROTOCOL;
use crate::error::ProtoError;
use crate::frame::{Frame, MAX_CONTROL_FROM_GUEST, MAX_CONTROL_FROM_HOST};
use crate::message::{self, GuestMessage, HelloReply, HostMessage};
use crate::mux::{Mux, Side};
use crate::stream::Stream;

/// How long a host may take for its first message.
const HELLO: Duration = Duration::from_secs(10);

/// A host that is being served.
pub struct Connection {
    mux: Arc<Mux>,
    from: Box<dyn Read + Send>,
}

impl Connection {
    /// Shakes hands. The answer goes out whether the host fits or not, so that it can say what
    /// does not. `me` is asked once a host has spoken: `None` where another one is being served.
    ///
    /// # Errors
    /// [`ProtoError::Version`] or [`ProtoError::BootId`] when it does not fit; [`ProtoError::Busy`]
    /// when `me` said so; what [`Frame::read`] says of a host that says something else.
    pub fn accept<S: Stream>(
        mut stream: S,
        me: impl FnOnce() -> Option<HelloReply>,
    ) -> Result<Self, ProtoError> {
        let option = |e| ProtoError::io("setting the connection's timeout", &e);
        stream.set_read_timeout(Some(HELLO)).map_err(option)?;
        stream.set_write_timeout(Some(HELLO)).map_err(option)?;
        let first = Frame::read(&mut stream, MAX_CONTROL_FROM_HOST)?.ok_or(ProtoError::Closed)?;
        let Frame::Control(json) = first else {
            return Err(ProtoError::broken("it did not begin with a hello"));
        };
        let HostMessage::Hello(hello) = message::parse(&json)? else {
            return Err(ProtoError::broken("it did not begin with a hello"));
        };
        let Some(me) = me() else {
            say(&mut stream, &GuestMessage::Busy)?;
            return Err(ProtoError::Busy);
        };
        say(&mut stream, &GuestMessage::Hello(me.clone()))?;
        if hello.protocol != PROTOCOL {
            return Err(ProtoError::Version {
                host: hello.protocol,
                guest: PROTOCOL,
                guest_program: me.program,
            });
        }
        if hello.boot_id != me.boot_id {
            return Err(ProtoError::BootId {
                expected: me.boot_id,
                got: hello.boot_id,
            });
        }
        stream.set_read_timeout(None).map_err(option)?;
        stream.set_write_timeout(None).map_err(option)?;
        let mux = Mux::new(&stream, Side::Guest, MAX_CONTROL_FROM_GUEST)?;
        Ok(Connection {
            mux,
            from: Box::new(stream),
        })
    }

    /// The next request. Frames about streams are handled on the way; nothing here waits but for
    /// the host.
    ///
    /// # Errors
    /// Why the connection ended; its streams have ended with it.
    pub fn request(&mut self) -> Result<HostMessage, ProtoError> {
        let result = self.read();
        if let Err(error) = &result {
            self.mux.end(error.clone());
        }
        result
    }

    fn read(&mut self) -> Result<HostMessage, ProtoError> {
        loop {
            match Frame::read(&mut self.from, MAX_CONTROL_FROM_HOST)?.ok_or(ProtoError::Closed)? {
                Frame::Control(json) => match message::parse(&json)? {
                    HostMessage::Hello(_) => return Err(ProtoError::broken("a second hello")),
                    HostMessage::Ping => self.answer(&GuestMessage::Pong)?,
                    request => return Ok(request),
                },
                about_a_stream => self.mux.deliver(about_a_stream)?,
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Why the connection ended.
    pub fn answer(&self, message: &GuestMessage) -> Result<(), ProtoError> {
        self.mux.send(message, "a message to the host")
    }

    /// The sending half, for the threads that serve processes.
    #[must_use]
    pub fn mux(&self) -> &Arc<Mux> {
        &self.mux
    }
}

/// Waits until all that was sent has gone out and the host has hung up, or `patience` is over, and
/// ends the connection: the machine may be reset then. Another thread must still be reading.
pub fn linger(mux: &Mux, patience: Duration) {
    let deadline = Instant::now() + patience;
    // Whether or not all went out in time, there is no more to do.
    let _ = mux.flush(deadline);
    let _ = mux.wait_end(deadline);
    mux.end(ProtoError::Ended);
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.mux.end(ProtoError::Ended);
    }
}

fn say(stream: &mut impl Stream, message: &GuestMessage) -> Result<(), ProtoError> {
    let mut bytes = Vec::new();
    let json = message::to_json(message, "a message to the host", MAX_CONTROL_FROM_GUEST)?;
    Frame::Control(json).encode(&mut bytes);
    stream
        .write_all(&bytes)
        .map_err(|e| ProtoError::io("answering the host", &e))
}
