//! From the kernel's interface to the disk: prefixes become numbers, and ACLs their short form.
//!
//! Sources: Documentation/filesystems/ext4/attributes.rst, the table of name indices; fs/ext4/acl.h.

use std::borrow::Cow;

use fcpipe_tree::Xattr;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::Attr;
use crate::error::XattrProblem;
use crate::ondisk::xattr::{self, AclEntry};

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Prefixes that are stored as a number.
const PREFIXES: [(&[u8], u8); 4] = [
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"gnu.", 10),
];

pub(super) fn translate(attr: &Xattr) -> Result<Attr<'_>, XattrProblem> {
    if attr.value.len() > xattr::VALUE_MAX {
        return Err(XattrProblem::ValueTooLong);
    }
    let acl_index = match attr.name.as_slice() {
        ACL_ACCESS => Some(2),
        ACL_DEFAULT => Some(3),
        _ => None,
    };
    if let Some(index) = acl_index {
        return Ok(Attr {
            index,
            name: b"",
            value: Cow::Owned(acl_to_disk(&attr.value).ok_or(XattrProblem::BadAcl)?),
            outside: None,
        });
    }
    let (name, index) = PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((attr.name.strip_prefix(*prefix)?, *index)))
        .ok_or(XattrProblem::UnknownPrefix)?;
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(XattrProblem::BadName);
    }
    Ok(Attr {
        index,
        name,
        value: Cow::Borrowed(&attr.value),
        outside: None,
    })
}

/// A POSIX ACL as getxattr gives it, as ext4 stores it: without ids where they mean nothing.
fn acl_to_disk(value: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != xattr::ACL_XATTR_VERSION {
        return None;
    }
    let mut out = xattr::ACL_DISK_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, after) = AclEntry::read_from_prefix(rest).ok()?;
        rest = after;
        match entry.e_tag.get() {
            xattr::ACL_USER | xattr::ACL_GROUP => out.extend_from_slice(entry.as_bytes()),
            xattr::ACL_USER_OBJ | xattr::ACL_GROUP_OBJ | xattr::ACL_MASK | xattr::ACL_OTHER => {
                out.extend_from_slice(&entry.as_bytes()[..4]);
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(name: &[u8], value: &[u8]) -> Xattr {
        Xattr {
            name: name.to_vec(),
            value: value.to_vec(),
        }
    }

    #[test]
    fn row_21_prefixes_become_numbers() {
        for (name, index, rest) in [
            (b"user.a".as_slice(), 1, b"a".as_slice()),
            (b"trusted.overlay.opaque", 4, b"overlay.opaque"),
            (b"security.capability", 6, b"capability"),
            (b"gnu.translator", 10, b"translator"),
        ] {
            let attr = attr(name, b"x");
            let out = translate(&attr).expect("translated");
            assert_eq!((out.index, out.name), (index, rest));
        }
        for (name, problem) in [
            (b"system.nfs4_acl".as_slice(), XattrProblem::UnknownPrefix),
            (b"user", XattrProblem::UnknownPrefix),
            (b"user.", XattrProblem::BadName),
            (b"system.posix_acl_access", XattrProblem::BadAcl),
        ] {
            assert_eq!(translate(&attr(name, b"x")).err(), Some(problem));
        }
        let long = attr(b"user.a", &vec![0; 65_537]);
        assert_eq!(translate(&long).err(), Some(XattrProblem::ValueTooLong));
    }

    #[test]
    fn row_21_an_acl_loses_the_ids_that_mean_nothing() {
        #[rustfmt::skip]
        let value = [
            2, 0, 0, 0,
            1, 0, 7, 0, 255, 255, 255, 255,
            2, 0, 6, 0, 0xe8, 3, 0, 0,
            4, 0, 5, 0, 255, 255, 255, 255,
            16, 0, 7, 0, 255, 255, 255, 255,
            32, 0, 4, 0, 255, 255, 255, 255,
        ];
        #[rustfmt::skip]
        let disk = [
            1, 0, 0, 0,
            1, 0, 7, 0,
            2, 0, 6, 0, 0xe8, 3, 0, 0,
            4, 0, 5, 0,
            16, 0, 7, 0,
            32, 0, 4, 0,
        ];
        assert_eq!(acl_to_disk(&value), Some(disk.to_vec()));
        assert_eq!(acl_to_disk(&value[..10]), None);
        assert_eq!(acl_to_disk(&[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
