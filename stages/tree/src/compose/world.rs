//! The mount table of an image, and how destinations are resolved in it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{ComposeError, Layer};
use crate::model::{Kind, NodeId, Timestamp};
use crate::scan::{Scan, ScanRoot};

/// As many symlinks as the kernel follows in one path (MAXSYMLINKS).
const LINKS: usize = 40;
/// NAME_MAX.
const NAME: usize = 255;

/// A node of one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Of its scan.
    Scanned(NodeId),
    /// By its number in [`World::made`].
    Made(u32),
}

/// A node as it is seen: what covers it was looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub(super) mount: usize,
    pub(super) place: Place,
}

/// What was made in the composition: a directory, or the empty file that a file is mounted on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) directory: bool,
    pub(super) mtime: Timestamp,
}

/// What is different from the scan under one name of a directory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    made: Option<u32>,
    mounted: Option<usize>,
}

#[derive(Debug)]
struct Mount {
    layer: usize,
    top: Place,
    /// What is mounted on its top.
    over: Option<usize>,
}

/// The root and what is mounted in it. Its first mount is the root.
#[derive(Debug)]
pub(super) struct World<'a> {
    layers: &'a [Layer],
    mounts: Vec<Mount>,
    made: Vec<Made>,
    /// By directory.
    changes: HashMap<Position, BTreeMap<Vec<u8>, Change>>,
}

/// One name on a resolved path: the directory that holds it, and what it shows.
#[derive(Debug)]
struct Step {
    dir: Position,
    name: Vec<u8>,
    at: Position,
}

/// A destination: what exists of it, and the names that do not.
#[derive(Debug)]
struct Resolved {
    steps: Vec<Step>,
    missing: Vec<Vec<u8>>,
}

impl<'a> World<'a> {
    pub(super) fn new(layers: &'a [Layer]) -> Result<Self, ComposeError> {
        let Some(root) = layers.first() else {
            return Err(ComposeError::NoRoot(PathBuf::new()));
        };
        if !matches!(&root.scan, Some(scan) if scan.root == ScanRoot::Directory) {
            return Err(ComposeError::NoRoot(root.source.clone()));
        }
        Ok(World {
            layers,
            mounts: vec![Mount {
                layer: 0,
                top: Place::Scanned(NodeId::ROOT),
                over: None,
            }],
            made: Vec::new(),
            changes: HashMap::new(),
        })
    }

    pub(super) fn layers(&self) -> &'a [Layer] {
        self.layers
    }

    /// Whether the image is the first layer as it is.
    pub(super) fn is_root_alone(&self) -> bool {
        self.mounts.len() == 1
    }

    pub(super) fn root(&self) -> Position {
        Position {
            mount: 0,
            place: Place::Scanned(NodeId::ROOT),
        }
    }

    pub(super) fn layer_of(&self, mount: usize) -> usize {
        self.mounts[mount].layer
    }

    pub(super) fn scan(&self, mount: usize) -> Option<&'a Scan> {
        self.layers[self.mounts[mount].layer].scan.as_deref()
    }

    /// Panics where a place that was scanned is in a mount without a scan: no such place is made.
    pub(super) fn scanned(&self, mount: usize) -> &'a Scan {
        self.scan(mount).expect("places come from the mount's scan")
    }

    pub(super) fn made(&self, number: u32) -> Made {
        self.made[number as usize]
    }

    /// What differs from the scan in a directory.
    pub(super) fn changes(&self, dir: Position) -> Option<&BTreeMap<Vec<u8>, Change>> {
        self.changes.get(&dir)
    }

    /// What a name shows, given what the scan has and what is different.
    pub(super) fn shown(
        &self,
        dir: Position,
        scanned: Option<NodeId>,
        change: Option<&Change>,
    ) -> Option<Position> {
        if let Some(mounted) = change.and_then(|change| change.mounted) {
            return Some(self.topmost(mounted));
        }
        let place = match change.and_then(|change| change.made) {
            Some(made) => Place::Made(made),
            None => Place::Scanned(scanned?),
        };
        Some(Position {
            mount: dir.mount,
            place,
        })
    }

    /// Mounts layer `number` at its destination.
    pub(super) fn mount(&mut self, number: usize) -> Result<(), ComposeError> {
        let layer = &self.layers[number];
        let mut resolved = self.resolve(layer)?;
        let is_directory = layer
            .scan
            .as_ref()
            .is_none_or(|scan| scan.root == ScanRoot::Directory);

        let missing = std::mem::take(&mut resolved.missing);
        let last = missing.len().saturating_sub(1);
        for (i, name) in missing.into_iter().enumerate() {
            let dir = resolved.end(self.root());
            if self.kind(dir) != Kind::Directory {
                return Err(self.not_a_directory(layer, &resolved));
            }
            let made = self.make(is_directory || i < last, self.mtime(dir));
            let at = Position {
                mount: dir.mount,
                place: Place::Made(made),
            };
            self.change(dir, &name).made = Some(made);
            resolved.steps.push(Step { dir, name, at });
        }

        let source_path = layer.source.clone();
        let destination = layer.destination.clone();
        let Some(step) = resolved.steps.last() else {
            return Err(ComposeError::OntoRoot {
                source_path,
                destination,
            });
        };
        match (is_directory, self.kind(step.at) == Kind::Directory) {
            (true, false) => {
                return Err(ComposeError::DirectoryOntoFile {
                    source_path,
                    destination,
                });
            }
            (false, true) => {
                return Err(ComposeError::FileOntoDirectory {
                    source_path,
                    destination,
                });
            }
            _ => {}
        }
        let top = match &layer.scan {
            Some(scan) => Place::Scanned(scan.top()),
            None => Place::Made(self.make(true, self.mtime(step.dir))),
        };
        let new = self.mounts.len();
        self.mounts.push(Mount {
            layer: number,
            top,
            over: None,
        });
        // On top of what the name shows: that is another mount, or the node itself.
        if step.at.mount == step.dir.mount {
            let Step { dir, name, .. } = step;
            self.change(*dir, name).mounted = Some(new);
        } else {
            self.mounts[step.at.mount].over = Some(new);
        }
        Ok(())
    }

    /// Follows a destination from the root, as inside a chroot: `..` of the root is the root, and
    /// absolute links begin there. As with runc, names that do not exist count as directories to be.
    fn resolve(&self, layer: &Layer) -> Result<Resolved, ComposeError> {
        let mut todo: VecDeque<Vec<u8>> =
            components(layer.destination.as_os_str().as_bytes()).collect();
        let mut resolved = Resolved {
            steps: Vec::new(),
            missing: Vec::new(),
        };
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                if resolved.missing.pop().is_none() {
                    if self.kind(resolved.end(self.root())) != Kind::Directory {
                        return Err(self.not_a_directory(layer, &resolved));
                    }
                    resolved.steps.pop();
                }
                continue;
            }
            if name.len() > NAME || name.contains(&0) {
                return Err(ComposeError::BadName {
                    source_path: layer.source.clone(),
                    destination: layer.destination.clone(),
                });
            }
            if !resolved.missing.is_empty() {
                resolved.missing.push(name);
                continue;
            }
            let dir = resolved.end(self.root());
            if self.kind(dir) != Kind::Directory {
                return Err(self.not_a_directory(layer, &resolved));
            }
            let Some(at) = self.lookup(dir, &name) else {
                resolved.missing.push(name);
                continue;
            };
            if let Some(target) = self.link_target(at) {
                links += 1;
                if links > LINKS {
                    return Err(ComposeError::Loop {
                        source_path: layer.source.clone(),
                        destination: layer.destination.clone(),
                    });
                }
                if target.first() == Some(&b'/') {
                    resolved.steps.clear();
                }
                for name in components(target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(name);
                }
                continue;
            }
            resolved.steps.push(Step { dir, name, at });
        }
        Ok(resolved)
    }

    fn lookup(&self, dir: Position, name: &[u8]) -> Option<Position> {
        let scanned = match dir.place {
            Place::Scanned(node) => self.scanned(dir.mount).tree.lookup(node, name),
            Place::Made(_) => None,
        };
        let change = self.changes(dir).and_then(|changes| changes.get(name));
        self.shown(dir, scanned, change)
    }

    fn link_target(&self, at: Position) -> Option<&[u8]> {
        match at.place {
            Place::Scanned(node) => {
                let tree = &self.scanned(at.mount).tree;
                (tree.kind(node) == Kind::Symlink).then(|| tree.target(node).as_ref())
            }
            Place::Made(_) => None,
        }
    }

    fn kind(&self, at: Position) -> Kind {
        match at.place {
            Place::Scanned(node) => self.scanned(at.mount).tree.kind(node),
            Place::Made(number) if self.made(number).directory => Kind::Directory,
            Place::Made(_) => Kind::File { size: 0 },
        }
    }

    fn mtime(&self, at: Position) -> Timestamp {
        match at.place {
            Place::Scanned(node) => self.scanned(at.mount).tree.meta(node).mtime,
            Place::Made(number) => self.made(number).mtime,
        }
    }

    fn top(&self, mount: usize) -> Place {
        self.mounts[mount].top
    }

    /// The top of a mount, or of what was mounted over it.
    fn topmost(&self, mut mount: usize) -> Position {
        while let Some(over) = self.mounts[mount].over {
            mount = over;
        }
        Position {
            mount,
            place: self.top(mount),
        }
    }

    fn make(&mut self, directory: bool, mtime: Timestamp) -> u32 {
        self.made.push(Made { directory, mtime });
        (self.made.len() - 1) as u32
    }

    fn change(&mut self, dir: Position, name: &[u8]) -> &mut Change {
        self.changes
            .entry(dir)
            .or_default()
            .entry(name.to_vec())
            .or_default()
    }

    fn not_a_directory(&self, layer: &Layer, resolved: &Resolved) -> ComposeError {
        let names: Vec<&[u8]> = resolved.steps.iter().map(|step| &step.name[..]).collect();
        ComposeError::NotADirectory {
            source_path: layer.source.clone(),
            destination: layer.destination.clone(),
            path: crate::scan::join(std::path::Path::new("/"), &names.join(&b'/')),
        }
    }
}

impl Resolved {
    /// The last of it that exists.
    fn end(&self, root: Position) -> Position {
        self.steps.last().map_or(root, |step| step.at)
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|&b| b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
}
