//! Which node of a tree takes the place of which node of an earlier one.

use std::collections::HashMap;

use fcpipe_tree::{ContentId, Kind, NodeId, Tree};

use super::imprint::{Imprint, PNode, SPARSE, kind_of};

/// No node.
const NONE: u32 = u32::MAX;

/// What was found.
pub(super) struct Matched {
    /// By node: the earlier one, or [`NONE`].
    old_of: Vec<u32>,
    /// By earlier node: whether it has a successor.
    kept: Vec<bool>,
    /// By node; of directories: whether a name or what it leads to is not as before.
    pub(super) renamed: Vec<bool>,
}

impl Matched {
    /// Goes through both trees from the root, by names.
    ///
    /// What has the same name and type takes the place of what was there, whatever is in it now. A file that was moved with its
    /// directory is found by what stands for its content, where that tells it from every other file.
    pub(super) fn new(
        tree: &Tree,
        imprint: &Imprint,
        contents: &(dyn Fn(NodeId) -> Option<ContentId> + Sync),
    ) -> Matched {
        let old = imprint.nodes();
        let mut matched = Matched {
            old_of: vec![NONE; tree.len()],
            kept: vec![false; old.len()],
            renamed: vec![false; tree.len()],
        };
        matched.pair(NodeId::ROOT, 0);
        let mut dirs = vec![(NodeId::ROOT, 0u32)];
        let mut at = 0;
        while let Some(&(dir, before)) = dirs.get(at) {
            at += 1;
            let changed = matched.directory(tree, imprint, (dir, before), &mut dirs);
            matched.renamed[dir.index()] = changed;
        }
        matched.moved(tree, imprint, contents);
        matched
    }

    pub(super) fn old(&self, node: NodeId) -> Option<u32> {
        Some(self.old_of[node.index()]).filter(|&old| old != NONE)
    }

    /// Earlier nodes that nothing takes the place of.
    pub(super) fn gone(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .zip(&self.kept)
            .filter(|(_, kept)| !**kept)
            .map(|(old, _)| old)
    }

    fn pair(&mut self, node: NodeId, old: u32) {
        self.old_of[node.index()] = old;
        self.kept[old as usize] = true;
    }

    /// Pairs the names of two directories. Gives whether the first must be written anew.
    fn directory(
        &mut self,
        tree: &Tree,
        imprint: &Imprint,
        (dir, before): (NodeId, u32),
        dirs: &mut Vec<(NodeId, u32)>,
    ) -> bool {
        let nodes = imprint.nodes();
        let entries = imprint.entries(&nodes[before as usize]);
        let mut changed = entries.len() != tree.entries(dir).len();
        let mut rest = entries.iter();
        let mut next = rest.next();
        for entry in tree.entries(dir) {
            let name: &[u8] = entry.name;
            while let Some(old) = next
                && imprint.bytes(old.name) < name
            {
                changed = true;
                next = rest.next();
            }
            let Some(old) = next.filter(|old| imprint.bytes(old.name) == name) else {
                changed = true;
                continue;
            };
            next = rest.next();
            let old = old.node.get();
            let node = entry.node;
            let (kind, _) = kind_of(tree.kind(node));
            if self.old_of[node.index()] == NONE
                && !self.kept[old as usize]
                && nodes[old as usize].kind == kind
            {
                self.pair(node, old);
                if tree.kind(node) == Kind::Directory {
                    dirs.push((node, old));
                }
            }
            changed |= self.old_of[node.index()] != old;
        }
        changed || next.is_some()
    }

    /// Pairs files without a counterpart under their name.
    fn moved(
        &mut self,
        tree: &Tree,
        imprint: &Imprint,
        contents: &(dyn Fn(NodeId) -> Option<ContentId> + Sync),
    ) {
        let nodes = imprint.nodes();
        let new: Vec<NodeId> = tree
            .nodes()
            .filter(|&node| self.old(node).is_none() && is_file(tree, node))
            .collect();
        if new.is_empty() {
            return;
        }
        let known: HashMap<(u64, ContentId), u32> = self
            .gone()
            .filter_map(|old| {
                let node = &nodes[old as usize];
                let id = content_of(node)?;
                (id.sort == ContentId::ANYWHERE).then_some(((node.size.get(), id), old))
            })
            .collect();
        for node in new {
            let (_, size) = kind_of(tree.kind(node));
            let found = contents(node).and_then(|id| known.get(&(size, id)).copied());
            if let Some(old) = found
                && !self.kept[old as usize]
            {
                self.pair(node, old);
            }
        }
    }
}

fn is_file(tree: &Tree, node: NodeId) -> bool {
    matches!(tree.kind(node), Kind::File { .. })
}

/// What stands for an earlier file's content, if that is known.
pub(super) fn content_of(node: &PNode) -> Option<ContentId> {
    let sort = node.content_sort.get();
    (sort != 0).then(|| ContentId {
        sort,
        words: node.content.map(|word| word.get()),
    })
}

/// Whether the data of two files is at the same places in them.
pub(super) fn same_runs(tree: &Tree, node: NodeId, imprint: &Imprint, old: &PNode) -> bool {
    match (tree.data_runs(node), old.flags & SPARSE != 0) {
        (None, false) => true,
        (Some(runs), true) => {
            let before = imprint.runs(old).iter();
            let before = before.map(|run| (run.start.get(), run.end.get()));
            runs.iter().map(|run| (run.start, run.end)).eq(before)
        }
        _ => false,
    }
}
