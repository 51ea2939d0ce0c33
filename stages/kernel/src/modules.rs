//! From a pile of modules to the few that a guest loads, in an order that works.
//!
//! [`ModuleTree`] knows where modules are and reads only those that are asked for; [`load_order`] is
//! the pure part, a depth-first walk over names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bstr::ByteSlice;

use crate::decompress::{Codec, read_bounded};
use crate::elf::{self, ModInfo, module_name};
use crate::error::{KernelError, io_error};
use crate::limits::{
    MAX_BUILTIN_LIST, MAX_MODULE, MAX_MODULE_DEPTH, MAX_MODULE_DIRS_DEPTH, MAX_MODULE_FILES,
    MAX_MODULES_BYTES, MAX_MODULES_KEPT,
};
use crate::release::Release;
use crate::wanted::{ALIASES, Need, WANTED};

/// Suffixes of module files; what is inside is told by content.
const SUFFIXES: [&[u8]; 4] = [b".ko", b".ko.xz", b".ko.zst", b".ko.gz"];

/// The name of the module in a file called so, if it is one: `virtio-rng.ko.xz` → `virtio_rng`.
pub(crate) fn name_of_file(file_name: &[u8]) -> Option<String> {
    let stem = SUFFIXES
        .iter()
        .find_map(|suffix| file_name.strip_suffix(*suffix))?;
    module_name(stem)
}

/// Where the modules of one kernel are.
#[derive(Debug, Default)]
pub(crate) struct ModuleTree {
    /// Where they came from; for messages.
    pub(crate) origin: PathBuf,
    /// Name → file. Each rank beats the next where a name comes twice.
    files: BTreeMap<String, (Rank, PathBuf)>,
    /// Names in `modules.builtin`; `None` without that file.
    builtin: Option<BTreeSet<String>>,
}

/// Which of two files of one name counts: depmod's default is `updates` first; then the first by
/// path, so that the answer does not depend on the order of a directory.
type Rank = (bool, Vec<u8>);

impl ModuleTree {
    pub(crate) fn new(origin: &Path) -> Self {
        ModuleTree {
            origin: origin.to_owned(),
            ..ModuleTree::default()
        }
    }

    /// Notes that the module at `relative` (its path below `lib/modules/<release>`) is in `file`.
    pub(crate) fn add(&mut self, relative: &[u8], file: PathBuf) {
        let base = relative.rsplit(|&b| b == b'/').next().unwrap_or(relative);
        let Some(name) = name_of_file(base) else {
            return;
        };
        let rank = (!relative.starts_with(b"updates/"), relative.to_vec());
        match self.files.get(&name) {
            Some((other, _)) if *other <= rank => {}
            _ => {
                self.files.insert(name, (rank, file));
            }
        }
    }

    /// Reads `modules.builtin`: one path of a would-be module a line.
    pub(crate) fn set_builtin(&mut self, list: &[u8]) {
        let names = list.lines().filter_map(|line| {
            name_of_file(line.trim().rsplit(|&b| b == b'/').next().unwrap_or(line))
        });
        self.builtin = Some(names.collect());
    }

    /// Looks through a `lib/modules/<release>` directory. Symlinks below it (`build`, `source`) are
    /// not followed; nothing is opened but `modules.builtin`.
    pub(crate) fn scan(dir: &Path) -> Result<ModuleTree, KernelError> {
        let bad = |why: &str| KernelError::BadModulesDir {
            path: dir.to_owned(),
            why: why.to_owned(),
        };
        let meta = std::fs::metadata(dir).map_err(io_error("open", dir))?;
        if !meta.is_dir() {
            return Err(bad("it is not a directory"));
        }
        let mut tree = ModuleTree::new(dir);
        let mut seen = 0;
        let mut stack = vec![(dir.to_owned(), 0)];
        while let Some((here, depth)) = stack.pop() {
            for entry in std::fs::read_dir(&here).map_err(io_error("list", &here))? {
                let entry = entry.map_err(io_error("list", &here))?;
                seen += 1;
                if seen > MAX_MODULE_FILES {
                    return Err(KernelError::TooMany {
                        path: dir.to_owned(),
                        what: "files",
                        limit: MAX_MODULE_FILES as u64,
                    });
                }
                let path = entry.path();
                let kind = entry.file_type().map_err(io_error("examine", &path))?;
                if kind.is_dir() {
                    if depth == MAX_MODULE_DIRS_DEPTH {
                        return Err(KernelError::TooMany {
                            path: dir.to_owned(),
                            what: "levels of directories",
                            limit: MAX_MODULE_DIRS_DEPTH as u64,
                        });
                    }
                    stack.push((path, depth + 1));
                } else if kind.is_file() {
                    let relative = path.strip_prefix(dir).unwrap_or(&path).to_owned();
                    tree.add(relative.as_os_str().as_encoded_bytes(), path);
                }
            }
        }
        let list = dir.join("modules.builtin");
        match File::open(&list) {
            Ok(file) => {
                let bytes = read_file(&list, &file, MAX_BUILTIN_LIST, "modules.builtin")?;
                tree.set_builtin(&bytes);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error("open", list)(e)),
        }
        if tree.files.is_empty() && tree.builtin.is_none() {
            return Err(bad(
                "there is no module and no modules.builtin below it; lib/modules/<release> is wanted",
            ));
        }
        Ok(tree)
    }

    fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    fn is_builtin(&self, name: &str) -> bool {
        self.builtin.as_ref().is_some_and(|b| b.contains(name))
    }

    /// Reads, unpacks and examines one module.
    fn load(&self, name: &str, release: &Release) -> Result<Option<Loaded>, KernelError> {
        let Some(((_, relative), file)) = self.files.get(name) else {
            return Ok(None);
        };
        // A package's modules are spooled under names that mean nothing to anybody.
        let path = &self.origin.join(OsStr::from_bytes(relative));
        let file = File::open(file).map_err(io_error("open", path))?;
        let raw = read_file(path, &file, MAX_MODULE, "a module")?;
        let bytes = match Codec::sniff(&raw) {
            None => raw,
            Some(codec) => read_bounded(codec.reader(&raw[..]), MAX_MODULE, raw.len() * 4)
                .map_err(|e| KernelError::Corrupt {
                    path: path.clone(),
                    what: format!("it does not unpack: {e}"),
                })?,
        };
        let info = elf::modinfo(path, &bytes)?;
        if info.release != release.as_str().as_bytes() {
            return Err(KernelError::WrongRelease {
                path: path.clone(),
                found: info.release.escape_ascii().to_string(),
                release: release.to_string(),
            });
        }
        Ok(Some(Loaded { bytes, info }))
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_file(
    path: &Path,
    file: &File,
    limit: u64,
    what: &'static str,
) -> Result<Vec<u8>, KernelError> {
    let meta = file.metadata().map_err(io_error("examine", path))?;
    if !meta.is_file() {
        return Err(KernelError::Corrupt {
            path: path.to_owned(),
            what: "it is not a regular file".to_owned(),
        });
    }
    let too_large = || KernelError::TooLarge {
        path: path.to_owned(),
        what,
        limit,
    };
    if meta.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

struct Loaded {
    bytes: Vec<u8>,
    info: ModInfo,
}

/// Which modules of a set are needed by some of them.
#[derive(Debug, Default)]
pub(crate) struct Needed(BTreeSet<String>);

impl Needed {
    pub(crate) fn root(&mut self, name: &str) {
        self.0.insert(name.to_owned());
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Adds what the module `name` depends on if it is needed itself; true if anything was new.
    pub(crate) fn follow(&mut self, name: &str, info: &ModInfo) -> bool {
        if !self.has(name) {
            return false;
        }
        let before = self.0.len();
        self.0.extend(info.all_names().map(str::to_owned));
        self.0.len() > before
    }
}

/// The modules that a soft dependency means.
fn unalias(name: &str) -> impl Iterator<Item = &str> {
    let names = ALIASES.iter().find(|(alias, _)| *alias == name);
    let (itself, names) = match names {
        Some((_, names)) => (None, *names),
        None => (Some(name), &[][..]),
    };
    itself.into_iter().chain(names.iter().copied())
}

impl ModInfo {
    /// All that it depends on, strictly or softly.
    fn all_names(&self) -> impl Iterator<Item = &str> {
        let soft = self.pre.iter().chain(&self.post);
        let soft = soft.flat_map(|name| unalias(name));
        self.depends.iter().map(String::as_str).chain(soft)
    }

    /// Whether it depends on the module `name`, strictly or softly.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.all_names().any(|other| other == name)
    }
}

/// A module chosen for the guest, unpacked.
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// What [`choose`] found.
pub(crate) struct Choice {
    /// In the order of loading.
    pub(crate) modules: Vec<Chosen>,
    /// Wanted names that the kernel has built in, sorted.
    pub(crate) builtin: Vec<String>,
    /// Wanted names that are nowhere, sorted; none of them required.
    pub(crate) absent: Vec<String>,
}

/// Picks the wanted modules and what they need. `tree` is `None` where no modules came with the
/// kernel; `extra` are names wanted beyond the list, and must exist.
pub(crate) fn choose(
    tree: Option<&ModuleTree>,
    release: &Release,
    vmlinux: &[u8],
    extra: &[String],
) -> Result<Choice, KernelError> {
    let empty = ModuleTree::default();
    let modules_given = tree.is_some();
    let tree = tree.unwrap_or(&empty);

    let mut roots = Vec::new();
    let mut builtin = BTreeSet::new();
    let mut absent = BTreeSet::new();
    let mut missing = Vec::new();
    let mut transports = Vec::new();
    let mut have_transport = false;
    for wanted in WANTED {
        let present = if tree.has_file(wanted.name) {
            roots.push(wanted.name.to_owned());
            true
        } else if tree.is_builtin(wanted.name)
            || (tree.builtin.is_none() && has_evidence(vmlinux, wanted.evidence, wanted.need))
        {
            builtin.insert(wanted.name.to_owned());
            true
        } else {
            absent.insert(wanted.name.to_owned());
            false
        };
        match wanted.need {
            Need::Required if !present => missing.push(wanted.name.to_owned()),
            Need::Transport => {
                transports.push(wanted.name);
                have_transport |= present;
            }
            _ => {}
        }
    }
    for name in extra {
        let normal = module_name(name.as_bytes());
        match normal {
            Some(name) if tree.has_file(&name) => roots.push(name),
            Some(name) if tree.is_builtin(&name) => {
                builtin.insert(name);
            }
            _ => {
                return Err(KernelError::NoSuchModule {
                    release: release.to_string(),
                    name: name.clone(),
                });
            }
        }
    }
    if !have_transport {
        missing.insert(0, transports.join(" or "));
    }
    if !missing.is_empty() {
        return Err(KernelError::MissingModules {
            release: release.to_string(),
            names: missing,
            modules_given,
        });
    }

    let mut loaded: BTreeMap<String, Loaded> = BTreeMap::new();
    let mut total = 0;
    let order = load_order(&roots, &mut |name, wanted_by| {
        let Some(module) = tree.load(name, release)? else {
            return match wanted_by {
                // Without modules.builtin nobody can tell; the kernel's own loader will.
                Some(module) if tree.builtin.is_some() && !tree.is_builtin(name) => {
                    Err(KernelError::MissingDependency {
                        module: module.to_owned(),
                        dependency: name.to_owned(),
                        path: tree.origin.clone(),
                    })
                }
                _ => Ok(None),
            };
        };
        let info = module.info.clone();
        total += module.bytes.len() as u64;
        if total > MAX_MODULES_BYTES {
            return Err(KernelError::TooLarge {
                path: tree.origin.clone(),
                what: "the sum of the modules that a guest needs",
                limit: MAX_MODULES_BYTES,
            });
        }
        loaded.insert(name.to_owned(), module);
        Ok(Some(info))
    })?;
    let modules = order
        .into_iter()
        .filter_map(|name| {
            let module = loaded.remove(&name)?;
            Some(Chosen {
                name,
                bytes: module.bytes,
            })
        })
        .collect();
    Ok(Choice {
        modules,
        builtin: builtin.into_iter().collect(),
        absent: absent.into_iter().collect(),
    })
}

/// Whether a kernel without a `modules.builtin` shows a driver's own string. For what is required a
/// mere end of a string counts (the linker may merge tails), because refusing a kernel that would
/// boot is worse than a boot that fails later; for the rest it must stand alone.
fn has_evidence(vmlinux: &[u8], evidence: &str, need: Need) -> bool {
    if evidence.is_empty() {
        return false;
    }
    let needle = match need {
        Need::Required | Need::Transport => format!("{evidence}\0"),
        Need::Optional => format!("\0{evidence}\0"),
    };
    vmlinux.find(needle).is_some()
}

/// Looks a module up: its name and the one whose hard dependency it is (`None` for a root and for
/// soft ones); answers `None` where there is nothing to load.
type Lookup<'a> = dyn FnMut(&str, Option<&str>) -> Result<Option<ModInfo>, KernelError> + 'a;

/// The names of `roots` and of all they need, each once, each after what it depends on. Roots keep
/// their order as far as that allows, so equal input gives equal output.
pub(crate) fn load_order(
    roots: &[String],
    lookup: &mut Lookup<'_>,
) -> Result<Vec<String>, KernelError> {
    let mut walk = Walk {
        lookup,
        done: BTreeMap::new(),
        path: Vec::new(),
        order: Vec::new(),
    };
    for root in roots {
        walk.visit(root, None)?;
    }
    Ok(walk.order)
}

struct Walk<'a, 'b> {
    lookup: &'a mut Lookup<'b>,
    /// Seen names; false while they are on `path`.
    done: BTreeMap<String, bool>,
    path: Vec<String>,
    order: Vec<String>,
}

impl Walk<'_, '_> {
    fn visit(&mut self, name: &str, wanted_by: Option<&str>) -> Result<(), KernelError> {
        match self.done.get(name) {
            Some(true) => return Ok(()),
            Some(false) => {
                let from = self.path.iter().position(|n| n == name).unwrap_or(0);
                let mut names = self.path[from..].to_vec();
                names.push(name.to_owned());
                return Err(KernelError::ModuleCycle { names });
            }
            None => {}
        }
        for (have, limit, what) in [
            (self.path.len(), MAX_MODULE_DEPTH, "levels of dependencies"),
            (self.done.len(), MAX_MODULES_KEPT, "modules around it"),
        ] {
            if have >= limit {
                return Err(KernelError::TooMany {
                    path: PathBuf::from(name),
                    what,
                    limit: limit as u64,
                });
            }
        }
        let Some(info) = (self.lookup)(name, wanted_by)? else {
            self.done.insert(name.to_owned(), true);
            return Ok(());
        };
        self.done.insert(name.to_owned(), false);
        self.path.push(name.to_owned());
        for dependency in &info.depends {
            self.visit(dependency, Some(name))?;
        }
        for dependency in &info.pre {
            self.visit_soft(dependency)?;
        }
        self.path.pop();
        self.done.insert(name.to_owned(), true);
        self.order.push(name.to_owned());
        for dependency in &info.post {
            self.visit_soft(dependency)?;
        }
        Ok(())
    }

    /// Follows a hint. One that leads back to where it came from cannot be followed, and is dropped
    /// with all that hangs on it.
    fn visit_soft(&mut self, name: &str) -> Result<(), KernelError> {
        for name in unalias(name) {
            let before = (self.done.clone(), self.path.len(), self.order.len());
            match self.visit(name, None) {
                Err(KernelError::ModuleCycle { .. }) => {
                    self.done = before.0;
                    self.path.truncate(before.1);
                    self.order.truncate(before.2);
                }
                other => other?,
            }
        }
        Ok(())
    }
}
