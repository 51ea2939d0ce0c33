//! Inodes.

use fcpipe_tree::{Kind, Meta, NodeId};
use zerocopy::{FromZeros, IntoBytes};

use super::Decided;
use crate::checksum::Seed;
use crate::extents;
use crate::ids::InodeNo;
use crate::map::BLOCK_SIZE;
use crate::numbers::{Holds, Item};
use crate::ondisk::inode::*;
use crate::ondisk::{hi16, hi32, lo16, lo32, top16};
use crate::placement::Owner;
use crate::times;
use crate::xattrs;

/// Writes the inodes from `first` on into blocks of a table.
pub(super) fn encode_table(decided: &Decided<'_>, first: InodeNo, out: &mut [u8]) {
    let in_use = first.0..=decided.last_inode;
    for (ino, slot) in in_use
        .map(InodeNo)
        .zip(out.as_chunks_mut::<INODE_SIZE>().0.iter_mut())
    {
        encode(decided, ino, slot);
    }
}

fn encode(decided: &Decided<'_>, ino: InodeNo, slot: &mut [u8]) {
    let content = decided.content;
    let mut inode = Inode::new_zeroed();
    inode.i_extra_isize = (EXTRA_ISIZE as u16).into();
    let (fields, body) = slot.split_at_mut(size_of::<Inode>());
    match content.numbers.holds(ino) {
        Holds::Nothing => return,
        Holds::Journal if decided.journal_blocks == 0 => return,
        Holds::Journal => encode_journal(decided, &mut inode),
        Holds::LostFound => encode_lost_found(decided, &mut inode),
        Holds::Value(value) => encode_value(decided, value, &mut inode),
        Holds::Item(item) => {
            encode_item(decided, item, &mut inode);
            let set = content.tree.xattr_set(content.numbers.node(item));
            xattrs::encode_body(&content.xattrs, set, body);
        }
    }
    fields.copy_from_slice(inode.as_bytes());
    let checksum = Seed::of_inode(ino).with(slot).0;
    inode.l_i_checksum_lo = lo16(checksum);
    inode.i_checksum_hi = hi16(checksum);
    slot[..size_of::<Inode>()].copy_from_slice(inode.as_bytes());
}

fn encode_item(decided: &Decided<'_>, item: Item, inode: &mut Inode) {
    let content = decided.content;
    let (tree, node) = (content.tree, content.numbers.node(item));
    put_meta(inode, tree.meta(node));
    let kind = tree.kind(node);
    let links = match kind {
        Kind::Directory => put_directory(decided, node, inode),
        _ => content.numbers.links(tree, item),
    };
    inode.i_links_count = (links as u16).into();
    let (format, size) = match kind {
        Kind::Directory => (S_IFDIR, put_content(decided, Owner::Item(item), inode)),
        Kind::File { size } => {
            put_content(decided, Owner::Item(item), inode);
            (S_IFREG, size)
        }
        Kind::Symlink => {
            let target = tree.target(node);
            if target.len() < FAST_SYMLINK_LIMIT {
                inode.i_block[..target.len()].copy_from_slice(target);
            } else {
                put_content(decided, Owner::Item(item), inode);
            }
            (S_IFLNK, target.len() as u64)
        }
        Kind::CharDevice { major, minor } => {
            put_device(inode, major, minor);
            (S_IFCHR, 0)
        }
        Kind::BlockDevice { major, minor } => {
            put_device(inode, major, minor);
            (S_IFBLK, 0)
        }
        Kind::Fifo => (S_IFIFO, 0),
        Kind::Socket => (S_IFSOCK, 0),
    };
    inode.i_mode = (format | tree.meta(node).mode & 0o7777).into();
    put_size(inode, size);
    if let Some(block) = content.xattrs.block_of(item) {
        let block = decided.placement.of_xattr_block[block as usize];
        inode.i_file_acl_lo = lo32(block);
        inode.l_i_file_acl_high = top16(block);
        let outside = content.xattrs.outside_blocks(tree.xattr_set(node));
        add_blocks(inode, 1 + outside);
    }
}

/// Sets what is particular to a directory, and gives its links.
fn put_directory(decided: &Decided<'_>, node: NodeId, inode: &mut Inode) -> u32 {
    let dirs = &decided.content.dirs;
    // In the order of nodes, and one that is no node at the end.
    let at = dirs.partition_point(|dir| dir.node.is_some_and(|n| n < node));
    let dir = &dirs[at];
    if dir.is_indexed() {
        inode.i_flags |= INDEX_FL;
    }
    let links = dir.subdirs + 2;
    // dir_nlink: what can't be counted is 1.
    if links > LINK_MAX { 1 } else { links }
}

fn encode_lost_found(decided: &Decided<'_>, inode: &mut Inode) {
    // It is no one's but fsck's; the time is the root's, so as not to bring in another.
    let root = decided.content.tree.meta(NodeId::ROOT);
    put_meta(
        inode,
        &Meta {
            mode: 0o700,
            uid: 0,
            gid: 0,
            mtime: root.mtime,
        },
    );
    inode.i_mode = (S_IFDIR | 0o700).into();
    inode.i_links_count = 2.into();
    let size = put_content(decided, Owner::LostFound, inode);
    put_size(inode, size);
}

fn encode_journal(decided: &Decided<'_>, inode: &mut Inode) {
    inode.i_mode = (S_IFREG | 0o600).into();
    inode.i_links_count = 1.into();
    let size = put_content(decided, Owner::Journal, inode);
    put_size(inode, size);
}

/// The journal's `i_block`, size high and size, which the superblock keeps a copy of.
pub(super) fn journal_backup(decided: &Decided<'_>) -> [u8; 68] {
    let mut inode = Inode::new_zeroed();
    encode_journal(decided, &mut inode);
    let mut out = [0; 68];
    out[..60].copy_from_slice(&inode.i_block);
    out[60..64].copy_from_slice(inode.i_size_high.as_bytes());
    out[64..].copy_from_slice(inode.i_size_lo.as_bytes());
    out
}

/// An inode that is the value of an xattr: its times hold the value's hash and how often it is used.
/// Source: fs/ext4/xattr.c, ext4_xattr_inode_set_hash and ext4_xattr_inode_set_ref.
fn encode_value(decided: &Decided<'_>, number: u32, inode: &mut Inode) {
    let value = &decided.content.xattrs.values[number as usize];
    let owner = decided.content.tree.meta(value.node);
    put_owner(inode, owner);
    inode.i_mode = (S_IFREG | 0o600).into();
    inode.i_links_count = 1.into();
    inode.i_flags = EA_INODE_FL.into();
    inode.i_atime = value.hash.into();
    inode.i_ctime = hi32(value.refs);
    inode.i_disk_version = lo32(value.refs);
    put_content(decided, Owner::Value(number), inode);
    put_size(inode, value.bytes.len() as u64);
}

fn put_meta(inode: &mut Inode, meta: &Meta) {
    put_owner(inode, meta);
    let time = times::encode(meta.mtime);
    for secs in [
        &mut inode.i_atime,
        &mut inode.i_ctime,
        &mut inode.i_mtime,
        &mut inode.i_crtime,
    ] {
        *secs = time.secs.into();
    }
    for extra in [
        &mut inode.i_atime_extra,
        &mut inode.i_ctime_extra,
        &mut inode.i_mtime_extra,
        &mut inode.i_crtime_extra,
    ] {
        *extra = time.extra.into();
    }
}

fn put_owner(inode: &mut Inode, meta: &Meta) {
    inode.i_uid = lo16(meta.uid);
    inode.l_i_uid_high = hi16(meta.uid);
    inode.i_gid = lo16(meta.gid);
    inode.l_i_gid_high = hi16(meta.gid);
}

fn put_size(inode: &mut Inode, size: u64) {
    inode.i_size_lo = lo32(size);
    inode.i_size_high = hi32(size);
}

/// Writes the extents of an owner's content; gives the bytes of its blocks, holes left out.
fn put_content(decided: &Decided<'_>, owner: Owner, inode: &mut Inode) -> u64 {
    let pieces = decided.placement.pieces(owner);
    let tree = decided.placement.tree(owner);
    inode.i_flags |= EXTENTS_FL;
    extents::encode_root(pieces, tree, &mut inode.i_block);
    let sum = |pieces: &[extents::Piece]| pieces.iter().map(|p| u64::from(p.blocks)).sum::<u64>();
    add_blocks(inode, sum(pieces) + sum(tree));
    sum(pieces) * BLOCK_SIZE
}

/// `i_blocks` counts units of 512 bytes.
fn add_blocks(inode: &mut Inode, blocks: u64) {
    let units = u64::from(inode.i_blocks_lo.get())
        + (u64::from(inode.l_i_blocks_high.get()) << 32)
        + blocks * 8;
    inode.i_blocks_lo = lo32(units);
    inode.l_i_blocks_high = top16(units);
}

/// The old form where it suffices, the new one elsewhere. Source: include/linux/kdev_t.h.
fn put_device(inode: &mut Inode, major: u32, minor: u32) {
    if major < 256 && minor < 256 {
        let old = major << 8 | minor;
        inode.i_block[..4].copy_from_slice(&old.to_le_bytes());
    } else {
        let new = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        inode.i_block[4..8].copy_from_slice(&new.to_le_bytes());
    }
}
