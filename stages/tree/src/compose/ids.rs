//! Owners as the image has them: a source's `owner`, or its ranges of ids.
//!
//! The same as the kernel's idmapped mounts do: files' owners, the users and groups that ACLs name and
//! the root user of a file capability are mapped. An id that no range has becomes the overflow id, as which the
//! kernel shows it in a user namespace, and is told of. `owner` changes files' owners alone.

use std::cell::Cell;

use fcpipe_spec::{Content, IdRange};

use crate::model::{Meta, Xattr};

/// `system.posix_acl_*`, as <linux/posix_acl_xattr.h> has it: a version, then entries of tag,
/// permissions and id, all little-endian.
const ACL_VERSION: u32 = 2;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// `security.capability`, as <linux/capability.h> has it (VFS_CAP_REVISION_2 and _3).
const CAP_REVISION_MASK: u32 = 0xFF00_0000;
const CAP_REVISION_2: u32 = 0x0200_0000;
const CAP_REVISION_3: u32 = 0x0300_0000;
const CAP_3_LEN: usize = 24;
const CAP_2_LEN: usize = 20;

/// Whom files belong to whose owner has no name inside: the kernel's default of `kernel.overflowuid` and `overflowgid`.
const OVERFLOW: u32 = 65_534;

/// An attribute that can't be mapped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Vec<u8>);

/// An id that no range has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unmapped {
    /// `user` or `group`.
    pub(super) what: &'static str,
    pub(super) id: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Ids<'a> {
    content: &'a Content,
    /// The first of those that were mapped with this.
    unmapped: Cell<Option<Unmapped>>,
}

impl<'a> Ids<'a> {
    pub(super) fn new(content: &'a Content) -> Self {
        Ids {
            content,
            unmapped: Cell::new(None),
        }
    }

    /// The first id that was met and has no range.
    pub(super) fn unmapped(&self) -> Option<Unmapped> {
        self.unmapped.get()
    }

    /// Whether everything stays as it is.
    pub(super) fn is_identity(&self) -> bool {
        self.content.owner.is_none() && !self.maps()
    }

    fn maps(&self) -> bool {
        self.content.owner.is_none()
            && !(self.content.uid_map.is_empty() && self.content.gid_map.is_empty())
    }

    pub(super) fn meta(&self, meta: &Meta) -> Meta {
        let (uid, gid) = match self.content.owner {
            Some(owner) => owner,
            None => (self.uid(meta.uid), self.gid(meta.gid)),
        };
        Meta { uid, gid, ..*meta }
    }

    pub(super) fn xattrs(&self, set: &[Xattr]) -> Result<Vec<Xattr>, Refused> {
        let mut set = set.to_vec();
        if self.maps() {
            for xattr in &mut set {
                match &xattr.name[..] {
                    b"system.posix_acl_access" | b"system.posix_acl_default" => self.acl(xattr)?,
                    b"security.capability" => self.capability(xattr)?,
                    _ => {}
                }
            }
        }
        Ok(set)
    }

    fn uid(&self, id: u32) -> u32 {
        map(&self.content.uid_map, id).unwrap_or_else(|| self.overflow("user", id))
    }

    fn gid(&self, id: u32) -> u32 {
        map(&self.content.gid_map, id).unwrap_or_else(|| self.overflow("group", id))
    }

    fn overflow(&self, what: &'static str, id: u32) -> u32 {
        let first = self.unmapped.get().unwrap_or(Unmapped { what, id });
        self.unmapped.set(Some(first));
        OVERFLOW
    }

    fn acl(&self, xattr: &mut Xattr) -> Result<(), Refused> {
        let value = &mut xattr.value;
        let odd = || Refused(xattr.name.clone());
        let (version, entries) = value.split_first_chunk_mut::<4>().ok_or_else(odd)?;
        if u32::from_le_bytes(*version) != ACL_VERSION {
            return Err(odd());
        }
        let (entries, rest) = entries.as_chunks_mut::<ACL_ENTRY>();
        if !rest.is_empty() {
            return Err(odd());
        }
        for entry in &mut *entries {
            let [tag0, tag1, _, _, id @ ..] = entry;
            let old = u32::from_le_bytes(*id);
            let new = match u16::from_le_bytes([*tag0, *tag1]) {
                ACL_USER => self.uid(old),
                ACL_GROUP => self.gid(old),
                _ => continue,
            };
            *id = new.to_le_bytes();
        }
        // The kernel writes entries of one tag in the order of ids, and refuses another one.
        entries.sort_by_key(|entry| {
            let [tag0, tag1, _, _, id @ ..] = *entry;
            (u16::from_le_bytes([tag0, tag1]), u32::from_le_bytes(id))
        });
        Ok(())
    }

    /// A capability of revision 3 belongs to a user namespace, by the id of its root on the host. Where
    /// that becomes the image's root it is an ordinary one, of revision 2.
    fn capability(&self, xattr: &mut Xattr) -> Result<(), Refused> {
        let value = &mut xattr.value;
        let magic = match value.first_chunk::<4>() {
            Some(magic) => u32::from_le_bytes(*magic),
            None => return Err(Refused(xattr.name.clone())),
        };
        if magic & CAP_REVISION_MASK != CAP_REVISION_3 {
            return Ok(());
        }
        let Some(root) = value.last_chunk::<4>().filter(|_| value.len() == CAP_3_LEN) else {
            return Err(Refused(xattr.name.clone()));
        };
        match self.uid(u32::from_le_bytes(*root)) {
            0 => {
                let magic = magic & !CAP_REVISION_MASK | CAP_REVISION_2;
                value[..4].copy_from_slice(&magic.to_le_bytes());
                value.truncate(CAP_2_LEN);
            }
            root => value[CAP_2_LEN..].copy_from_slice(&root.to_le_bytes()),
        }
        Ok(())
    }
}

/// Without ranges an id stays as it is.
fn map(ranges: &[IdRange], id: u32) -> Option<u32> {
    if ranges.is_empty() {
        return Some(id);
    }
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.host).filter(|&o| o < range.size)?;
        range.inside.checked_add(offset)
    })
}
