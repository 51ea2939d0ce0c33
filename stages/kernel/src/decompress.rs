//! The compressions that kernels, modules and packages use, each bounded, all in Rust.
//!
//! No C: what is decoded here comes from a download, and a memory error in a decoder run by root is
//! the classic way in. The cost was measured on Debian's 26 MiB `data.tar.xz`: 1.2 s against 0.85 s
//! with liblzma, paid once per import.

use std::io::{self, Read};

use crate::limits::{MAX_XZ_MEMORY_KIB, MAX_ZSTD_WINDOW};

/// A compression, known by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// RFC 1952.
    Gzip,
    /// The .xz file format 1.2.
    Xz,
    /// The LZ4 "legacy" frame, which `lz4 -l` writes and the kernel's own build uses.
    Lz4Legacy,
    /// RFC 8878.
    Zstd,
}

impl Codec {
    /// What the first bytes say; `None` if they are none of these.
    pub(crate) fn sniff(head: &[u8]) -> Option<Codec> {
        const MAGICS: [(&[u8], Codec); 4] = [
            (&[0x1f, 0x8b], Codec::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Codec::Xz),
            (&LZ4_LEGACY_MAGIC, Codec::Lz4Legacy),
            (&[0x28, 0xb5, 0x2f, 0xfd], Codec::Zstd),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map(|&(_, codec)| codec)
    }

    /// The name of a compression that is recognized only to be refused by name.
    pub(crate) fn sniff_unsupported(head: &[u8]) -> Option<&'static str> {
        const MAGICS: [(&[u8], &str); 4] = [
            (b"BZh", "bzip2"),
            (&[0x5d, 0, 0], "lzma"),
            (&[0x89, b'L', b'Z', b'O'], "lzop"),
            (&[0x04, 0x22, 0x4d, 0x18], "lz4 (the modern frame)"),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map(|&(_, name)| name)
    }

    /// A reader of what `inner` unpacks to. It sets no bound on the output: wrap it in [`Bounded`].
    pub(crate) fn reader<'a, R: Read + 'a>(self, inner: R) -> Box<dyn Read + 'a> {
        match self {
            Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(inner)),
            Codec::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                inner,
                true,
                MAX_XZ_MEMORY_KIB,
            )),
            Codec::Lz4Legacy => Box::new(Lz4LegacyReader::new(inner)),
            Codec::Zstd => Box::new(ZstdReader {
                inner,
                frame: None,
                started: false,
            }),
        }
    }
}

/// Passes bytes through until more than `limit` came, then fails with [`io::ErrorKind::FileTooLarge`].
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Bounded { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(n)
    }
}

/// Reads to the end, at most `limit` bytes; `hint` is what is expected, and only saves allocations.
pub(crate) fn read_bounded(inner: impl Read, limit: u64, hint: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(hint.min(limit as usize).min(64 << 20));
    Bounded::new(inner, limit).read_to_end(&mut out)?;
    Ok(out)
}

/// `02 21 4C 18`, little-endian 0x184C2102.
pub(crate) const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Each block unpacks to at most this much, by the format.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// The longest a block of incompressible bytes can be: the format's own bound, n + n/255 + 16.
const LZ4_LEGACY_COMPRESSED: usize = LZ4_LEGACY_BLOCK + LZ4_LEGACY_BLOCK / 255 + 16;

/// The LZ4 legacy frame: the magic, then blocks of a little-endian u32 length and that many bytes;
/// the magic may come again, where frames were put one after another. It ends with the input.
/// (<https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>, "Legacy frame".)
struct Lz4LegacyReader<R> {
    inner: R,
    packed: Vec<u8>,
    block: Vec<u8>,
    at: usize,
    started: bool,
}

impl<R: Read> Lz4LegacyReader<R> {
    fn new(inner: R) -> Self {
        Lz4LegacyReader {
            inner,
            packed: Vec::new(),
            block: Vec::new(),
            at: 0,
            started: false,
        }
    }

    /// Fills `block` with the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut word = [0; 4];
        loop {
            if !read_exact_or_end(&mut self.inner, &mut word)? {
                return Ok(false);
            }
            if word == LZ4_LEGACY_MAGIC {
                self.started = true;
                continue;
            }
            if !self.started {
                return Err(invalid("no LZ4 legacy frame"));
            }
            break;
        }
        let len = u32::from_le_bytes(word) as usize;
        if len > LZ4_LEGACY_COMPRESSED {
            return Err(invalid("an LZ4 block longer than the format allows"));
        }
        self.packed.resize(len, 0);
        self.inner.read_exact(&mut self.packed)?;
        self.block.resize(LZ4_LEGACY_BLOCK, 0);
        let n = lz4_flex::block::decompress_into(&self.packed, &mut self.block)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.block.truncate(n);
        self.at = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Lz4LegacyReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Zstandard frames one after another, with their checksums verified where they have one.
/// (ruzstd's own reader stops after one frame and verifies nothing.)
struct ZstdReader<R> {
    inner: R,
    frame: Option<Box<ruzstd::decoding::FrameDecoder>>,
    started: bool,
}

impl<R: Read> ZstdReader<R> {
    /// Begins the next frame; false at the end of the input.
    fn next_frame(&mut self) -> io::Result<bool> {
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        loop {
            let mut magic = [0; 4];
            if !read_exact_or_end(&mut self.inner, &mut magic)? {
                return if self.started {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            let mut decoder = self.frame.take().unwrap_or_default();
            decoder.set_max_window_size(MAX_ZSTD_WINDOW);
            match decoder.reset(magic.chain(&mut self.inner)) {
                Ok(()) => {
                    self.started = true;
                    self.frame = Some(decoder);
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let mut skipped = (&mut self.inner).take(length);
                    if io::copy(&mut skipped, &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.started = true;
                }
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
    }
}

impl<R: Read> Read for ZstdReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy;
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(decoder) = &mut self.frame {
                while decoder.can_collect() < buf.len() && !decoder.is_finished() {
                    let want = buf.len() - decoder.can_collect();
                    decoder
                        .decode_blocks(&mut self.inner, BlockDecodingStrategy::UptoBytes(want))
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                }
                let n = decoder.read(buf)?;
                if n > 0 {
                    return Ok(n);
                }
                if let Some(stored) = decoder.get_checksum_from_data()
                    && decoder.get_calculated_checksum() != Some(stored)
                {
                    return Err(invalid("a zstd frame's checksum does not match"));
                }
            }
            if !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

/// Fills `buf`, or answers false if the input ends before its first byte.
pub(crate) fn read_exact_or_end(inner: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    let mut have = 0;
    while have < buf.len() {
        match inner.read(&mut buf[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
