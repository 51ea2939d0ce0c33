//! The Tree: what enters an image, and nothing else.
//!
//! A [`Tree`] holds names and inodes apart, so that hard links are several [`Entry`]s of one
//! [`NodeId`]. It knows no device, no inode number and no ctime of the host: two hosts with the same
//! files have equal Trees, and [`Tree::digest`] says so.
//!
//! Architecture invariant: nodes are numbered canonically (the root is 0, then directory by directory,
//! breadth first, each directory's names in bytewise order; a node with several names is numbered at
//! its first). Equal content has equal numbers, whatever order the scan found it in.

use std::collections::HashMap;

use bstr::BStr;

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

/// Every name that enters an image and its metadata. Immutable; made by a [`TreeBuilder`].
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    entries: Vec<RawEntry>,
    /// Names and symlink targets.
    bytes: Vec<u8>,
    runs: Vec<DataRun>,
    /// Distinct sets, each sorted by name.
    xattr_sets: Vec<Vec<Xattr>>,
    digest: blake3::Hash,
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
        self.digest
    }

    fn bytes_at(&self, span: Span) -> &BStr {
        BStr::new(&self.bytes[span.start as usize..(span.start + span.len) as usize])
    }

    fn compute_digest(&self) -> blake3::Hash {
        let mut h = blake3::Hasher::new_derive_key("fcpipe tree 1");
        let mut record = Vec::with_capacity(256);
        for id in self.nodes() {
            record.clear();
            let node = &self.nodes[id.index()];
            record.extend_from_slice(&node.meta.mode.to_le_bytes());
            record.extend_from_slice(&node.meta.uid.to_le_bytes());
            record.extend_from_slice(&node.meta.gid.to_le_bytes());
            record.extend_from_slice(&node.meta.mtime.secs.to_le_bytes());
            record.extend_from_slice(&node.meta.mtime.nanos.to_le_bytes());
            let (tag, a, b) = match node.kind {
                Kind::Directory => (0u8, 0, 0),
                Kind::File { size } => (1, size, u64::from(node.sparse)),
                Kind::Symlink => (2, 0, 0),
                Kind::CharDevice { major, minor } => (3, major.into(), minor.into()),
                Kind::BlockDevice { major, minor } => (4, major.into(), minor.into()),
                Kind::Fifo => (5, 0, 0),
                Kind::Socket => (6, 0, 0),
            };
            record.push(tag);
            record.extend_from_slice(&a.to_le_bytes());
            record.extend_from_slice(&b.to_le_bytes());
            for run in self.data_runs(id).unwrap_or_default() {
                record.extend_from_slice(&run.start.to_le_bytes());
                record.extend_from_slice(&run.end.to_le_bytes());
            }
            // A length before everything variable keeps different trees from reading alike.
            record.extend_from_slice(&(node.body.len).to_le_bytes());
            record.extend_from_slice(self.target(id));
            let xattrs = self.xattrs(id);
            record.extend_from_slice(&(xattrs.len() as u32).to_le_bytes());
            for x in xattrs {
                record.extend_from_slice(&(x.name.len() as u32).to_le_bytes());
                record.extend_from_slice(&x.name);
                record.extend_from_slice(&(x.value.len() as u32).to_le_bytes());
                record.extend_from_slice(&x.value);
            }
            h.update(&record);
            for entry in self.entries(id) {
                record.clear();
                record.extend_from_slice(&(entry.name.len() as u32).to_le_bytes());
                record.extend_from_slice(entry.name);
                record.extend_from_slice(&entry.node.0.to_le_bytes());
                h.update(&record);
            }
        }
        h.finalize()
    }
}

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

/// Puts a [`Tree`] together from nodes and names in any order.
#[derive(Debug, Clone)]
pub struct TreeBuilder {
    nodes: Vec<Node>,
    /// (directory, name, node)
    links: Vec<(BuildId, Span, BuildId)>,
    bytes: Vec<u8>,
    runs: Vec<DataRun>,
    xattr_sets: Vec<Vec<Xattr>>,
    known_sets: HashMap<Vec<Xattr>, u32>,
}

impl TreeBuilder {
    pub const ROOT: BuildId = BuildId(0);

    /// Begins with a root directory and nothing in it.
    pub fn new(root: Meta, xattrs: Vec<Xattr>) -> Self {
        let mut builder = TreeBuilder {
            nodes: Vec::new(),
            links: Vec::new(),
            bytes: Vec::new(),
            runs: Vec::new(),
            xattr_sets: vec![Vec::new()],
            known_sets: HashMap::from([(Vec::new(), 0)]),
        };
        builder.add(root, NewKind::Directory, xattrs);
        builder
    }

    /// Adds a node that has no name yet. A node that never gets one is left out of the Tree.
    pub fn add(&mut self, meta: Meta, kind: NewKind<'_>, mut xattrs: Vec<Xattr>) -> BuildId {
        xattrs.sort();
        let set = match self.known_sets.get(&xattrs) {
            Some(&set) => set,
            None => {
                let set = self.xattr_sets.len() as u32;
                self.xattr_sets.push(xattrs.clone());
                self.known_sets.insert(xattrs, set);
                set
            }
        };
        let (kind, body, sparse) = match kind {
            NewKind::Directory => (Kind::Directory, Span::default(), false),
            NewKind::File { size, data: None } => (Kind::File { size }, Span::default(), false),
            NewKind::File {
                size,
                data: Some(data),
            } => {
                let span = Span {
                    start: self.runs.len() as u32,
                    len: data.len() as u32,
                };
                self.runs.extend_from_slice(data);
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
        let id = BuildId(self.nodes.len() as u32);
        self.nodes.push(Node {
            meta,
            kind,
            body,
            sparse,
            xattrs: set,
            names: 0,
            parent: NodeId::ROOT,
            first_entry: 0,
        });
        id
    }

    /// Gives `node` a name in `dir`. The caller sees to it that a directory has one name, that a name
    /// is used once in a directory, and that there is no cycle.
    pub fn link(&mut self, dir: BuildId, name: &[u8], node: BuildId) {
        let name = self.keep(name);
        self.links.push((dir, name, node));
    }

    /// The Tree, and for each of its nodes the number it was added under.
    pub fn finish(mut self) -> (Tree, Vec<BuildId>) {
        const UNSEEN: u32 = u32::MAX;
        let bytes = &self.bytes;
        let name_of = |span: &Span| &bytes[span.start as usize..(span.start + span.len) as usize];
        self.links
            .sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| name_of(&a.1).cmp(name_of(&b.1))));
        // Where each directory's links begin.
        let mut first = vec![0u32; self.nodes.len() + 1];
        for (dir, _, _) in &self.links {
            first[dir.0 as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }

        let mut number = vec![UNSEEN; self.nodes.len()];
        number[0] = 0;
        let mut order = vec![TreeBuilder::ROOT];
        let mut nodes = vec![self.nodes[0]];
        nodes[0].names = 1;
        let mut entries: Vec<RawEntry> = Vec::with_capacity(self.links.len());
        let mut at = 0;
        while at < order.len() {
            let build = order[at].0 as usize;
            if nodes[at].kind == Kind::Directory {
                let links = first[build] as usize..first[build + 1] as usize;
                nodes[at].body = Span {
                    start: entries.len() as u32,
                    len: links.len() as u32,
                };
                for &(_, name, child) in &self.links[links] {
                    let seen = number[child.0 as usize];
                    let node = if seen == UNSEEN {
                        let new = nodes.len() as u32;
                        number[child.0 as usize] = new;
                        order.push(child);
                        let mut node = self.nodes[child.0 as usize];
                        node.names = 1;
                        node.parent = NodeId(at as u32);
                        node.first_entry = entries.len() as u32;
                        nodes.push(node);
                        NodeId(new)
                    } else {
                        nodes[seen as usize].names += 1;
                        NodeId(seen)
                    };
                    entries.push(RawEntry { name, node });
                }
            }
            at += 1;
        }
        let mut tree = Tree {
            nodes,
            entries,
            bytes: self.bytes,
            runs: self.runs,
            xattr_sets: self.xattr_sets,
            digest: blake3::Hash::from_bytes([0; 32]),
        };
        tree.digest = tree.compute_digest();
        (tree, order)
    }

    fn keep(&mut self, bytes: &[u8]) -> Span {
        let span = Span {
            start: self.bytes.len() as u32,
            len: bytes.len() as u32,
        };
        self.bytes.extend_from_slice(bytes);
        span
    }
}
