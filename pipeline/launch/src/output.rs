//! `build -o`: an image written to a path of the user's. It is not kept twice: the record remembers the file
//! itself, and is good as long as that is still the file that was written.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fcpipe_engine::{
    Cx, Digest, Failure, FailureKind, Identity, Kept, KeyWriter, Node, Output, Stage,
};
use fcpipe_ext4::{Durability, OutputError, OutputFile};
use serde::{Deserialize, Serialize};

use crate::image::{PHASES, image_inputs};
use crate::plan::{Part, Plan};

/// An image under the user's own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltFile {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    stamp: Stamp,
    /// Of the boot that wrote it: what was not synced may be gone after a power cut.
    boot: String,
}

/// Tells whether a file is still the one that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl BuiltFile {
    /// The file that was written and put at `path`. It is asked itself: at the path there may be another's by now.
    fn of(file: &File, path: &Path) -> std::io::Result<Self> {
        Self::new(&file.metadata()?, path)
    }

    /// What is at a path now.
    fn look_at(path: &Path) -> std::io::Result<Self> {
        Self::new(&std::fs::metadata(path)?, path)
    }

    fn new(meta: &Metadata, path: &Path) -> std::io::Result<Self> {
        Ok(BuiltFile {
            path: path.to_path_buf(),
            size: meta.len(),
            stamp: Stamp {
                dev: meta.dev(),
                ino: meta.ino(),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                ctime: (meta.ctime(), meta.ctime_nsec()),
            },
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
        })
    }
}

impl Output for BuiltFile {
    fn identity(&self) -> Identity {
        let stamp = format!("{:?} {:?}", self.path, self.stamp);
        Identity::new(Digest::of("fcpipe built file 1", &[stamp.as_bytes()]))
    }

    fn keep(&self) -> Option<Kept> {
        let body = serde_json::to_value(self).ok()?;
        Some(Kept {
            body,
            objects: Vec::new(),
        })
    }

    fn recall(kept: Kept) -> Option<Self> {
        let built: BuiltFile = serde_json::from_value(kept.body).ok()?;
        let now = BuiltFile::look_at(&built.path).ok()?;
        (now == built).then_some(built)
    }
}

/// Writes the image to a path; what was there is replaced when the new one is complete.
pub(crate) struct WriteImage {
    pub(crate) plan: Node<Plan>,
    pub(crate) parts: Arc<[Part]>,
    pub(crate) journal: bool,
    /// Absolute.
    pub(crate) path: PathBuf,
}

impl Stage for WriteImage {
    const NAME: &'static str = "output";
    const VERSION: u32 = 1;
    const PHASES: &'static [&'static str] = PHASES;
    type Output = BuiltFile;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        image_inputs(k, &self.plan, &self.parts, self.journal);
        k.field("path", &self.path);
    }

    fn run(&self, cx: &Cx) -> Result<BuiltFile, Failure> {
        let plan = cx.get(&self.plan)?;
        let failed = |e: OutputError| cx.fail(FailureKind::Host, self.path.display(), e);
        let output = cx.phase("allocate", || {
            cx.total(plan.amount());
            OutputFile::create(&self.path).map_err(failed)
        })?;
        cx.phase("copy", || plan.write(cx, output.file(), self.journal))?;
        cx.phase("seal", || {
            // A record of another boot is no hit, so what a power cut takes is noticed.
            let file = output.commit(Durability::Process).map_err(failed)?;
            BuiltFile::of(&file, &self.path)
                .map_err(|e| cx.fail(FailureKind::Host, self.path.display(), e))
        })
    }
}

/// The blake3 digest of a whole image.
pub(crate) fn digest(path: &Path) -> std::io::Result<Digest> {
    let file = File::open(path)?;
    Ok(fcpipe_ext4::digest_file(&file, None)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known of an output at `path`, after `then` was done there.
    fn kept(path: &Path, then: impl FnOnce()) -> Kept {
        let output = OutputFile::create(path).unwrap();
        let file = output.commit(Durability::Process).unwrap();
        then();
        BuiltFile::of(&file, path).unwrap().keep().unwrap()
    }

    #[test]
    fn row_51_an_output_that_another_build_has_replaced_is_not_taken_for_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        assert!(BuiltFile::recall(kept(&path, || ())).is_some());
        // Of the same length, and right after it.
        let other = || drop(kept(&path, || ()));
        assert_eq!(BuiltFile::recall(kept(&path, other)), None);
    }
}
