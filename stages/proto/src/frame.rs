//! Frames: the bytes on the wire.
//!
//! A frame is a header of nine bytes, `len: u32 LE, kind: u8, stream: u32 LE`, and `len` bytes of
//! payload. The length is judged by the kind before anything is allocated for it.

use std::io::{self, Read};

use crate::error::ProtoError;
use crate::process::ProcessId;

/// Bytes of a frame's header.
pub const HEADER: usize = 9;
/// The most data that one frame carries.
pub const MAX_DATA: usize = 64 * 1024;
/// The largest control message that a host takes from a guest.
pub const MAX_CONTROL_FROM_GUEST: usize = 64 * 1024;
/// The largest control message that a guest takes from its host. The kernel gives a new program
/// 2 MiB of arguments and environment by default; as JSON they can be twice as long and more.
pub const MAX_CONTROL_FROM_HOST: usize = 8 * 1024 * 1024;
/// The credit that the receiver of a stream gives at its beginning, and never exceeds: the bytes
/// of a stream that can be under way or waiting at the receiver.
pub const WINDOW: u32 = 256 * 1024;

/// Which of a process's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stdio {
    /// Host to guest.
    In,
    /// Guest to host.
    Out,
    /// Guest to host.
    Err,
}

/// A stream: a process and one of its standard streams, as `process × 4 + stdio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u32);

impl StreamId {
    #[must_use]
    pub fn new(process: ProcessId, stdio: Stdio) -> Self {
        let stdio = match stdio {
            Stdio::In => 0,
            Stdio::Out => 1,
            Stdio::Err => 2,
        };
        StreamId(process.get() * 4 + stdio)
    }

    /// The stream of a wire number, or `None` for one that no process can have.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<Self> {
        ProcessId::new(number / 4)?;
        (number % 4 != 3).then_some(StreamId(number))
    }

    #[must_use]
    pub fn wire(self) -> u32 {
        self.0
    }

    #[must_use]
    pub fn stdio(self) -> Stdio {
        match self.0 % 4 {
            0 => Stdio::In,
            1 => Stdio::Out,
            _ => Stdio::Err,
        }
    }

    /// The process that the stream belongs to.
    #[must_use]
    pub fn process(self) -> ProcessId {
        ProcessId::new(self.0 / 4).unwrap_or(ProcessId::INIT)
    }
}

/// What a frame is, by its `kind` byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// 1: a control message as JSON, on stream number 0.
    Control(Vec<u8>),
    /// 2: bytes of a stream, at least one.
    Data(StreamId, Vec<u8>),
    /// 3: the sender sends no more on the stream.
    Eof(StreamId),
    /// 4: the receiver took this many bytes more (`u32 LE`, not 0).
    Credit(StreamId, u32),
    /// 5: the receiver wants no more; what comes is thrown away until the sender's end.
    Reset(StreamId),
}

const CONTROL: u8 = 1;
const DATA: u8 = 2;
const EOF: u8 = 3;
const CREDIT: u8 = 4;
const RESET: u8 = 5;

impl Frame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, stream: u32, payload: &[u8]| {
            // Payloads are bounded far below 4 GiB where frames are made.
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.push(kind);
            out.extend_from_slice(&stream.to_le_bytes());
            out.extend_from_slice(payload);
        };
        match self {
            Frame::Control(json) => put(CONTROL, 0, json),
            Frame::Data(stream, bytes) => put(DATA, stream.wire(), bytes),
            Frame::Eof(stream) => put(EOF, stream.wire(), &[]),
            Frame::Credit(stream, bytes) => put(CREDIT, stream.wire(), &bytes.to_le_bytes()),
            Frame::Reset(stream) => put(RESET, stream.wire(), &[]),
        }
    }

    /// Reads one frame. `Ok(None)` is an end of the connection between two frames.
    ///
    /// # Errors
    /// [`ProtoError::Broken`] for a frame that the format does not allow, or whose length is above
    /// its kind's limit (`max_control` for control messages); [`ProtoError::Closed`] for an end
    /// inside a frame; [`ProtoError::Io`] otherwise.
    pub fn read(from: &mut impl Read, max_control: usize) -> Result<Option<Frame>, ProtoError> {
        let mut header = [0; HEADER];
        if !read_or_end(from, &mut header)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, kind, s0, s1, s2, s3] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let number = u32::from_le_bytes([s0, s1, s2, s3]);

        let (least, most) = match kind {
            CONTROL => (1, max_control),
            DATA => (1, MAX_DATA),
            EOF | RESET => (0, 0),
            CREDIT => (4, 4),
            _ => {
                return Err(ProtoError::broken(format!(
                    "a frame of unknown kind {kind}"
                )));
            }
        };
        if len < least || len > most {
            return Err(ProtoError::broken(format!(
                "a frame of kind {kind} with {len} bytes, where {least} to {most} are allowed"
            )));
        }
        let stream = if kind == CONTROL {
            if number != 0 {
                return Err(ProtoError::broken(format!(
                    "a control message on stream {number}"
                )));
            }
            None
        } else {
            Some(StreamId::from_wire(number).ok_or_else(|| {
                ProtoError::broken(format!("stream number {number} belongs to no process"))
            })?)
        };

        let mut payload = vec![0; len];
        if len > 0 && !read_or_end(from, &mut payload)? {
            return Err(ProtoError::Closed);
        }
        Ok(Some(match (kind, stream) {
            (DATA, Some(stream)) => Frame::Data(stream, payload),
            (EOF, Some(stream)) => Frame::Eof(stream),
            (RESET, Some(stream)) => Frame::Reset(stream),
            (CREDIT, Some(stream)) => {
                let bytes = u32::from_le_bytes([payload[0], payload[1], payload[2], payload[3]]);
                if bytes == 0 || bytes > WINDOW {
                    return Err(ProtoError::broken(format!("credit of {bytes} bytes")));
                }
                Frame::Credit(stream, bytes)
            }
            _ => Frame::Control(payload),
        }))
    }
}

/// Fills `buffer`; `false` where the connection ended before its first byte.
fn read_or_end(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool, ProtoError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(ProtoError::Closed),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // How the end of a Unix socket or of a vsock looks when data was still under way.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(ProtoError::Closed),
            Err(e) => return Err(ProtoError::io("reading from the connection", &e)),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_47_lengths_are_judged_before_memory_is_taken() {
        for kind in [CONTROL, DATA, EOF, CREDIT, RESET, 0, 99] {
            let mut bytes = u32::MAX.to_le_bytes().to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&4_u32.to_le_bytes());
            let error = Frame::read(&mut bytes.as_slice(), MAX_CONTROL_FROM_GUEST);
            assert!(matches!(error, Err(ProtoError::Broken { .. })), "{kind}");
        }
    }

    #[test]
    fn row_47_an_end_inside_a_frame_is_not_an_end_between_frames() {
        let mut bytes = Vec::new();
        Frame::Control(b"{}".to_vec()).encode(&mut bytes);
        for cut in 1..bytes.len() {
            let got = Frame::read(&mut &bytes[..cut], MAX_CONTROL_FROM_GUEST);
            assert_eq!(got, Err(ProtoError::Closed), "cut at {cut}");
        }
        assert_eq!(Frame::read(&mut &bytes[..0], 10), Ok(None));
    }

    #[test]
    fn stream_numbers_are_those_of_processes() {
        assert_eq!(StreamId::from_wire(0), None);
        assert_eq!(StreamId::from_wire(3), None);
        assert_eq!(StreamId::from_wire(7), None);
        let err = StreamId::new(ProcessId::INIT, Stdio::Err);
        assert_eq!(StreamId::from_wire(6), Some(err));
        assert_eq!((err.process(), err.stdio()), (ProcessId::INIT, Stdio::Err));
        assert_eq!(StreamId::from_wire(u32::MAX), None);
    }
}
