//! CRC32C as ext4 uses it: not inverted at the end, so that a sum can be the seed of the next one.
//!
//! Source: Documentation/filesystems/ext4/checksums.rst.

/// The seed of every checksum (`s_checksum_seed`), a constant of our format. Stored in the superblock
/// (metadata_csum_seed), so the UUID stands in superblocks alone and the same content gives the same
/// blocks.
pub(crate) const SEED: Seed = Seed(0x6663_7069);

/// What checksums begin with: the format's [`SEED`], or what it becomes for one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u32);

impl Seed {
    /// What a CRC begins with where no seed is asked for: the superblock's own.
    pub(crate) const NONE: Seed = Seed(!0);

    /// The checksum of `bytes` that follow what the seed already covers.
    pub(crate) fn with(self, bytes: &[u8]) -> Seed {
        // The crate inverts on the way in and out; ext4 does neither.
        Seed(!crc32c::crc32c_append(!self.0, bytes))
    }

    /// The seed of what belongs to one inode: its number and `i_generation`, which is always 0 here.
    pub(crate) fn of_inode(ino: crate::InodeNo) -> Seed {
        SEED.with(&ino.0.to_le_bytes()).with(&[0; 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4: the CRC32C of 32 zero bytes is 8a9136aa when inverted at the end.
    #[test]
    fn is_not_inverted_at_the_end() {
        assert_eq!(Seed::NONE.with(&[0; 32]), Seed(!0x8a91_36aa));
    }

    #[test]
    fn parts_are_the_whole() {
        let whole = SEED.with(b"one two");
        assert_eq!(SEED.with(b"one").with(b" two"), whole);
    }
}
