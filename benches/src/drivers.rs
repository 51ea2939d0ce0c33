//! The peers, each driven the way its own examples do: what an honest user of it would write.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use arcbox_ext4::constants::{file_mode, make_mode};
use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, ROOT, SpecialKind};

use crate::Result;

/// What an image of a tree must hold.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    pub(crate) inodes: u64,
    /// Bytes of content, each file rounded up to 4 KiB.
    pub(crate) bytes: u64,
}

impl Needs {
    pub(crate) fn of(tree: &Path) -> Result<Needs> {
        let mut needs = Needs::default();
        let mut dirs = vec![tree.to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                needs.inodes += 1;
                needs.bytes += meta.len().next_multiple_of(4096);
                if meta.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        Ok(needs)
    }

    /// Inodes with room for the reserved ones and a quarter more.
    pub(crate) fn inodes(&self) -> u64 {
        self.inodes + self.inodes / 4 + 1024
    }

    /// Bytes of an image that holds this with any of the tools: content, inodes, journal, 30 % more.
    pub(crate) fn image(&self) -> u64 {
        let all = self.bytes + self.inodes() * 256 + (160 << 20);
        (all + all / 10 * 3).next_multiple_of(128 << 20)
    }
}

fn sorted(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

fn text(path: &Path) -> Result<&str> {
    Ok(path
        .to_str()
        .ok_or_else(|| format!("{}: not UTF-8", path.display()))?)
}

/// mkext4: declare everything, seal, then fill each file.
pub(crate) fn mkext4(src: &Path, image: &Path) -> Result<()> {
    let needs = Needs::of(src)?;
    let mut options = Options::new(needs.image(), *b"mkext4-benchmark", 1_704_067_200);
    options.inodes = InodeCount::Exact(u32::try_from(needs.inodes())?);
    let mut tree = Declared {
        builder: FsBuilder::new(options).map_err(|e| format!("mkext4: {e}"))?,
        links: HashMap::new(),
        fills: Vec::new(),
    };
    tree.directory(ROOT, src)?;
    let Declared { builder, fills, .. } = tree;
    let layout = builder.seal().map_err(|e| format!("mkext4: {e}"))?;
    let mut sink = FileSink::create(image, layout.image_len())?;
    let mut writer = layout
        .writer(&mut sink)
        .map_err(|e| format!("mkext4: {e}"))?;
    for (handle, path) in &fills {
        let mut file = File::open(path)?;
        writer
            .fill(*handle, &mut file)
            .map_err(|e| format!("mkext4: {}: {e}", path.display()))?;
    }
    writer.finish().map_err(|e| format!("mkext4: {e}"))?;
    Ok(())
}

struct Declared {
    builder: FsBuilder,
    links: HashMap<(u64, u64), InodeHandle>,
    fills: Vec<(InodeHandle, PathBuf)>,
}

impl Declared {
    fn directory(&mut self, dir: InodeHandle, path: &Path) -> Result<()> {
        for entry in sorted(path)? {
            self.entry(dir, &entry)
                .map_err(|e| format!("mkext4: {}: {e}", entry.path().display()))?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: InodeHandle, entry: &fs::DirEntry) -> Result<()> {
        let path = entry.path();
        let name = entry.file_name();
        let name = text(Path::new(&name))?;
        let md = entry.metadata()?;
        let kind = md.file_type();
        let meta = Meta::new(
            (md.mode() & 0o7777) as u16,
            md.uid(),
            md.gid(),
            (md.mtime(), md.mtime_nsec() as u32),
        );
        let device = || {
            let device = md.rdev();
            (rustix::fs::major(device), rustix::fs::minor(device))
        };
        let special = if kind.is_dir() {
            let child = self.builder.mkdir(dir, name, meta)?;
            return self.directory(child, &path);
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            self.builder.symlink(dir, name, text(&target)?, meta)?;
            return Ok(());
        } else if kind.is_file() {
            return self.file(dir, name, path, &md, meta);
        } else if kind.is_char_device() {
            let (major, minor) = device();
            SpecialKind::Char { major, minor }
        } else if kind.is_block_device() {
            let (major, minor) = device();
            SpecialKind::Block { major, minor }
        } else if kind.is_fifo() {
            SpecialKind::Fifo
        } else {
            SpecialKind::Socket
        };
        self.builder.mknod(dir, name, meta, special)?;
        Ok(())
    }

    fn file(
        &mut self,
        dir: InodeHandle,
        name: &str,
        path: PathBuf,
        md: &Metadata,
        meta: Meta,
    ) -> Result<()> {
        let id = (md.dev(), md.ino());
        if md.nlink() > 1
            && let Some(&first) = self.links.get(&id)
        {
            self.builder.hardlink(dir, name, first)?;
            return Ok(());
        }
        let handle = self.builder.file(dir, name, meta, md.len())?;
        if md.nlink() > 1 {
            self.links.insert(id, handle);
        }
        if md.len() > 0 {
            self.fills.push((handle, path));
        }
        Ok(())
    }
}

/// arcbox-ext4: every name is created with its content, one after another.
pub(crate) fn arcbox(src: &Path, image: &Path) -> Result<()> {
    let size = Needs::of(src)?.image();
    let mut format =
        arcbox_ext4::Formatter::new(image, 4096, size).map_err(|e| format!("arcbox: {e}"))?;
    let mut links = HashMap::new();
    arcbox_directory(&mut format, src, src, &mut links)?;
    format.close().map_err(|e| format!("arcbox: {e}"))?;
    Ok(())
}

fn arcbox_directory(
    format: &mut arcbox_ext4::Formatter,
    root: &Path,
    dir: &Path,
    links: &mut HashMap<(u64, u64), String>,
) -> Result<()> {
    for entry in sorted(dir)? {
        let path = entry.path();
        let inside = format!("/{}", text(path.strip_prefix(root)?)?);
        let md = entry.metadata()?;
        let kind = md.file_type();
        let (uid, gid) = (Some(md.uid()), Some(md.gid()));
        let mode = (md.mode() & 0o7777) as u16;
        let failed = |e: arcbox_ext4::error::FormatError| format!("arcbox: {inside}: {e}");
        if kind.is_dir() {
            let mode = make_mode(file_mode::S_IFDIR, mode);
            format
                .create(&inside, mode, None, None, None, uid, gid, None)
                .map_err(failed)?;
            arcbox_directory(format, root, &path, links)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            let mode = make_mode(file_mode::S_IFLNK, mode);
            format
                .create(
                    &inside,
                    mode,
                    Some(text(&target)?),
                    None,
                    None,
                    uid,
                    gid,
                    None,
                )
                .map_err(failed)?;
        } else if kind.is_file() {
            if md.nlink() > 1 {
                if let Some(first) = links.get(&(md.dev(), md.ino())) {
                    format.link(&inside, first).map_err(failed)?;
                    continue;
                }
                links.insert((md.dev(), md.ino()), inside.clone());
            }
            let mut file = File::open(&path)?;
            let mode = make_mode(file_mode::S_IFREG, mode);
            format
                .create(&inside, mode, None, None, Some(&mut file), uid, gid, None)
                .map_err(failed)?;
        }
        // It has no device nodes, FIFOs and sockets; a Debian root has a handful.
    }
    Ok(())
}
