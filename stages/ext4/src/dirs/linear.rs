//! Directories without an index: `.`, `..`, then the names in the tree's order.

use super::{Leaf, Name};
use crate::InodeNo;
use crate::checksum::Seed;
use crate::ondisk::dir;

/// Writes a directory whose names all fit the first block; further blocks are empty.
pub(super) fn encode<'t>(
    ino: InodeNo,
    parent: InodeNo,
    names: impl IntoIterator<Item = Name<'t>>,
    out: &mut [u8],
) {
    let seed = Seed::of_inode(ino);
    let (first, rest) = out.split_at_mut(4096);
    let mut leaf = Leaf::new(first);
    for (name, ino) in [(b".".as_slice(), ino), (b"..".as_slice(), parent)] {
        leaf.push(&Name {
            name,
            ino,
            file_type: dir::FT_DIR,
        });
    }
    for name in names {
        leaf.push(&name);
    }
    leaf.finish(seed);
    for block in rest.as_chunks_mut::<4096>().0 {
        Leaf::new(block).finish(seed);
    }
}
