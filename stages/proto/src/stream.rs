//! What a connection runs over.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connected byte stream that two threads can share, one reading and one writing.
pub trait Stream: Read + Write + Send + Sync + Sized + 'static {
    /// A second handle on the same connection.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    fn try_clone(&self) -> io::Result<Self>;

    /// Ends the connection in both directions; reads and writes that wait return.
    fn shutdown(&self);

    /// Bounds one read (`None`: not at all).
    ///
    /// # Errors
    /// When the socket refuses the option.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Bounds one write (`None`: not at all).
    ///
    /// # Errors
    /// When the socket refuses the option.
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn try_clone(&self) -> io::Result<Self> {
        UnixStream::try_clone(self)
    }

    fn shutdown(&self) {
        // It fails when the connection has ended, which is what is wanted.
        let _ = UnixStream::shutdown(self, Shutdown::Both);
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        UnixStream::set_read_timeout(self, timeout)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        UnixStream::set_write_timeout(self, timeout)
    }
}
