//! Puts a [`Tree`] together from nodes and names that come in any order.

use super::writer::Writer;
use super::{DataRun, Meta, NodeId, Tree, Xattr};

/// A node while a [`Tree`] is being put together: a number in the order of [`TreeBuilder::add`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(pub u32);

/// What [`TreeBuilder::add`] takes: a node without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewKind<'a> {
    Directory,
    /// `data`: the hole map of a sparse file; `None` where all of it is data.
    File {
        size: u64,
        data: Option<&'a [DataRun]>,
    },
    Symlink {
        target: &'a [u8],
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

#[derive(Debug, Clone)]
enum OwnedKind {
    Directory,
    File {
        size: u64,
        data: Option<Box<[DataRun]>>,
    },
    Symlink {
        target: Box<[u8]>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

#[derive(Debug, Clone)]
struct Added {
    meta: Meta,
    kind: OwnedKind,
    xattrs: Vec<Xattr>,
}

#[derive(Debug, Clone)]
struct Link {
    dir: BuildId,
    name: Box<[u8]>,
    node: BuildId,
}

/// Puts a [`Tree`] together from nodes and names in any order. For tests and for trees that do not
/// come from a directory; the scan writes its Tree directly.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    nodes: Vec<Added>,
    links: Vec<Link>,
}

impl TreeBuilder {
    pub const ROOT: BuildId = BuildId(0);

    /// Begins with a root directory and nothing in it.
    pub fn new(root: Meta, xattrs: Vec<Xattr>) -> Self {
        let mut builder = TreeBuilder {
            nodes: Vec::new(),
            links: Vec::new(),
        };
        builder.add(root, NewKind::Directory, xattrs);
        builder
    }

    /// Adds a node that has no name yet. A node that never gets one is left out of the Tree.
    pub fn add(&mut self, meta: Meta, kind: NewKind<'_>, mut xattrs: Vec<Xattr>) -> BuildId {
        xattrs.sort();
        let kind = match kind {
            NewKind::Directory => OwnedKind::Directory,
            NewKind::File { size, data } => OwnedKind::File {
                size,
                data: data.map(Into::into),
            },
            NewKind::Symlink { target } => OwnedKind::Symlink {
                target: target.into(),
            },
            NewKind::CharDevice { major, minor } => OwnedKind::CharDevice { major, minor },
            NewKind::BlockDevice { major, minor } => OwnedKind::BlockDevice { major, minor },
            NewKind::Fifo => OwnedKind::Fifo,
            NewKind::Socket => OwnedKind::Socket,
        };
        let id = BuildId(self.nodes.len() as u32);
        self.nodes.push(Added { meta, kind, xattrs });
        id
    }

    /// Gives `node` a name in `dir`. The caller sees to it that a directory has one name, that a name
    /// is used once in a directory, and that there is no cycle.
    pub fn link(&mut self, dir: BuildId, name: &[u8], node: BuildId) {
        self.links.push(Link {
            dir,
            name: name.into(),
            node,
        });
    }

    /// The Tree, and for each of its nodes the number it was added under.
    ///
    /// Panics where a Tree would hold more than 4,294,967,295 nodes, entries or bytes of names.
    pub fn finish(mut self) -> (Tree, Vec<BuildId>) {
        self.links
            .sort_unstable_by(|a, b| (a.dir, &a.name).cmp(&(b.dir, &b.name)));
        // Where each directory's links begin.
        let mut first = vec![0usize; self.nodes.len() + 1];
        for link in &self.links {
            first[link.dir.0 as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }

        let root = &self.nodes[0];
        let mut writer = Writer::new(root.meta, root.xattrs.clone(), self.nodes.len());
        let mut number: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        number[0] = Some(NodeId::ROOT);
        let mut order = vec![TreeBuilder::ROOT];
        let mut at = 0;
        while at < order.len() {
            let build = order[at].0 as usize;
            if matches!(self.nodes[build].kind, OwnedKind::Directory) {
                writer.begin(NodeId(at as u32));
                for link in &self.links[first[build]..first[build + 1]] {
                    let child = link.node.0 as usize;
                    if let Some(node) = number[child] {
                        writer.link(&link.name, node);
                        continue;
                    }
                    let added = &self.nodes[child];
                    let set = writer.xattr_set(added.xattrs.clone());
                    let node = writer.add(&link.name, added.meta, added.kind.borrowed(), set);
                    number[child] = Some(node);
                    order.push(link.node);
                }
            }
            at += 1;
        }
        (writer.finish(), order)
    }
}

impl OwnedKind {
    fn borrowed(&self) -> NewKind<'_> {
        match self {
            OwnedKind::Directory => NewKind::Directory,
            OwnedKind::File { size, data } => NewKind::File {
                size: *size,
                data: data.as_deref(),
            },
            OwnedKind::Symlink { target } => NewKind::Symlink { target },
            OwnedKind::CharDevice { major, minor } => NewKind::CharDevice {
                major: *major,
                minor: *minor,
            },
            OwnedKind::BlockDevice { major, minor } => NewKind::BlockDevice {
                major: *major,
                minor: *minor,
            },
            OwnedKind::Fifo => NewKind::Fifo,
            OwnedKind::Socket => NewKind::Socket,
        }
    }
}
