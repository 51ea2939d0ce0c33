//! The configuration's kernel image: imported once, and again when the file is another.
//!
//! Which kernel a file became is kept in `DATA/kernel-images/`, beside what stat(2) said of it. It is believed as long as that is
//! the same, and only where the file had been at rest when it was read: a change within the clock's grain would not show.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fcpipe_engine::Digest;
use fcpipe_kernel::KernelStore;
use serde::{Deserialize, Serialize};

use crate::complaint::Complaint;
use crate::directories::make_private;

/// How long a file must have been as it is; coarser clocks than this are not met.
const REST: Duration = Duration::from_secs(3);

/// What shows that a file may be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    /// The kernel's, in the store.
    id: String,
}

impl Stamp {
    fn of(file: &Path) -> std::io::Result<Self> {
        let meta = fs::metadata(file)?;
        Ok(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether the file had been left alone for a while at that time.
    fn at_rest(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = self.mtime.0.max(self.ctime.0);
        let last = Duration::from_secs(u64::try_from(last).unwrap_or_default() + 1);
        last + REST <= now
    }
}

/// The kernel that an image is, in the store; imported where it is not known yet.
pub(super) fn id_of(image: &Path, store: &KernelStore, data: &Path) -> Result<String, Complaint> {
    let digest = Digest::of("fcpipe kernel image 1", &[image.as_os_str().as_bytes()]);
    let dir = data.join("kernel-images");
    let note = dir.join(&digest.to_string()[..32]);
    // Where it cannot be read, importing says why.
    let before = Stamp::of(image).ok();
    let known = fs::read(&note).ok();
    let known = known.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
    if let (Some(known), Some(stamp)) = (known, &before)
        && known.stamp == *stamp
        && store.find(&known.id).is_ok()
    {
        return Ok(known.id);
    }
    let begun = SystemTime::now();
    let id = store.import(image, None).map_err(Complaint::of)?.id;
    if let Some(stamp) = before.filter(|stamp| stamp.at_rest(begun))
        && Stamp::of(image).is_ok_and(|after| after == stamp)
    {
        let known = Known {
            stamp,
            id: id.clone(),
        };
        let new = note.with_extension(std::process::id().to_string());
        let text = serde_json::to_vec(&known).map_err(Complaint::of)?;
        // It only saves the next command some time.
        let _ = make_private(&dir)
            .and_then(|()| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &note));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_just_changed_is_not_believed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = Stamp::of(file.path()).unwrap();
        let now = SystemTime::now();
        assert!(!stamp.at_rest(now));
        assert!(stamp.at_rest(now + Duration::from_secs(10)));
        // A file of the future, or a clock that was set back.
        assert!(!stamp.at_rest(now - Duration::from_secs(1000)));
    }
}
