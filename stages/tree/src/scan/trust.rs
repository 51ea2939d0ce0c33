//! What of a stamp is compared: what the source's file system keeps.
//!
//! A local file system keeps everything, until it is made anew. One on the network, in user space or an
//! overlay gets another device number each time that it is mounted, and some (object stores) give out new inode
//! numbers as well: keyed on these, every remount would copy everything again.

use fcpipe_spec::Trust;

use super::Stamp;

/// The parts of a [`Stamp`] that enter a digest; size and times always do, if content does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fields {
    /// Device and inode too.
    Full,
    /// The inode too.
    Inode,
    /// Nothing else.
    Times,
    /// Size and a hash of the content alone. Where it may be remembered, a file is read again when its stamp
    /// changed; else each time.
    Content { remember: bool },
}

/// What is known of a kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    /// Its clock is this host's; its device number changes.
    Overlay,
    /// Served by another host that keeps inode numbers.
    Network,
    /// Whatever a program makes of it.
    Foreign,
}

/// By f_type of statfs(2), as <linux/magic.h> and the file systems have them.
fn kind(f_type: u64) -> Kind {
    match f_type {
        // overlayfs, aufs.
        0x794c_7630 | 0x6175_6673 => Kind::Overlay,
        // NFS, SMB, CIFS, SMB2, Ceph, Lustre, AFS (two), OCFS2, GFS2, GPFS.
        0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x00c3_6400 | 0x0bd0_0bd0 | 0x5346_414f
        | 0x6b41_4653 | 0x7461_636f | 0x0116_1970 | 0x4750_4653 => Kind::Network,
        // FUSE (and virtiofs), 9p, Coda, vboxsf.
        0x6573_5546 | 0x0102_1997 | 0x7375_7245 | 0x786f_4256 => Kind::Foreign,
        _ => Kind::Local,
    }
}

/// How a source on a file system of this type is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) fields: Fields,
    /// How far the clock that stamps files may be from this host's; nanoseconds.
    pub(crate) skew: i128,
    /// A file's blocks may be more than its data needs: XFS counts those that it keeps ready for what may be written next, and
    /// gives them back in its own time, without a change of the file.
    pub(crate) keeps_ready: bool,
}

/// `XFS_SUPER_MAGIC`.
const XFS: u64 = 0x5846_5342;

impl Manner {
    pub(crate) fn new(trust: Trust, f_type: u64) -> Manner {
        let kind = kind(f_type);
        let stable = match kind {
            Kind::Local | Kind::Overlay | Kind::Network => Fields::Inode,
            Kind::Foreign => Fields::Times,
        };
        let fields = match (trust, kind) {
            (Trust::Full, _) | (Trust::Auto, Kind::Local) => Fields::Full,
            (Trust::Stable | Trust::Auto, _) => stable,
            (Trust::Content, _) => Fields::Content {
                remember: matches!(kind, Kind::Local | Kind::Overlay),
            },
        };
        let skew = match kind {
            Kind::Local | Kind::Overlay => 0,
            Kind::Network | Kind::Foreign => 10_000_000_000,
        };
        Manner {
            fields,
            skew,
            keeps_ready: f_type == XFS,
        }
    }
}

impl Fields {
    /// Whether files are read.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Fields::Content { .. })
    }

    /// Whether what was read of a file holds as long as its stamp is the same.
    pub(crate) fn may_remember(self) -> bool {
        self != Fields::Content { remember: false }
    }

    /// Appends what counts of a file.
    pub(crate) fn encode(self, stamp: &Stamp, content: Option<&[u8; 32]>, out: &mut Vec<u8>) {
        let inode = |out: &mut Vec<u8>| out.extend_from_slice(&stamp.ino.to_le_bytes());
        match self {
            Fields::Full => {
                out.extend_from_slice(&stamp.dev.to_le_bytes());
                inode(out);
            }
            Fields::Inode => inode(out),
            Fields::Times => {}
            Fields::Content { .. } => {
                out.extend_from_slice(&stamp.size.to_le_bytes());
                out.extend_from_slice(content.unwrap_or(&[0; 32]));
                return;
            }
        }
        out.extend_from_slice(&stamp.size.to_le_bytes());
        for time in [stamp.mtime, stamp.ctime] {
            out.extend_from_slice(&time.secs.to_le_bytes());
            out.extend_from_slice(&time.nanos.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    const EXT4: u64 = 0xef53;
    const FUSE: u64 = 0x6573_5546;
    const NFS: u64 = 0x6969;
    const OVERLAY: u64 = 0x794c_7630;

    #[test]
    fn row_29_what_is_trusted_where() {
        let fields = |trust, f_type| Manner::new(trust, f_type).fields;
        let content = |remember| Fields::Content { remember };
        for (trust, expected) in [
            (
                Trust::Auto,
                [Fields::Full, Fields::Inode, Fields::Inode, Fields::Times],
            ),
            (Trust::Full, [Fields::Full; 4]),
            (
                Trust::Stable,
                [Fields::Inode, Fields::Inode, Fields::Inode, Fields::Times],
            ),
            (
                Trust::Content,
                [content(true), content(true), content(false), content(false)],
            ),
        ] {
            let got = [EXT4, OVERLAY, NFS, FUSE].map(|f_type| fields(trust, f_type));
            assert_eq!(got, expected, "{trust}");
        }
        assert_eq!(Manner::new(Trust::Auto, EXT4).skew, 0);
        assert!(Manner::new(Trust::Full, FUSE).skew > 0);
    }

    #[test]
    fn row_29_which_changes_are_noticed() {
        let time = |secs| Timestamp { secs, nanos: 1 };
        let stamp = Stamp {
            dev: 1,
            ino: 2,
            size: 3,
            mtime: time(4),
            ctime: time(5),
        };
        let changed = [
            Stamp { dev: 9, ..stamp },
            Stamp { ino: 9, ..stamp },
            Stamp { size: 9, ..stamp },
            Stamp {
                mtime: time(9),
                ..stamp
            },
            Stamp {
                ctime: time(9),
                ..stamp
            },
        ];
        let encoded = |fields: Fields, stamp: &Stamp, content: [u8; 32]| {
            let mut out = Vec::new();
            fields.encode(stamp, Some(&content), &mut out);
            out
        };
        for (fields, noticed) in [
            (Fields::Full, [true, true, true, true, true]),
            (Fields::Inode, [false, true, true, true, true]),
            (Fields::Times, [false, false, true, true, true]),
            (
                Fields::Content { remember: true },
                [false, false, true, false, false],
            ),
        ] {
            let before = encoded(fields, &stamp, [7; 32]);
            let got = changed.map(|stamp| encoded(fields, &stamp, [7; 32]) != before);
            assert_eq!(got, noticed, "{fields:?}");
            let content = encoded(fields, &stamp, [8; 32]) != before;
            assert_eq!(content, fields.reads());
        }
    }
}
