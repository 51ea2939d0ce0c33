//! The probe that looks at a source. It always runs: what it sees is its identity.

use std::path::PathBuf;
use std::sync::Arc;

use fcpipe_engine::{
    Amount, CacheMode, Cx, Failure, FailureKind, Identity, KeyWriter, Output, Probe,
};
use fcpipe_spec::{Bind, Content, LaunchSpec, MountKind, Trust};
use fcpipe_tree::{IndexDir, Looked, Scan, ScanError, ScanOptions, SeenFile};

use crate::keys::ContentValue;
use crate::words;

/// The facet that says which names and metadata a source has.
pub(crate) const TREE: &str = "tree";
/// The facet that says whether a file's content may have changed.
pub(crate) const STAMPS: &str = "stamps";

/// What a scan saw; nothing where the source does not exist.
pub(crate) struct Scanned {
    source: PathBuf,
    looked: Option<Looked>,
}

impl Scanned {
    /// Names and metadata, for a step that has to run. Where nothing had changed they are put together now.
    pub(crate) fn scan(&self, cx: &Cx) -> Result<Option<Arc<Scan>>, Failure> {
        let Some(looked) = &self.looked else {
            return Ok(None);
        };
        let scan = looked
            .scan()
            .map_err(|error| cx.fail(FailureKind::Source, self.source.display(), error))?;
        Ok(Some(scan))
    }
}

impl Scanned {
    /// Whether the source does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        self.looked.is_none()
    }

    /// Bytes of regular files, and names.
    pub(crate) fn amount(&self) -> (u64, u64) {
        let looked = self.looked.as_ref();
        looked.map_or((0, 0), |looked| (looked.bytes(), looked.entries()))
    }
}

impl Output for Scanned {
    fn identity(&self) -> Identity {
        let (tree, stamps) = match &self.looked {
            Some(looked) => (looked.tree_digest(), looked.digest_of_stamps()),
            None => (blake3::hash(b"missing"), blake3::hash(b"missing")),
        };
        let whole = fcpipe_engine::Digest::of(
            "fcpipe scan 1",
            &[tree.as_bytes().as_slice(), stamps.as_bytes().as_slice()],
        );
        Identity::new(whole)
            .with_facet(TREE, tree.into())
            .with_facet(STAMPS, stamps.into())
    }
}

/// Looks at one source.
pub(crate) struct ScanSource {
    /// Where it goes in the image, for telling people.
    pub(crate) destination: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) content: Content,
    pub(crate) trust: Trust,
    /// The source never changes.
    pub(crate) immutable: bool,
    /// What the user says that it is.
    pub(crate) declared: Option<String>,
    /// `rbind`.
    pub(crate) cross_mounts: bool,
    /// A mount's source may be missing, the root may not.
    pub(crate) missing: Missing,
    /// The store, the state directory and the output.
    pub(crate) leave_out: Arc<[PathBuf]>,
}

/// What a source that does not exist is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Error,
    /// An empty directory, and a warning.
    Empty,
}

impl Probe for ScanSource {
    const NAME: &'static str = "scan";
    const VERSION: u32 = 1;
    type Output = Scanned;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("source", &self.source);
        k.field("content", &ContentValue(&self.content));
        k.field("cross mounts", &self.cross_mounts);
        k.field("trust", &self.trust.to_string());
        k.field("immutable", &self.immutable);
        k.field("declared digest", &self.declared);
    }

    fn run(&self, cx: &Cx) -> Result<Scanned, Failure> {
        let options = ScanOptions {
            cross_mounts: self.cross_mounts,
            trust: self.trust,
            immutable: self.immutable,
            declared: self.declared.as_deref(),
            threads: std::num::NonZeroUsize::new(cx.threads()),
            leave_out: &self.leave_out,
            cancel: Some(&|| cx.cancelled()),
            progress: None,
        };
        let mut indexes = IndexDir::new(cx.store().scans_dir());
        if cx.is_plan() {
            // So that the launch that follows still knows what has changed.
            indexes = indexes.read_only();
        }
        let indexes = (cx.cache() != CacheMode::Off).then_some(&indexes);
        match fcpipe_tree::look(&self.source, &self.content, &options, indexes) {
            Ok(looked) => {
                cx.progress(Amount {
                    files: looked.entries(),
                    ..Amount::default()
                });
                for warning in looked.warnings() {
                    cx.warn(warning);
                }
                for change in looked.changes().unwrap_or_default().iter().take(NOTICES) {
                    cx.notice(words::notice(&self.destination, change));
                }
                if let Some(file) = looked.file() {
                    self.compare(cx, file);
                }
                Ok(self.scanned(Some(looked)))
            }
            Err(ScanError::Missing { path }) if self.missing == Missing::Empty => {
                cx.warn(format_args!(
                    "{path:?} does not exist: the guest gets an empty directory"
                ));
                Ok(self.scanned(None))
            }
            Err(ScanError::Cancelled) => Err(cx.check().err().unwrap_or_else(|| {
                cx.fail(
                    FailureKind::Cancelled,
                    self.source.display(),
                    ScanError::Cancelled,
                )
            })),
            Err(error) => Err(failure(cx, self, error)),
        }
    }
}

impl ScanSource {
    /// Tells what about a file is not as the last launch of this spec saw it. No index does: it is of a directory.
    fn compare(&self, cx: &Cx, file: SeenFile) {
        let name = format!("file {:?}", self.destination);
        let before: Option<Vec<u8>> = cx.hint(&name);
        let is = file.to_bytes();
        if before.as_ref() == Some(&is) {
            return;
        }
        let before = before.and_then(|bytes| SeenFile::from_bytes(&bytes));
        if let Some(change) = before.and_then(|before| file.change_since(&before)) {
            cx.notice(words::notice(&self.destination, &change));
        }
        cx.leave_hint(&name, &is);
    }

    fn scanned(&self, looked: Option<Looked>) -> Scanned {
        Scanned {
            source: self.source.clone(),
            looked,
        }
    }
}

/// How many changes are told of each source.
const NOTICES: usize = 20;

fn failure(cx: &Cx, scan: &ScanSource, error: ScanError) -> Failure {
    let hint = match &error {
        ScanError::Missing { .. } => Some("create it, or correct the spec"),
        ScanError::Special { .. } | ScanError::Own { .. } => {
            Some("name a directory or a regular file")
        }
        ScanError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("run as a user who may read it, or leave it out with `exclude`")
        }
        _ => None,
    };
    let failure = cx.fail(FailureKind::Source, scan.source.display(), error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A source of a spec and where it goes in the image.
pub(crate) struct Source {
    /// `/` for the root.
    pub(crate) destination: PathBuf,
    pub(crate) probe: ScanSource,
}

/// The spec's sources: the root first, then the bind mounts in order.
pub(crate) fn sources(spec: &LaunchSpec, strict: bool, leave_out: &Arc<[PathBuf]>) -> Vec<Source> {
    let root = Source {
        destination: PathBuf::from("/"),
        probe: ScanSource {
            destination: PathBuf::from("/"),
            source: spec.root.path.clone(),
            content: spec.root.content.clone(),
            trust: spec.root.trust,
            immutable: false,
            declared: None,
            // Mounted file systems below a root are part of what the platform has prepared.
            cross_mounts: true,
            missing: Missing::Error,
            leave_out: Arc::clone(leave_out),
        },
    };
    let missing = if strict {
        Missing::Error
    } else {
        Missing::Empty
    };
    let binds = spec.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Guest { .. } => None,
        MountKind::Bind(Bind {
            source,
            recursive,
            immutable,
            digest,
            trust,
            content,
            ..
        }) => Some(Source {
            destination: mount.destination.clone(),
            probe: ScanSource {
                destination: mount.destination.clone(),
                source: source.clone(),
                content: content.clone(),
                trust: *trust,
                immutable: *immutable,
                declared: digest.clone(),
                cross_mounts: *recursive,
                missing,
                leave_out: Arc::clone(leave_out),
            },
        }),
    });
    std::iter::once(root).chain(binds).collect()
}
