//! What a walk finds: by directory, names as they were read and rows of the index that hold still.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;

use super::{Open, TELL};
use crate::index::{Block, Index, Row, Seen, flag};
use crate::model::DataRun;
use crate::scan::xattrs::Set;
use crate::scan::{Difference, ScanChange};

/// Everything that was found, not yet in any order.
pub(in crate::scan) struct Walked {
    /// By directory number; the source is 0. `None` never outlives the walk.
    pub(in crate::scan) dirs: Vec<Option<Outcome>>,
    /// By worker.
    pub(in crate::scan) finds: Vec<Finds>,
    /// Something was met that another mount covers, and `rbind` was not asked for.
    pub(in crate::scan) covered: bool,
    /// What is not as the index has it, in no order; not more than some.
    pub(in crate::scan) changes: Vec<ScanChange>,
}

/// What one worker has read beside names: items refer to it by numbers.
pub(in crate::scan) struct Finds {
    pub(in crate::scan) sets: Vec<Set>,
    pub(in crate::scan) holes: Vec<Vec<DataRun>>,
    /// Hashes of contents.
    pub(in crate::scan) contents: Vec<[u8; 32]>,
}

/// What became of a directory that was listed in its parent.
pub(in crate::scan) enum Outcome {
    Listed(Listing),
    /// All of it is as the index has it.
    Same {
        /// Its number in the index.
        dir: u32,
        /// Rows that are directories, and the numbers they have in this walk; `None`: those of the index.
        children: Option<Vec<Kept>>,
    },
    /// The same, when it was read from the index.
    Recalled(Recalled),
    /// Gone before it was opened.
    Absent,
    /// fcpipe's own.
    Own,
    /// Another mount covers it.
    Covered,
}

/// A directory of the index, to be taken over as it is.
pub(in crate::scan) struct Recalled {
    pub(in crate::scan) block: Block,
    /// Its rows in the order of names.
    pub(in crate::scan) order: Vec<u32>,
    /// As [`Outcome::Same`] has it, by row.
    pub(in crate::scan) children: Option<Vec<Kept>>,
}

impl Recalled {
    pub(in crate::scan) fn new(block: Block, mut children: Option<Vec<Kept>>) -> Recalled {
        if let Some(children) = &mut children {
            children.sort_unstable_by_key(|kept| kept.row);
        }
        Recalled {
            order: block.by_name(),
            block,
            children,
        }
    }

    /// The number that a directory among its rows has in this walk.
    pub(in crate::scan) fn number(&self, row: u32) -> u32 {
        match &self.children {
            Some(children) => children
                .binary_search_by_key(&row, |kept| kept.row)
                .map_or(u32::MAX, |at| children[at].number),
            None => self.block.rows()[row as usize].body_at.get(),
        }
    }
}

pub(in crate::scan) struct Listing {
    pub(in crate::scan) facts: Facts,
    /// One, but for large directories.
    pub(in crate::scan) parts: Vec<Part>,
    /// What the index has of it, and the directory's number there.
    pub(in crate::scan) known: Option<(u32, Arc<Open>)>,
}

/// Some names of a directory, sorted, as one worker has looked at them.
pub(in crate::scan) struct Part {
    pub(in crate::scan) worker: usize,
    pub(in crate::scan) names: Box<[u8]>,
    pub(in crate::scan) targets: Box<[u8]>,
    pub(in crate::scan) items: Vec<Item>,
    /// Rows of the index that hold still.
    pub(in crate::scan) kept: Vec<Kept>,
}

/// A row of a directory's block, by its number; for a directory also its number in this walk.
#[derive(Clone, Copy)]
pub(in crate::scan) struct Kept {
    pub(in crate::scan) row: u32,
    pub(in crate::scan) number: u32,
}

pub(in crate::scan) struct Item {
    pub(in crate::scan) name: u32,
    pub(in crate::scan) name_len: u16,
    /// As the directory lists it.
    pub(in crate::scan) listed: u64,
    pub(in crate::scan) what: What,
}

pub(in crate::scan) enum What {
    /// Its number.
    Directory(u32),
    /// Anything else.
    Leaf(Facts, Leaf),
    /// fcpipe's own.
    Own,
    /// A file that another mount covers.
    Covered,
}

/// What is known of any inode.
pub(in crate::scan) struct Facts {
    pub(in crate::scan) seen: Seen,
    /// The number of its set among the worker's.
    pub(in crate::scan) xattrs: u32,
    pub(in crate::scan) worker: u32,
    /// A later change will show in its times.
    pub(in crate::scan) settled: bool,
}

pub(in crate::scan) enum Leaf {
    /// The numbers of its hole map and of the hash of its content among the worker's.
    File {
        holes: Option<u32>,
        content: Option<u32>,
    },
    /// Where its target stands in the part's targets.
    Symlink {
        at: u32,
        len: u16,
    },
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Part {
    pub(in crate::scan) fn name(&self, item: &Item) -> &[u8] {
        let at = item.name as usize;
        &self.names[at..at + usize::from(item.name_len)]
    }

    /// How many bytes of names and targets there are.
    pub(in crate::scan) fn bytes(&self) -> usize {
        self.names.len() + self.targets.len()
    }

    /// A symlink's target.
    pub(in crate::scan) fn target(&self, at: u32, len: u16) -> &[u8] {
        &self.targets[at as usize..at as usize + usize::from(len)]
    }
}

impl Part {
    /// Rows of an index as if they had been looked at by `worker`, whose finds get their hole maps.
    pub(in crate::scan) fn from_rows(
        block: &Block,
        kept: impl ExactSizeIterator<Item = Kept>,
        worker: usize,
        finds: &mut Finds,
    ) -> Part {
        let mut names = Vec::new();
        let mut targets = Vec::new();
        let mut items = Vec::with_capacity(kept.len());
        let rows = block.rows();
        for Kept { row, number } in kept {
            let row = &rows[row as usize];
            let name = block.name(row);
            items.push(Item {
                name: names.len() as u32,
                name_len: name.len() as u16,
                listed: row.listed.get(),
                what: if row.is(flag::DIRECTORY) {
                    What::Directory(number)
                } else {
                    What::from_row(block, row, worker, &mut targets, finds)
                },
            });
            names.extend_from_slice(name);
        }
        let mut part = Part {
            worker,
            names: names.into_boxed_slice(),
            targets: targets.into_boxed_slice(),
            items: Vec::new(),
            kept: Vec::new(),
        };
        items.sort_unstable_by(|a, b| part.name(a).cmp(part.name(b)));
        part.items = items;
        part
    }
}

impl What {
    fn from_row(
        block: &Block,
        row: &Row,
        worker: usize,
        targets: &mut Vec<u8>,
        finds: &mut Finds,
    ) -> What {
        let leaf = match FileType::from_raw_mode(row.seen.mode()) {
            FileType::Symlink => {
                let target = block.body(row);
                let at = targets.len() as u32;
                targets.extend_from_slice(target);
                Leaf::Symlink {
                    at,
                    len: target.len() as u16,
                }
            }
            FileType::CharacterDevice => Leaf::CharDevice,
            FileType::BlockDevice => Leaf::BlockDevice,
            FileType::Fifo => Leaf::Fifo,
            FileType::Socket => Leaf::Socket,
            _ => Leaf::File {
                holes: row.is(flag::SPARSE).then(|| {
                    finds.holes.push(block.runs(row));
                    (finds.holes.len() - 1) as u32
                }),
                content: block.content(row).map(|content| {
                    finds.contents.push(content);
                    (finds.contents.len() - 1) as u32
                }),
            },
        };
        let facts = Facts {
            seen: row.seen,
            xattrs: row.xattrs.get(),
            worker: worker as u32,
            settled: !row.is(flag::UNSETTLED),
        };
        What::Leaf(facts, leaf)
    }
}

/// What a walk finds where everything is as the index has it.
pub(in crate::scan) fn remembered(index: &Index) -> Walked {
    let same = |dir| {
        Some(Outcome::Same {
            dir,
            children: None,
        })
    };
    Walked {
        dirs: (0..index.dirs() as u32).map(same).collect(),
        finds: Vec::new(),
        covered: false,
        changes: Vec::new(),
    }
}

impl Walked {
    /// Whether everything is as the index has it.
    pub(in crate::scan) fn is_same(&self) -> bool {
        self.dirs
            .iter()
            .all(|outcome| matches!(outcome, Some(Outcome::Same { .. })))
    }
}

impl Listing {
    /// What it is if all of it is as the index has it.
    pub(in crate::scan) fn same(&self) -> Option<Outcome> {
        let (dir, open) = self.known.as_ref()?;
        let block = open.block.as_ref()?;
        let head = block.head();
        let kept: usize = self.parts.iter().map(|part| part.kept.len()).sum();
        let same = head.seen == self.facts.seen
            && head.flags.get() & flag::UNSETTLED == 0
            && kept == block.rows().len()
            && self.parts.iter().all(|part| part.items.is_empty());
        same.then(|| {
            let all = self.parts.iter().flat_map(|part| &part.kept).copied();
            let rows = block.rows();
            let children = all.filter(|kept| rows[kept.row as usize].is(flag::DIRECTORY));
            Outcome::Same {
                dir: *dir,
                children: Some(children.collect()),
            }
        })
    }

    /// Tells of names that the index has and the directory has not.
    pub(in crate::scan) fn gone(&self, changes: &mut Vec<ScanChange>) {
        let Some((_, open)) = &self.known else { return };
        let Some(block) = &open.block else { return };
        let mut there = vec![false; block.rows().len()];
        for part in &self.parts {
            for kept in &part.kept {
                there[kept.row as usize] = true;
            }
            for item in &part.items {
                if let Some(row) = block.find(&mut 0, item.listed, part.name(item)) {
                    there[row] = true;
                }
            }
        }
        let names = |name: &[u8]| {
            self.parts.iter().any(|part| {
                let known = part
                    .items
                    .binary_search_by(|item| part.name(item).cmp(name));
                known.is_ok()
            })
        };
        for (row, _) in block.rows().iter().zip(there).filter(|(_, there)| !there) {
            let name = block.name(row);
            if changes.len() < TELL && !names(name) {
                changes.push(ScanChange {
                    path: open.route.path(Path::new(""), name),
                    what: Difference::Gone,
                });
            }
        }
    }
}
