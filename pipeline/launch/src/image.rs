//! The image of some sources: written whole, or near an earlier one, and kept in the store (allocate, copy, seal).

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;

use fcpipe_engine::{
    Amount, Cx, Digest, Failure, FailureKind, Identity, Kept, Key, KeyWriter, Node, Object, Output,
    Stage,
};
use fcpipe_ext4::{CopyError, CopyOptions, Layout, Mke2fsError};
use serde::{Deserialize, Serialize};

use crate::near::{self, Lineage, Nearby};
use crate::plan::{Part, Plan, Shape};
use crate::scan::STAMPS;

/// An image in the store.
pub(crate) struct Image {
    key: Key,
    form: Form,
    /// What it holds, with the base's if it has one.
    pub(crate) blocks: Blocks,
}

/// Where an image's blocks are.
#[derive(Debug, Clone)]
pub(crate) enum Blocks {
    /// In one object. Its imprint is there if others may be near it.
    Whole {
        image: Object,
        imprint: Option<Object>,
    },
    /// In a base, but for those that the snapshot disk says.
    Changed { base: Object, changes: Object },
}

/// What the record says beside the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    changed: bool,
    /// A new base is due.
    far: bool,
}

impl Image {
    /// The image and the imprint of a record's base.
    pub(crate) fn base(kept: Kept) -> Option<(Object, Object)> {
        match blocks(kept)?.1 {
            Blocks::Whole { image, imprint } => Some((image, imprint?)),
            Blocks::Changed { .. } => None,
        }
    }

    /// Whether a new base is due.
    pub(crate) fn is_far(&self) -> bool {
        self.form.far
    }

    /// Bytes of the whole disk.
    pub(crate) fn size(&self) -> u64 {
        match &self.blocks {
            Blocks::Whole { image, .. } => image.size,
            Blocks::Changed { base, .. } => base.size,
        }
    }
}

fn blocks(kept: Kept) -> Option<(Form, Blocks)> {
    let form: Form = serde_json::from_value(kept.body).ok()?;
    let mut objects = kept.objects.into_iter();
    let first = objects.next()?;
    let second = objects.next();
    let blocks = match form.changed {
        false => Blocks::Whole {
            image: first,
            imprint: second,
        },
        true => Blocks::Changed {
            changes: first,
            base: second?,
        },
    };
    Some((form, blocks))
}

impl Output for Image {
    fn identity(&self) -> Identity {
        // What it is follows from its key: bytes are not hashed for that, and what is made again under
        // the same key is equal in content.
        Identity::new(Digest::of(
            "fcpipe image 2",
            &[self.key.digest().as_bytes()],
        ))
    }

    fn keep(&self) -> Option<Kept> {
        let body = serde_json::to_value(self.form).ok()?;
        let objects = match &self.blocks {
            Blocks::Whole { image, imprint } => {
                std::iter::once(image).chain(imprint).cloned().collect()
            }
            Blocks::Changed { base, changes } => vec![changes.clone(), base.clone()],
        };
        Some(Kept { body, objects })
    }

    fn recall(kept: Kept) -> Option<Self> {
        let (form, blocks) = blocks(kept)?;
        // Both are objects of the key that the record is of.
        let (Blocks::Whole { image: own, .. } | Blocks::Changed { changes: own, .. }) = &blocks;
        Some(Image {
            key: own.id.key(),
            form,
            blocks,
        })
    }
}

/// The phases of everything that writes an image.
pub(crate) const PHASES: &[&str] = &["allocate", "copy", "seal"];

/// Writes the image into the store.
pub(crate) struct MakeImage {
    pub(crate) plan: Node<Plan>,
    pub(crate) parts: Arc<[Part]>,
    pub(crate) journal: bool,
    /// As the plan's.
    pub(crate) lineage: Option<Lineage>,
}

impl Stage for MakeImage {
    const NAME: &'static str = "image";
    // 3: in 2, what grew near a base could have its blocks in the wrong order.
    const VERSION: u32 = 3;
    const PHASES: &'static [&'static str] = PHASES;
    type Output = Image;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        image_inputs(k, &self.plan, &self.parts, self.journal);
    }

    fn run(&self, cx: &Cx) -> Result<Image, Failure> {
        let plan = cx.get(&self.plan)?;
        let (changed, blocks) = match &plan.shape {
            Shape::Near(near) => near_image(cx, &plan, near)?,
            _ => (false, self.whole(cx, &plan)?),
        };
        Ok(Image {
            key: cx.key(),
            form: Form {
                changed,
                far: matches!(&plan.shape, Shape::Near(near) if near.far),
            },
            blocks,
        })
    }
}

impl MakeImage {
    fn whole(&self, cx: &Cx, plan: &Plan) -> Result<Blocks, Failure> {
        let writer = cx.phase("allocate", || -> Result<_, Failure> {
            let writer = cx.object(IMAGE)?;
            cx.total(plan.amount());
            Ok(writer)
        })?;
        cx.phase("copy", || plan.write(cx, writer.file(), self.journal))?;
        cx.phase("seal", || {
            let imprint = plan.leave_imprint(cx);
            if let (Some(lineage), Some(_)) = (&self.lineage, &imprint) {
                lineage.begin(cx);
            }
            Ok(Blocks::Whole {
                image: cx.publish(writer)?,
                imprint,
            })
        })
    }
}

const IMAGE: &str = "root.ext4";

/// Writes what differs from the base: into a clone of it, or where there are none to a disk of its own.
fn near_image(cx: &Cx, plan: &Plan, near: &Nearby) -> Result<(bool, Blocks), Failure> {
    let (writer, shared) = cx.phase("allocate", || -> Result<_, Failure> {
        cx.total(plan.amount());
        let writer = cx.object(IMAGE)?;
        match near::share(cx, &near.base, writer.file())? {
            true => Ok((writer, true)),
            false => Ok((cx.object("changes.cow")?, false)),
        }
    })?;
    let options = copy_options(cx);
    let (map, base) = (&near.change.layout.map, &near.base.lease.file);
    let file = writer.file();
    cx.phase("copy", || {
        match shared {
            true => {
                fcpipe_ext4::patch_image(map, &plan.composed, base, file, &options, &Counted(cx))
            }
            false => {
                fcpipe_ext4::write_cow(map, &plan.composed, base, file, &options, &Counted(cx))
            }
        }
        .map_err(|error| copy_failure(cx, error))
    })?;
    cx.phase("seal", || {
        let object = cx.publish(writer)?;
        Ok(match shared {
            true => (
                false,
                Blocks::Whole {
                    image: object,
                    imprint: None,
                },
            ),
            false => (
                true,
                Blocks::Changed {
                    base: near.base.image.clone(),
                    changes: object,
                },
            ),
        })
    })
}

fn copy_options(cx: &Cx) -> CopyOptions {
    CopyOptions {
        threads: NonZeroUsize::new(cx.threads()).map(CopyOptions::threads_on),
        ..CopyOptions::default()
    }
}

/// What an image's bytes depend on: the layout, and whether files may have other contents than before.
pub(crate) fn image_inputs(
    k: &mut KeyWriter<'_>,
    plan: &Node<Plan>,
    parts: &[Part],
    journal: bool,
) {
    k.node("layout", plan);
    // mke2fs takes it as an option; the native layout has it in its digest.
    k.field("journal", &journal);
    for part in parts {
        let at = part.destination.display();
        k.field("destination", &part.destination);
        k.facet(&format!("files of {at}"), &part.scan, STAMPS);
    }
}

impl Plan {
    /// What there is to copy, for progress.
    pub(crate) fn amount(&self) -> Amount {
        let blocks = |layout: &Layout| -> u64 {
            layout.map.extents.iter().map(|e| u64::from(e.blocks)).sum()
        };
        let bytes = self.shape.layout().map_or(0, blocks) * fcpipe_ext4::BLOCK_SIZE;
        Amount {
            files: match &self.shape {
                Shape::Near(near) => near.change.files,
                _ => self.composed.tree().len() as u64,
            },
            bytes_read: bytes,
            bytes_written: bytes,
        }
    }

    /// Writes down what the image leaves behind, if it may become a base. Where that fails it becomes none, and is as good an
    /// image.
    fn leave_imprint(&self, cx: &Cx) -> Option<Object> {
        let Shape::Native {
            imprint: Some(imprint),
            ..
        } = &self.shape
        else {
            return None;
        };
        let writer = cx.object("imprint").ok()?;
        let mut file = writer.file();
        file.write_all(imprint).ok()?;
        cx.publish(writer).ok()
    }

    /// Writes the whole image to `file`.
    pub(crate) fn write(
        &self,
        cx: &Cx,
        file: &std::fs::File,
        journal: bool,
    ) -> Result<(), Failure> {
        match &self.shape {
            Shape::Native { layout, .. } => {
                let options = copy_options(cx);
                fcpipe_ext4::write_image(&layout.map, &self.composed, file, &options, &Counted(cx))
                    .map(drop)
                    .map_err(|error| copy_failure(cx, error))
            }
            Shape::Near(_) => Err(cx.fail(
                FailureKind::Internal,
                "the image",
                "it is laid out near another, and was to be written whole",
            )),
            Shape::Mke2fs(sizing) => {
                let failed =
                    |e: std::io::Error| cx.fail(FailureKind::Store, "a scratch directory", e);
                let scratch = tempfile::Builder::new()
                    .prefix("fcpipe-mke2fs-")
                    .tempdir()
                    .map_err(failed)?;
                fcpipe_ext4::mke2fs(
                    &self.composed,
                    *sizing,
                    journal,
                    file,
                    scratch.path(),
                    &|| cx.cancelled(),
                )
                .map_err(|error| mke2fs_failure(cx, error))
            }
        }
    }
}

/// Passes a copy's progress on to the engine.
struct Counted<'a>(&'a Cx);

impl fcpipe_ext4::Progress for Counted<'_> {
    fn add(&self, moved: fcpipe_ext4::Moved) {
        self.0.progress(Amount {
            files: moved.files,
            bytes_read: moved.read,
            bytes_written: moved.written,
        });
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

fn copy_failure(cx: &Cx, error: CopyError) -> Failure {
    if matches!(error, CopyError::Cancelled) {
        return cx.fail(FailureKind::Cancelled, "the image", error);
    }
    let kind = error_kind(&error);
    cx.fail(kind, "the image", error)
}

fn error_kind(error: &CopyError) -> FailureKind {
    match error {
        CopyError::NoSpace { .. } => FailureKind::Space,
        CopyError::Source { .. } | CopyError::Read { .. } | CopyError::Shrank { .. } => {
            FailureKind::Source
        }
        _ => FailureKind::Store,
    }
}

fn mke2fs_failure(cx: &Cx, error: Mke2fsError) -> Failure {
    let (kind, hint) = match &error {
        Mke2fsError::Source(_) => (FailureKind::Source, None),
        Mke2fsError::Start { .. } => (
            FailureKind::Host,
            Some("install e2fsprogs, or use --builder native"),
        ),
        Mke2fsError::Cancelled => (FailureKind::Cancelled, None),
        _ => (
            FailureKind::Host,
            Some("--builder native needs neither root nor mke2fs"),
        ),
    };
    let failure = cx.fail(kind, "the image by mke2fs", error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
