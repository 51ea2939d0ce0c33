//! Debian packages, read without dpkg: deb(5), ar(5), tar(5).
//!
//! Architecture invariant: nothing in a package chooses a path on the host. Wanted files are written
//! under names made here; a package's own names are only compared. Links are never followed and
//! never made.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bstr::ByteSlice;

use crate::decompress::{Bounded, Codec, read_exact_or_end};
use crate::error::{KernelError, io_error};
use crate::limits::{
    MAX_AR_MEMBERS, MAX_BUILTIN_LIST, MAX_CONTROL, MAX_MODULE, MAX_SPOOLED, MAX_TAR_ENTRIES,
    MAX_TAR_HEADER, MAX_UNPACKED, MAX_VMLINUX,
};
use crate::modules::{ModuleTree, name_of_file};

/// What a package holds that a guest could need.
pub(crate) struct Package {
    /// The bytes of `boot/vmlinuz-*`.
    pub(crate) kernel: Vec<u8>,
    /// For each `lib/modules/<release>`, its modules, spooled.
    pub(crate) trees: Vec<(Vec<u8>, ModuleTree)>,
}

/// Reads the package `file`; modules are written below `spool`, an empty directory of the caller's.
pub(crate) fn read(path: &Path, file: &File, spool: &Path) -> Result<Package, KernelError> {
    let members = Members::read(path, file)?;
    let control = members.open(path, file, b"control.tar")?;
    let control = read_control(path, control)?;
    match &control.architecture[..] {
        b"amd64" | b"all" | b"" => {}
        other => {
            return Err(KernelError::WrongArch {
                path: path.to_owned(),
                found: other.escape_ascii().to_string(),
            });
        }
    }
    let mut unpacker = Unpacker {
        path,
        spool,
        spooled: 0,
        kernel: None,
        trees: Vec::new(),
    };
    let data = members.open(path, file, b"data.tar")?;
    for_each_entry(path, data, MAX_UNPACKED, &mut |entry| unpacker.take(entry))?;
    let Some((_, kernel)) = unpacker.kernel else {
        return Err(KernelError::NoKernelInPackage {
            path: path.to_owned(),
            package: control.package.escape_ascii().to_string(),
            depends: kernel_packages(&control.depends),
            has_modules: !unpacker.trees.is_empty(),
        });
    };
    Ok(Package {
        kernel,
        trees: unpacker.trees,
    })
}

/// The members of the outer archive.
struct Members(Vec<Member>);

struct Member {
    name: Vec<u8>,
    offset: u64,
    size: u64,
}

impl Members {
    fn read(path: &Path, mut file: &File) -> Result<Members, KernelError> {
        const MAGIC: &[u8; 8] = b"!<arch>\n";
        const HEADER: usize = 60;
        let corrupt = |what: String| KernelError::Corrupt {
            path: path.to_owned(),
            what,
        };
        let truncated = |what: &str| KernelError::Truncated {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let length = file.metadata().map_err(io_error("examine", path))?.len();
        let mut members = Vec::new();
        let mut at = MAGIC.len() as u64;
        loop {
            file.seek(SeekFrom::Start(at))
                .map_err(io_error("read", path))?;
            let mut header = [0; HEADER];
            match read_exact_or_end(&mut file, &mut header) {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(truncated("it ends within an archive header"));
                }
                Err(e) => return Err(io_error("read", path)(e)),
            }
            if header[58..] != *b"`\n" {
                return Err(corrupt("an archive header has no end mark".to_owned()));
            }
            let size = header[48..58]
                .trim()
                .to_str()
                .ok()
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse::<u64>().ok())
                .ok_or_else(|| corrupt("an archive member has no size".to_owned()))?;
            // Ten digits: no overflow.
            let offset = at + HEADER as u64;
            let name = header[..16].trim_end().trim_end_with(|c| c == '/').to_vec();
            if offset + size > length {
                return Err(truncated(&format!(
                    "member {} ends at byte {}, the file at byte {length}",
                    name.escape_ascii(),
                    offset + size,
                )));
            }
            members.push(Member { name, offset, size });
            if members.len() > MAX_AR_MEMBERS {
                return Err(KernelError::TooMany {
                    path: path.to_owned(),
                    what: "archive members",
                    limit: MAX_AR_MEMBERS as u64,
                });
            }
            at = offset + size + size % 2;
        }
        Ok(Members(members))
    }

    /// The unpacked stream of the member called `stem` or `stem.*`.
    fn open<'a>(
        &self,
        path: &Path,
        mut file: &'a File,
        stem: &[u8],
    ) -> Result<Box<dyn Read + 'a>, KernelError> {
        let member = self
            .0
            .iter()
            .find(|m| {
                m.name
                    .strip_prefix(stem)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
            })
            .ok_or_else(|| KernelError::Truncated {
                path: path.to_owned(),
                what: format!("the package has no {}", stem.as_bstr()),
            })?;
        file.seek(SeekFrom::Start(member.offset))
            .map_err(io_error("read", path))?;
        let mut head = [0; 8];
        let mut taken = file.take(member.size);
        let mut have = 0;
        while have < head.len() {
            match taken
                .read(&mut head[have..])
                .map_err(io_error("read", path))?
            {
                0 => break,
                n => have += n,
            }
        }
        let head = &head[..have];
        file.seek(SeekFrom::Start(member.offset))
            .map_err(io_error("read", path))?;
        let stream = io::BufReader::with_capacity(256 << 10, file.take(member.size));
        match Codec::sniff(head) {
            Some(codec) => Ok(codec.reader(stream)),
            None if member.name == stem => Ok(Box::new(stream)),
            None => Err(KernelError::UnsupportedCompression {
                path: path.to_owned(),
                what: "the package's content",
                codec: Codec::sniff_unsupported(head).map_or_else(
                    || format!("what its name says ({})", member.name.escape_ascii()),
                    str::to_owned,
                ),
            }),
        }
    }
}

/// One entry of a tar, its name checked and without a leading `./`.
struct Entry<'a> {
    name: &'a [u8],
    kind: tar::EntryType,
    size: u64,
    content: &'a mut dyn Read,
}

/// Reads a tar to its end and hands every entry to `each`. Long names are put together here and not
/// by the `tar` crate, which sets no bound on them.
fn for_each_entry(
    path: &Path,
    stream: Box<dyn Read + '_>,
    limit: u64,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let unreadable = |e: io::Error| stream_error(path, limit, &e);
    let mut archive = tar::Archive::new(Bounded::new(stream, limit));
    let mut long_name: Option<Vec<u8>> = None;
    let mut count = 0;
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        count += 1;
        if count > MAX_TAR_ENTRIES {
            return Err(KernelError::TooMany {
                path: path.to_owned(),
                what: "entries",
                limit: MAX_TAR_ENTRIES,
            });
        }
        let kind = entry.header().entry_type();
        let size = entry.size();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            if size > MAX_TAR_HEADER {
                return Err(KernelError::TooLarge {
                    path: path.to_owned(),
                    what: "a name in the archive",
                    limit: MAX_TAR_HEADER,
                });
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(unreadable)?;
            if kind.is_gnu_longname() {
                bytes.truncate(bytes.find_byte(0).unwrap_or(bytes.len()));
                long_name = Some(bytes);
            } else {
                for record in tar::PaxExtensions::new(&bytes) {
                    let record = record.map_err(unreadable)?;
                    match record.key_bytes() {
                        b"path" => long_name = Some(record.value_bytes().to_vec()),
                        // Only needed above 8 GiB, which is above every limit here; a size that
                        // contradicts the header is a way to hide entries from a reader.
                        b"size" => {
                            return Err(KernelError::UnsafeArchive {
                                path: path.to_owned(),
                                entry: long_name.unwrap_or_default().escape_ascii().to_string(),
                                why: "its size stands in an extended header",
                            });
                        }
                        _ => {}
                    }
                }
            }
            continue;
        }
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = safe_name(path, &name)?;
        each(Entry {
            name: &name,
            kind,
            size,
            content: &mut entry,
        })?;
    }
    // To the end, past the tar's own: only there do the compressions check their sums.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
    Ok(())
}

/// Refuses names that lead out of the place an archive is unpacked to.
fn safe_name(path: &Path, name: &[u8]) -> Result<Vec<u8>, KernelError> {
    let refuse = |why| KernelError::UnsafeArchive {
        path: path.to_owned(),
        entry: name.escape_ascii().to_string(),
        why,
    };
    if name.starts_with(b"/") {
        return Err(refuse("its name is absolute"));
    }
    let mut clean = Vec::with_capacity(name.len());
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refuse("its name contains ..")),
            _ if part.contains(&0) => return Err(refuse("its name contains a NUL")),
            _ => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}

fn stream_error(path: &Path, limit: u64, e: &io::Error) -> KernelError {
    match e.kind() {
        io::ErrorKind::FileTooLarge => KernelError::TooLarge {
            path: path.to_owned(),
            what: "what the package unpacks to",
            limit,
        },
        io::ErrorKind::UnexpectedEof => KernelError::Truncated {
            path: path.to_owned(),
            what: "the package's content ends early".to_owned(),
        },
        _ => KernelError::Corrupt {
            path: path.to_owned(),
            what: format!("the package's content cannot be read: {e}"),
        },
    }
}

/// Keeps what is wanted from `data.tar`.
struct Unpacker<'a> {
    path: &'a Path,
    spool: &'a Path,
    spooled: u64,
    kernel: Option<(Vec<u8>, Vec<u8>)>,
    trees: Vec<(Vec<u8>, ModuleTree)>,
}

impl Unpacker<'_> {
    fn take(&mut self, entry: Entry<'_>) -> Result<(), KernelError> {
        let name = entry.name;
        if name.starts_with(b"boot/vmlinuz-") {
            self.must_be_file(&entry)?;
            if let Some((first, _)) = &self.kernel {
                return Err(KernelError::Corrupt {
                    path: self.path.to_owned(),
                    what: format!(
                        "it holds more than one kernel: {} and {}",
                        first.escape_ascii(),
                        name.escape_ascii()
                    ),
                });
            }
            let bytes = self.read_entry(entry.content, entry.size, MAX_VMLINUX, "the kernel")?;
            self.kernel = Some((name.to_vec(), bytes));
            return Ok(());
        }
        let below = name.strip_prefix(b"usr/").unwrap_or(name);
        let Some(below) = below.strip_prefix(b"lib/modules/") else {
            return Ok(());
        };
        let Some((release, relative)) = below.split_once_str("/") else {
            return Ok(());
        };
        let base = relative.rsplit(|&b| b == b'/').next().unwrap_or(relative);
        if relative == b"modules.builtin" {
            self.must_be_file(&entry)?;
            let list = self.read_entry(
                entry.content,
                entry.size,
                MAX_BUILTIN_LIST,
                "modules.builtin",
            )?;
            self.tree(release).set_builtin(&list);
        } else if name_of_file(base).is_some() {
            self.must_be_file(&entry)?;
            let bytes = self.read_entry(entry.content, entry.size, MAX_MODULE, "a module")?;
            let file = self.spool_bytes(&bytes)?;
            self.tree(release).add(relative, file);
        }
        Ok(())
    }

    fn must_be_file(&self, entry: &Entry<'_>) -> Result<(), KernelError> {
        if entry.kind.is_file() || entry.kind.is_contiguous() {
            return Ok(());
        }
        Err(KernelError::UnsafeArchive {
            path: self.path.to_owned(),
            entry: entry.name.escape_ascii().to_string(),
            why: "a link, device or directory stands where a plain file belongs",
        })
    }

    fn read_entry(
        &self,
        content: &mut dyn Read,
        size: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, KernelError> {
        if size > limit {
            return Err(KernelError::TooLarge {
                path: self.path.to_owned(),
                what,
                limit,
            });
        }
        // Not trusted for the allocation: a short archive may promise much.
        let mut bytes = Vec::with_capacity(size.min(32 << 20) as usize);
        content
            .read_to_end(&mut bytes)
            .map_err(|e| stream_error(self.path, MAX_UNPACKED, &e))?;
        if bytes.len() as u64 != size {
            return Err(KernelError::Truncated {
                path: self.path.to_owned(),
                what: format!("{what} ends early"),
            });
        }
        Ok(bytes)
    }

    fn spool_bytes(&mut self, bytes: &[u8]) -> Result<PathBuf, KernelError> {
        self.spooled += bytes.len() as u64;
        if self.spooled > MAX_SPOOLED {
            return Err(KernelError::TooLarge {
                path: self.path.to_owned(),
                what: "the sum of the package's modules",
                limit: MAX_SPOOLED,
            });
        }
        // The number of bytes before it is a name of its own, unless the file is empty.
        let file = self.spool.join(format!("{}.{}", self.spooled, bytes.len()));
        File::create(&file)
            .and_then(|mut f| f.write_all(bytes))
            .map_err(io_error("write", &file))?;
        Ok(file)
    }

    fn tree(&mut self, release: &[u8]) -> &mut ModuleTree {
        let at = match self.trees.iter().position(|(r, _)| r == release) {
            Some(at) => at,
            None => {
                self.trees
                    .push((release.to_vec(), ModuleTree::new(self.path)));
                self.trees.len() - 1
            }
        };
        &mut self.trees[at].1
    }
}

/// The fields of a package's control file that matter here.
#[derive(Default)]
struct Control {
    package: Vec<u8>,
    architecture: Vec<u8>,
    depends: Vec<u8>,
}

fn read_control(path: &Path, stream: Box<dyn Read + '_>) -> Result<Control, KernelError> {
    let mut control = Control::default();
    for_each_entry(path, stream, MAX_CONTROL, &mut |entry| {
        if entry.name == b"control" && entry.kind.is_file() {
            let mut text = Vec::new();
            entry
                .content
                .read_to_end(&mut text)
                .map_err(|e| stream_error(path, MAX_CONTROL, &e))?;
            control = parse_control(&text);
        }
        Ok(())
    })?;
    Ok(control)
}

/// deb-control(5): `Field: value`; lines that begin with a space continue the one before.
fn parse_control(text: &[u8]) -> Control {
    let mut control = Control::default();
    let mut field: Option<&mut Vec<u8>> = None;
    for line in text.lines() {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            if let Some(field) = &mut field {
                field.extend_from_slice(line);
            }
            continue;
        }
        let Some((key, value)) = line.split_once_str(":") else {
            field = None;
            continue;
        };
        let slot = if key.eq_ignore_ascii_case(b"Package") {
            &mut control.package
        } else if key.eq_ignore_ascii_case(b"Architecture") {
            &mut control.architecture
        } else if key.eq_ignore_ascii_case(b"Depends") {
            &mut control.depends
        } else {
            field = None;
            continue;
        };
        *slot = value.trim().to_vec();
        field = Some(slot);
    }
    control
}

/// The packages in a `Depends:` line that sound like kernels: `linux-image-…`, or, where images are
/// split, `linux-binary-…`.
fn kernel_packages(depends: &[u8]) -> Vec<String> {
    depends
        .split(|b| b",|".contains(b))
        .filter_map(|one| one.fields().next())
        .filter(|name| name.starts_with(b"linux-image") || name.starts_with(b"linux-binary"))
        .map(|name| name.escape_ascii().to_string())
        .collect()
}
