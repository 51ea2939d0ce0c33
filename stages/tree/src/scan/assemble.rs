//! From what a walk found to a [`Scan`]: breadth first, so that numbers are canonical.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bstr::ByteSlice;

use super::walk::{Facts, Finds, Item, Kept, Leaf, Listing, Outcome, Part, Walked, What};
use super::{Request, Scan, ScanError, ScanRoot, ScanWarning, Stamp, join, walk};
use crate::index::{Body, Encoder, Index, Seen};
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
    /// By worker; the last is for what the index has read.
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
    facts: Facts,
    parts: Vec<Part>,
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
    if let Some(index) = index {
        let threads = walk::threads(request.options.threads);
        if walk::recall(&mut walked, index, threads).is_none() {
            return Ok(None);
        }
    }
    walked.finds.push(Finds {
        sets: index.map_or_else(Vec::new, |index| index.sets.clone()),
        holes: Vec::new(),
        contents: Vec::new(),
    });
    let mut assembly = Assembly {
        request,
        // Its metadata is put right below.
        writer: Writer::new(made_directory(Timestamp::default()), Vec::new(), room),
        encoder: encode.then(|| Encoder::new(room)),
        stamps: Vec::with_capacity(room),
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
    let (facts, parts) = match dirs[0].take() {
        Some(Outcome::Listed(top)) => assembly.listed(top),
        // The source itself went away between two calls.
        _ => {
            return Err(ScanError::Changed {
                path: request.source.to_path_buf(),
            });
        }
    };
    let (_, set) = assembly.top(&facts);
    let node = NodeId::ROOT;
    let mut waiting = std::collections::VecDeque::from([(Waiting { node, facts, parts }, set)]);
    while let Some((dir, set)) = waiting.pop_front() {
        assembly.writer.begin(dir.node);
        if let Some(encoder) = &mut assembly.encoder {
            encoder.begin(dir.facts.seen, set, dir.facts.settled);
        }
        each_sorted(&dir.parts, |part, item| {
            let name = part.name(item);
            match &item.what {
                What::Directory(number) => {
                    let outcome = dirs[*number as usize].take();
                    waiting.extend(assembly.directory(dir.node, name, item.listed, outcome));
                }
                What::Leaf(facts, leaf) => assembly.leaf(dir.node, name, item, facts, leaf, part),
                What::Own => assembly.left_out(dir.node, name),
                What::Covered => {
                    let path = assembly.path(dir.node, name);
                    assembly.warnings.push(ScanWarning::CoveredFile { path });
                }
            }
        });
    }
    assembly.finish(entrance).map(Some)
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

    /// The source itself; gives the numbers of its set.
    fn top(&mut self, facts: &Facts) -> (u32, u32) {
        let (worker, number) = (facts.worker as usize, facts.xattrs as usize);
        let set = &self.finds[worker].sets.get(number);
        let xattrs = set.map(|set| set.xattrs.clone()).unwrap_or_default();
        self.writer = Writer::new(facts.seen.meta(), xattrs, self.stamps.capacity());
        self.stamps.push(facts.seen.stamp());
        self.set(facts, NodeId::ROOT, b"")
    }

    /// Adds a directory, and gives what is to be added below it.
    fn directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        listed: u64,
        outcome: Option<Outcome>,
    ) -> Option<(Waiting, u32)> {
        let (facts, parts) = match outcome {
            Some(Outcome::Listed(listing)) => self.listed(listing),
            Some(Outcome::Covered) => {
                let meta = made_directory(self.writer.meta(parent).mtime);
                self.writer.add(name, meta, NewKind::Directory, 0);
                self.stamps.push(Stamp::default());
                self.entries += 1;
                let path = self.path(parent, name);
                self.warnings.push(ScanWarning::NotCrossed { path });
                return None;
            }
            Some(Outcome::Own) => {
                self.left_out(parent, name);
                return None;
            }
            // What is the same was recalled before.
            Some(Outcome::Absent | Outcome::Same { .. }) | None => return None,
        };
        let (set, encoded) = self.set(&facts, parent, name);
        let meta = facts.seen.meta();
        let node = self.writer.add(name, meta, NewKind::Directory, set);
        self.stamps.push(facts.seen.stamp());
        self.entries += 1;
        if let Some(encoder) = &mut self.encoder {
            let body = Body::Directory(self.dirs);
            encoder.row(name, listed, Seen::none(), 0, true, &body);
        }
        self.dirs += 1;
        Some((Waiting { node, facts, parts }, encoded))
    }

    fn leaf(
        &mut self,
        parent: NodeId,
        name: &[u8],
        item: &Item,
        facts: &Facts,
        leaf: &Leaf,
        part: &Part,
    ) {
        self.entries += 1;
        let (set, encoded) = self.set(facts, parent, name);
        let seen = &facts.seen;
        let (mut kind, mut body, mut hash) = (NewKind::Socket, Body::Other, None);
        let (major, minor) = seen.device();
        match *leaf {
            Leaf::File { holes, content } => {
                self.settled &= facts.settled;
                let finds = &self.finds[part.worker];
                hash = content.map(|n| &finds.contents[n as usize]);
                let data = holes.map(|n| &self.finds[part.worker].holes[n as usize][..]);
                let size = seen.size();
                kind = NewKind::File { size, data };
                body = Body::File {
                    runs: data,
                    content: hash,
                };
            }
            Leaf::Symlink { at, len } => {
                let target = part.target(at, len);
                kind = NewKind::Symlink { target };
                body = Body::Symlink(target);
            }
            Leaf::CharDevice => kind = NewKind::CharDevice { major, minor },
            Leaf::BlockDevice => kind = NewKind::BlockDevice { major, minor },
            Leaf::Fifo => kind = NewKind::Fifo,
            Leaf::Socket => {}
        }
        if let Some(encoder) = &mut self.encoder {
            encoder.row(name, item.listed, *seen, encoded, facts.settled, &body);
        }
        let stamp = seen.stamp();
        let identity = (stamp.dev, stamp.ino);
        if seen.links() > 1
            && let Some(&node) = self.linked.get(&identity)
        {
            self.writer.link(name, node);
            return;
        }
        if let NewKind::File { size, .. } = kind {
            self.bytes += size;
        }
        let node = self.writer.add(name, seen.meta(), kind, set);
        self.stamps.push(stamp);
        if let Some(hash) = hash {
            self.contents.resize(node.index(), [0; 32]);
            self.contents.push(*hash);
        }
        if seen.links() > 1 {
            self.linked.insert(identity, node);
        }
    }

    /// The Tree's number and the new index's for the set of `name` in `parent`.
    fn set(&mut self, facts: &Facts, parent: NodeId, name: &[u8]) -> (u32, u32) {
        if facts.xattrs == 0 {
            return (0, 0);
        }
        let (worker, number) = (facts.worker as usize, facts.xattrs as usize);
        let set = &self.finds[worker].sets[number];
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
