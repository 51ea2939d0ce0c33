//! The root file system's stages: `layout` (pure, no file is read) and `image` (allocate, copy, seal).

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use fcpipe_engine::{
    Amount, Cx, Digest, Failure, FailureKind, Identity, KeyWriter, Node, Output, Stage,
};
use fcpipe_ext4::{CopyError, CopyOptions, Layout, Mke2fsError, Sizing};
use fcpipe_tree::{Composed, Layer};

use crate::keys::ContentValue;
use crate::scan::{STAMPS, Scanned, TREE};
use crate::stored::Stored;

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
}

enum Shape {
    Native(Layout),
    Mke2fs(Sizing),
}

impl Output for Plan {
    fn identity(&self) -> Identity {
        Identity::new(match &self.shape {
            Shape::Native(layout) => layout.digest().into(),
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
pub(crate) struct Part {
    pub(crate) destination: PathBuf,
    pub(crate) source: PathBuf,
    pub(crate) content: fcpipe_spec::Content,
    pub(crate) scan: Node<Scanned>,
}

/// Gives every inode and extent its place, from metadata alone.
pub(crate) struct PlanImage {
    pub(crate) builder: Builder,
    /// The root, then the mounts in the spec's order.
    pub(crate) parts: Arc<[Part]>,
    /// Bytes; `None` for what is needed and 30 %.
    pub(crate) size: Option<u64>,
    pub(crate) journal: bool,
}

impl Stage for PlanImage {
    const NAME: &'static str = "layout";
    const VERSION: u32 = 1;
    type Output = Plan;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
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
        let composed = fcpipe_tree::compose(layers)
            .map_err(|e| cx.fail(FailureKind::Source, "the mounts", e))?;
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
                let layout = fcpipe_ext4::layout(composed.tree(), &options)
                    .map_err(|e| cx.fail(FailureKind::Source, "the image's layout", e))?;
                for warning in &layout.warnings {
                    cx.warn(warning);
                }
                Shape::Native(layout)
            }
        };
        Ok(Plan { composed, shape })
    }
}

/// Stands for an ext4 image in [`Stored`].
pub(crate) enum Ext4 {}

/// An image in the store.
pub(crate) type Image = Stored<Ext4>;

/// The phases of everything that writes an image.
pub(crate) const PHASES: &[&str] = &["allocate", "copy", "seal"];

/// Writes the image into the store.
pub(crate) struct MakeImage {
    pub(crate) plan: Node<Plan>,
    pub(crate) parts: Arc<[Part]>,
    pub(crate) journal: bool,
}

impl Stage for MakeImage {
    const NAME: &'static str = "image";
    const VERSION: u32 = 1;
    const PHASES: &'static [&'static str] = PHASES;
    type Output = Image;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        image_inputs(k, &self.plan, &self.parts, self.journal);
    }

    fn run(&self, cx: &Cx) -> Result<Image, Failure> {
        let plan = cx.get(&self.plan)?;
        let writer = cx.phase("allocate", || -> Result<_, Failure> {
            let writer = cx.object("root.ext4")?;
            cx.total(plan.amount());
            Ok(writer)
        })?;
        cx.phase("copy", || plan.write(cx, writer.file(), self.journal))?;
        cx.phase("seal", || cx.publish(writer)).map(Stored::new)
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
        let bytes = match &self.shape {
            Shape::Native(layout) => layout
                .map
                .extents
                .iter()
                .map(|e| u64::from(e.blocks) * fcpipe_ext4::BLOCK_SIZE)
                .sum(),
            Shape::Mke2fs(_) => 0,
        };
        Amount {
            files: self.composed.tree().len() as u64,
            bytes_read: bytes,
            bytes_written: bytes,
        }
    }

    /// Writes the whole image to `file`.
    pub(crate) fn write(
        &self,
        cx: &Cx,
        file: &std::fs::File,
        journal: bool,
    ) -> Result<(), Failure> {
        match &self.shape {
            Shape::Native(layout) => {
                let options = CopyOptions {
                    threads: NonZeroUsize::new(cx.threads()).map(CopyOptions::threads_on),
                    ..CopyOptions::default()
                };
                fcpipe_ext4::write_image(&layout.map, &self.composed, file, &options, &Counted(cx))
                    .map(drop)
                    .map_err(|error| copy_failure(cx, error))
            }
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
