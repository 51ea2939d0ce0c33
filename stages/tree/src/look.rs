//! Looking at a source with an index: [`look`] gives what [`scan`](crate::scan()) gives, and costs a walk if nothing changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fcpipe_spec::Content;
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::index::{Encoder, Index, IndexDir, Seen};
use crate::model::Timestamp;
use crate::scan::{
    Difference, Found, Manner, Scan, ScanChange, ScanError, ScanOptions, ScanWarning, Trust,
};
use crate::sys;

/// What a source is now: the digests of its [`Scan`] at once, and the Scan itself for whoever asks.
#[derive(Debug)]
pub struct Looked {
    tree: blake3::Hash,
    stamps: blake3::Hash,
    entries: u64,
    bytes: u64,
    warnings: Vec<ScanWarning>,
    changes: Option<Vec<ScanChange>>,
    file: Option<SeenFile>,
    scan: OnceLock<Arc<Scan>>,
    /// Where the Scan comes from if it was not made yet.
    index: Option<Remembered>,
    /// Writes the next index.
    writing: Option<JoinHandle<()>>,
}

/// What statx said of a source that is a file. It has no index: whoever keeps this can tell at the next look what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenFile(Seen);

impl SeenFile {
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }

    /// `None`: another version wrote it, or nobody did.
    pub fn from_bytes(bytes: &[u8]) -> Option<SeenFile> {
        Seen::read_from_bytes(bytes).ok().map(SeenFile)
    }

    /// What is not as it was, if anything.
    pub fn change_since(&self, was: &SeenFile) -> Option<ScanChange> {
        let fields = was.0.differences(&self.0);
        (!fields.is_empty()).then(|| ScanChange {
            path: PathBuf::new(),
            what: Difference::Changed(fields),
        })
    }
}

/// An index in which everything is as it was found, and what was asked.
#[derive(Debug)]
struct Remembered {
    index: Index,
    source: PathBuf,
    content: Content,
    cross_mounts: bool,
    declared: Option<String>,
    trust: Trust,
    asked: (Timestamp, Manner),
    leave_out: Vec<PathBuf>,
}

/// Looks at a source, and reads of it what is not as `indexes` remember it.
///
/// The result is that of [`scan`](crate::scan()), whatever the index says: what is in it is used only where statx says
/// the same as when it was written, and its time is old enough to be trusted. A source that is a file has no index,
/// nor has one with mounts in it that are not crossed.
pub fn look(
    source: &Path,
    content: &Content,
    options: &ScanOptions<'_>,
    indexes: Option<&IndexDir>,
) -> Result<Looked, ScanError> {
    let identity = crate::index::identity(source, content, options);
    let index = indexes.and_then(|dir| dir.read(&identity));
    let old = index.as_ref().map(Index::whole);
    let indexes = indexes.filter(|dir| !dir.is_read_only());
    let found = crate::scan::look(source, content, options, index, indexes.is_some())?;
    match found {
        Found::Same { index, asked } => Ok(Looked {
            tree: index.tree_digest(),
            stamps: index.stamps_digest(),
            entries: index.entries(),
            bytes: index.bytes(),
            warnings: index.warnings.clone(),
            changes: Some(Vec::new()),
            file: None,
            scan: OnceLock::new(),
            index: Some(Remembered {
                index,
                source: source.to_path_buf(),
                content: content.clone(),
                cross_mounts: options.cross_mounts,
                trust: options.trust,
                declared: options.declared.map(str::to_owned),
                asked,
                leave_out: options.leave_out.to_vec(),
            }),
            writing: None,
        }),
        Found::Scanned {
            scan,
            encoder,
            changes,
        } => {
            let mut looked = Looked::from(*scan);
            looked.changes = changes;
            if let (Some(dir), Some(encoder)) = (indexes, encoder) {
                looked.write(dir.clone(), identity, encoder, old);
            }
            Ok(looked)
        }
    }
}

impl From<Scan> for Looked {
    fn from(scan: Scan) -> Self {
        let (tree, stamps) = digests(&scan);
        Looked {
            tree,
            stamps,
            entries: scan.entries,
            bytes: scan.bytes,
            warnings: scan.warnings.clone(),
            changes: None,
            file: scan.seen.map(SeenFile),
            scan: OnceLock::from(Arc::new(scan)),
            index: None,
            writing: None,
        }
    }
}

/// Both digests of a scan; of a large one at the same time.
fn digests(scan: &Scan) -> (blake3::Hash, blake3::Hash) {
    const LARGE: u64 = 10_000;
    let stamps = || scan.digest_of_stamps();
    if scan.entries < LARGE {
        return (scan.tree.digest(), stamps());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("digest".to_owned());
        let beside = thread.spawn_scoped(scope, stamps).ok();
        let tree = scan.tree.digest();
        let beside = beside.and_then(|thread| thread.join().ok());
        (tree, beside.unwrap_or_else(stamps))
    })
}

impl Looked {
    /// [`Tree::digest`](crate::Tree::digest).
    pub fn tree_digest(&self) -> blake3::Hash {
        self.tree
    }

    /// [`Scan::digest_of_stamps`].
    pub fn digest_of_stamps(&self) -> blake3::Hash {
        self.stamps
    }

    /// How many names there are, without the root's.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The sum of all regular files' sizes, each hard-linked file once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn warnings(&self) -> &[ScanWarning] {
        &self.warnings
    }

    /// A source that is a file, as it was seen now.
    pub fn file(&self) -> Option<SeenFile> {
        self.file
    }

    /// What is not as the index had it, sorted by path, the first of many; `None` without an index.
    pub fn changes(&self) -> Option<&[ScanChange]> {
        self.changes.as_deref()
    }

    /// The Scan. Where nothing had changed it is put together from the index now, without another look at the source.
    pub fn scan(&self) -> Result<Arc<Scan>, ScanError> {
        if let Some(scan) = self.scan.get() {
            return Ok(Arc::clone(scan));
        }
        let made = match &self.index {
            Some(remembered) => remembered.scan(self.tree, self.stamps)?,
            // One of the two is always there.
            None => return Err(ScanError::Cancelled),
        };
        Ok(Arc::clone(self.scan.get_or_init(|| Arc::new(made))))
    }

    /// Writes the index in the background: nobody waits for it but the end of the process.
    fn write(
        &mut self,
        dir: IndexDir,
        identity: blake3::Hash,
        encoder: Encoder,
        old: Option<[u8; 32]>,
    ) {
        let Some(scan) = self.scan.get().map(Arc::clone) else {
            return;
        };
        let stamps = self.stamps;
        let work = move || {
            sys::step_back();
            let Some(encoded) = encoder.finish(&identity, &scan, stamps) else {
                return;
            };
            if old != Some(encoded.whole()) {
                // An index that can't be written costs the next scan its time, and nothing else.
                let _ = dir.write(&identity, &encoded);
            }
        };
        let thread = std::thread::Builder::new().name("index".to_owned());
        self.writing = thread.spawn(work).ok();
    }

    /// Waits until the index is written.
    pub fn settle(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}

impl Drop for Looked {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Remembered {
    fn scan(&self, tree: blake3::Hash, stamps: blake3::Hash) -> Result<Scan, ScanError> {
        let options = ScanOptions {
            cross_mounts: self.cross_mounts,
            trust: self.trust,
            declared: self.declared.as_deref(),
            leave_out: &self.leave_out,
            ..ScanOptions::default()
        };
        let remembered = crate::scan::remembered(
            &self.source,
            &self.content,
            &options,
            &self.index,
            self.asked,
        )?;
        if let Some(scan) = remembered {
            return Ok(scan);
        }
        // The index was damaged after it had been read once. What others were told of the source must
        // still hold.
        let scan = crate::scan::scan(&self.source, &self.content, &options)?;
        if scan.tree.digest() == tree && scan.digest_of_stamps() == stamps {
            Ok(scan)
        } else {
            Err(ScanError::Changed {
                path: self.source.clone(),
            })
        }
    }
}
