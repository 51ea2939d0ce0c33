//! From what a walk found to a [`Scan`]: breadth first, so that numbers are canonical.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bstr::ByteSlice;

use rustix::fs::FileType;

use super::walk::{Facts, Finds, Item, Kept, Leaf, Listing, Outcome, Part, Recalled, Walked, What};
use super::{Request, Scan, ScanError, ScanRoot, ScanWarning, Stamp, join, walk};
use crate::index::{Body, Encoder, Index, Seen, flag};
use crate::memory::with_room;
use crate::model::writer::{MOST, Writer};
use crate::model::{Meta, NewKind, NodeId, Timestamp};
use crate::sys::{self, Entrance};

/// What stands for a directory that has no metadata of its own: root's, and the time of the directory
/// it is in, so that the same spec gives the same image at any time.
pub(crate) fn made_directory(mtime: Timestamp) -> Meta {
    Meta {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
    }
}

struct Assembly<'a> {
    request: &'a Request<'a>,
    writer: Writer,
    /// `None`: no index is to be written.
    encoder: Option<Encoder>,
    stamps: Vec<Stamp>,
    contents: Vec<[u8; 32]>,
    /// By worker; the last is for what is taken over from the index.
    finds: Vec<Finds>,
    /// By worker and by its number for a set: the Tree's number and the new index's.
    sets: Vec<Vec<Option<(u32, u32)>>>,
    /// Nodes with more than one name, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    /// Attributes that were left out: the first path, relative to the source, and how many have it.
    foreign: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
    warnings: Vec<ScanWarning>,
    /// Directories that were added.
    dirs: u32,
    bytes: u64,
    entries: u64,
    /// Every regular file is settled.
    settled: bool,
}

/// A directory whose names are still to be added.
struct Waiting {
    node: NodeId,
    /// The new index's number of its set.
    set: u32,
    below: Below,
}

/// What is known of a directory.
enum Below {
    Read { facts: Facts, parts: Vec<Part> },
    Recalled(Recalled),
}

/// Everything but a directory, and what it is called by.
struct Inode<'a> {
    seen: &'a Seen,
    /// The Tree's number of its set.
    set: u32,
    kind: NewKind<'a>,
    /// The hash of what it holds, if that was read.
    content: Option<&'a [u8; 32]>,
}

/// A scan and what is to be written for the next one.
pub(super) struct Assembled {
    pub(super) scan: Scan,
    pub(super) encoder: Option<Encoder>,
}

/// `None` where the index was damaged meanwhile. `encode`: whether an index is to be written.
pub(super) fn directory(
    request: &Request<'_>,
    mut walked: Walked,
    index: Option<&Index>,
    entrance: Entrance,
    encode: bool,
) -> Result<Option<Assembled>, ScanError> {
    let room = fits(request, &walked, index)?;
    let same = |outcome: &Outcome| matches!(outcome, Outcome::Same { .. });
    let recalled = index.filter(|_| walked.dirs.iter().flatten().any(same));
    let Some(index) = recalled else {
        return put_together(request, walked, index, room, entrance, encode).map(Some);
    };
    let threads = walk::threads(request.options.threads);
    let Some(blocks) = walk::recall(&mut walked, index, threads) else {
        return Ok(None);
    };
    std::thread::scope(|scope| {
        let check = (threads > 1 && index.dirs() > walk::SHARE)
            .then(|| std::thread::Builder::new().name("check".to_owned()))
            .and_then(|thread| thread.spawn_scoped(scope, || blocks.are_whole()).ok());
        let assembled = put_together(request, walked, Some(index), room, entrance, encode);
        let whole = check.and_then(|thread| thread.join().ok());
        match whole.unwrap_or_else(|| blocks.are_whole()) {
            true => assembled.map(Some),
            false => Ok(None),
        }
    })
}

/// What was read of the index may be damaged: then it does not matter what comes out, only that something does.
fn put_together(
    request: &Request<'_>,
    mut walked: Walked,
    index: Option<&Index>,
    room: usize,
    entrance: Entrance,
    encode: bool,
) -> Result<Assembled, ScanError> {
    walked.finds.push(Finds {
        sets: index.map_or_else(Vec::new, |index| index.sets.clone()),
        holes: Vec::new(),
        contents: Vec::new(),
    });
    let mut assembly = Assembly {
        request,
        // Its metadata is put right below.
        writer: Writer::new(made_directory(Timestamp::default()), Vec::new(), room),
        // Where there is an index, most of the next one is in it.
        encoder: encode.then(|| Encoder::new(if index.is_some() { 0 } else { room })),
        stamps: with_room(room),
        contents: Vec::new(),
        sets: walked
            .finds
            .iter()
            .map(|finds| vec![None; finds.sets.len()])
            .collect(),
        finds: walked.finds,
        linked: HashMap::new(),
        foreign: BTreeMap::new(),
        warnings: Vec::new(),
        dirs: 1,
        bytes: 0,
        entries: 0,
        settled: true,
    };
    let mut dirs = walked.dirs;
    // The source itself may have gone away between two calls.
    let Some(below) = assembly.below(dirs[0].take()) else {
        return Err(ScanError::Changed {
            path: request.source.to_path_buf(),
        });
    };
    let mut waiting = std::collections::VecDeque::from([assembly.top(below)]);
    while let Some(dir) = waiting.pop_front() {
        assembly.writer.begin(dir.node);
        match dir.below {
            Below::Read { facts, parts } => {
                if let Some(encoder) = &mut assembly.encoder {
                    encoder.begin(facts.seen, dir.set, facts.settled);
                }
                each_sorted(&parts, |part, item| {
                    let name = part.name(item);
                    match &item.what {
                        What::Directory(number) => {
                            let outcome = dirs[*number as usize].take();
                            let found = assembly.directory(dir.node, name, outcome);
                            let Some((waits, number)) = found else { return };
                            if let Some(encoder) = &mut assembly.encoder {
                                let body = Body::Directory(number);
                                encoder.row(name, item.listed, Seen::none(), 0, true, &body);
                            }
                            waiting.push_back(waits);
                        }
                        What::Leaf(facts, leaf) => {
                            assembly.leaf(dir.node, name, item, facts, leaf, part);
                        }
                        What::Own => assembly.left_out(dir.node, name),
                        What::Covered => {
                            let path = assembly.path(dir.node, name);
                            assembly.warnings.push(ScanWarning::CoveredFile { path });
                        }
                    }
                });
            }
            Below::Recalled(recalled) => {
                if let Some(encoder) = &mut assembly.encoder {
                    encoder.begin_recalled(recalled.block.head().xattrs.get(), dir.set);
                }
                let rows = recalled.block.rows();
                for &number in &recalled.order {
                    let row = &rows[number as usize];
                    let name = recalled.block.name(row);
                    if !row.is(flag::DIRECTORY) {
                        assembly.row(dir.node, name, number, &recalled);
                        continue;
                    }
                    let there = dirs.get_mut(recalled.number(number) as usize);
                    let outcome = there.and_then(Option::take);
                    let Some((waits, new)) = assembly.directory(dir.node, name, outcome) else {
                        // It went away after its parent was looked at, which the block can't say.
                        assembly.encoder = None;
                        continue;
                    };
                    if let Some(encoder) = &mut assembly.encoder {
                        encoder.recalled_directory(number, row.body_at.get(), new);
                    }
                    waiting.push_back(waits);
                }
                if let Some(encoder) = &mut assembly.encoder {
                    encoder.keep(recalled.block);
                }
            }
        }
    }
    assembly.finish(entrance)
}

/// How many nodes to make room for, if they can be numbered at all.
fn fits(request: &Request<'_>, walked: &Walked, index: Option<&Index>) -> Result<usize, ScanError> {
    let mut entries = 1;
    let mut bytes = 0;
    let mut same = false;
    for outcome in walked.dirs.iter().flatten() {
        match outcome {
            Outcome::Listed(listing) => {
                for part in &listing.parts {
                    entries += part.items.len();
                    bytes += part.bytes();
                    same |= !part.kept.is_empty();
                }
            }
            _ => same = true,
        }
    }
    if let Some(index) = index.filter(|_| same) {
        entries += usize::try_from(index.entries()).unwrap_or(MOST);
        bytes += usize::try_from(index.text()).unwrap_or(MOST);
    }
    if entries > MOST || bytes > MOST {
        return Err(ScanError::TooMany {
            path: request.source.to_path_buf(),
        });
    }
    Ok(entries)
}

/// Calls for each item in the order of names, over all parts.
fn each_sorted(parts: &[Part], mut call: impl FnMut(&Part, &Item)) {
    if let [part] = parts {
        for item in &part.items {
            call(part, item);
        }
        return;
    }
    let mut all: Vec<(&Part, &Item)> = parts
        .iter()
        .flat_map(|part| part.items.iter().map(move |item| (part, item)))
        .collect();
    // Stable, as it takes advantage of parts that are sorted already.
    all.sort_by(|a, b| a.0.name(a.1).cmp(b.0.name(b.1)));
    for (part, item) in all {
        call(part, item);
    }
}

impl Assembly<'_> {
    /// What is known of a directory that is there.
    fn below(&mut self, outcome: Option<Outcome>) -> Option<Below> {
        match outcome {
            Some(Outcome::Listed(listing)) => {
                let (facts, parts) = self.listed(listing);
                Some(Below::Read { facts, parts })
            }
            Some(Outcome::Recalled(recalled)) => Some(Below::Recalled(recalled)),
            _ => None,
        }
    }

    /// A directory that was looked at: what was kept of the index is made like what was read.
    fn listed(&mut self, listing: Listing) -> (Facts, Vec<Part>) {
        let mut parts = listing.parts;
        if let Some((_, open)) = &listing.known
            && let Some(block) = &open.block
        {
            let kept: Vec<Kept> = parts.iter().flat_map(|part| &part.kept).copied().collect();
            if !kept.is_empty() {
                let worker = self.finds.len() - 1;
                let finds = &mut self.finds[worker];
                parts.push(Part::from_rows(block, kept.into_iter(), worker, finds));
                parts.retain(|part| !part.items.is_empty());
            }
        }
        (listing.facts, parts)
    }

    /// What a directory is itself, and its set: the worker and its number for it.
    fn itself(&self, below: &Below) -> (Seen, (usize, u32)) {
        match below {
            Below::Read { facts, .. } => (facts.seen, (facts.worker as usize, facts.xattrs)),
            Below::Recalled(recalled) => {
                let head = recalled.block.head();
                (head.seen, (self.finds.len() - 1, head.xattrs.get()))
            }
        }
    }

    /// The source itself.
    fn top(&mut self, below: Below) -> Waiting {
        let (seen, (worker, number)) = self.itself(&below);
        let set = &self.finds[worker].sets.get(number as usize);
        let xattrs = set.map(|set| set.xattrs.clone()).unwrap_or_default();
        self.writer = Writer::new(seen.meta(), xattrs, self.stamps.capacity());
        self.stamps.push(seen.stamp());
        let (_, set) = self.set((worker, number), NodeId::ROOT, b"");
        Waiting {
            node: NodeId::ROOT,
            set,
            below,
        }
    }

    /// Adds a directory, and gives what is to be added below it and the directory's number in the new index.
    fn directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        outcome: Option<Outcome>,
    ) -> Option<(Waiting, u32)> {
        match &outcome {
            Some(Outcome::Covered) => {
                let meta = made_directory(self.writer.meta(parent).mtime);
                self.writer.add(name, meta, NewKind::Directory, 0);
                self.stamps.push(Stamp::default());
                self.entries += 1;
                let path = self.path(parent, name);
                self.warnings.push(ScanWarning::NotCrossed { path });
            }
            Some(Outcome::Own) => self.left_out(parent, name),
            _ => {}
        }
        let below = self.below(outcome)?;
        let (seen, set) = self.itself(&below);
        let (set, encoded) = self.set(set, parent, name);
        let node = self.writer.add(name, seen.meta(), NewKind::Directory, set);
        self.stamps.push(seen.stamp());
        self.entries += 1;
        let number = self.dirs;
        self.dirs += 1;
        let waits = Waiting {
            node,
            set: encoded,
            below,
        };
        Some((waits, number))
    }

    /// Adds what was looked at.
    fn leaf(
        &mut self,
        parent: NodeId,
        name: &[u8],
        item: &Item,
        facts: &Facts,
        leaf: &Leaf,
        part: &Part,
    ) {
        let (set, encoded) = self.set((facts.worker as usize, facts.xattrs), parent, name);
        let seen = &facts.seen;
        let (major, minor) = seen.device();
        let finds = &self.finds[part.worker];
        let (mut body, mut hash) = (Body::Other, None);
        // Hole maps of the finds are given to the Tree by value, as both are the assembly's.
        let mut runs = Vec::new();
        let kind = match *leaf {
            Leaf::File { holes, content } => {
                self.settled &= facts.settled;
                hash = content.map(|n| finds.contents[n as usize]);
                let data = holes.map(|n| {
                    runs.clone_from(&finds.holes[n as usize]);
                    &runs[..]
                });
                let size = seen.size();
                body = Body::File {
                    runs: data,
                    content: hash.as_ref(),
                };
                NewKind::File { size, data }
            }
            Leaf::Symlink { at, len } => {
                let target = part.target(at, len);
                body = Body::Symlink(target);
                NewKind::Symlink { target }
            }
            Leaf::CharDevice => NewKind::CharDevice { major, minor },
            Leaf::BlockDevice => NewKind::BlockDevice { major, minor },
            Leaf::Fifo => NewKind::Fifo,
            Leaf::Socket => NewKind::Socket,
        };
        if let Some(encoder) = &mut self.encoder {
            encoder.row(name, item.listed, *seen, encoded, facts.settled, &body);
        }
        self.inode(
            name,
            Inode {
                seen,
                set,
                kind,
                content: hash.as_ref(),
            },
        );
    }

    /// Adds what is a row of the index.
    fn row(&mut self, parent: NodeId, name: &[u8], number: u32, recalled: &Recalled) {
        let block = &recalled.block;
        let row = &block.rows()[number as usize];
        let old = row.xattrs.get();
        let (set, encoded) = self.set((self.finds.len() - 1, old), parent, name);
        if let Some(encoder) = &mut self.encoder {
            encoder.recalled_set(number, old, encoded);
        }
        let (major, minor) = row.seen.device();
        let (mut runs, mut hash) = (Vec::new(), None);
        let kind = match FileType::from_raw_mode(row.seen.mode()) {
            FileType::Symlink => NewKind::Symlink {
                target: block.body(row),
            },
            FileType::CharacterDevice => NewKind::CharDevice { major, minor },
            FileType::BlockDevice => NewKind::BlockDevice { major, minor },
            FileType::Fifo => NewKind::Fifo,
            FileType::Socket => NewKind::Socket,
            _ => {
                hash = block.content(row);
                let data = row.is(flag::SPARSE).then(|| {
                    runs = block.runs(row);
                    &runs[..]
                });
                let size = row.seen.size();
                NewKind::File { size, data }
            }
        };
        self.inode(
            name,
            Inode {
                seen: &row.seen,
                set,
                kind,
                content: hash.as_ref(),
            },
        );
    }

    /// Adds a name in the open directory, and what it is called by unless that has another name already.
    fn inode(&mut self, name: &[u8], inode: Inode<'_>) {
        self.entries += 1;
        let seen = inode.seen;
        let stamp = seen.stamp();
        let identity = (stamp.dev, stamp.ino);
        if seen.links() > 1
            && let Some(&node) = self.linked.get(&identity)
        {
            self.writer.link(name, node);
            return;
        }
        if let NewKind::File { size, .. } = inode.kind {
            self.bytes = self.bytes.saturating_add(size);
        }
        let node = self.writer.add(name, seen.meta(), inode.kind, inode.set);
        self.stamps.push(stamp);
        if let Some(hash) = inode.content {
            self.contents.resize(node.index(), [0; 32]);
            self.contents.push(*hash);
        }
        if seen.links() > 1 {
            self.linked.insert(identity, node);
        }
    }

    /// The Tree's number and the new index's for a worker's set, which `name` in `parent` has.
    fn set(&mut self, (worker, number): (usize, u32), parent: NodeId, name: &[u8]) -> (u32, u32) {
        if number == 0 {
            return (0, 0);
        }
        let number = number as usize;
        let Some(set) = self.finds[worker].sets.get(number) else {
            // Of a damaged index.
            return (0, 0);
        };
        for attribute in &set.foreign {
            let path = self.writer.path(parent, name);
            let path = path.trim_start_with(|c| c == '/');
            let (first, count) = self
                .foreign
                .entry(attribute.clone())
                .or_insert_with(|| (path.to_vec(), 0));
            *count += 1;
            if path < &first[..] {
                *first = path.to_vec();
            }
        }
        *self.sets[worker][number].get_or_insert_with(|| {
            let encoded = self.encoder.as_mut().map_or(0, |encoder| encoder.set(set));
            (self.writer.xattr_set(set.xattrs.clone()), encoded)
        })
    }

    fn left_out(&mut self, parent: NodeId, name: &[u8]) {
        let path = self.path(parent, name);
        self.warnings.push(ScanWarning::LeftOut { path });
    }

    fn path(&self, parent: NodeId, name: &[u8]) -> std::path::PathBuf {
        join(self.request.source, &self.writer.path(parent, name)[1..])
    }

    fn finish(mut self, entrance: Entrance) -> Result<Assembled, ScanError> {
        let foreign = std::mem::take(&mut self.foreign);
        for (name, (path, count)) in foreign {
            let path = join(self.request.source, &path);
            self.warnings
                .push(ScanWarning::ForeignAttribute { name, path, count });
        }
        self.warnings.sort();
        self.stamps.shrink_to_fit();
        let scan = Scan {
            source: self.request.source.to_path_buf(),
            root: ScanRoot::Directory,
            tree: Arc::new(self.writer.finish()),
            stamps: self.stamps,
            warnings: self.warnings,
            content: self.request.content.clone(),
            bytes: self.bytes,
            entries: self.entries,
            started: self.request.started,
            unsettled: unsettled(self.settled),
            fields: self.request.manner.fields,
            seen: None,
            contents: self.contents,
            declared: declared(self.request),
            cross_mounts: self.request.options.cross_mounts,
            entrance,
        };
        Ok(Assembled {
            scan,
            encoder: self.encoder,
        })
    }
}

/// The words that the user declared, made short.
pub(super) fn declared(request: &Request<'_>) -> Option<blake3::Hash> {
    let words = request.options.declared?;
    let mut h = blake3::Hasher::new_derive_key("fcpipe declared 1");
    Some(h.update(words.as_bytes()).finalize())
}

/// What makes stamps differ from all others where files are not settled.
pub(super) fn unsettled(settled: bool) -> Option<[u8; 16]> {
    (!settled).then(sys::random)
}
