//! Writes a [`Tree`] in canonical order, without a second copy of anything.
//!
//! Whoever uses it sees to the order: directories are begun in the order of their numbers, and names
//! are given bytewise sorted. The builder, the scan and the composition all end here, so canonical
//! numbers are made in this one place.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::memory::with_room;

use super::{Kind, Meta, NewKind, Node, NodeId, RawEntry, Span, Tree, Xattr};

/// The largest number of nodes, entries or bytes of names that a Tree can hold.
pub(crate) const MOST: usize = u32::MAX as usize;

#[derive(Debug)]
pub(crate) struct Writer {
    tree: Tree,
    known_sets: HashMap<Vec<Xattr>, u32>,
    /// The directory that entries go to.
    open: NodeId,
}

impl Writer {
    /// Begins with the root, which is also the open directory. `room`: how many nodes to expect.
    pub(crate) fn new(root: Meta, mut xattrs: Vec<Xattr>, room: usize) -> Self {
        xattrs.sort();
        let mut writer = Writer {
            tree: Tree {
                nodes: with_room(room),
                entries: with_room(room),
                bytes: with_room(room * 12),
                runs: Vec::new(),
                xattr_sets: vec![Vec::new()],
                digest: OnceLock::new(),
            },
            known_sets: HashMap::from([(Vec::new(), 0)]),
            open: NodeId::ROOT,
        };
        let xattrs = writer.xattr_set(xattrs);
        writer.tree.nodes.push(Node {
            meta: root,
            kind: Kind::Directory,
            body: Span::default(),
            sparse: false,
            xattrs,
            names: 1,
            parent: NodeId::ROOT,
            first_entry: 0,
        });
        writer
    }

    /// The number of a set of xattrs, sorted by name. Called when the first node that has the set is
    /// added, so that the numbers are canonical too.
    pub(crate) fn xattr_set(&mut self, xattrs: Vec<Xattr>) -> u32 {
        if let Some(&set) = self.known_sets.get(&xattrs) {
            return set;
        }
        let set = self.tree.xattr_sets.len() as u32;
        self.tree.xattr_sets.push(xattrs.clone());
        self.known_sets.insert(xattrs, set);
        set
    }

    /// Opens a directory: later entries are its.
    pub(crate) fn begin(&mut self, dir: NodeId) {
        debug_assert!(dir == NodeId::ROOT || dir > self.open, "not in order");
        self.open = dir;
        self.tree.nodes[dir.index()].body = Span {
            start: count(self.tree.entries.len()),
            len: 0,
        };
    }

    /// A new node under a name of the open directory.
    pub(crate) fn add(
        &mut self,
        name: &[u8],
        meta: Meta,
        kind: NewKind<'_>,
        xattrs: u32,
    ) -> NodeId {
        let (kind, body, sparse) = match kind {
            NewKind::Directory => (Kind::Directory, Span::default(), false),
            NewKind::File { size, data: None } => (Kind::File { size }, Span::default(), false),
            NewKind::File {
                size,
                data: Some(data),
            } => {
                let span = Span {
                    start: count(self.tree.runs.len()),
                    len: count(data.len()),
                };
                self.tree.runs.extend_from_slice(data);
                (Kind::File { size }, span, true)
            }
            NewKind::Symlink { target } => (Kind::Symlink, self.keep(target), false),
            NewKind::CharDevice { major, minor } => {
                (Kind::CharDevice { major, minor }, Span::default(), false)
            }
            NewKind::BlockDevice { major, minor } => {
                (Kind::BlockDevice { major, minor }, Span::default(), false)
            }
            NewKind::Fifo => (Kind::Fifo, Span::default(), false),
            NewKind::Socket => (Kind::Socket, Span::default(), false),
        };
        let node = NodeId(count(self.tree.nodes.len()));
        self.tree.nodes.push(Node {
            meta,
            kind,
            body,
            sparse,
            xattrs,
            names: 0,
            parent: self.open,
            first_entry: count(self.tree.entries.len()),
        });
        self.link(name, node);
        node
    }

    /// One more name, in the open directory, for a node that was added before.
    pub(crate) fn link(&mut self, name: &[u8], node: NodeId) {
        let name = self.keep(name);
        self.tree.entries.push(RawEntry { name, node });
        self.tree.nodes[node.index()].names += 1;
        self.tree.nodes[self.open.index()].body.len += 1;
    }

    pub(crate) fn meta(&self, node: NodeId) -> &Meta {
        &self.tree.nodes[node.index()].meta
    }

    /// The path of `name` in `dir`, from the root.
    pub(crate) fn path(&self, dir: NodeId, name: &[u8]) -> Vec<u8> {
        let mut path = self.tree.path(dir);
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    pub(crate) fn finish(mut self) -> Tree {
        self.tree.nodes.shrink_to_fit();
        self.tree.entries.shrink_to_fit();
        self.tree.bytes.shrink_to_fit();
        self.tree
    }

    fn keep(&mut self, bytes: &[u8]) -> Span {
        let span = Span {
            start: count(self.tree.bytes.len()),
            len: count(bytes.len()),
        };
        self.tree.bytes.extend_from_slice(bytes);
        span
    }
}

/// Lengths in a Tree are 32 bits wide; scan and composition refuse what is larger before they begin.
fn count(n: usize) -> u32 {
    assert!(n <= MOST, "a Tree holds at most {MOST} of anything");
    n as u32
}
