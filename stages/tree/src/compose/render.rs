//! Writes what is visible in a [`World`] as one [`Tree`], breadth first.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::ids::{Ids, Unmapped};
use super::world::{Change, Place, Position, World};
use super::{ComposeError, ComposeWarning, MADE, Packed};
use crate::memory::with_room;
use crate::model::writer::{MOST, Writer};
use crate::model::{Kind, Meta, NewKind, NodeId, Timestamp, Tree};
use crate::scan::{Scan, made_directory};

type Rendered = (Arc<Tree>, Option<Vec<Packed>>);

/// What it has to warn of goes to `warnings`.
pub(super) fn render(
    world: &World<'_>,
    warnings: &mut Vec<ComposeWarning>,
) -> Result<Rendered, ComposeError> {
    let root = world.scanned(0);
    if world.is_root_alone() && Ids::new(&root.content).is_identity() {
        return Ok((Arc::clone(&root.tree), None));
    }
    let scans = || {
        world
            .layers()
            .iter()
            .filter_map(|layer| layer.scan.as_ref())
    };
    // What is made adds little; the writer checks again.
    if scans().map(|scan| scan.tree.size_bound()).sum::<usize>() > MOST / 2 {
        return Err(ComposeError::TooMany);
    }
    let ids = Ids::new(&root.content);
    let meta = ids.meta(root.tree.meta(NodeId::ROOT));
    let xattrs = ids
        .xattrs(root.tree.xattrs(NodeId::ROOT))
        .map_err(|refused| attribute(root, NodeId::ROOT, refused.0))?;
    let room = scans().map(|scan| scan.tree.len()).sum();
    let mut render = Render {
        world,
        writer: Writer::new(meta, xattrs, room),
        origins: with_room(room),
        sets: world
            .layers()
            .iter()
            .map(|layer| {
                let sets = layer.scan.as_ref().map_or(0, |scan| scan.tree.xattr_sets());
                vec![None; sets]
            })
            .collect(),
        linked: HashMap::new(),
        unmapped: vec![None; world.layers().len()],
        dirs: vec![(NodeId::ROOT, world.root())],
    };
    render.origins.push(Packed { layer: 0, node: 0 });
    render.note(0, root, NodeId::ROOT, ids.unmapped());
    let mut at = 0;
    while let Some(&(node, dir)) = render.dirs.get(at) {
        render.writer.begin(node);
        render.directory(dir)?;
        at += 1;
    }
    render.origins.shrink_to_fit();
    for (layer, lacking) in world.layers().iter().zip(render.unmapped) {
        if let Some((path, Unmapped { what, id }, files)) = lacking {
            warnings.push(ComposeWarning::Unmapped {
                source: layer.source.clone(),
                path,
                what,
                id,
                files,
            });
        }
    }
    Ok((Arc::new(render.writer.finish()), Some(render.origins)))
}

struct Render<'a> {
    world: &'a World<'a>,
    writer: Writer,
    origins: Vec<Packed>,
    /// By layer and by its Tree's number of a set: the number in the new one.
    sets: Vec<Vec<Option<u32>>>,
    /// Nodes with several names, by mount: the same source at two places is two sets of nodes.
    linked: HashMap<(usize, NodeId), NodeId>,
    /// By layer: the first file with an id that no range has, that id, and how many such files there are.
    unmapped: Vec<Option<(PathBuf, Unmapped, u64)>>,
    /// Directories in the order of their numbers.
    dirs: Vec<(NodeId, Position)>,
}

impl Render<'_> {
    /// All names of a directory, in order: those of its scan, and those that are different.
    fn directory(&mut self, dir: Position) -> Result<(), ComposeError> {
        let world = self.world;
        let mut changes = world
            .changes(dir)
            .into_iter()
            .flatten()
            .map(|(name, change)| (&name[..], change))
            .peekable();
        if let Place::Scanned(node) = dir.place {
            for entry in world.scanned(dir.mount).tree.entries(node) {
                while let Some((name, change)) = changes.next_if(|(name, _)| name < &&**entry.name)
                {
                    self.name(dir, name, None, Some(change))?;
                }
                let change = changes.next_if(|(name, _)| name == &&**entry.name);
                self.name(dir, entry.name, Some(entry.node), change.map(|(_, c)| c))?;
            }
        }
        for (name, change) in changes {
            self.name(dir, name, None, Some(change))?;
        }
        Ok(())
    }

    fn name(
        &mut self,
        dir: Position,
        name: &[u8],
        scanned: Option<NodeId>,
        change: Option<&Change>,
    ) -> Result<(), ComposeError> {
        let Some(at) = self.world.shown(dir, scanned, change) else {
            return Ok(());
        };
        match at.place {
            Place::Scanned(node) => self.scanned(name, at, node),
            Place::Made(number) => {
                let made = self.world.made(number);
                self.made(name, at, made.directory, made.mtime);
                Ok(())
            }
        }
    }

    fn scanned(&mut self, name: &[u8], at: Position, node: NodeId) -> Result<(), ComposeError> {
        let scan = self.world.scanned(at.mount);
        let tree = &scan.tree;
        let several = tree.names(node) > 1;
        if several && let Some(&known) = self.linked.get(&(at.mount, node)) {
            self.writer.link(name, known);
            return Ok(());
        }
        let layer = self.world.layer_of(at.mount);
        let ids = Ids::new(&scan.content);
        let meta = ids.meta(tree.meta(node));
        let set = tree.xattr_set(node) as usize;
        let set = match self.sets[layer][set] {
            Some(known) => known,
            None => {
                let mapped = ids
                    .xattrs(tree.xattrs(node))
                    .map_err(|refused| attribute(scan, node, refused.0))?;
                *self.sets[layer][set].insert(self.writer.xattr_set(mapped))
            }
        };
        self.note(layer, scan, node, ids.unmapped());
        let kind = match tree.kind(node) {
            Kind::Directory => NewKind::Directory,
            Kind::File { size } => NewKind::File {
                size,
                data: tree.data_runs(node),
            },
            Kind::Symlink => NewKind::Symlink {
                target: tree.target(node),
            },
            Kind::CharDevice { major, minor } => NewKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => NewKind::BlockDevice { major, minor },
            Kind::Fifo => NewKind::Fifo,
            Kind::Socket => NewKind::Socket,
        };
        let is_directory = kind == NewKind::Directory;
        let new = self.writer.add(name, meta, kind, set);
        self.origins.push(Packed {
            layer: layer as u32,
            node: node.0,
        });
        if is_directory {
            self.dirs.push((new, at));
        } else if several {
            self.linked.insert((at.mount, node), new);
        }
        Ok(())
    }

    fn note(&mut self, layer: usize, scan: &Scan, node: NodeId, unmapped: Option<Unmapped>) {
        let Some(unmapped) = unmapped else { return };
        let first = || (scan.source_path(node), unmapped, 0);
        self.unmapped[layer].get_or_insert_with(first).2 += 1;
    }

    fn made(&mut self, name: &[u8], at: Position, directory: bool, mtime: Timestamp) {
        let meta = made_directory(mtime);
        self.origins.push(Packed {
            layer: MADE,
            node: 0,
        });
        if directory {
            let new = self.writer.add(name, meta, NewKind::Directory, 0);
            self.dirs.push((new, at));
        } else {
            // Only ever seen through a mount, which covers it; kept so that no state is impossible.
            let meta = Meta {
                mode: 0o644,
                ..meta
            };
            let kind = NewKind::File {
                size: 0,
                data: None,
            };
            self.writer.add(name, meta, kind, 0);
        }
    }
}

fn attribute(scan: &Scan, node: NodeId, name: Vec<u8>) -> ComposeError {
    let path = scan.source_path(node);
    ComposeError::Attribute { path, name }
}
