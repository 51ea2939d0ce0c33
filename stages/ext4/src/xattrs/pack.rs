//! What goes where, and the bytes: in the inode's body, in a block.
//!
//! Source: Documentation/filesystems/ext4/attributes.rst.

use zerocopy::IntoBytes;

use super::{Attr, Block, Xattrs};
use crate::checksum::SEED;
use crate::ids::BlockNo;
use crate::numbers::Numbers;
use crate::ondisk::inode::BODY_XATTR_SIZE;
use crate::ondisk::xattr::{self, Entry, Header};

/// The zero that ends a list of entries.
const TERMINATOR: usize = 4;
const BODY_SPACE: usize = BODY_XATTR_SIZE - size_of::<u32>() - TERMINATOR;
const BLOCK_SPACE: usize = 4096 - size_of::<Header>() - TERMINATOR;

/// Where an attribute goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Into the inode.
    Body,
    /// Into the block.
    Block,
    /// Its name into the block, its value into an inode.
    Outside,
}

/// Places for attributes in their order, or which of them fits nowhere.
pub(super) fn places(attrs: &[Attr<'_>]) -> Result<Vec<Place>, usize> {
    let mut body = BODY_SPACE;
    let mut places = Vec::with_capacity(attrs.len());
    let mut in_block = 0;
    for attr in attrs {
        let size = attr.entry_size() + attr.value_size();
        if size <= body {
            body -= size;
            places.push(Place::Body);
        } else {
            in_block += size;
            places.push(Place::Block);
        }
    }
    // The largest values leave until the rest fits: of equal ones, the first.
    while in_block > BLOCK_SPACE {
        let mut in_block_now = (0..attrs.len()).filter(|&i| places[i] == Place::Block);
        let large = in_block_now
            .clone()
            .filter(|&i| attrs[i].value.len() > xattr::MIN_LARGE)
            .max_by_key(|&i| (attrs[i].value.len(), std::cmp::Reverse(i)));
        match large {
            Some(i) => {
                places[i] = Place::Outside;
                in_block -= attrs[i].value_size();
            }
            // Names alone fill the block: name the last of those that are too many.
            None => return Err(in_block_now.next_back().unwrap_or(attrs.len() - 1)),
        }
    }
    Ok(places)
}

/// Writes the attributes that a set keeps in the inode behind its fields; nothing if there are none.
pub(crate) fn encode_body(xattrs: &Xattrs<'_>, set: u32, out: &mut [u8]) {
    let attrs = &xattrs.set(set).in_body;
    if attrs.is_empty() {
        return;
    }
    let (magic, region) = out.split_at_mut(size_of::<u32>());
    magic.copy_from_slice(&xattr::MAGIC.to_le_bytes());
    // Values in the inode are found from its first entry on, and have no hash.
    put(attrs, region, 0, |attr, _| Tail {
        inode: 0,
        size: attr.value.len(),
        hash: 0,
    });
}

/// Writes a block of attributes that will be at that place.
pub(crate) fn encode_block(
    xattrs: &Xattrs<'_>,
    numbers: &Numbers,
    block: Block,
    at: BlockNo,
    out: &mut [u8],
) {
    let attrs = &xattrs.set(block.set).in_block;
    // A hash of 0 says that the block is not to be shared; so does that of an entry.
    let mut block_hash = Some(0u32);
    put(attrs, out, size_of::<Header>(), |attr, padded| {
        let tail = match attr.outside {
            Some(number) => {
                let value = &xattrs.values[number as usize];
                Tail {
                    inode: numbers.of_value(number).0,
                    size: value.bytes.len(),
                    hash: entry_hash(attr.name, &value.hash.to_le_bytes()),
                }
            }
            None => Tail {
                inode: 0,
                size: attr.value.len(),
                hash: entry_hash(attr.name, padded),
            },
        };
        block_hash = block_hash
            .filter(|_| tail.hash != 0)
            .map(|hash| hash.rotate_left(16) ^ tail.hash);
        tail
    });
    let mut header = Header {
        h_magic: xattr::MAGIC.into(),
        h_refcount: block.refs.into(),
        h_blocks: 1.into(),
        h_hash: block_hash.unwrap_or(0).into(),
        h_checksum: 0.into(),
        h_reserved: [0.into(); 3],
    };
    let size = size_of::<Header>();
    out[..size].copy_from_slice(header.as_bytes());
    header.h_checksum = SEED.with(&at.0.to_le_bytes()).with(out).0.into();
    out[..size].copy_from_slice(header.as_bytes());
}

/// What an entry says of its value, beside where it is.
struct Tail {
    /// The inode that holds the value, or 0.
    inode: u32,
    /// Bytes of the value, wherever it is.
    size: usize,
    hash: u32,
}

/// Writes entries from `begin` on, and their values from the end back. `tail_of` gets each attribute and
/// its value filled up to four bytes.
fn put(
    attrs: &[Attr<'_>],
    region: &mut [u8],
    begin: usize,
    mut tail_of: impl FnMut(&Attr<'_>, &[u8]) -> Tail,
) {
    let mut at = begin;
    let mut values = region.len();
    for attr in attrs {
        let size = attr.value_size();
        let mut offset = 0;
        if size > 0 {
            values -= size;
            region[values..values + attr.value.len()].copy_from_slice(&attr.value);
            offset = values;
        }
        let tail = tail_of(attr, &region[offset..offset + size]);
        let entry = Entry {
            e_name_len: attr.name.len() as u8,
            e_name_index: attr.index,
            e_value_offs: (offset as u16).into(),
            e_value_inum: tail.inode.into(),
            e_value_size: (tail.size as u32).into(),
            e_hash: tail.hash.into(),
        };
        let name_at = at + size_of::<Entry>();
        region[at..name_at].copy_from_slice(entry.as_bytes());
        region[name_at..name_at + attr.name.len()].copy_from_slice(attr.name);
        at += attr.entry_size();
    }
}

/// `e_hash`: of the name, then of the value in words, or of the hash of a value that is outside.
///
/// The bytes of a name are signed, as `char` is on x86: so had Linux them before 6.2, and it calls every other hash of a value
/// that is outside a damaged one. Since 6.2 it takes either (fs/ext4/xattr.c, ext4_xattr_inode_verify_hashes).
fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let mut hash = 0u32;
    for &byte in name {
        hash = hash.rotate_left(5) ^ i32::from(byte.cast_signed()) as u32;
    }
    for word in value.as_chunks::<4>().0 {
        hash = hash.rotate_left(16) ^ u32::from_le_bytes(*word);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand, from the kernel's loop: 0xffffffc3, rotated by 5 bits, with 0xffffffbc.
    #[test]
    fn row_21_bytes_of_a_name_are_signed() {
        assert_eq!(entry_hash(b"", &[]), 0);
        assert_eq!(entry_hash(b"ab", &[]), (0x61 << 5) ^ 0x62);
        assert_eq!(entry_hash(b"\xc3", &[]), 0xffff_ffc3);
        assert_eq!(entry_hash(b"\xc3\xbc", &[]), 0xffff_f87f ^ 0xffff_ffbc);
        assert_eq!(entry_hash(b"a", &7_u32.to_le_bytes()), (0x61 << 16) ^ 7);
    }
}
