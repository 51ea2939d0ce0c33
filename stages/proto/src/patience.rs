//! How long a peer may say nothing and take nothing.
//!
//! It is counted in waits, not by the clock: whoever was stopped for a while, because the machine that it runs on was, or is short of
//! processors, must not hold that against its peer. Two minutes are as long as the kernel lets a task be stuck before it
//! complains; a VMM whose disk is slow to sync answers nothing meanwhile.

use std::io::{self, Write};
use std::time::Duration;

/// How long one wait takes.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// So many in a row are too many.
const MOST: u32 = 24;

/// Waits in vain, since something last moved.
#[derive(Default)]
pub(crate) struct Patience(u32);

impl Patience {
    pub(crate) fn renew(&mut self) {
        self.0 = 0;
    }

    /// One more.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] where it is one too many.
    pub(crate) fn again(&mut self) -> io::Result<()> {
        self.0 += 1;
        if self.0 < MOST {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// A writer whose writes each take a wait at most, and are tried again.
pub(crate) struct PatientWriter<W> {
    to: W,
    patience: Patience,
}

impl<W> PatientWriter<W> {
    pub(crate) fn new(to: W) -> Self {
        PatientWriter {
            to,
            patience: Patience::default(),
        }
    }
}

impl<W: Write> Write for PatientWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.to.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.patience.again()?,
                written => {
                    self.patience.renew();
                    return written;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing so many times, then a byte, and so on.
    struct Slow {
        waits: u32,
        left: u32,
    }

    impl Write for Slow {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = self.waits;
                return Ok(1);
            }
            self.left -= 1;
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_goes_on_until_nothing_was_taken_for_too_long() {
        let slow = |waits| PatientWriter::new(Slow { waits, left: waits }).write_all(&[0; 100]);
        slow(MOST - 1).unwrap();
        assert_eq!(slow(MOST).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
