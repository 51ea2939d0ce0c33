//! Taking an archive in. It is read as an enemy's: every length and name is checked before it is used.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::super::content::{Hasher, PIECE, PIECE_LEN, is_zero, piece_len};
use super::super::object::NAME_MAX;
use super::super::{Keep, KeptRecord, ObjectWriter, Record, Store, StoreError};
use super::{
    ARCHIVE_SCHEMA, ArchiveError, LONGEST_MANIFEST, MANIFEST, MANIFEST_DIGEST, Manifest, Packed,
    member, refused,
};
use crate::cancel::CancelToken;
use crate::digest::Digest;

/// What came of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The records that are new in the store: key and node.
    pub records: Vec<(crate::Key, String)>,
    /// Records that were there already and were kept as they are.
    pub present: u64,
    /// Bytes of the objects that are new, without their holes.
    pub bytes: u64,
    /// blake3 of the whole archive.
    pub digest: Digest,
}

/// What may follow the end of an archive: tar programs fill up to a block of their own. Bytes.
const LONGEST_END: u64 = 1 << 20;

impl Store {
    /// Takes in an archive that [`Store::export`] wrote. `path` is for messages; with `expected`, an archive of
    /// another digest is refused.
    ///
    /// Fails without having published anything, unless a disk error comes between the last records.
    pub fn import(
        &self,
        archive: impl Read,
        path: &Path,
        expected: Option<Digest>,
        cancel: &CancelToken,
    ) -> Result<Imported, ArchiveError> {
        self.hold()?;
        let mut reader = Hashed {
            inner: archive,
            hasher: blake3::Hasher::new(),
        };
        let io = |source: io::Error| ArchiveError::Io {
            path: path.to_owned(),
            source,
        };
        let (manifest, objects) = self.unpack(&mut reader, io, cancel)?;
        let mut end = Vec::new();
        let rest = (&mut reader).take(LONGEST_END).read_to_end(&mut end);
        if rest.map_err(io)? as u64 == LONGEST_END || !is_zero(&end) {
            return refused("something follows its end");
        }
        let digest: Digest = reader.hasher.finalize().into();
        if expected.is_some_and(|expected| expected != digest) {
            return refused(format!("its digest is blake3:{digest}"));
        }
        self.adopt(manifest, objects, digest, cancel)
    }

    /// Reads all of it, checks all of it, publishes nothing.
    fn unpack(
        &self,
        reader: impl Read,
        io: impl Fn(io::Error) -> ArchiveError,
        cancel: &CancelToken,
    ) -> Result<(Manifest, Vec<ObjectWriter<'_>>), ArchiveError> {
        let mut tar = tar::Archive::new(reader);
        // Raw: no extension of the format is followed, so no header makes anything of a length it chooses.
        let mut entries = tar.entries().map_err(&io)?.raw(true);
        let mut next = |name: &str| -> Result<tar::Entry<'_, _>, ArchiveError> {
            let entry = match entries.next() {
                Some(entry) => entry.map_err(&io)?,
                None => return refused(format!("it ends before {name}")),
            };
            let fits = entry.header().entry_type() == tar::EntryType::Regular
                && &*entry.path_bytes() == name.as_bytes();
            if fits {
                Ok(entry)
            } else {
                refused(format!("{name} is not where it should be"))
            }
        };
        let manifest = {
            let mut text = Vec::new();
            let entry = next(MANIFEST)?;
            if entry.size() > LONGEST_MANIFEST {
                return refused("its manifest is too long");
            }
            entry
                .take(LONGEST_MANIFEST)
                .read_to_end(&mut text)
                .map_err(&io)?;
            let mut digest = String::new();
            let entry = next(MANIFEST_DIGEST)?;
            let read = entry.take(64).read_to_string(&mut digest);
            if read.is_err() || digest != Digest::from(blake3::hash(&text)).to_string() {
                return refused("its manifest is damaged");
            }
            match serde_json::from_slice::<Manifest>(&text) {
                Ok(manifest) => manifest,
                Err(error) => return refused(format!("its manifest: {error}")),
            }
        };
        check(&manifest)?;
        let mut writers = Vec::new();
        for (number, packed) in manifest.objects.iter().enumerate() {
            let entry = next(&member(number))?;
            writers.push(self.unpack_object(packed, entry, &io, cancel)?);
        }
        match entries.next() {
            None => Ok((manifest, writers)),
            Some(_) => refused("there is more in it than its manifest names"),
        }
    }

    fn unpack_object(
        &self,
        packed: &Packed,
        mut entry: impl Read,
        io: impl Fn(io::Error) -> ArchiveError,
        cancel: &CancelToken,
    ) -> Result<ObjectWriter<'_>, ArchiveError> {
        let writer = self.object_writer(packed.id.key(), packed.id.name(), Keep::Stored)?;
        let bytes = packed
            .pieces
            .iter()
            .map(|run| (run.end - run.start) * PIECE);
        writer.reserve(bytes.sum::<u64>().min(packed.size))?;
        let failed = |e| self.io(&self.root.join("objects"), e);
        writer.file().set_len(packed.size).map_err(failed)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE_LEN];
        for number in packed.pieces.iter().cloned().flatten() {
            if cancel.cancelled() {
                return Err(ArchiveError::Cancelled);
            }
            let piece = &mut buffer[..piece_len(number, packed.size)];
            match entry.read_exact(piece) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return refused(format!("object {} is cut short", packed.id));
                }
                read => read.map_err(&io)?,
            }
            if is_zero(piece) {
                // It would be left out by whoever looks at the object later, and the digest would be another.
                return refused(format!("object {} is not in its one form", packed.id));
            }
            hasher.add(number, piece);
            write_sparse(writer.file(), piece, number * PIECE).map_err(failed)?;
        }
        let more = entry.read(&mut [0]).map_err(io)?;
        if more != 0 || hasher.finish(packed.size).digest != packed.content {
            return refused(format!("object {} does not have its digest", packed.id));
        }
        Ok(writer)
    }

    /// Publishes what was read.
    fn adopt(
        &self,
        manifest: Manifest,
        writers: Vec<ObjectWriter<'_>>,
        digest: Digest,
        cancel: &CancelToken,
    ) -> Result<Imported, ArchiveError> {
        let mut imported = Imported {
            records: Vec::new(),
            present: 0,
            bytes: 0,
            digest,
        };
        let mut parts = manifest.objects.into_iter().zip(writers);
        for record in manifest.records {
            // In the manifest's order, as `check` has seen.
            let count = record.objects().count();
            let parts: Vec<_> = parts.by_ref().take(count).collect();
            let key = record.key;
            let Some(_flight) = self.flight(&key, cancel)? else {
                return Err(ArchiveError::Cancelled);
            };
            if self.record(&key).is_some() {
                imported.present += 1;
                continue;
            }
            self.sweep(&key)?;
            let node = record.node.clone();
            match self.put_imported(record, parts) {
                Ok(bytes) => imported.bytes += bytes,
                Err(error) => {
                    // The first failure is the one to tell.
                    let _ = self.sweep(&key);
                    return Err(error.into());
                }
            }
            imported.records.push((key, node));
        }
        Ok(imported)
    }

    fn put_imported(
        &self,
        mut record: Record,
        parts: Vec<(Packed, ObjectWriter<'_>)>,
    ) -> Result<u64, StoreError> {
        let mut bytes = 0;
        let Some(body) = record.kept.take().map(|kept| kept.body) else {
            self.put_record(&mut record)?;
            return Ok(bytes);
        };
        let mut kept = KeptRecord {
            body,
            objects: Vec::new(),
            contents: Default::default(),
        };
        for (packed, writer) in parts {
            // Under a name of this store's own: a number is never used twice.
            let object = writer.publish()?;
            bytes += packed
                .pieces
                .iter()
                .map(|run| (run.end - run.start) * PIECE)
                .sum::<u64>()
                .min(packed.size);
            kept.contents.insert(object.id.clone(), packed.content);
            kept.objects.push((object.id, object.size));
        }
        record.kept = Some(kept);
        self.put_record(&mut record)?;
        Ok(bytes)
    }
}

/// Writes what is not zero: what was a hole becomes one again.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let mut end = 0;
        let hole = is_zero(&rest[..rest.len().min(BLOCK)]);
        while end < rest.len() && is_zero(&rest[end..rest.len().min(end + BLOCK)]) == hole {
            end = rest.len().min(end + BLOCK);
        }
        let (run, after) = rest.split_at(end);
        if !hole {
            file.write_all_at(run, at)?;
        }
        (at, rest) = (at + end as u64, after);
    }
    Ok(())
}

/// Whether a manifest makes sense, before anything that it says is acted upon.
fn check(manifest: &Manifest) -> Result<(), ArchiveError> {
    if manifest.schema != ARCHIVE_SCHEMA {
        return refused(format!(
            "it is of form {:?}, and this program reads {ARCHIVE_SCHEMA:?}",
            manifest.schema
        ));
    }
    // Such a record is about a file of another host: its key would be believed, and its file looked at.
    let outside = |record: &Record| record.kept.as_ref().is_some_and(|k| k.objects.is_empty());
    if let Some(record) = manifest.records.iter().find(|record| outside(record)) {
        return refused(format!("key {} is about a file outside of it", record.key));
    }
    let mut named = manifest.records.iter().flat_map(|record| {
        let own = record.key;
        record.objects().map(move |(id, size)| (own, id, size))
    });
    let mut seen = BTreeSet::new();
    for packed in &manifest.objects {
        let fits = named.next().is_some_and(|(key, id, size)| {
            *id == packed.id && size == packed.size && id.key() == key
        });
        // A name of this length is one that a stage may give.
        let fits = fits && packed.id.name().len() <= NAME_MAX;
        if !fits || packed.size > i64::MAX as u64 || !seen.insert(&packed.id) {
            return refused(format!("object {} belongs to no record of it", packed.id));
        }
        let end = packed.size.div_ceil(PIECE);
        let mut last = None;
        for run in &packed.pieces {
            // Never touching, or the same content would have two forms.
            let in_order = last.is_none_or(|last| run.start > last);
            if run.is_empty() || run.end > end || !in_order {
                return refused(format!("the pieces of object {} make no sense", packed.id));
            }
            last = Some(run.end);
        }
    }
    match named.next() {
        None => Ok(()),
        Some((_, id, _)) => refused(format!("object {id} is missing")),
    }
}

/// Hashes what is read.
struct Hashed<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Packed, member};
    use super::*;
    use crate::key::Manifest as Inputs;
    use crate::value::Identity;
    use crate::{Digest, Key};

    /// An archive of one record with one object, made of these pieces: the forger knows every digest.
    fn forged(pieces: &[&[u8]], objects: bool) -> Vec<u8> {
        let key = Key::new(Digest::of("test", &[]));
        let mut hasher = Hasher::new();
        for (number, piece) in (0..).zip(pieces) {
            hasher.add(number, piece);
        }
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        let content = hasher.finish(size);
        let id: crate::store::ObjectId = format!("{key}/a.0").parse().unwrap();
        let named = if objects {
            vec![(id.clone(), size)]
        } else {
            vec![]
        };
        let packed = Packed {
            id,
            size,
            content: content.digest,
            pieces: content.pieces,
        };
        let manifest = Manifest {
            schema: ARCHIVE_SCHEMA.to_owned(),
            records: vec![Record {
                key,
                stage: "test".to_owned(),
                version: 1,
                node: "test".to_owned(),
                inputs: Inputs::default(),
                identity: Identity::new(Digest::of("test", &[])),
                kept: Some(KeptRecord {
                    body: serde_json::Value::Null,
                    objects: named,
                    contents: Default::default(),
                }),
                wall_us: 0,
                made: 0,
                boot_id: String::new(),
                synced: false,
            }],
            objects: if objects { vec![packed] } else { vec![] },
        };
        let text = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::from(blake3::hash(&text)).to_string();
        let data = pieces.concat();
        let name = member(0);
        let mut parts = vec![(MANIFEST, &text[..]), (MANIFEST_DIGEST, digest.as_bytes())];
        if objects {
            parts.push((&name, &data));
        }
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append(&header, bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn what_verify_would_see_otherwise_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let cancel = CancelToken::new().unwrap();
        let import = |bytes: &[u8]| store.import(bytes, Path::new("archive"), None, &cancel);
        let (data, zeros) = (vec![7; PIECE_LEN], vec![0; PIECE_LEN]);
        for (why, archive) in [
            ("a piece of zeros", forged(&[&data, &zeros], true)),
            ("a record about a file of the forger's", forged(&[], false)),
        ] {
            let refused = import(&archive);
            assert!(
                matches!(refused, Err(ArchiveError::Refused { .. })),
                "{why}: {refused:?}"
            );
        }
        assert_eq!(
            import(&forged(&[&data, b"x"], true)).unwrap().bytes,
            (1 << 20) + 1
        );
        let verified = store.verify(1, &|| false).unwrap().unwrap();
        assert!(verified.objects == 1 && verified.findings.is_empty());
    }
}
