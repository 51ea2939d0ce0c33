//! The handshake with the vsock device, where the test is the device.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fcpipe_vmm::VmmError;
use tempfile::tempdir;

use crate::bench::{LONG, NEVER, accept, listen, qemu, soon, start};

fn connects(dir: &Path) {
    let machine = start(dir, &qemu("qemu-hangs", "device-serves")).unwrap();
    let listener = listen(dir);
    let device = thread::spawn(move || {
        // Three answers of a guest that is not ready: nothing, the connection closed, and a reset.
        drop(listener.accept().unwrap());
        drop(accept(&listener));
        drop(accept(&listener));
        let (mut stream, line) = accept(&listener);
        assert_eq!(line, "CONNECT 1000\n");
        stream.write_all(b"OK 1073741824\nhello").unwrap();
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"howdy");
    });
    let mut stream = machine.connect(1000, Instant::now() + LONG, NEVER).unwrap();
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    stream.write_all(b"howdy").unwrap();
    device.join().unwrap();
}

#[test]
fn connects_when_the_guest_is_ready_and_takes_no_byte_of_the_agents() {
    let dir = tempdir().unwrap();
    connects(dir.path());
}

#[test]
fn row_52_a_directory_deeper_than_a_sockets_address() {
    let root = tempdir().unwrap();
    let mut dir: PathBuf = root.path().to_owned();
    for _ in 0..10 {
        dir.push("d".repeat(100));
    }
    std::fs::create_dir_all(&dir).unwrap();
    assert!(dir.as_os_str().len() > 1000);
    connects(&dir);
}

#[test]
fn row_44_the_device_gives_half_a_reply() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let listener = listen(dir.path());
    let device = thread::spawn(move || {
        let (mut stream, _) = accept(&listener);
        stream.write_all(b"OK 12").unwrap();
        stream
    });
    let error = machine.connect(1000, soon(500), NEVER).unwrap_err();
    assert!(
        matches!(&error, VmmError::NoAnswer { last, .. } if last.contains("did not answer")),
        "{error:?}"
    );
    drop(device.join().unwrap());
}

#[test]
fn row_44_something_else_answers() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n"[..], &[b'x'; 100], b"OK\n"] {
        let dir = tempdir().unwrap();
        let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
        let listener = listen(dir.path());
        let device = thread::spawn(move || {
            let (mut stream, _) = accept(&listener);
            // It may be closed by then.
            let _ = stream.write_all(answer);
            stream
        });
        let error = machine
            .connect(1000, Instant::now() + LONG, NEVER)
            .unwrap_err();
        assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");
        drop(device.join().unwrap());
    }
}

#[test]
fn row_45_the_agent_never_listens() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let listener = listen(dir.path());
    let attempts = AtomicU32::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            listener.set_nonblocking(true).unwrap();
            while !over.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let mut line = [0; 32];
                        let _ = stream.read(&mut line);
                        attempts.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        // It tries again and again, and gives up at its deadline.
        let enough = || attempts.load(Ordering::SeqCst) > 3;
        let tried = machine.connect(1000, Instant::now() + LONG, &enough);
        let late = machine.connect(1000, soon(300), NEVER);
        over.store(true, Ordering::SeqCst);
        assert!(matches!(tried, Err(VmmError::Cancelled)), "{tried:?}");
        assert!(matches!(late, Err(VmmError::NoAnswer { .. })), "{late:?}");
    });
}

#[test]
fn row_45_a_device_that_accepts_nobody_holds_nobody_up() {
    let dir = tempdir().unwrap();
    let machine = start(dir.path(), &qemu("qemu-hangs", "device-serves")).unwrap();
    let _listener = listen(dir.path());
    let error = machine.connect(1000, soon(300), NEVER).unwrap_err();
    assert!(matches!(error, VmmError::NoAnswer { .. }), "{error:?}");
}
