//! The image map: where every byte of the disk comes from.
//!
//! It is computed from metadata alone, and it is all that is needed to write the image, to serve it
//! lazily, or to compare it with another one.

use fcpipe_tree::NodeId;

/// Bytes in a block of the file systems that we make.
pub const BLOCK_SIZE: u64 = 4096;

/// Where a run of blocks comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The layout's own metadata, from this byte of [`ImageMap::metadata`] on.
    Metadata { offset: u64 },
    /// A file's content, from this byte of the file on. Past the file's end: zeros.
    File { node: NodeId, offset: u64 },
}

/// A run of blocks of the image. What no extent covers is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapExtent {
    /// First block of the image.
    pub block: u64,
    /// Length in blocks.
    pub blocks: u32,
    pub origin: Origin,
}

impl MapExtent {
    /// Appends a form of the extent that no other extent has.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        let (tag, node, offset) = match self.origin {
            Origin::Metadata { offset } => (0u32, 0, offset),
            Origin::File { node, offset } => (1, node.0, offset),
        };
        out.extend_from_slice(&self.block.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&node.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
}

/// Every extent of the disk that is not zero, in disk order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMap {
    pub extents: Vec<MapExtent>,
    /// What [`Origin::Metadata`] points into: whole blocks, in the order of the disk.
    pub metadata: Vec<u8>,
    /// Size of the whole disk in blocks.
    pub blocks: u64,
}
