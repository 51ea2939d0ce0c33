//! Why there is no layout, and what in one differs from the tree.

use std::fmt;

use bstr::BString;
use thiserror::Error;

/// Why a tree can't become an image. Paths are those inside the image, quoted when shown.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    #[error("the tree needs an image of at least {needed} bytes, not {size}")]
    TooSmall { size: u64, needed: u64 },

    #[error("an image of {size} bytes is more than the {limit} bytes supported")]
    TooLarge { size: u64, limit: u64 },

    #[error("{inodes} inodes are more than an ext4 file system can have")]
    TooManyInodes { inodes: u64 },

    #[error("{path:?} has {size} bytes; ext4 ends at {limit}")]
    FileTooLarge {
        path: BString,
        size: u64,
        limit: u64,
    },

    #[error(
        "{path:?}: a name must have 1 to 255 bytes, without '/' or NUL, and not be '.' or '..'"
    )]
    BadName { path: BString },

    #[error(
        "{path:?}: a symlink's target must have 1 to 4095 bytes and no NUL (it has {len} bytes)"
    )]
    BadSymlink { path: BString, len: usize },

    #[error("{path:?}: no device of Linux has the numbers {major}:{minor}")]
    BadDevice {
        path: BString,
        major: u32,
        minor: u32,
    },

    #[error("{path:?} has more names than an indexed directory can hold")]
    DirectoryTooLarge { path: BString },

    #[error("{path:?}: extended attribute {name:?} {problem}")]
    Xattr {
        path: BString,
        name: BString,
        problem: XattrProblem,
    },
}

/// What is the matter with an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrProblem {
    /// ext4 has no number for what stands before the first dot.
    UnknownPrefix,
    /// Nothing, or more than 255 bytes, after the prefix.
    BadName,
    /// Not what the kernel gives for a POSIX ACL.
    BadAcl,
    /// More than 65,536 bytes.
    ValueTooLong,
    /// Names and values fit neither the inode nor its one block.
    NoRoom,
}

impl fmt::Display for XattrProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XattrProblem::UnknownPrefix => "is of a kind that ext4 can't store",
            XattrProblem::BadName => "must have 1 to 255 bytes after its prefix",
            XattrProblem::BadAcl => "is no valid POSIX ACL",
            XattrProblem::ValueTooLong => "has a value of more than 65536 bytes",
            XattrProblem::NoRoom => {
                "does not fit: the names and values of this file fill its inode and its one block"
            }
        })
    }
}

/// Something that the image does not hold exactly as the tree does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutWarning {
    /// A modification time outside of 1901 to 2446 became the nearest that ext4 can hold.
    TimeClamped { path: BString, secs: i64 },
    /// As [`LayoutWarning::TimeClamped`], for so many more files, which are not listed.
    MoreTimesClamped { files: u64 },
    /// A file has more names than ext4 can count, so they were shared out among several inodes with the
    /// same content.
    LinksSplit {
        path: BString,
        names: u32,
        inodes: u32,
    },
    /// The root has a `lost+found` that is no directory; e2fsck will have none to put things into.
    LostAndFoundTaken,
}

impl fmt::Display for LayoutWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutWarning::TimeClamped { path, secs } => write!(
                f,
                "{path:?}: the modification time ({secs} s from 1970) is outside of what ext4 can hold, 1901 to 2446"
            ),
            LayoutWarning::MoreTimesClamped { files } => {
                write!(f, "{files} more files have times outside of 1901 to 2446")
            }
            LayoutWarning::LinksSplit {
                path,
                names,
                inodes,
            } => write!(
                f,
                "{path:?} has {names} names, and ext4 counts 65000: it became {inodes} files with the same content"
            ),
            LayoutWarning::LostAndFoundTaken => f.write_str(
                "/lost+found is not a directory; fsck will have nowhere to put what it finds",
            ),
        }
    }
}
