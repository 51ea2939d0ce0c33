//! Images near an earlier one: which that is, whether it is near enough, and when a new one is due.
//!
//! A *base* is an image that was laid out from nothing, with its imprint beside it. Images are laid out near the last base of the
//! same spec and sources, never near one another: so nothing decays by being edited often, and what is kept
//! for an image is itself and its base. `docs/disks.md` says why, and where the bounds come from.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, SystemTime};

use fcpipe_disk::CloneAnswer;
use fcpipe_engine::{Cx, Digest, Failure, Key, Lease, Object};
use fcpipe_ext4::{Change, Imprint, LayoutError, Near, Options};
use fcpipe_tree::Composed;
use serde::{Deserialize, Serialize};

use crate::image::Image;

/// Under which name a spec's images remember their base.
#[derive(Debug, Clone)]
pub(crate) struct Lineage(String);

/// The hint: the key of the base's record.
#[derive(Serialize, Deserialize)]
struct Hint {
    base: Digest,
}

/// A base as it was found.
pub(crate) struct Found {
    base: Base,
    imprint: Imprint,
    /// Seconds since 1970.
    made: u64,
}

/// The base of an image, kept from being collected.
pub(crate) struct Base {
    pub(crate) image: Object,
    pub(crate) lease: Lease,
}

/// An image that was laid out near its base.
pub(crate) struct Nearby {
    pub(crate) base: Base,
    pub(crate) change: Box<Change>,
    /// It is so far from it that the next had better have another.
    pub(crate) far: bool,
}

/// Half of an image costs as much as all of it, and is worth less. In a clone also each changed file, however small, becomes an
/// extent of its own, and once more in each private disk: on XFS that costs as much as so many blocks of a new image.
const EXTENT: u64 = 20;
/// Files that are too few for that to count.
const SCATTERED: u64 = 1000;
/// Blocks of changed files up to which a base is as good as new: 16 MiB are copied in a few ms.
const BLOCKS: u64 = 4096;
const FILES: u64 = 2000;
/// Runs of free blocks: new files are scattered among them.
const HOLES: u64 = 2000;
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

impl Lineage {
    /// `subject`: what the image is of, among the images of a spec.
    pub(crate) fn new(subject: &str) -> Lineage {
        Lineage(format!("base of {subject}"))
    }

    /// Remembers the image that this step makes as the base of those to come.
    pub(crate) fn begin(&self, cx: &Cx) {
        let base = cx.key().digest();
        cx.leave_hint(&self.0, &Hint { base });
    }

    /// The base. Whatever is wrong with it makes `None`: then there is none.
    pub(crate) fn find(&self, cx: &Cx) -> Option<Found> {
        let hint: Hint = cx.hint(&self.0)?;
        let (kept, made) = cx.earlier(&Key::new(hint.base))?;
        let (image, imprint) = Image::base(kept)?;
        let lease = cx.lease(&image).ok()?;
        let read = cx.lease(&imprint).ok()?;
        let imprint = Imprint::new(read_all(&read.file, imprint.size)?).ok()?;
        let base = Base { image, lease };
        Some(Found {
            base,
            imprint,
            made,
        })
    }
}

impl Found {
    /// Lays a tree out near the base, if it is near enough. `clones`: whether the image will be a clone of the base.
    pub(crate) fn lay_out(
        self,
        composed: &Composed,
        options: &Options,
        clones: &dyn Fn() -> bool,
    ) -> Result<Option<Nearby>, LayoutError> {
        let Found {
            base,
            imprint,
            made,
        } = self;
        let contents = |node| composed.content_id(node);
        let near = fcpipe_ext4::layout_near(composed.tree(), options, &imprint, &contents, false)?;
        let change = match near {
            Near::Changed(change) => change,
            Near::Far(_) => return Ok(None),
        };
        let written = (change.file_blocks, change.files);
        if !pays(written, change.layout.blocks_used, clones) {
            return Ok(None);
        }
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(made);
        let old = made.elapsed().is_ok_and(|age| age > AGE);
        let far =
            old || change.file_blocks > BLOCKS || change.files > FILES || change.holes > HOLES;
        Ok(Some(Nearby { base, change, far }))
    }
}

/// Whether writing so many blocks of so many files costs less than an image that uses `used` blocks.
fn pays((blocks, files): (u64, u64), used: u64, clones: &dyn Fn() -> bool) -> bool {
    let scattered = || files > SCATTERED && files * EXTENT > used && clones();
    blocks * 2 <= used && !scattered()
}

/// Whether an image that is near another will be a clone of it.
pub(crate) fn clones(cx: &Cx) -> bool {
    let store = cx.store().root();
    matches!(
        fcpipe_disk::can_clone(store, store),
        CloneAnswer::Yes { .. }
    )
}

/// A file of a known length, read into memory that is not touched before.
fn read_all(file: &File, size: u64) -> Option<Vec<u8>> {
    let mut bytes = fcpipe_tree::memory::with_room(usize::try_from(size).ok()?);
    let read = file.take(size).read_to_end(&mut bytes).ok()?;
    (read as u64 == size).then_some(bytes)
}

/// Shares the base's blocks with a new file; `false` where the file system does not do that.
pub(crate) fn share(cx: &Cx, base: &Base, file: &File) -> Result<bool, Failure> {
    fcpipe_disk::share(&base.lease.file, file).map_err(|error| {
        cx.fail(
            fcpipe_engine::FailureKind::Store,
            base.image.path.display(),
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_files_pay_in_a_disk_of_changes_and_not_in_a_clone() {
        let pays = |written, clones| pays(written, 160_000, &|| clones);
        assert!(pays((10_000, 10_000), false));
        assert!(!pays((10_000, 10_000), true));
        assert!(pays((7_000, 7_000), true));
        // Few large ones are few extents.
        assert!(pays((70_000, 10), true));
        assert!(!pays((90_000, 10), false));
    }

    #[test]
    fn a_small_image_may_be_scattered_as_it_costs_little() {
        assert!(super::pays((500, 500), 2_000, &|| panic!("not asked")));
    }
}
