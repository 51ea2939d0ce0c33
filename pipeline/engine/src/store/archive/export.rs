//! Writing an archive.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::super::content::{Content, Hasher, PIECE, piece_len};
use super::super::{KeptRecord, Lease, Store};
use super::{ARCHIVE_SCHEMA, ArchiveError, MANIFEST, MANIFEST_DIGEST, Manifest, Packed, member};
use crate::digest::{Digest, Key};
use crate::fsutil::{NewFile, behind_links};

/// An archive that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Records in it.
    pub records: u64,
    /// Objects in it.
    pub objects: u64,
    /// Its length.
    pub bytes: u64,
    /// blake3 of the whole file.
    pub digest: Digest,
}

/// Where an archive goes. A device or a terminal would be replaced by a file, which nobody means.
fn place(path: &Path) -> io::Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        )),
        _ => behind_links(path),
    }
}

impl Store {
    /// Writes the records of these keys, and what they name, to the file `path`. What was there is replaced when
    /// the new file is complete; a symlink stays one, and the file that it names is replaced. The same records give the same bytes.
    pub fn export(
        &self,
        keys: &[Key],
        path: &Path,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Exported, ArchiveError> {
        self.hold()?;
        let io = |source| ArchiveError::Io {
            path: path.to_owned(),
            source,
        };
        let (manifest, leases) = self.pack(keys, threads, cancelled)?;
        let file = place(path).and_then(|path| NewFile::create(&path));
        let file = file.map_err(io)?;
        let mut out = Counted::new(BufWriter::with_capacity(1 << 20, file.file()));
        let written = write(&mut out, &manifest, &leases, cancelled);
        if let Err(error) = written {
            return Err(match error {
                WriteError::Damaged(number) => ArchiveError::Damaged {
                    id: manifest.objects[number].id.clone(),
                },
                WriteError::Cancelled => ArchiveError::Cancelled,
                WriteError::Io(error) => io(error),
            });
        }
        let (bytes, digest) = out.finish().map_err(io)?;
        file.commit().map_err(io)?;
        Ok(Exported {
            records: manifest.records.len() as u64,
            objects: manifest.objects.len() as u64,
            bytes,
            digest,
        })
    }

    /// Looks at what there is to write, and holds it.
    fn pack(
        &self,
        keys: &[Key],
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(Manifest, Vec<Lease>), ArchiveError> {
        let mut manifest = Manifest {
            schema: ARCHIVE_SCHEMA.to_owned(),
            records: Vec::new(),
            objects: Vec::new(),
        };
        let mut leases = Vec::new();
        for key in keys {
            let not_there = || ArchiveError::NotThere { key: *key };
            let mut record = self.record(key).ok_or_else(not_there)?;
            let outside = |kept: &KeptRecord| kept.objects.is_empty();
            if record.kept.as_ref().is_some_and(outside) {
                return Err(ArchiveError::NotPortable { key: *key });
            }
            let mut found = Vec::new();
            for (id, size) in record.objects() {
                let object = self.find_object(id, size).ok_or_else(not_there)?;
                let lease = self.lease(&object)?;
                let content = Content::of(&lease.file, threads, cancelled)
                    .map_err(|e| self.io(&object.path, e))?
                    .ok_or(ArchiveError::Cancelled)?;
                let known = record.kept.as_ref().and_then(|kept| kept.contents.get(id));
                if known.is_some_and(|known| *known != content.digest) {
                    return Err(ArchiveError::Damaged { id: id.clone() });
                }
                found.push((id.clone(), content.digest));
                manifest.objects.push(Packed {
                    id: id.clone(),
                    size,
                    content: content.digest,
                    pieces: content.pieces,
                });
                leases.push(lease);
            }
            if !record.proven() {
                self.add_contents(key, found)?;
            }
            // What belongs to this host, and what the manifest's own list says.
            record.boot_id.clear();
            record.synced = false;
            if let Some(kept) = &mut record.kept {
                kept.contents.clear();
            }
            manifest.records.push(record);
        }
        Ok((manifest, leases))
    }
}

enum WriteError {
    /// The object of this number changed since it was hashed.
    Damaged(usize),
    Cancelled,
    Io(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn write(
    out: impl Write,
    manifest: &Manifest,
    leases: &[Lease],
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(), WriteError> {
    let mut tar = tar::Builder::new(out);
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::from)?;
    let digest = Digest::from(blake3::hash(&text)).to_string();
    append(&mut tar, MANIFEST, text.len() as u64, &text[..])?;
    append(
        &mut tar,
        MANIFEST_DIGEST,
        digest.len() as u64,
        digest.as_bytes(),
    )?;
    for (number, (packed, lease)) in manifest.objects.iter().zip(leases).enumerate() {
        let content = Content {
            size: packed.size,
            digest: packed.content,
            pieces: packed.pieces.clone(),
        };
        let mut pieces = Pieces::new(&lease.file, &content, cancelled);
        let appended = append(&mut tar, &member(number), content.bytes(), &mut pieces);
        if cancelled() {
            return Err(WriteError::Cancelled);
        }
        appended?;
        if pieces.hasher.finish(content.size) != content {
            return Err(WriteError::Damaged(number));
        }
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    size: u64,
    data: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o444);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    tar.append(&header, data)
}

/// The pieces of a file that count, one after the other, hashed on the way.
struct Pieces<'a> {
    file: &'a File,
    size: u64,
    numbers: Box<dyn Iterator<Item = u64> + 'a>,
    piece: Vec<u8>,
    given: usize,
    hasher: Hasher,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Pieces<'a> {
    fn new(file: &'a File, content: &'a Content, cancelled: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            file,
            size: content.size,
            numbers: Box::new(content.pieces.iter().cloned().flatten()),
            piece: Vec::new(),
            given: 0,
            hasher: Hasher::new(),
            cancelled,
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.piece.len() {
            if (self.cancelled)() {
                // Not `Interrupted`: whoever copies would try again for ever.
                return Err(io::Error::other("cancelled"));
            }
            let Some(number) = self.numbers.next() else {
                return Ok(0);
            };
            self.piece.resize(piece_len(number, self.size), 0);
            self.file.read_exact_at(&mut self.piece, number * PIECE)?;
            self.hasher.add(number, &self.piece);
            self.given = 0;
        }
        let len = buffer.len().min(self.piece.len() - self.given);
        buffer[..len].copy_from_slice(&self.piece[self.given..self.given + len]);
        self.given += len;
        Ok(len)
    }
}

/// Hashes and counts what passes.
struct Counted<W> {
    out: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    fn finish(mut self) -> io::Result<(u64, Digest)> {
        self.out.flush()?;
        Ok((self.bytes, self.hasher.finalize().into()))
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
