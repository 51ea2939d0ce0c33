//! Where everything of an image goes: `layout`, pure; no file is read.

use std::path::PathBuf;
use std::sync::Arc;

use fcpipe_engine::{
    Amount, CacheMode, Cx, Digest, Failure, FailureKind, Identity, KeyWriter, Node, Output, Stage,
};
use fcpipe_ext4::{Layout, LayoutError, Sizing};
use fcpipe_tree::{ComposeWarning, Composed, Layer};

use crate::keys::ContentValue;
use crate::near::{self, Lineage, Nearby};
use crate::scan::{Scanned, TREE};

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
    pub(crate) composed: Composed,
    pub(crate) shape: Shape,
    key: Digest,
}

/// How it is laid out.
pub(crate) enum Shape {
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
        let (composed, base) = std::thread::scope(|scope| {
            // Reading what is remembered of the base takes as long as composing.
            let near = !self.anew && self.builder == Builder::Native;
            let base = self.lineage.as_ref().filter(|_| near).map(|lineage| {
                let thread = std::thread::Builder::new().name("base".to_owned());
                thread.spawn_scoped(scope, || lineage.find(cx))
            });
            let composed = match self.assembly {
                Assembly::Mounted => fcpipe_tree::compose(layers),
                Assembly::Gathered => fcpipe_tree::gather(layers),
            };
            // Without one the image is laid out from nothing.
            let base = base.and_then(|thread| thread.ok()?.join().ok()?);
            (composed, base)
        });
        let composed = composed.map_err(|e| cx.fail(FailureKind::Source, "the mounts", e))?;
        // A missing source is told of by its scan: each time, as a probe always runs.
        for warning in composed.warnings() {
            if matches!(warning, ComposeWarning::Unmapped { .. }) {
                cx.warn(warning);
            }
        }
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
                    .lay_out(cx, &composed, &options, base)
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
        base: Option<near::Found>,
    ) -> Result<Shape, LayoutError> {
        if self.lineage.is_none() {
            let layout = fcpipe_ext4::layout(composed.tree(), options)?;
            return Ok(Shape::Native {
                layout,
                imprint: None,
            });
        }
        if let Some(base) = base
            && let Some(near) = base.lay_out(composed, options, &|| near::clones(cx))?
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
    /// `None`: mke2fs decides.
    pub(crate) fn layout(&self) -> Option<&Layout> {
        match self {
            Shape::Native { layout, .. } => Some(layout),
            Shape::Near(near) => Some(&near.change.layout),
            Shape::Mke2fs(_) => None,
        }
    }
}
