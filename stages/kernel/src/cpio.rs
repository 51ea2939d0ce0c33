//! A cpio archive in the kernel's "newc" form, written so that equal input gives equal bytes.
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Times are 0,
//! owners root, inode numbers count up from 1, so nothing of the host gets in.

use std::io::{self, Write};

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// Writes entries to `out` as they come; [`CpioWriter::finish`] must be called.
pub(crate) struct CpioWriter<W> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> CpioWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        CpioWriter {
            out,
            inode: 0,
            written: 0,
        }
    }

    /// A directory; its parent must have been written before.
    pub(crate) fn dir(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, S_IFDIR | mode, 2, (0, 0), &[])
    }

    /// A regular file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, S_IFREG | mode, 1, (0, 0), content)
    }

    /// A character device.
    pub(crate) fn char_device(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        self.entry(name, S_IFCHR | mode, 1, device, &[])
    }

    /// Ends the archive, padded to whole 512-byte blocks as cpio(1) does; answers its length.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64)> {
        self.inode = u32::MAX; // Wraps to 0: the trailer is nobody's inode.
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[])?;
        self.pad(512)?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        self.inode = self.inode.wrapping_add(1);
        // Magic, then: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
        // namesize check.
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::with_capacity(110 + name.len() + 1);
        header.push_str("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        header.push_str(name);
        header.push('\0');
        self.put(header.as_bytes())?;
        self.pad(4)?;
        self.put(content)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let gap = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; 512][..gap as usize])
    }
}
