//! One HTTP/1.1 exchange after another over a connected Unix socket, with a deadline and limits for each.
//!
//! Only what an API server that answers one request at a time needs: no chunks, no redirects, no pipelining. The peer
//! may be a program gone wrong, so nothing of its answer is believed before it was measured.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// More than any status line and headers of Firecracker's.
const HEAD: usize = 8 << 10;

/// More than its longest answer, a whole configuration.
pub(crate) const BODY: usize = 256 << 10;

const HEADERS: usize = 32;

/// Between two looks at whether there is still a reason to wait.
const STEP: Duration = Duration::from_millis(20);

/// A status and what came with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failed<E> {
    /// The caller's check said so.
    Check(E),
    /// The peer hung up; whether in the middle of an answer.
    Closed {
        partial: bool,
    },
    Deadline {
        partial: bool,
    },
    /// It is not HTTP, or more of it than there may be.
    Malformed(String),
    Io(io::Error),
}

/// A connection on which exchanges follow each other. After a failure it is of no use.
pub(crate) struct Connection {
    /// Non-blocking.
    socket: OwnedFd,
    received: Vec<u8>,
}

/// What a head says about the answer it begins.
struct Head {
    status: u16,
    /// Bytes of the head itself.
    size: usize,
    body: usize,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
        }
    }

    /// Sends a request and waits for its answer. `check` is asked whenever there is nothing to do: an error ends the waiting.
    pub(crate) fn exchange<E>(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&str>,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Answer, Failed<E>> {
        self.send(request(method, path, body).as_bytes(), deadline, check)?;
        self.receive(deadline, check)
    }

    fn send<E>(
        &mut self,
        mut bytes: &[u8],
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), Failed<E>> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline, check)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(Failed::Closed { partial: false });
                }
                Err(error) => return Err(Failed::Io(error.into())),
            }
        }
        Ok(())
    }

    fn receive<E>(
        &mut self,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Answer, Failed<E>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(answer) = take_answer(&mut self.received).map_err(Failed::Malformed)? {
                return Ok(answer);
            }
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => {
                    let partial = !self.received.is_empty();
                    return Err(Failed::Closed { partial });
                }
                Ok((_, got)) => self.received.extend_from_slice(&buffer[..got]),
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline, check)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Failed::Io(error.into())),
            }
        }
    }

    /// Until the socket is ready or [`STEP`] is over.
    fn wait<E>(
        &self,
        what: PollFlags,
        deadline: Instant,
        check: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), Failed<E>> {
        check().map_err(Failed::Check)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let partial = !self.received.is_empty();
            return Err(Failed::Deadline { partial });
        }
        let step = Timespec {
            tv_sec: 0,
            tv_nsec: STEP.min(left).subsec_nanos().into(),
        };
        match rustix::event::poll(
            &mut [PollFd::from_borrowed_fd(self.socket.as_fd(), what)],
            Some(&step),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Failed::Io(error.into())),
        }
    }
}

/// Each part is ours: no header can be smuggled in.
fn request(method: &str, path: &str, body: Option<&str>) -> String {
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = body {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or_default());
    text
}

/// Takes a whole answer off `received`, if one is there. Bytes beyond it are an error: nobody asked for them.
fn take_answer(received: &mut Vec<u8>) -> Result<Option<Answer>, String> {
    let Some(head) = head(received)? else {
        return Ok(None);
    };
    let whole = head.size + head.body;
    if received.len() < whole {
        return Ok(None);
    }
    if received.len() > whole {
        return Err("it goes on after the end of its answer".to_owned());
    }
    let body = received.split_off(head.size);
    received.clear();
    Ok(Some(Answer {
        status: head.status,
        body,
    }))
}

fn head(received: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let size = match response.parse(received) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) if received.len() < HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(format!("its headers are longer than {HEAD} bytes"));
        }
        Err(error) => return Err(format!("it is not HTTP: {error}")),
    };
    let status = response.code.unwrap_or_default();
    let mut body = None;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("it comes in chunks".to_owned());
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = content_length(header.value)
                .ok_or_else(|| format!("its length is {:?}", bstr::BStr::new(header.value)))?;
            if body.is_some_and(|other| other != length) {
                return Err("it has two lengths".to_owned());
            }
            body = Some(length);
        }
    }
    if (100..200).contains(&status) {
        return Err(format!("its status is {status}"));
    }
    // Without a length there is nothing to come: the connection stays open.
    let body = if status == 204 { 0 } else { body.unwrap_or(0) };
    if body > BODY {
        return Err(format!("it is {body} bytes long, and {BODY} are the limit"));
    }
    Ok(Some(Head { status, size, body }))
}

fn content_length(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    // `parse` would also take a plus sign.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn answer(bytes: &[u8]) -> Result<Option<Answer>, String> {
        take_answer(&mut bytes.to_vec())
    }

    #[test]
    fn a_whole_answer_is_taken_and_a_part_waited_for() {
        let text = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\ncontent-length: 2\r\n\r\n{}";
        for cut in 0..text.len() {
            assert_eq!(answer(&text[..cut]), Ok(None), "{cut}");
        }
        let whole = answer(text).unwrap().unwrap();
        assert_eq!((whole.status, whole.body.as_slice()), (400, &b"{}"[..]));
        let empty = answer(b"HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((empty.status, empty.body.len()), (204, 0));
    }

    #[test]
    fn row_44_what_is_no_answer() {
        let bad: [&[u8]; 9] = [
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 204 \r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: +1\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
        ];
        for bytes in bad {
            assert!(answer(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let endless = [b"HTTP/1.1 200 \r\nX: ".as_slice(), &[b'x'; HEAD]].concat();
        assert!(answer(&endless).is_err());
    }

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours.into()), theirs)
    }

    fn never() -> Result<(), Infallible> {
        Ok(())
    }

    #[test]
    fn exchanges_follow_each_other_on_one_connection() {
        let (mut connection, mut server) = pair();
        let serving = thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in [
                "HTTP/1.1 204 \r\n\r\n",
                "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n[]",
            ] {
                let mut buffer = [0; 1024];
                let got = server.read(&mut buffer).unwrap();
                seen.push(String::from_utf8(buffer[..got].to_vec()).unwrap());
                for byte in answer.as_bytes() {
                    server.write_all(&[*byte]).unwrap();
                }
            }
            seen
        });
        let soon = Instant::now() + Duration::from_secs(20);
        let put = connection.exchange("PUT", "/a", Some("{\"b\":1}"), soon, &mut never);
        assert_eq!(put.unwrap().status, 204);
        let get = connection.exchange("GET", "/c", None, soon, &mut never);
        assert_eq!(get.unwrap().body, b"[]");
        let seen = serving.join().unwrap();
        assert!(seen[0].starts_with("PUT /a HTTP/1.1\r\n"));
        assert!(seen[0].ends_with("Content-Length: 7\r\n\r\n{\"b\":1}"));
        assert!(!seen[1].contains("Content-Length"));
    }

    #[test]
    fn row_44_silence_half_an_answer_and_hanging_up_end_in_time() {
        for (said, partial) in [("", false), ("HTTP/1.1 20", true)] {
            let (mut connection, mut server) = pair();
            server.write_all(said.as_bytes()).unwrap();
            let soon = Instant::now() + Duration::from_millis(50);
            let failed = connection.exchange("GET", "/", None, soon, &mut never);
            assert!(
                matches!(failed, Err(Failed::Deadline { partial: p }) if p == partial),
                "{failed:?}"
            );
            let (mut connection, mut server) = pair();
            server.write_all(said.as_bytes()).unwrap();
            server.shutdown(std::net::Shutdown::Write).unwrap();
            let soon = Instant::now() + Duration::from_secs(20);
            let failed = connection.exchange("GET", "/", None, soon, &mut never);
            assert!(
                matches!(failed, Err(Failed::Closed { partial: p }) if p == partial),
                "{failed:?}"
            );
        }
    }

    #[test]
    fn row_49_a_check_ends_the_waiting() {
        let (mut connection, _server) = pair();
        let late = Instant::now() + Duration::from_secs(20);
        let failed = connection.exchange("GET", "/", None, late, &mut || Err("enough"));
        assert!(matches!(failed, Err(Failed::Check("enough"))));
    }
}
