//! From what a walk found to a [`Scan`]: breadth first, so that numbers are canonical.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::walk::{Facts, Finds, Item, Leaf, Listing, Outcome, Part, Walked, What};
use super::xattrs::{self, Sets};
use super::{FILE_NAME, Request, Scan, ScanError, ScanRoot, ScanWarning, Stamp, holes, join, walk};
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
    stamps: Vec<Stamp>,
    finds: Vec<Finds>,
    /// By worker and by its number for a set: the Tree's number.
    sets: Vec<Vec<Option<u32>>>,
    /// Nodes with more than one name, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    warnings: Vec<ScanWarning>,
    bytes: u64,
    entries: u64,
}

pub(super) fn directory(
    request: &Request<'_>,
    mut walked: Walked,
    entrance: Entrance,
) -> Result<Scan, ScanError> {
    let room = fits(request, &walked)?;
    let top = match walked.dirs[0].take() {
        Some(Outcome::Listed(top)) => top,
        // The source itself went away between two calls.
        _ => {
            return Err(ScanError::Changed {
                path: request.source.to_path_buf(),
            });
        }
    };
    let top_xattrs =
        walked.finds[top.facts.worker as usize].sets.sets[top.facts.xattrs as usize].clone();
    let mut assembly = Assembly {
        request,
        writer: Writer::new(top.facts.meta, top_xattrs, room),
        stamps: Vec::with_capacity(room),
        sets: walked
            .finds
            .iter()
            .map(|finds| vec![None; finds.sets.sets.len()])
            .collect(),
        finds: walked.finds,
        linked: HashMap::new(),
        warnings: Vec::new(),
        bytes: 0,
        entries: 0,
    };
    assembly.stamps.push(top.facts.stamp);

    let mut dirs = walked.dirs;
    let mut waiting = std::collections::VecDeque::from([(NodeId::ROOT, top)]);
    while let Some((node, listing)) = waiting.pop_front() {
        assembly.writer.begin(node);
        each_sorted(&listing, |part, item| {
            let name = part.name(item);
            match &item.what {
                What::Directory(number) => {
                    let outcome = dirs[*number as usize].take();
                    if let Some((node, listing)) = assembly.directory(node, name, outcome) {
                        waiting.push_back((node, listing));
                    }
                }
                What::Leaf(facts, leaf) => assembly.leaf(name, facts, leaf, part),
                What::Own => assembly.left_out(node, name),
                What::Covered => {
                    let path = assembly.path(node, name);
                    assembly.warnings.push(ScanWarning::CoveredFile { path });
                }
            }
        });
    }
    Ok(assembly.finish(entrance))
}

/// How many nodes to make room for, if they can be numbered at all.
fn fits(request: &Request<'_>, walked: &Walked) -> Result<usize, ScanError> {
    let mut entries = 1;
    let mut bytes = 0;
    for outcome in walked.dirs.iter().flatten() {
        if let Outcome::Listed(listing) = outcome {
            for part in &listing.parts {
                entries += part.items.len();
                bytes += part.bytes();
            }
        }
    }
    if entries > MOST || bytes > MOST {
        return Err(ScanError::TooMany {
            path: request.source.to_path_buf(),
        });
    }
    Ok(entries)
}

/// Calls for each item in the order of names, over all parts.
fn each_sorted(listing: &Listing, mut call: impl FnMut(&Part, &Item)) {
    if let [part] = &listing.parts[..] {
        for item in &part.items {
            call(part, item);
        }
        return;
    }
    let mut all: Vec<(&Part, &Item)> = listing
        .parts
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
    /// Adds a directory, and gives what is to be listed below it.
    fn directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        outcome: Option<Outcome>,
    ) -> Option<(NodeId, Listing)> {
        match outcome {
            Some(Outcome::Listed(listing)) => {
                let facts = &listing.facts;
                let set = self.set(facts);
                let node = self.writer.add(name, facts.meta, NewKind::Directory, set);
                self.stamps.push(facts.stamp);
                self.entries += 1;
                Some((node, listing))
            }
            Some(Outcome::Covered) => {
                let meta = made_directory(self.writer.meta(parent).mtime);
                self.writer.add(name, meta, NewKind::Directory, 0);
                self.stamps.push(Stamp::default());
                self.entries += 1;
                let path = self.path(parent, name);
                self.warnings.push(ScanWarning::NotCrossed { path });
                None
            }
            Some(Outcome::Own) => {
                self.left_out(parent, name);
                None
            }
            Some(Outcome::Absent) | None => None,
        }
    }

    fn leaf(&mut self, name: &[u8], facts: &Facts, leaf: &Leaf, part: &Part) {
        self.entries += 1;
        let identity = (facts.stamp.dev, facts.stamp.ino);
        if facts.links > 1
            && let Some(&node) = self.linked.get(&identity)
        {
            self.writer.link(name, node);
            return;
        }
        let set = self.set(facts);
        let kind = match *leaf {
            Leaf::File { holes } => {
                self.bytes += facts.stamp.size;
                NewKind::File {
                    size: facts.stamp.size,
                    data: holes.map(|n| &self.finds[part.worker].holes[n as usize][..]),
                }
            }
            Leaf::Symlink { at, len } => NewKind::Symlink {
                target: part.target(at, len),
            },
            Leaf::CharDevice { major, minor } => NewKind::CharDevice { major, minor },
            Leaf::BlockDevice { major, minor } => NewKind::BlockDevice { major, minor },
            Leaf::Fifo => NewKind::Fifo,
            Leaf::Socket => NewKind::Socket,
        };
        let node = self.writer.add(name, facts.meta, kind, set);
        self.stamps.push(facts.stamp);
        if facts.links > 1 {
            self.linked.insert(identity, node);
        }
    }

    fn set(&mut self, facts: &Facts) -> u32 {
        if facts.xattrs == 0 {
            return 0;
        }
        let (worker, number) = (facts.worker as usize, facts.xattrs as usize);
        let set = &self.finds[worker].sets.sets[number];
        *self.sets[worker][number].get_or_insert_with(|| self.writer.xattr_set(set.clone()))
    }

    fn left_out(&mut self, parent: NodeId, name: &[u8]) {
        let path = self.path(parent, name);
        self.warnings.push(ScanWarning::LeftOut { path });
    }

    fn path(&self, parent: NodeId, name: &[u8]) -> std::path::PathBuf {
        join(self.request.source, &self.writer.path(parent, name)[1..])
    }

    fn finish(mut self, entrance: Entrance) -> Scan {
        let sets = self.finds.iter().map(|finds| &finds.sets);
        self.warnings.extend(foreign(self.request, sets));
        self.warnings.sort();
        self.stamps.shrink_to_fit();
        Scan {
            source: self.request.source.to_path_buf(),
            root: ScanRoot::Directory,
            tree: Arc::new(self.writer.finish()),
            stamps: self.stamps,
            warnings: self.warnings,
            content: self.request.content.clone(),
            bytes: self.bytes,
            entries: self.entries,
            started: self.request.started,
            cross_mounts: self.request.options.cross_mounts,
            entrance,
        }
    }
}

/// One warning an attribute, whichever threads met it.
fn foreign<'a>(
    request: &Request<'_>,
    sets: impl Iterator<Item = &'a Sets>,
) -> impl Iterator<Item = ScanWarning> {
    let mut all: BTreeMap<Vec<u8>, (Vec<u8>, u64)> = BTreeMap::new();
    for (name, (path, count)) in sets.flat_map(|sets| &sets.foreign) {
        let seen = all.entry(name.clone()).or_insert_with(|| (path.clone(), 0));
        seen.0 = std::cmp::min(&seen.0, path).clone();
        seen.1 += count;
    }
    let source = request.source.to_path_buf();
    all.into_iter()
        .map(move |(name, (path, count))| ScanWarning::ForeignAttribute {
            name,
            path: join(&source, &path),
            count,
        })
}

/// A source that is a regular file: a Tree with a made-up root that holds it.
pub(super) fn file(
    request: &Request<'_>,
    found: BorrowedFd<'_>,
    looked: &Statx,
) -> Result<Scan, ScanError> {
    let io =
        |action| move |errno: Errno| ScanError::io(request.source.to_path_buf(), action, errno);
    let opened = sys::open_source(found, request.source).map_err(io("open it"))?;
    let stat = sys::stat(opened.as_fd(), c"").map_err(io("look at it"))?;
    let stamp = sys::stamp_of(&stat);
    if stamp != sys::stamp_of(looked) {
        return Err(ScanError::Changed {
            path: request.source.to_path_buf(),
        });
    }
    let mut data = None;
    if holes::may_have(stamp.size, stat.stx_blocks) {
        if stamp.size > holes::MOST {
            return Err(ScanError::FileTooLarge {
                path: request.source.to_path_buf(),
                size: stamp.size,
            });
        }
        data = holes::data_runs(opened.as_fd(), stamp.size).map_err(io("find its holes"))?;
    }
    let mut sets = xattrs::Sets::new();
    let set = sets
        .read(opened.as_fd(), c"", 0, Vec::new)
        .map_err(|e| e.of(request.source.to_path_buf()))?;
    let meta = walk::meta_of(&stat);
    let mut writer = Writer::new(made_directory(meta.mtime), Vec::new(), 2);
    let set = writer.xattr_set(sets.sets[set as usize].clone());
    let kind = NewKind::File {
        size: stamp.size,
        data: data.as_deref(),
    };
    writer.add(FILE_NAME, meta, kind, set);
    Ok(Scan {
        source: request.source.to_path_buf(),
        root: ScanRoot::File,
        tree: Arc::new(writer.finish()),
        stamps: vec![Stamp::default(), stamp],
        warnings: foreign(request, std::iter::once(&sets)).collect(),
        content: request.content.clone(),
        bytes: stamp.size,
        entries: 1,
        started: request.started,
        cross_mounts: request.options.cross_mounts,
        entrance: Entrance::AsSeen,
    })
}
