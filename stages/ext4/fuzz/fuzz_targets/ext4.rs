//! Bytes → a description of a tree → layout → `e2fsck -fn`, which must find nothing to say.
//!
//! `cargo xtask fuzz ext4 --seconds 600` runs it. Only metadata is written: e2fsck reads no contents, and
//! what is not written is a hole.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use fcpipe_ext4::{BLOCK_SIZE, Label, Layout, Options, Origin, layout};
use fcpipe_tree::{DataRun, Timestamp};
use fcpipe_treegen::{Content, Inode, Kind, Model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let options = bytes.options();
    let model = bytes.model();
    // What ext4 can't hold is an error and no image; that it is the right one is for the tests to say.
    if let Ok(layout) = layout(&model.tree().0, &options) {
        judge(&layout);
    }
});

/// Writes the metadata to a sparse file in memory and has e2fsck look at all of it.
fn judge(layout: &Layout) {
    let path = PathBuf::from(format!("/dev/shm/fcpipe-fuzz-{}", std::process::id()));
    let file = File::create(&path).expect("a file");
    file.set_len(layout.size).expect("a size");
    for extent in &layout.map.extents {
        if let Origin::Metadata { offset } = extent.origin {
            let len = u64::from(extent.blocks) * BLOCK_SIZE;
            let bytes = &layout.map.metadata[offset as usize..(offset + len) as usize];
            file.write_all_at(bytes, extent.block * BLOCK_SIZE)
                .expect("written");
        }
    }
    let output = Command::new("/sbin/e2fsck")
        .arg("-fn")
        .arg(&path)
        .env("LC_ALL", "C")
        .output()
        .expect("e2fsck");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    std::fs::remove_file(&path).expect("removed");
    assert!(output.status.success(), "{said}");
    let quiet = said
        .lines()
        .all(|line| line.is_empty() || line.starts_with("Pass ") || line.contains(" files ("));
    assert!(quiet, "{said}");
}

/// The input, used up from the front; zeros where it has ended.
struct Bytes<'d>(&'d [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        self.number(4) as usize % end
    }

    /// Bytes of the input itself, which is how names get strange; repeated to be long.
    fn text(&mut self, most: usize) -> Vec<u8> {
        let own = usize::from(self.byte() % 16);
        let repeat = if self.byte() < 32 {
            self.below(most)
        } else {
            own
        };
        let own: Vec<u8> = (0..own.max(1)).map(|_| self.byte()).collect();
        own.iter().copied().cycle().take(repeat.max(1)).collect()
    }

    fn options(&mut self) -> Options {
        let choice = self.byte();
        Options {
            size: (choice & 1 == 1).then(|| self.number(2) << 20),
            journal: choice & 2 == 2,
            label: Label::new(b"fuzz").unwrap_or_default(),
        }
    }

    fn model(&mut self) -> Model {
        let mut model = Model::new();
        let mut dirs = vec![Model::ROOT];
        while !self.0.is_empty() && model.inodes.len() < 2000 {
            let dir = dirs[self.below(dirs.len())];
            let kind = match self.byte() % 10 {
                0 | 1 => Kind::Directory(BTreeMap::new()),
                2 | 3 => Kind::File(self.content()),
                4 => Kind::Symlink(self.text(4100)),
                5 => Kind::CharDevice {
                    major: self.number(2) as u32,
                    minor: self.number(3) as u32,
                },
                6 => [Kind::Fifo, Kind::Socket][self.below(2)].clone(),
                7 => {
                    self.hard_links(&mut model, dir);
                    continue;
                }
                8 => {
                    self.many_names(&mut model, dir);
                    continue;
                }
                _ => {
                    let inode = self.below(model.inodes.len());
                    self.metadata(&mut model.inodes[inode]);
                    continue;
                }
            };
            let is_dir = matches!(kind, Kind::Directory(_));
            let name = self.text(260);
            if taken(&model, dir, &name) {
                continue;
            }
            let number = model.add(dir, &name, Inode::new(kind));
            if is_dir {
                dirs.push(number);
            }
        }
        model
    }

    fn content(&mut self) -> Content {
        let size = self.number(5) >> (self.byte() % 40);
        let blocks = size.div_ceil(BLOCK_SIZE).min(u64::from(u32::MAX) - 1) as u32;
        // Data is left out of the image, but it takes its place on the disk.
        if size < 4 << 20 && self.byte() % 2 == 0 {
            return Content::plain(size, 0);
        }
        let mut runs = Vec::new();
        let mut at = 0u32;
        let most = self.below(600);
        while runs.len() < most && at < blocks {
            let start = at.saturating_add(self.number(1) as u32 * 7 % 97);
            let end = start
                .saturating_add(1 + u32::from(self.byte() % 40))
                .min(blocks);
            if start >= end {
                break;
            }
            runs.push(DataRun { start, end });
            at = end.saturating_add(1);
        }
        Content {
            size,
            data: Some(runs),
            seed: 0,
        }
    }

    fn hard_links(&mut self, model: &mut Model, dir: usize) {
        let inode = self.below(model.inodes.len());
        if matches!(model.inodes[inode].kind, Kind::Directory(_)) {
            return;
        }
        for n in 0..self.below(40) {
            let name = format!("link {n}");
            if !taken(model, dir, name.as_bytes()) {
                model.link(dir, name.as_bytes(), inode);
            }
        }
    }

    /// A directory of many blocks, with names of one file.
    fn many_names(&mut self, model: &mut Model, dir: usize) {
        let count = self.below(3000);
        let pad = self.below(200);
        let file = model.inodes.len();
        let mut first = true;
        for n in 0..count {
            let name = format!("{n}{}", "n".repeat(pad));
            if taken(model, dir, name.as_bytes()) {
                continue;
            }
            if first {
                model.add(
                    dir,
                    name.as_bytes(),
                    Inode::new(Kind::File(Content::plain(1, 0))),
                );
                first = false;
            } else {
                model.link(dir, name.as_bytes(), file);
            }
        }
    }

    fn metadata(&mut self, inode: &mut Inode) {
        inode.meta.mode = self.number(2) as u16 & 0o7777;
        (inode.meta.uid, inode.meta.gid) = (self.number(4) as u32, self.number(4) as u32);
        // e2fsck takes times from 2310 to 2378 for times before 1970 that an old kernel wrote.
        let secs = self.number(5) as i64 - (1 << 38);
        let misread = (3i64 << 32) - (1 << 31)..3i64 << 32;
        inode.meta.mtime = Timestamp {
            secs: if misread.contains(&secs) { 0 } else { secs },
            nanos: self.number(4) as u32 % 1_000_000_000,
        };
        for _ in 0..self.byte() % 6 {
            let prefix = ["user.", "trusted.", "security.", "system.", ""][self.below(5)];
            let mut name = prefix.as_bytes().to_vec();
            name.extend(self.text(260));
            let value = self.text(70_000);
            inode.xattrs.insert(name, value);
        }
    }
}

fn taken(model: &Model, dir: usize, name: &[u8]) -> bool {
    match &model.inodes[dir].kind {
        Kind::Directory(names) => names.contains_key(name),
        _ => true,
    }
}
