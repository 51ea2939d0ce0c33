//! The root file system's stages: `layout` (pure, no file is read) and `image` (allocate, copy, seal).

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fcpipe_engine::{
    Amount, CacheMode, Cx, Digest, Failure, FailureKind, Identity, Kept, Key, KeyWriter, Node,
    Object, Output, Stage,
};
use fcpipe_ext4::{CopyError, CopyOptions, Layout, LayoutError, Mke2fsError, Sizing};
use fcpipe_tree::{Composed, Layer};
use serde::{Deserialize, Serialize};

use crate::keys::ContentValue;
use crate::near::{self, Lineage, Nearby};
use crate::scan::{STAMPS, Scanned, TREE};

/// Who writes the ext4 image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Builder {
    /// Our own writer.
    #[default]
    Native,
    /// e2fsprogs' mke2fs, as a subprocess.
    Mke2fs,
}

impl Builder {
    fn name(self) -> &'static str {
        match self {
            Builder::Native => "native",
            Builder::Mke2fs => "mke2fs",
        }
    }
}

/// What goes into an image, and where each part of it lies.
pub(crate) struct Plan {
    composed: Composed,
    shape: Shape,
    key: Digest,
}

enum Shape {
    Native {
        layout: Layout,
        /// What the image is to leave behind, if it may become a base.
        imprint: Option<Vec<u8>>,
    },
    Near(Nearby),
    Mke2fs(Sizing),
}

impl Output for Plan {
    fn identity(&self) -> Identity {
        Identity::new(match &self.shape {
            // Everything in the image follows from what the key holds. Where it is does not count: any image that is equal in
            // content will do.
            Shape::Native { .. } | Shape::Near(_) => {
                Digest::of("fcpipe plan 2", &[self.key.as_bytes()])
            }
            Shape::Mke2fs(sizing) => Digest::of(
                "fcpipe plan for mke2fs 1",
                &[
                    self.composed.tree().digest().as_bytes(),
                    &sizing.size.to_le_bytes(),
                    &sizing.inodes.to_le_bytes(),
                ],
            ),
        })
    }
}

/// One source of the image.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) destination: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) content: fcpipe_spec::Content,
    pub(crate) scan: Node<Scanned>,
}

/// How sources become one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Assembly {
    /// The first is the root, and the others are mounted in it in their order.
    Mounted,
    /// Each beside the others under its number, for a guest that mounts them.
    Gathered,
}

/// Gives every inode and extent its place, from metadata alone.
pub(crate) struct PlanImage {
    pub(crate) builder: Builder,
    pub(crate) assembly: Assembly,
    /// In the spec's order.
    pub(crate) parts: Arc<[Part]>,
    /// Bytes; `None` for what is needed and 30 %.
    pub(crate) size: Option<u64>,
    pub(crate) journal: bool,
    /// Images that it may be laid out near, or become the base of. Not an input: what comes out is equal.
    pub(crate) lineage: Option<Lineage>,
    /// Lay it out from nothing all the same, as a new base.
    pub(crate) anew: bool,
}

impl Stage for PlanImage {
    const NAME: &'static str = "layout";
    const VERSION: u32 = 2;
    type Output = Plan;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        if self.anew {
            k.field("form", "a base");
        }
        if self.assembly == Assembly::Gathered {
            k.field("assembly", "side by side");
        }
        k.field("builder", self.builder.name());
        k.field("format", &fcpipe_ext4::FORMAT_VERSION);
        k.field("size", &self.size);
        k.field("journal", &self.journal);
        for part in self.parts.iter() {
            let at = part.destination.display();
            k.field("destination", &part.destination);
            k.field(&format!("content of {at}"), &ContentValue(&part.content));
            k.facet(&format!("tree of {at}"), &part.scan, TREE);
        }
    }

    fn run(&self, cx: &Cx) -> Result<Plan, Failure> {
        let mut layers = Vec::with_capacity(self.parts.len());
        for part in self.parts.iter() {
            layers.push(Layer {
                destination: part.destination.clone(),
                source: part.source.clone(),
                scan: cx.get(&part.scan)?.scan(cx)?,
            });
        }
        let composed = match self.assembly {
            Assembly::Mounted => fcpipe_tree::compose(layers),
            Assembly::Gathered => fcpipe_tree::gather(layers),
        };
        let composed = composed.map_err(|e| cx.fail(FailureKind::Source, "the mounts", e))?;
        // A missing source is all that composing warns of, and its scan has said so: each time, as a
        // probe always runs.
        cx.progress(Amount {
            files: composed.tree().len() as u64,
            ..Amount::default()
        });
        let shape = match self.builder {
            Builder::Mke2fs => Shape::Mke2fs(Sizing::of(composed.tree(), self.size)),
            Builder::Native => {
                let options = fcpipe_ext4::Options {
                    size: self.size,
                    journal: self.journal,
                    ..Default::default()
                };
                let shape = self
                    .lay_out(cx, &composed, &options)
                    .map_err(|e| cx.fail(FailureKind::Source, "the image's layout", e))?;
                if let Some(layout) = shape.layout() {
                    for warning in &layout.warnings {
                        cx.warn(warning);
                    }
                }
                shape
            }
        };
        Ok(Plan {
            composed,
            shape,
            key: cx.key().digest(),
        })
    }
}

impl PlanImage {
    fn lay_out(
        &self,
        cx: &Cx,
        composed: &Composed,
        options: &fcpipe_ext4::Options,
    ) -> Result<Shape, LayoutError> {
        let Some(lineage) = &self.lineage else {
            let layout = fcpipe_ext4::layout(composed.tree(), options)?;
            return Ok(Shape::Native {
                layout,
                imprint: None,
            });
        };
        if !self.anew
            && let Some(near) = lineage.lay_out(cx, composed, options)?
        {
            return Ok(Shape::Near(near));
        }
        // Files that may change without a trace after the scan can't be told from unchanged ones later.
        if cx.cache() != CacheMode::Auto || !composed.is_settled() {
            let layout = fcpipe_ext4::layout(composed.tree(), options)?;
            return Ok(Shape::Native {
                layout,
                imprint: None,
            });
        }
        let contents = |node| composed.content_id(node);
        let (layout, imprint) =
            fcpipe_ext4::layout_with_imprint(composed.tree(), options, &contents)?;
        Ok(Shape::Native {
            layout,
            imprint: Some(imprint),
        })
    }
}

impl Shape {
    fn layout(&self) -> Option<&Layout> {
        match self {
            Shape::Native { layout, .. } => Some(layout),
            Shape::Near(near) => Some(&near.change.layout),
            Shape::Mke2fs(_) => None,
        }
    }
}

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
    const VERSION: u32 = 2;
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
