//! Reaches a guest's vsock port through the Unix socket that a VMM offers for it.
//!
//! Firecracker and `vhost-device-vsock` speak the same: the host connects, writes
//! `CONNECT <port>\n`, and reads `OK <number>\n` once the guest has accepted (Firecracker's
//! `docs/vsock.md`, "Host-initiated connections").

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::unix_path;
use crate::error::ProtoError;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// One attempt: a VMM may take a request while the guest's driver is not there yet, and never
/// answer it.
const ATTEMPT: Duration = Duration::from_millis(500);
/// The longest answer is `OK 4294967295\n`.
const MAX_ANSWER: usize = 32;

/// Connects to `port` of the guest behind `socket`, again and again until the guest accepts. Wait
/// for the guest with a [`Doorbell`](super::Doorbell) first: then the first attempt succeeds.
///
/// `alive` is asked between attempts: an error of it (the VMM has ended, the launch is cancelled)
/// ends them.
///
/// # Errors
/// That of `alive`; [`ProtoError::Timeout`] at the deadline; [`ProtoError::Broken`] for an answer
/// that is none.
pub fn dial<E: From<ProtoError>>(
    socket: &Path,
    port: u32,
    deadline: Instant,
    mut alive: impl FnMut() -> Result<(), E>,
) -> Result<UnixStream, E> {
    loop {
        alive()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(E::from(ProtoError::Timeout {
                what: "the connection to the agent",
            }));
        }
        if let Some(stream) = attempt(socket, port, left.min(ATTEMPT))? {
            return Ok(stream);
        }
        std::thread::sleep(PAUSE.min(left));
    }
}

/// One attempt; `None` where nobody is there yet.
fn attempt(socket: &Path, port: u32, patience: Duration) -> Result<Option<UnixStream>, ProtoError> {
    let Ok(mut stream) = unix_path::short_path(socket, |short| UnixStream::connect(short)) else {
        return Ok(None);
    };
    let option = |e| ProtoError::io("setting the connection's timeout", &e);
    stream.set_write_timeout(Some(patience)).map_err(option)?;
    if stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .is_err()
    {
        return Ok(None);
    }
    // By single bytes: what follows the line belongs to the protocol.
    let until = Instant::now() + patience;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left)).map_err(option)?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) if answer.len() < MAX_ANSWER => answer.push(byte[0]),
            Ok(1) => break,
            _ => return Ok(None),
        }
    }
    let number = answer
        .strip_prefix(b"OK ")
        .and_then(|a| a.strip_suffix(b"\n"));
    if !number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit)) {
        return Err(ProtoError::broken(format!(
            "the VMM's vsock answered \"{}\"",
            answer.escape_ascii()
        )));
    }
    stream.set_read_timeout(None).map_err(option)?;
    stream.set_write_timeout(None).map_err(option)?;
    Ok(Some(stream))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answer_with(answer: &'static [u8], dir: &Path) -> std::path::PathBuf {
        let path = dir.join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = [0; 11];
                if stream.read_exact(&mut line).is_ok() {
                    assert_eq!(&line, b"CONNECT 52\n");
                    let _ = stream.write_all(answer);
                }
            }
        });
        path
    }

    fn dial_it(path: &Path, patience: Duration) -> Result<UnixStream, ProtoError> {
        dial(path, 52, Instant::now() + patience, || Ok(()))
    }

    #[test]
    fn takes_no_byte_beyond_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = answer_with(b"OK 1073741824\nrest", dir.path());
        let mut stream = dial_it(&path, Duration::from_secs(10)).unwrap();
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
    }

    #[test]
    fn row_44_a_vmm_that_answers_nonsense_is_named() {
        for nonsense in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n................."[..],
            b"OK 12345678901234567890123456789012345678901234567890",
            b"OK \n",
            b"NO\n",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = answer_with(nonsense, dir.path());
            let result = dial_it(&path, Duration::from_secs(10));
            assert!(
                matches!(result, Err(ProtoError::Broken { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn row_45_an_agent_that_never_comes_is_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody listens; then somebody does, and closes at once as a guest without agent does.
        let missing = dial_it(&dir.path().join("none"), Duration::from_millis(60));
        assert!(matches!(missing, Err(ProtoError::Timeout { .. })));
        let path = answer_with(b"", dir.path());
        let closed = dial_it(&path, Duration::from_millis(60));
        assert!(matches!(closed, Err(ProtoError::Timeout { .. })));
    }

    #[test]
    fn row_49_a_cancelled_launch_stops_dialling() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = 3;
        let result = dial(
            &dir.path().join("none"),
            52,
            Instant::now() + Duration::from_secs(60),
            || {
                left -= 1;
                if left == 0 {
                    Err(ProtoError::Ended)
                } else {
                    Ok(())
                }
            },
        );
        assert_eq!(result.err(), Some(ProtoError::Ended));
    }

    #[test]
    fn row_52_a_socket_deep_in_the_tree_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let near = answer_with(b"OK 1\n", dir.path());
        std::fs::rename(near, deep.join("vsock")).unwrap();
        dial_it(&deep.join("vsock"), Duration::from_secs(10)).unwrap();
    }
}
