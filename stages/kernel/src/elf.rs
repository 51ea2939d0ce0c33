//! What is asked of ELF files: is this a kernel for x86-64, and what does a module's `.modinfo` say.

use std::path::Path;

use bstr::ByteSlice;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::error::KernelError;
use crate::release::Release;

/// The part of an ELF header that is the same for 32 and 64 bits (elf(5)).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ident {
    magic: [u8; 4],
    class: u8,
    data: u8,
    version: u8,
    osabi: u8,
    abiversion: u8,
    pad: [u8; 7],
    e_type: U16,
    e_machine: U16,
}

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const EM_X86_64: u16 = 62;

/// `e_type`: what an ELF file is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// ET_REL: modules.
    Relocatable = 1,
    /// ET_EXEC: `vmlinux`.
    Executable = 2,
}

/// How `linux_banner` (init/version.c) begins; what follows is the release.
const BANNER: &[u8] = b"Linux version ";

/// Refuses what is not a little-endian 64-bit x86 ELF file in `role`.
fn check_ident(path: &Path, bytes: &[u8], role: Role) -> Result<(), KernelError> {
    let (ident, _) = Ident::read_from_prefix(bytes).map_err(|_| KernelError::Truncated {
        path: path.to_owned(),
        what: "it ends within the ELF header".to_owned(),
    })?;
    if ident.magic != *b"\x7fELF" {
        return Err(KernelError::Corrupt {
            path: path.to_owned(),
            what: "not an ELF file".to_owned(),
        });
    }
    // A big-endian file's machine reads swapped; its class and order are then named instead.
    if ident.data != DATA_LITTLE_ENDIAN {
        return Err(wrong_arch(path, "a big-endian processor".to_owned()));
    }
    if ident.e_machine.get() != EM_X86_64 {
        return Err(wrong_arch(path, machine_name(ident.e_machine.get())));
    }
    if ident.class != CLASS_64 {
        return Err(wrong_arch(path, "32-bit programs (x32)".to_owned()));
    }
    if ident.e_type.get() != role as u16 {
        let found = match ident.e_type.get() {
            1 => "an ELF object file (a kernel module?)",
            2 => "an ELF program",
            3 => "a shared library or position-independent ELF program",
            4 => "a core dump",
            _ => "an ELF file of an unknown type",
        };
        return Err(not_a_kernel(path, found));
    }
    Ok(())
}

/// The release of an ELF `vmlinux`, from its banner. Fails for other ELF files.
pub(crate) fn vmlinux_release(path: &Path, bytes: &[u8]) -> Result<Release, KernelError> {
    check_vmlinux(path, bytes)?;
    // The banner comes more than once (linux_banner, linux_proc_banner's "%s version %s").
    bytes
        .find_iter(BANNER)
        .find_map(|at| {
            let rest = &bytes[at + BANNER.len()..];
            Release::first_word(&rest[..rest.len().min(128)])
        })
        .ok_or_else(|| not_a_kernel(path, "an ELF program, but no Linux kernel"))
}

/// Refuses ELF files that a VMM could not load as a kernel: other processors, no segments, or
/// segments that reach past the end of the file.
pub(crate) fn check_vmlinux(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    use object::read::elf::{FileHeader, ProgramHeader};
    check_ident(path, bytes, Role::Executable)?;
    let corrupt = |what: String| KernelError::Corrupt {
        path: path.to_owned(),
        what,
    };
    let endian = Endianness::Little;
    let header = object::elf::FileHeader64::<Endianness>::parse(bytes)
        .map_err(|e| corrupt(format!("its ELF header is invalid: {e}")))?;
    let segments = header
        .program_headers(endian, bytes)
        .map_err(|e| corrupt(format!("its program headers are invalid: {e}")))?;
    let mut loads = 0;
    for segment in segments {
        if segment.p_type(endian) != object::elf::PT_LOAD {
            continue;
        }
        loads += 1;
        segment
            .data(endian, bytes)
            .map_err(|()| KernelError::Truncated {
                path: path.to_owned(),
                what: "a segment reaches past the end".to_owned(),
            })?;
    }
    if loads == 0 {
        return Err(corrupt("it has nothing to load".to_owned()));
    }
    Ok(())
}

/// What a module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// First word of `vermagic=`: the release it was built for.
    pub(crate) release: Vec<u8>,
    /// `depends=`: must be loaded before.
    pub(crate) depends: Vec<String>,
    /// `softdep=pre:` better loaded before, if there is one.
    pub(crate) pre: Vec<String>,
    /// `softdep=post:` better loaded after.
    pub(crate) post: Vec<String>,
}

/// Reads the `.modinfo` section of an unpacked module.
pub(crate) fn modinfo(path: &Path, bytes: &[u8]) -> Result<ModInfo, KernelError> {
    let corrupt = |what: String| KernelError::Corrupt {
        path: path.to_owned(),
        what,
    };
    check_ident(path, bytes, Role::Relocatable).map_err(|e| match e {
        KernelError::NotAKernel { path, found } => KernelError::Corrupt {
            path,
            what: format!("it is {found}, not a kernel module"),
        },
        other => other,
    })?;
    let file = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|e| corrupt(format!("not a valid ELF file: {e}")))?;
    let section = file
        .section_by_name_bytes(b".modinfo")
        .ok_or_else(|| corrupt("an object file without .modinfo is no kernel module".to_owned()))?;
    let data = section
        .data()
        .map_err(|e| corrupt(format!("its .modinfo cannot be read: {e}")))?;
    Ok(parse_modinfo(data))
}

/// `.modinfo` is a run of NUL-terminated `key=value`; keys may repeat (include/linux/moduleparam.h).
fn parse_modinfo(data: &[u8]) -> ModInfo {
    let mut info = ModInfo::default();
    for entry in data.split(|&b| b == 0) {
        let Some((key, value)) = entry.split_once_str("=") else {
            continue;
        };
        match key {
            b"vermagic" => {
                info.release = value.fields().next().unwrap_or_default().to_vec();
            }
            b"depends" => info
                .depends
                .extend(value.split_str(",").filter_map(module_name)),
            b"softdep" => {
                let mut into = None;
                for word in value.fields() {
                    match word {
                        b"pre:" => into = Some(true),
                        b"post:" => into = Some(false),
                        _ => match into {
                            Some(true) => info.pre.extend(module_name(word)),
                            Some(false) => info.post.extend(module_name(word)),
                            None => {}
                        },
                    }
                }
            }
            _ => {}
        }
    }
    info
}

/// A module's name in the kernel's own spelling, where `-` and `_` are the same letter. `None` for
/// what cannot be a name: it becomes a file name in the initrd.
pub(crate) fn module_name(bytes: &[u8]) -> Option<String> {
    // MODULE_NAME_LEN is 64 - sizeof(long), with its NUL.
    if bytes.is_empty() || bytes.len() > 55 {
        return None;
    }
    bytes
        .iter()
        .map(|&b| match b {
            b'-' => Some('_'),
            b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => Some(char::from(b)),
            _ => None,
        })
        .collect()
}

fn wrong_arch(path: &Path, found: String) -> KernelError {
    KernelError::WrongArch {
        path: path.to_owned(),
        found,
    }
}

fn not_a_kernel(path: &Path, found: &str) -> KernelError {
    KernelError::NotAKernel {
        path: path.to_owned(),
        found: found.to_owned(),
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".to_owned(),
        20 | 21 => "PowerPC".to_owned(),
        22 => "S/390".to_owned(),
        40 => "32-bit ARM".to_owned(),
        183 => "arm64".to_owned(),
        243 => "RISC-V".to_owned(),
        258 => "LoongArch".to_owned(),
        n => format!("ELF machine {n}"),
    }
}
