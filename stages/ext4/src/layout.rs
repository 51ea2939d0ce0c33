//! The whole way from a Tree to an image: number, plan, size, place, encode.

use bstr::BString;
use fcpipe_tree::{Kind, NodeId, Tree};
use rayon::prelude::*;

use crate::dirs::DirPlan;
use crate::encode::{self, Decided};
use crate::error::{LayoutError, LayoutWarning};
use crate::geometry::{BLOCKS_PER_GROUP, Geometry, MAX_BLOCKS, MAX_INODES_PER_GROUP};
use crate::map::{BLOCK_SIZE, ImageMap};
use crate::numbers::Numbers;
use crate::options::{FORMAT_VERSION, Options};
use crate::placement::{Content, Placement};
use crate::times;
use crate::xattrs::Xattrs;

/// The least that an image has if its size was left to us.
const MIN_BLOCKS: u64 = (128 << 20) / BLOCK_SIZE;
/// What there is beyond the need if the size was left to us, in percent.
const SPARE_PERCENT: u64 = 30;
/// Sizes that we choose are multiples of 1 MiB.
const SIZE_STEP: u64 = (1 << 20) / BLOCK_SIZE;
/// There is an inode for so many blocks at least, as mke2fs has it: 16 KiB.
const BLOCKS_PER_INODE: u64 = 4;
/// The largest file: block numbers in a file have 32 bits, and the last is reserved.
const MAX_FILE_SIZE: u64 = (u32::MAX as u64) * BLOCK_SIZE;
const MAX_SYMLINK: usize = 4095;
/// Files with times beyond ext4's range that are named one by one.
const NAMED_TIMES: u64 = 100;

/// An image, without the contents of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where every byte comes from.
    pub map: ImageMap,
    /// Bytes of the whole image.
    pub size: u64,
    /// The file system's UUID: made of the tree and the options.
    pub uuid: [u8; 16],
    /// Inodes in use, reserved ones included.
    pub inodes: u32,
    /// Blocks in use, those of the file system itself included.
    pub blocks_used: u64,
    /// What the image does not hold exactly as the tree does.
    pub warnings: Vec<LayoutWarning>,
}

impl Layout {
    /// Says whether two layouts give the same image from the same contents.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("fcpipe ext4 layout 1");
        hasher.update(&FORMAT_VERSION.to_le_bytes());
        hasher.update(&self.size.to_le_bytes());
        hasher.update(&(self.map.metadata.len() as u64).to_le_bytes());
        hasher.update_rayon(&self.map.metadata);
        let mut bytes = Vec::with_capacity(1 << 16);
        for extent in &self.map.extents {
            extent.write_to(&mut bytes);
            if bytes.len() > (1 << 16) - 64 {
                hasher.update(&bytes);
                bytes.clear();
            }
        }
        hasher.update(&bytes);
        hasher.finalize()
    }
}

/// Computes the image of a tree. Reads no file.
///
/// The same tree and options give the same layout, on any host and with any number of threads.
///
/// # Errors
/// If the tree holds something that ext4 can't, or does not fit the size that was asked for.
pub fn layout(tree: &Tree, options: &Options) -> Result<Layout, LayoutError> {
    layout_and(tree, options, |_| ()).map(|(layout, ())| layout)
}

/// [`layout()`], and something else that is made of what was decided.
pub(crate) fn layout_and<R>(
    tree: &Tree,
    options: &Options,
    also: impl FnOnce(&Decided<'_>) -> R,
) -> Result<(Layout, R), LayoutError> {
    let mut warnings = check_nodes(tree)?;
    let content = plan(tree, &mut warnings)?;
    let used_inodes = content.used_inodes()?;
    let size = Size::find(&content, options, used_inodes)?;
    let decided = Decided {
        content: &content,
        geometry: &size.geometry,
        placement: &size.placement,
        options,
        uuid: uuid(tree, options),
        last_inode: used_inodes,
        inodes_in_use: used_inodes,
        journal_blocks: size.journal_blocks,
        disk_blocks: size.disk_blocks,
        changes: None,
    };
    let also = also(&decided);
    Ok((Layout::of(&decided, warnings), also))
}

impl Layout {
    pub(crate) fn of(decided: &Decided<'_>, warnings: Vec<LayoutWarning>) -> Layout {
        let free: u64 = decided.placement.free.iter().map(|run| run.len()).sum();
        Layout {
            map: encode::encode(decided),
            size: decided.disk_blocks * BLOCK_SIZE,
            uuid: decided.uuid,
            inodes: decided.inodes_in_use,
            blocks_used: decided.geometry.blocks - free,
            warnings,
        }
    }
}

/// Looks at every node by itself: can ext4 hold it?
pub(crate) fn check_nodes(tree: &Tree) -> Result<Vec<LayoutWarning>, LayoutError> {
    let mut warnings = Vec::new();
    let mut clamped = 0;
    let path = |node| BString::from(tree.path(node));
    for node in tree.nodes() {
        match tree.kind(node) {
            Kind::File { size } if size > MAX_FILE_SIZE => {
                return Err(LayoutError::FileTooLarge {
                    path: path(node),
                    size,
                    limit: MAX_FILE_SIZE,
                });
            }
            Kind::Symlink => {
                let target = tree.target(node);
                if target.is_empty() || target.len() > MAX_SYMLINK || target.contains(&0) {
                    return Err(LayoutError::BadSymlink {
                        path: path(node),
                        len: target.len(),
                    });
                }
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
                if major >= 1 << 12 || minor >= 1 << 20 =>
            {
                return Err(LayoutError::BadDevice {
                    path: path(node),
                    major,
                    minor,
                });
            }
            _ => {}
        }
        let mtime = tree.meta(node).mtime;
        if !times::fits(mtime) {
            clamped += 1;
            if clamped <= NAMED_TIMES {
                warnings.push(LayoutWarning::TimeClamped {
                    path: path(node),
                    secs: mtime.secs,
                });
            }
        }
    }
    if clamped > NAMED_TIMES {
        warnings.push(LayoutWarning::MoreTimesClamped {
            files: clamped - NAMED_TIMES,
        });
    }
    Ok(warnings)
}

/// Decides all that does not depend on where things will be.
fn plan<'t>(tree: &'t Tree, warnings: &mut Vec<LayoutWarning>) -> Result<Content<'t>, LayoutError> {
    let numbers = Numbers::new(tree, warnings);
    let xattrs = Xattrs::new(tree, &numbers)?;
    let nodes: Vec<NodeId> = tree
        .nodes()
        .filter(|&node| tree.kind(node) == Kind::Directory)
        .collect();
    let planned: Vec<Result<DirPlan<'t>, LayoutError>> = nodes
        .par_iter()
        .with_min_len(64)
        .map(|&node| DirPlan::new(tree, &numbers, node))
        .collect();
    let mut dirs = Vec::with_capacity(planned.len() + 1);
    for dir in planned {
        // In order, so that of several errors it is always the same that is seen.
        dirs.push(dir?);
    }
    if numbers.makes_lost_found() {
        dirs.push(DirPlan::lost_found());
    }
    Ok(Content {
        tree,
        numbers,
        dirs,
        xattrs,
    })
}

impl Content<'_> {
    fn used_inodes(&self) -> Result<u32, LayoutError> {
        let values = self.xattrs.values.len() as u64;
        let all = u64::from(self.numbers.items()) + values + 16;
        if all > u64::from(u32::MAX) {
            return Err(LayoutError::TooManyInodes { inodes: all });
        }
        Ok(self.numbers.last(values as u32))
    }
}

/// A size, and everything in its place.
struct Size {
    disk_blocks: u64,
    journal_blocks: u32,
    geometry: Geometry,
    placement: Placement,
}

impl Size {
    fn find(
        content: &Content<'_>,
        options: &Options,
        used_inodes: u32,
    ) -> Result<Size, LayoutError> {
        let used = u64::from(used_inodes);
        let with_spare = used + used * SPARE_PERCENT / 100;
        let Some(asked) = options.size else {
            let room = Room {
                least: MIN_BLOCKS,
                spare_percent: SPARE_PERCENT,
                inodes: with_spare,
                journal: options.journal,
            };
            let blocks = room.blocks_for(content)?;
            return Size::of(content, blocks, with_spare, options.journal).ok_or(
                LayoutError::TooLarge {
                    size: blocks * BLOCK_SIZE,
                    limit: MAX_BLOCKS * BLOCK_SIZE,
                },
            );
        };
        let blocks = asked.div_ceil(BLOCK_SIZE);
        if blocks > MAX_BLOCKS {
            return Err(LayoutError::TooLarge {
                size: asked,
                limit: MAX_BLOCKS * BLOCK_SIZE,
            });
        }
        // Spare inodes are given up before the tree is.
        let found = Size::of(content, blocks, with_spare, options.journal)
            .or_else(|| Size::of(content, blocks, used, options.journal));
        if let Some(size) = found {
            return Ok(size);
        }
        let room = Room {
            least: SIZE_STEP,
            spare_percent: 0,
            inodes: used,
            journal: options.journal,
        };
        Err(LayoutError::TooSmall {
            size: asked,
            needed: room.blocks_for(content)? * BLOCK_SIZE,
        })
    }

    /// Places everything on a disk of that size, if it fits.
    fn of(content: &Content<'_>, disk_blocks: u64, inodes: u64, journal: bool) -> Option<Size> {
        let geometry = Geometry::new(disk_blocks, inodes_on(disk_blocks, inodes))?;
        let journal_blocks = if journal {
            journal_size(geometry.blocks)?
        } else {
            0
        };
        let placement = Placement::new(content, journal_blocks, &geometry.free).ok()?;
        Some(Size {
            disk_blocks,
            journal_blocks,
            geometry,
            placement,
        })
    }
}

/// What a size is to have room for.
struct Room {
    least: u64,
    spare_percent: u64,
    inodes: u64,
    journal: bool,
}

impl Room {
    /// The least size, in steps, that certainly suffices.
    fn blocks_for(&self, content: &Content<'_>) -> Result<u64, LayoutError> {
        let for_inodes = self.inodes.div_ceil(u64::from(MAX_INODES_PER_GROUP)) * BLOCKS_PER_GROUP;
        let mut blocks = if self.inodes > u64::from(MAX_INODES_PER_GROUP) {
            self.least.max(for_inodes)
        } else {
            self.least
        };
        loop {
            blocks = blocks.next_multiple_of(SIZE_STEP);
            if blocks > MAX_BLOCKS {
                return Err(LayoutError::TooLarge {
                    size: blocks * BLOCK_SIZE,
                    limit: MAX_BLOCKS * BLOCK_SIZE,
                });
            }
            let short = match Geometry::new(blocks, inodes_on(blocks, self.inodes)) {
                None => SIZE_STEP,
                Some(geometry) => {
                    let need = content.blocks(geometry.free.len() as u64);
                    let need = need + (need * self.spare_percent).div_ceil(100);
                    let journal = if self.journal {
                        journal_size(geometry.blocks)
                    } else {
                        Some(0)
                    };
                    match journal {
                        None => SIZE_STEP,
                        Some(journal) => {
                            (need + u64::from(journal)).saturating_sub(geometry.free_blocks())
                        }
                    }
                }
            };
            if short == 0 {
                return Ok(blocks);
            }
            blocks += short;
        }
    }
}

/// The inodes on a disk of that size that is to have so many at least.
fn inodes_on(disk_blocks: u64, least: u64) -> u64 {
    least.max(disk_blocks / BLOCKS_PER_INODE)
}

/// Blocks of the journal, as mke2fs chooses them, or `None` if the disk is too small for one.
/// Source: lib/ext2fs/mkjournal.c, ext2fs_default_journal_size.
fn journal_size(blocks: u64) -> Option<u32> {
    const STEPS: [(u64, u32); 7] = [
        (32_768, 1_024),
        (256 * 1024, 4_096),
        (512 * 1024, 8_192),
        (4096 * 1024, 16_384),
        (8192 * 1024, 32_768),
        (16_384 * 1024, 65_536),
        (32_768 * 1024, 131_072),
    ];
    if blocks < 2048 {
        return None;
    }
    let step = STEPS.iter().find(|(below, _)| blocks < *below);
    Some(step.map_or(262_144, |(_, journal)| *journal))
}

/// A UUID of version 8 (RFC 9562) made of all that goes into the image.
fn uuid(tree: &Tree, options: &Options) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("fcpipe ext4 uuid 1");
    hasher.update(&FORMAT_VERSION.to_le_bytes());
    hasher.update(tree.digest().as_bytes());
    hasher.update(&options.size.unwrap_or(0).to_le_bytes());
    hasher.update(&[u8::from(options.journal)]);
    hasher.update(options.label.as_bytes());
    let mut uuid = [0; 16];
    hasher.finalize_xof().fill(&mut uuid);
    uuid[6] = uuid[6] & 0x0F | 0x80;
    uuid[8] = uuid[8] & 0x3F | 0x80;
    uuid
}
