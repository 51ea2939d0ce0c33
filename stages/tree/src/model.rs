//! The Tree: what enters an image, and nothing else.
//!
//! A [`Tree`] holds names and inodes apart, so that hard links are several [`Entry`]s of one
//! [`NodeId`]. It knows no device, no inode number and no ctime of the host: two hosts with the same
//! files have equal Trees, and [`Tree::digest`] says so.
//!
//! Architecture invariant: nodes are numbered canonically (the root is 0, then directory by directory,
//! breadth first, each directory's names in bytewise order; a node with several names is numbered at
//! its first). Equal content has equal numbers, whatever order the scan found it in.

mod builder;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::sync::OnceLock;

use bstr::BStr;

pub use builder::{BuildId, NewKind, TreeBuilder};

/// The unit of hole maps, bytes.
pub const HOLE_UNIT: u64 = 4096;

/// An inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    pub const ROOT: NodeId = NodeId(0);

    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Seconds since 1970 (may be negative) and nanoseconds below 1,000,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

/// What every inode has, of whatever kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
}

/// What a node is. Ranges point into the Tree's own arenas; use the accessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File {
        /// Bytes.
        size: u64,
    },
    Symlink,
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

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a BStr,
    pub node: NodeId,
}

/// One extended attribute, its name with the prefix (`user.note`, `security.capability`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// A run of data in a sparse file, in units of [`HOLE_UNIT`]; `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DataRun {
    pub start: u32,
    pub end: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    start: u32,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    meta: Meta,
    kind: Kind,
    /// Directory: its entries. Symlink: its target in `bytes`. File: its runs in `runs`.
    body: Span,
    /// Whether a file's `body` says anything; a file without a hole map is all data.
    sparse: bool,
    /// Index of its set in `xattr_sets`; 0 is the empty set.
    xattrs: u32,
    /// How many names it has.
    names: u32,
    /// The first name: its directory, and its index among all entries.
    parent: NodeId,
    first_entry: u32,
}

#[derive(Debug, Clone, Copy)]
struct RawEntry {
    name: Span,
    node: NodeId,
}

/// Every name that enters an image and its metadata. Immutable; made by a [`crate::TreeBuilder`], a scan
/// or a composition.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    entries: Vec<RawEntry>,
    /// Names and symlink targets.
    bytes: Vec<u8>,
    runs: Vec<DataRun>,
    /// Distinct sets, each sorted by name.
    xattr_sets: Vec<Vec<Xattr>>,
    /// Made when it is first asked for.
    digest: OnceLock<blake3::Hash>,
}

impl Tree {
    /// Number of inodes.
    #[allow(clippy::len_without_is_empty, reason = "a Tree always has its root")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Every inode, in canonical order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + Clone + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    pub fn meta(&self, id: NodeId) -> &Meta {
        &self.nodes[id.index()].meta
    }

    pub fn kind(&self, id: NodeId) -> Kind {
        self.nodes[id.index()].kind
    }

    /// The names in a directory, bytewise sorted; nothing for any other kind.
    pub fn entries(&self, dir: NodeId) -> impl ExactSizeIterator<Item = Entry<'_>> + Clone {
        let node = &self.nodes[dir.index()];
        let span = match node.kind {
            Kind::Directory => node.body,
            _ => Span::default(),
        };
        self.entries[span.start as usize..(span.start + span.len) as usize]
            .iter()
            .map(|raw| Entry {
                name: self.bytes_at(raw.name),
                node: raw.node,
            })
    }

    /// The entry of that name in a directory.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let node = &self.nodes[dir.index()];
        if node.kind != Kind::Directory {
            return None;
        }
        let all =
            &self.entries[node.body.start as usize..(node.body.start + node.body.len) as usize];
        let found = all
            .binary_search_by(|raw| self.bytes_at(raw.name).cmp(BStr::new(name)))
            .ok()?;
        Some(all[found].node)
    }

    /// A symlink's target; empty for any other kind.
    pub fn target(&self, id: NodeId) -> &BStr {
        let node = &self.nodes[id.index()];
        match node.kind {
            Kind::Symlink => self.bytes_at(node.body),
            _ => BStr::new(b""),
        }
    }

    /// The data of a sparse file, in order and apart; `None` where all of the file is data.
    pub fn data_runs(&self, id: NodeId) -> Option<&[DataRun]> {
        let node = &self.nodes[id.index()];
        node.sparse.then(|| {
            &self.runs[node.body.start as usize..(node.body.start + node.body.len) as usize]
        })
    }

    /// Extended attributes, sorted by name.
    pub fn xattrs(&self, id: NodeId) -> &[Xattr] {
        &self.xattr_sets[self.nodes[id.index()].xattrs as usize]
    }

    /// Nodes with equal numbers have equal xattrs; 0 is the empty set.
    pub fn xattr_set(&self, id: NodeId) -> u32 {
        self.nodes[id.index()].xattrs
    }

    /// How many names a node has (1 for the root).
    pub fn names(&self, id: NodeId) -> u32 {
        self.nodes[id.index()].names
    }

    /// The directory of a node's first name; the root is its own.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.nodes[id.index()].parent
    }

    /// A node's first name; empty for the root.
    pub fn name(&self, id: NodeId) -> &BStr {
        if id == NodeId::ROOT {
            return BStr::new(b"");
        }
        self.bytes_at(self.entries[self.nodes[id.index()].first_entry as usize].name)
    }

    /// The path of a node's first name, from the root: `/etc/passwd`.
    pub fn path(&self, id: NodeId) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            parts.push(self.name(at));
            at = self.parent(at);
        }
        if parts.is_empty() {
            return b"/".to_vec();
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path
    }

    /// Says whether two Trees hold the same: names, metadata, links, holes. Not file contents.
    pub fn digest(&self) -> blake3::Hash {
        *self.digest.get_or_init(|| self.compute_digest())
    }

    /// How many distinct sets of xattrs there are, the empty one included.
    pub(crate) fn xattr_sets(&self) -> usize {
        self.xattr_sets.len()
    }

    /// Not less than the number of entries, or of bytes of names and targets.
    pub(crate) fn size_bound(&self) -> usize {
        self.entries.len().max(self.bytes.len())
    }

    fn bytes_at(&self, span: Span) -> &BStr {
        BStr::new(&self.bytes[span.start as usize..(span.start + span.len) as usize])
    }

    fn compute_digest(&self) -> blake3::Hash {
        /// Large pieces let blake3 use its wide instructions.
        const PIECE: usize = 64 * 1024;
        let mut h = blake3::Hasher::new_derive_key("fcpipe tree 1");
        let mut out = Vec::with_capacity(PIECE + 4096);
        for id in self.nodes() {
            self.encode(id, &mut out);
            if out.len() >= PIECE {
                h.update(&out);
                out.clear();
            }
        }
        h.update(&out);
        h.finalize()
    }

    /// Appends one node to the digest's input. A length stands before everything that varies, so that
    /// different trees never read alike.
    fn encode(&self, id: NodeId, out: &mut Vec<u8>) {
        let node = &self.nodes[id.index()];
        out.extend_from_slice(&node.meta.mode.to_le_bytes());
        out.extend_from_slice(&node.meta.uid.to_le_bytes());
        out.extend_from_slice(&node.meta.gid.to_le_bytes());
        out.extend_from_slice(&node.meta.mtime.secs.to_le_bytes());
        out.extend_from_slice(&node.meta.mtime.nanos.to_le_bytes());
        let (tag, a, b) = match node.kind {
            Kind::Directory => (0u8, 0, 0),
            Kind::File { size } => (1, size, u64::from(node.sparse)),
            Kind::Symlink => (2, 0, 0),
            Kind::CharDevice { major, minor } => (3, major.into(), minor.into()),
            Kind::BlockDevice { major, minor } => (4, major.into(), minor.into()),
            Kind::Fifo => (5, 0, 0),
            Kind::Socket => (6, 0, 0),
        };
        out.push(tag);
        out.extend_from_slice(&a.to_le_bytes());
        out.extend_from_slice(&b.to_le_bytes());
        let xattrs = self.xattrs(id);
        out.extend_from_slice(&(xattrs.len() as u32).to_le_bytes());
        for x in xattrs {
            encode_bytes(&x.name, out);
            encode_bytes(&x.value, out);
        }
        // What follows is as many runs, bytes or entries as this says: the tag tells which.
        out.extend_from_slice(&node.body.len.to_le_bytes());
        for run in self.data_runs(id).unwrap_or_default() {
            out.extend_from_slice(&run.start.to_le_bytes());
            out.extend_from_slice(&run.end.to_le_bytes());
        }
        out.extend_from_slice(self.target(id));
        for entry in self.entries(id) {
            encode_bytes(entry.name, out);
            out.extend_from_slice(&entry.node.0.to_le_bytes());
        }
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}
