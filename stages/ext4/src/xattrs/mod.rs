//! Extended attributes: each set is translated and packed once, however many inodes have it.
//!
//! A set goes into the inode as far as it fits, then into one block, which up to 1,024 inodes with the
//! same set share; values for which there is no room there get an inode of their own (`ea_inode`), which
//! all equal values share.

mod names;
mod pack;

use std::borrow::Cow;
use std::collections::HashMap;

use bstr::BString;
use fcpipe_tree::{NodeId, Tree, Xattr};

use crate::checksum::SEED;
use crate::error::{LayoutError, XattrProblem};
use crate::numbers::{Item, Numbers};
use crate::ondisk::xattr::{self, REFCOUNT_MAX};

pub(crate) use pack::{encode_block, encode_body};

/// An attribute as ext4 stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attr<'t> {
    /// `e_name_index`: stands for the prefix.
    index: u8,
    /// What comes after the prefix.
    name: &'t [u8],
    value: Cow<'t, [u8]>,
    /// The number of its value among those that have an inode.
    outside: Option<u32>,
}

/// A set of attributes, packed.
#[derive(Debug, Default)]
pub(crate) struct Set<'t> {
    in_body: Vec<Attr<'t>>,
    in_block: Vec<Attr<'t>>,
}

/// A block of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    set: u32,
    /// Inodes that share it.
    refs: u32,
}

/// A value with an inode of its own.
#[derive(Debug)]
pub(crate) struct Value<'t> {
    pub(crate) bytes: Cow<'t, [u8]>,
    /// CRC32C of the value: the kernel looks for equal values by it, and keeps it in `i_atime`.
    pub(crate) hash: u32,
    /// Entries that point to it.
    pub(crate) refs: u64,
    /// The first that has it: whose owner it takes.
    pub(crate) node: NodeId,
}

/// All attributes of a tree.
#[derive(Debug, Default)]
pub(crate) struct Xattrs<'t> {
    /// By the Tree's number of the set.
    sets: Vec<Set<'t>>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) values: Vec<Value<'t>>,
    /// For each item, one more than the number of its block, or 0; empty if no item has one.
    block_of: Vec<u32>,
}

impl<'t> Xattrs<'t> {
    pub(crate) fn new(tree: &'t Tree, numbers: &Numbers) -> Result<Xattrs<'t>, LayoutError> {
        let mut all = Xattrs::default();
        let mut known = HashMap::new();
        for node in tree.nodes() {
            let number = tree.xattr_set(node) as usize;
            if number == 0 {
                continue;
            }
            if all.sets.len() <= number {
                all.sets.resize_with(number + 1, Set::default);
            }
            if all.sets[number].is_empty() {
                all.sets[number] = all.pack(tree, node, &mut known)?;
            }
        }
        all.assign_blocks(tree, numbers);
        Ok(all)
    }

    /// Translates and packs the set of a node, the first that has it.
    fn pack(
        &mut self,
        tree: &'t Tree,
        node: NodeId,
        known: &mut HashMap<Cow<'t, [u8]>, u32>,
    ) -> Result<Set<'t>, LayoutError> {
        let error = |attr: &Xattr, problem| LayoutError::Xattr {
            path: BString::from(tree.path(node)),
            name: BString::from(attr.name.as_slice()),
            problem,
        };
        let mut attrs = Vec::new();
        for attr in tree.xattrs(node) {
            let translated = names::translate(attr).map_err(|problem| error(attr, problem))?;
            attrs.push((translated, attr));
        }
        attrs.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
        let origins: Vec<&Xattr> = attrs.iter().map(|(_, origin)| *origin).collect();
        let attrs: Vec<Attr<'t>> = attrs.into_iter().map(|(attr, _)| attr).collect();
        let places =
            pack::places(&attrs).map_err(|misfit| error(origins[misfit], XattrProblem::NoRoom))?;

        let mut set = Set::default();
        for (mut attr, place) in attrs.into_iter().zip(places) {
            match place {
                pack::Place::Body => set.in_body.push(attr),
                pack::Place::Block => set.in_block.push(attr),
                pack::Place::Outside => {
                    let value = std::mem::take(&mut attr.value);
                    attr.outside = Some(self.value_inode(value, node, known));
                    set.in_block.push(attr);
                }
            }
        }
        Ok(set)
    }

    fn value_inode(
        &mut self,
        bytes: Cow<'t, [u8]>,
        node: NodeId,
        known: &mut HashMap<Cow<'t, [u8]>, u32>,
    ) -> u32 {
        if let Some(&number) = known.get(&bytes) {
            return number;
        }
        let number = self.values.len() as u32;
        known.insert(bytes.clone(), number);
        self.values.push(Value {
            hash: SEED.with(&bytes).0,
            bytes,
            refs: 0,
            node,
        });
        number
    }

    /// Gives every item whose set needs a block one, each block to 1,024 items at most.
    fn assign_blocks(&mut self, tree: &Tree, numbers: &Numbers) {
        if self.sets.iter().all(|set| set.in_block.is_empty()) {
            return;
        }
        self.block_of = vec![0; numbers.items() as usize];
        // The block of each set that still has room.
        let mut open: HashMap<u32, u32> = HashMap::new();
        for item in numbers.all_items() {
            let set = tree.xattr_set(numbers.node(item));
            if self.set(set).in_block.is_empty() {
                continue;
            }
            let block = match open.get(&set) {
                Some(&block) if self.blocks[block as usize].refs < REFCOUNT_MAX => block,
                _ => {
                    let block = self.blocks.len() as u32;
                    self.blocks.push(Block { set, refs: 0 });
                    open.insert(set, block);
                    for value in self.sets[set as usize]
                        .in_block
                        .iter()
                        .filter_map(|a| a.outside)
                    {
                        self.values[value as usize].refs += 1;
                    }
                    block
                }
            };
            self.blocks[block as usize].refs += 1;
            self.block_of[item.index()] = block + 1;
        }
    }

    fn set(&self, number: u32) -> &Set<'t> {
        const EMPTY: &Set<'static> = &Set {
            in_body: Vec::new(),
            in_block: Vec::new(),
        };
        self.sets.get(number as usize).unwrap_or(EMPTY)
    }

    /// Blocks that a set's values outside take. Each inode with the set counts them as its own,
    /// though they are there once.
    pub(crate) fn outside_blocks(&self, set: u32) -> u64 {
        let outside = self
            .set(set)
            .in_block
            .iter()
            .filter_map(|attr| attr.outside);
        outside
            .map(|value| self.values[value as usize].bytes.len().div_ceil(4096) as u64)
            .sum()
    }

    /// What tells each block from all others of any tree: its set, by the hashes of the sets, and how many blocks of the
    /// same set come before it.
    pub(crate) fn block_names(&self, sets: &[[u8; 32]]) -> Vec<([u8; 32], u32)> {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let names = self.blocks.iter().map(|block| {
            let ordinal = seen.entry(block.set).or_default();
            *ordinal += 1;
            (sets[block.set as usize], *ordinal)
        });
        names.collect()
    }

    /// The number of an item's block.
    pub(crate) fn block_of(&self, item: Item) -> Option<u32> {
        self.block_of.get(item.index())?.checked_sub(1)
    }
}

impl Set<'_> {
    fn is_empty(&self) -> bool {
        self.in_body.is_empty() && self.in_block.is_empty()
    }
}

impl Attr<'_> {
    /// The order in which the kernel looks for names in a block.
    fn order(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), self.name)
    }

    /// Bytes of its entry.
    fn entry_size(&self) -> usize {
        (size_of::<xattr::Entry>() + self.name.len()).next_multiple_of(4)
    }

    /// Bytes of its value beside the entry.
    fn value_size(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }
}
