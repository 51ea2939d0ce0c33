//! Which inode is what.
//!
//! The root is 2, `lost+found` 11, every other node follows in the Tree's canonical order; then come the
//! further inodes of files with too many names, then those that hold values of xattrs. All inodes up to
//! the last are in use, so bitmaps and tables are full in front and untouched behind. An image that is laid out near an
//! earlier one has a [`Table`] instead.

use std::collections::HashMap;

use bstr::BString;
use fcpipe_tree::{Kind, NodeId, Tree};

use crate::InodeNo;
use crate::error::LayoutWarning;
use crate::ondisk::inode::LINK_MAX;

/// The name of the directory that fsck puts things into.
pub(crate) const LOST_FOUND: &[u8] = b"lost+found";

/// Something of the tree with an inode of its own: a node, or a further inode of one. Counted from 0:
/// first all nodes, then the further ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Item(pub(crate) u32);

impl Item {
    pub(crate) const ROOT: Item = Item(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an inode holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    Journal,
    /// The `lost+found` that the tree did not have.
    LostFound,
    Item(Item),
    /// The value of that number among those that have an inode.
    Value(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LostFound {
    Made,
    OfTree(NodeId),
    /// The tree has another thing of that name.
    Absent,
}

/// The numbers of all inodes but those of xattr values, which follow.
#[derive(Debug)]
pub(crate) struct Numbers {
    nodes: u32,
    lost_found: LostFound,
    /// The node of each further item.
    further: Vec<NodeId>,
    /// Names that lead to a further item: (directory, place among its entries).
    diverted: HashMap<(NodeId, u32), InodeNo>,
    /// In place of all this where an earlier image says which inode is what.
    table: Option<Table>,
}

/// Inodes that have the numbers they had in an earlier image.
#[derive(Debug)]
pub(crate) struct Table {
    of_node: Vec<InodeNo>,
    of_value: Vec<InodeNo>,
    /// By number; what is not reserved and holds nothing is free.
    holds: Vec<Holds>,
    /// The highest number in use, and how many are.
    last: InodeNo,
    in_use: u32,
}

impl Table {
    /// `of_node` and `of_value` name each inode once; `lost_found`: the one that the tree did not have is there.
    pub(crate) fn new(of_node: Vec<InodeNo>, of_value: Vec<InodeNo>, lost_found: bool) -> Table {
        let all = of_node.iter().chain(&of_value).copied();
        let last = all.max().unwrap_or(InodeNo::FIRST).max(InodeNo::FIRST);
        let mut holds = vec![Holds::Nothing; last.0 as usize + 1];
        holds[InodeNo::JOURNAL.0 as usize] = Holds::Journal;
        if lost_found {
            holds[InodeNo::FIRST.0 as usize] = Holds::LostFound;
        }
        for (item, ino) in (0..).zip(&of_node) {
            holds[ino.0 as usize] = Holds::Item(Item(item));
        }
        for (value, ino) in (0..).zip(&of_value) {
            holds[ino.0 as usize] = Holds::Value(value);
        }
        let reserved = InodeNo::FIRST.0 as usize;
        let others = holds[reserved..].iter();
        let in_use = others.filter(|held| **held != Holds::Nothing).count() + reserved - 1;
        Table {
            of_node,
            of_value,
            holds,
            last,
            in_use: in_use as u32,
        }
    }
}

impl Numbers {
    pub(crate) fn new(tree: &Tree, warnings: &mut Vec<LayoutWarning>) -> Numbers {
        let lost_found = match tree.lookup(NodeId::ROOT, LOST_FOUND) {
            None => LostFound::Made,
            Some(node) if tree.kind(node) == Kind::Directory => LostFound::OfTree(node),
            Some(_) => {
                warnings.push(LayoutWarning::LostAndFoundTaken);
                LostFound::Absent
            }
        };
        let mut numbers = Numbers {
            nodes: tree.len() as u32,
            lost_found,
            further: Vec::new(),
            diverted: HashMap::new(),
            table: None,
        };
        numbers.split_links(tree, warnings);
        numbers
    }

    /// Gives a further inode to every 65,000 names that a node has beyond its first 65,000.
    fn split_links(&mut self, tree: &Tree, warnings: &mut Vec<LayoutWarning>) {
        struct Split {
            first: Item,
            seen: u32,
        }
        let mut splits: HashMap<NodeId, Split> = HashMap::new();
        for node in tree.nodes().filter(|&node| tree.names(node) > LINK_MAX) {
            let names = tree.names(node);
            let inodes = names.div_ceil(LINK_MAX);
            warnings.push(LayoutWarning::LinksSplit {
                path: BString::from(tree.path(node)),
                names,
                inodes,
            });
            let first = Item(self.items());
            self.further.extend((1..inodes).map(|_| node));
            splits.insert(node, Split { first, seen: 0 });
        }
        if splits.is_empty() {
            return;
        }
        for dir in tree.nodes() {
            for (place, entry) in tree.entries(dir).enumerate() {
                let Some(split) = splits.get_mut(&entry.node) else {
                    continue;
                };
                let turn = split.seen / LINK_MAX;
                split.seen += 1;
                if turn > 0 {
                    let item = Item(split.first.0 + turn - 1);
                    let ino = self.of_item(item);
                    self.diverted.insert((dir, place as u32), ino);
                }
            }
        }
    }

    /// How many items there are.
    pub(crate) fn items(&self) -> u32 {
        self.nodes + self.further.len() as u32
    }

    pub(crate) fn all_items(&self) -> impl ExactSizeIterator<Item = Item> + Clone + use<> {
        (0..self.items()).map(Item)
    }

    /// The node that an item is, or is a further inode of.
    pub(crate) fn node(&self, item: Item) -> NodeId {
        match item.0.checked_sub(self.nodes) {
            None => NodeId(item.0),
            Some(further) => self.further[further as usize],
        }
    }

    /// The names that lead to an item.
    pub(crate) fn links(&self, tree: &Tree, item: Item) -> u32 {
        let node = self.node(item);
        let names = tree.names(node);
        if names <= LINK_MAX {
            return names;
        }
        let first = self.further.iter().position(|&n| n == node).unwrap_or(0) as u32;
        match item.0.checked_sub(self.nodes) {
            None => LINK_MAX,
            Some(further) => (names - (further - first + 1) * LINK_MAX).min(LINK_MAX),
        }
    }

    /// Whether some file has more inodes than one.
    pub(crate) fn splits_links(&self) -> bool {
        !self.further.is_empty()
    }

    /// From here on the table says which inode is what.
    pub(crate) fn use_table(&mut self, table: Table) {
        self.table = Some(table);
    }

    /// Who has `lost+found`: 0 is nobody (we make it), 1 the tree, 2 something else is in its place.
    pub(crate) fn lost_found_sort(&self) -> u32 {
        match self.lost_found {
            LostFound::Made => 0,
            LostFound::OfTree(_) => 1,
            LostFound::Absent => 2,
        }
    }

    /// Whether `lost+found` has to be made.
    pub(crate) fn makes_lost_found(&self) -> bool {
        self.lost_found == LostFound::Made
    }

    /// The first inode after root, reserved ones and `lost+found`.
    fn base(&self) -> u32 {
        match self.lost_found {
            LostFound::Absent => InodeNo::FIRST.0,
            LostFound::Made | LostFound::OfTree(_) => InodeNo::FIRST.0 + 1,
        }
    }

    pub(crate) fn of_item(&self, item: Item) -> InodeNo {
        if let Some(table) = &self.table {
            return table.of_node[item.index()];
        }
        if item == Item::ROOT {
            return InodeNo::ROOT;
        }
        let skipped = match self.lost_found {
            LostFound::OfTree(node) if node.0 == item.0 => return InodeNo::FIRST,
            LostFound::OfTree(node) if node.0 < item.0 => 2,
            _ => 1,
        };
        InodeNo(self.base() + item.0 - skipped)
    }

    /// The inode that the entry at `place` of a directory leads to.
    pub(crate) fn of_entry(&self, dir: NodeId, place: u32, node: NodeId) -> InodeNo {
        if !self.diverted.is_empty()
            && let Some(&ino) = self.diverted.get(&(dir, place))
        {
            return ino;
        }
        self.of_item(Item(node.0))
    }

    /// The inode of the xattr value of that number.
    pub(crate) fn of_value(&self, value: u32) -> InodeNo {
        if let Some(table) = &self.table {
            return table.of_value[value as usize];
        }
        let skipped = match self.lost_found {
            LostFound::OfTree(_) => 2,
            _ => 1,
        };
        InodeNo(self.base() + self.items() - skipped + value)
    }

    /// The last inode in use, given how many xattr values have one.
    pub(crate) fn last(&self, values: u32) -> u32 {
        match &self.table {
            Some(table) => table.last.0,
            None => self.of_value(values).0 - 1,
        }
    }

    /// How many inodes are in use, reserved ones included.
    pub(crate) fn in_use(&self, values: u32) -> u32 {
        match &self.table {
            Some(table) => table.in_use,
            None => self.last(values),
        }
    }

    /// Whether an inode up to the last is in use.
    pub(crate) fn is_in_use(&self, ino: InodeNo) -> bool {
        match &self.table {
            Some(table) => ino < InodeNo::FIRST || table.holds[ino.0 as usize] != Holds::Nothing,
            None => true,
        }
    }

    /// What an inode in use holds.
    pub(crate) fn holds(&self, ino: InodeNo) -> Holds {
        if let Some(table) = &self.table {
            return table
                .holds
                .get(ino.0 as usize)
                .copied()
                .unwrap_or(Holds::Nothing);
        }
        if ino == InodeNo::ROOT {
            return Holds::Item(Item::ROOT);
        }
        if ino == InodeNo::JOURNAL {
            return Holds::Journal;
        }
        if ino < InodeNo::FIRST {
            return Holds::Nothing;
        }
        if ino == InodeNo::FIRST {
            match self.lost_found {
                LostFound::Made => return Holds::LostFound,
                LostFound::OfTree(node) => return Holds::Item(Item(node.0)),
                LostFound::Absent => {}
            }
        }
        if ino >= self.of_value(0) {
            return Holds::Value(ino.0 - self.of_value(0).0);
        }
        let mut item = ino.0 - self.base() + 1;
        if let LostFound::OfTree(node) = self.lost_found
            && item >= node.0
        {
            item += 1;
        }
        Holds::Item(Item(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcpipe_tree::{Meta, NewKind, Timestamp, TreeBuilder};

    fn meta() -> Meta {
        Meta {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
        }
    }

    fn tree_with(names: &[(&[u8], NewKind<'_>)]) -> Tree {
        let mut builder = TreeBuilder::new(meta(), Vec::new());
        for (name, kind) in names {
            let node = builder.add(meta(), kind.clone(), Vec::new());
            builder.link(TreeBuilder::ROOT, name, node);
        }
        builder.finish().0
    }

    fn check_both_ways(tree: &Tree) -> Numbers {
        let numbers = Numbers::new(tree, &mut Vec::new());
        let mut seen = Vec::new();
        for item in numbers.all_items() {
            let ino = numbers.of_item(item);
            assert_eq!(numbers.holds(ino), Holds::Item(item));
            seen.push(ino.0);
        }
        seen.push(numbers.of_value(0).0);
        assert_eq!(numbers.holds(numbers.of_value(0)), Holds::Value(0));
        seen.sort_unstable();
        // No gap after the reserved ones: all bits of the bitmap up to the last are set.
        let first = if numbers.makes_lost_found() { 12 } else { 11 };
        let expected: Vec<u32> = std::iter::once(2).chain(first..).take(seen.len()).collect();
        assert_eq!(seen, expected);
        numbers
    }

    #[test]
    fn numbers_go_both_ways() {
        check_both_ways(&tree_with(&[]));
        check_both_ways(&tree_with(&[(b"a", NewKind::Fifo), (b"z", NewKind::Fifo)]));
        let own = check_both_ways(&tree_with(&[
            (b"a", NewKind::Fifo),
            (b"lost+found", NewKind::Directory),
            (b"z", NewKind::Fifo),
        ]));
        assert!(!own.makes_lost_found());
        check_both_ways(&tree_with(&[
            (b"lost+found", NewKind::Fifo),
            (b"z", NewKind::Fifo),
        ]));
    }

    #[test]
    fn row_17_names_beyond_65000_lead_to_a_second_inode() {
        let mut builder = TreeBuilder::new(meta(), Vec::new());
        let file = builder.add(
            meta(),
            NewKind::File {
                size: 0,
                data: None,
            },
            Vec::new(),
        );
        for i in 0..130_001 {
            builder.link(TreeBuilder::ROOT, format!("{i:06}").as_bytes(), file);
        }
        let tree = builder.finish().0;
        let mut warnings = Vec::new();
        let numbers = Numbers::new(&tree, &mut warnings);
        assert!(matches!(
            warnings[..],
            [LayoutWarning::LinksSplit { inodes: 3, .. }]
        ));
        let mut counted = HashMap::new();
        for (place, entry) in tree.entries(NodeId::ROOT).enumerate() {
            let ino = numbers.of_entry(NodeId::ROOT, place as u32, entry.node);
            *counted.entry(ino).or_insert(0u32) += 1;
        }
        for item in numbers.all_items().skip(1) {
            assert_eq!(counted[&numbers.of_item(item)], numbers.links(&tree, item));
        }
        assert_eq!(counted.len(), 3);
    }
}
