//! Where a process's output goes: somebody else's descriptor, whose mode is not ours to change.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Writes all that it is given, also where the descriptor's owner has told it not to block (a terminal under an event loop, a
/// socket of a shell's): then a full pipe is no error, but to be waited for.
pub(crate) struct Output(File);

impl Output {
    pub(crate) fn new(fd: impl Into<OwnedFd>) -> Self {
        Output(File::from(fd.into()))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Its reader's end is an event as well: the next write says so.
                    match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn row_46_a_full_pipe_that_does_not_block_is_waited_for() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || Output::new(write).write_all(&sent));
        let (mut reader, mut got) = (File::from(read), Vec::new());
        loop {
            match reader.read_to_end(&mut got) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => panic!("{e}"),
            }
        }
        writer.join().unwrap().unwrap();
        assert!(got == bytes, "{} bytes", got.len());
    }

    #[test]
    fn row_56_a_reader_that_has_gone_is_noticed_while_it_is_waited_for() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let writer = std::thread::spawn(move || Output::new(write).write_all(&[0; 1_000_000]));
        let mut reader = File::from(read);
        while reader.read(&mut [0; 10]).is_err() {
            std::thread::yield_now();
        }
        drop(reader);
        let error = writer.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
