//! Mounting sources into each other, in memory.
//!
//! Begin with [`compose`]. `world` is a small model of the kernel's mount table: it resolves
//! destinations as inside a chroot and attaches mounts; `render` writes what is then visible as one
//! [`Tree`]; `ids` maps owners. Nothing here touches the host.

mod ids;
mod render;
mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bstr::ByteSlice;

use crate::model::{Kind, NodeId, Tree};
use crate::opener::Opener;
use crate::scan::{ContentId, Scan, Stamp, digest_stamps};
use world::World;

/// A source and where it goes.
#[derive(Debug, Clone)]
pub struct Layer {
    /// A path inside the image; of no meaning for the first layer, which is the root.
    pub destination: PathBuf,
    /// The source's path on the host, for messages.
    pub source: PathBuf,
    /// `None`: the source is missing, and an empty directory stands for it.
    pub scan: Option<Arc<Scan>>,
}

/// Where a node of a composition comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The node of that number in the layer's scan.
    Scanned { layer: usize, node: NodeId },
    /// Made here: a mount point or a directory on the way to it, or what stands for a missing source.
    Made,
}

/// Everything that is visible in the image, and where each of it comes from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Composed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tree: Arc<Tree>,
    /// By node; `None` where the only layer is the image as it is.
    origins: Option<Vec<Packed>>,
    layers: Vec<Layer>,
    warnings: Vec<ComposeWarning>,
}

/// An [`Origin`] in eight bytes; `layer` is `MADE` for what was made.
#[derive(Debug, Clone, Copy)]
struct Packed {
    layer: u32,
    node: u32,
}

const MADE: u32 = u32::MAX;

/// Something that a user should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ComposeWarning {
    /// An empty directory is at `destination` (row 10).
    MissingSource {
        source: PathBuf,
        destination: PathBuf,
    },
    /// Files whose owner the mapping of their source does not have: 65534 owns them in the image, as in a user namespace.
    Unmapped {
        source: PathBuf,
        /// The first of them, on the host.
        path: PathBuf,
        /// `user` or `group`.
        what: &'static str,
        id: u32,
        files: u64,
    },
}

impl std::fmt::Display for ComposeWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ComposeWarning::MissingSource {
                source,
                destination,
            } => write!(
                f,
                "the mount source {source:?} does not exist: {destination:?} is an empty directory"
            ),
            ComposeWarning::Unmapped {
                source,
                path,
                what,
                id,
                files,
            } => write!(
                f,
                "the mapping of {source:?} lacks owners of {files} of its files (of {path:?} the {what} {id}): 65534 stands for them"
            ),
        }
    }
}

/// Why layers can't be composed. Paths called `destination` and `path` are inside the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    #[error("there is no root: the first layer is missing or is {0:?}, which is not a directory")]
    NoRoot(PathBuf),
    #[error("{source_path:?} can't be mounted at {destination:?}: that is the root itself")]
    OntoRoot {
        source_path: PathBuf,
        destination: PathBuf,
    },
    #[error(
        "{source_path:?} can't be mounted at {destination:?}: too many symlinks, probably a loop"
    )]
    Loop {
        source_path: PathBuf,
        destination: PathBuf,
    },
    #[error("{source_path:?} can't be mounted at {destination:?}: {path:?} is not a directory")]
    NotADirectory {
        source_path: PathBuf,
        destination: PathBuf,
        path: PathBuf,
    },
    #[error("the directory {source_path:?} can't be mounted at {destination:?}, which is not one")]
    DirectoryOntoFile {
        source_path: PathBuf,
        destination: PathBuf,
    },
    #[error("the file {source_path:?} can't be mounted at {destination:?}, which is a directory")]
    FileOntoDirectory {
        source_path: PathBuf,
        destination: PathBuf,
    },
    #[error(
        "{source_path:?} can't be mounted at {destination:?}: a name there is longer than 255 \
         bytes, or holds a NUL"
    )]
    BadName {
        source_path: PathBuf,
        destination: PathBuf,
    },
    #[error("{path:?}: the attribute {:?} can't be understood, so its owners can't be mapped", name.as_bstr())]
    Attribute {
        /// On the host.
        path: PathBuf,
        name: Vec<u8>,
    },
    #[error("the sources together hold more names than one image can")]
    TooMany,
}

/// Composes the root, `layers[0]`, and the mounts after it, in their order.
///
/// Each mount is attached where its destination is at that moment, as mount(2) would: symlinks of the
/// image, and of what is mounted in it by then, are followed as inside a chroot. A later mount covers
/// what an earlier one shows. Names of a destination that do not exist are made: directories of mode
/// 0755 that belong to 0:0 and have the mtime of the directory they are made in, and an empty file for
/// a file. They are made in the composition alone: the same source mounted twice stays two copies, with
/// nodes of their own.
pub fn compose(layers: Vec<Layer>) -> Result<Composed, ComposeError> {
    let mut warnings = Vec::new();
    let mut world = World::new(&layers)?;
    for (number, layer) in layers.iter().enumerate().skip(1) {
        world.mount(number)?;
        if layer.scan.is_none() {
            warnings.push(ComposeWarning::MissingSource {
                source: layer.source.clone(),
                destination: layer.destination.clone(),
            });
        }
    }
    let (tree, origins) = render::render(&world, &mut warnings)?;
    drop(world);
    Ok(Composed {
        inner: Arc::new(Inner {
            tree,
            origins,
            layers,
            warnings,
        }),
    })
}

/// Puts sources beside each other into a directory of its own: the first is under the name `0`, a directory or a file as it is, and
/// so on. Their destinations do not matter. A source that is missing is an empty directory.
pub fn gather(sources: Vec<Layer>) -> Result<Composed, ComposeError> {
    let top = Layer {
        destination: PathBuf::from("/"),
        source: PathBuf::new(),
        scan: Some(Arc::new(Scan::of_nothing())),
    };
    let named = (0u32..).zip(sources).map(|(number, source)| Layer {
        destination: PathBuf::from(format!("/{number}")),
        ..source
    });
    compose(std::iter::once(top).chain(named).collect())
}

impl Composed {
    pub fn tree(&self) -> &Tree {
        &self.inner.tree
    }

    pub fn layers(&self) -> &[Layer] {
        &self.inner.layers
    }

    /// Those of the composition; each layer's scan has its own.
    pub fn warnings(&self) -> &[ComposeWarning] {
        &self.inner.warnings
    }

    pub fn origin(&self, node: NodeId) -> Origin {
        let Some(origins) = &self.inner.origins else {
            return Origin::Scanned { layer: 0, node };
        };
        let packed = origins[node.index()];
        match packed.layer {
            MADE => Origin::Made,
            layer => Origin::Scanned {
                layer: layer as usize,
                node: NodeId(packed.node),
            },
        }
    }

    /// The stamp of a node that comes from a source.
    pub fn stamp(&self, node: NodeId) -> Option<Stamp> {
        let (_, scan, node) = self.scanned(node)?;
        Some(scan.stamps[node.index()])
    }

    /// What stands for the content of a file that comes from a source.
    pub fn content_id(&self, node: NodeId) -> Option<ContentId> {
        let (_, scan, node) = self.scanned(node)?;
        Some(scan.content_id(node))
    }

    /// Whether the [`ContentId`]s of all files hold for ever: see [`Scan::is_settled`].
    pub fn is_settled(&self) -> bool {
        let mut scans = self.layers().iter().filter_map(|layer| layer.scan.as_ref());
        scans.all(|scan| scan.is_settled())
    }

    /// Changes when the content of any regular file in the image may have changed.
    pub fn stamps_digest(&self) -> blake3::Hash {
        let tree = self.tree();
        let files = tree
            .nodes()
            .filter(|&node| matches!(tree.kind(node), Kind::File { .. }));
        let files = files.map(|node| {
            let (layer, scan, node) = self.scanned(node)?;
            Some((layer as u32, scan, node))
        });
        let scans = self.layers().iter();
        digest_stamps(files, scans.filter_map(|layer| layer.scan.as_deref()))
    }

    /// Where a node's content is on the host; of what was made, its path in the image. For messages.
    pub fn source_path(&self, node: NodeId) -> PathBuf {
        match self.scanned(node) {
            Some((_, scan, node)) => scan.source_path(node),
            None => crate::scan::join(Path::new("/"), &self.tree().path(node)[1..]),
        }
    }

    /// Opens files of the sources; one for each thread.
    pub fn opener(&self) -> Opener {
        Opener::new(self.clone())
    }

    /// The layer, its scan and the node in it.
    pub(crate) fn scanned(&self, node: NodeId) -> Option<(usize, &Scan, NodeId)> {
        match self.origin(node) {
            Origin::Scanned { layer, node } => {
                let scan = self.inner.layers[layer].scan.as_deref()?;
                Some((layer, scan, node))
            }
            Origin::Made => None,
        }
    }
}
