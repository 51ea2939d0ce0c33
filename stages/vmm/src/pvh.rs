//! Whether an ELF kernel has a PVH entry point: then QEMU can start it as it is.
//!
//! The x86/HVM direct boot ABI (Xen's docs/misc/pvh.pandoc): an ELF note of the owner `Xen` with the type
//! XEN_ELFNOTE_PHYS32_ENTRY. The kernel has it if it is built with CONFIG_PVH.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Limits on what a kernel may claim: real ones have 5 segments and notes of 0.5 KiB.
const MAX_SEGMENTS: u16 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// `Elf64_Ehdr`, elf(5).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    e_ident: [u8; 16],
    e_type: U16,
    e_machine: U16,
    e_version: U32,
    e_entry: U64,
    e_phoff: U64,
    e_shoff: U64,
    e_flags: U32,
    e_ehsize: U16,
    e_phentsize: U16,
    e_phnum: U16,
    e_shentsize: U16,
    e_shnum: U16,
    e_shstrndx: U16,
}

/// `Elf64_Phdr`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Segment {
    p_type: U32,
    p_flags: U32,
    p_offset: U64,
    p_vaddr: U64,
    p_paddr: U64,
    p_filesz: U64,
    p_memsz: U64,
    p_align: U64,
}

/// `Elf64_Nhdr`; name and description follow, each padded to 4 bytes.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Note {
    n_namesz: U32,
    n_descsz: U32,
    n_type: U32,
}

/// `Ok(Err(why))`: the file was read, and is no kernel with a PVH entry.
pub(crate) fn check(path: &Path) -> io::Result<Result<(), String>> {
    let file = File::open(path)?;
    let mut bytes = [0; size_of::<Header>()];
    if let Err(error) = file.read_exact_at(&mut bytes, 0) {
        return not_read(error, "it is too short for an ELF file");
    }
    let Ok(header) = Header::read_from_bytes(&bytes) else {
        return Ok(Err("it is too short for an ELF file".to_owned()));
    };
    // 2: 64 bits; 1: little-endian.
    if !header.e_ident.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Err("it is not a 64-bit ELF file".to_owned()));
    }
    for index in 0..header.e_phnum.get().min(MAX_SEGMENTS) {
        let mut bytes = [0; size_of::<Segment>()];
        let at = u64::from(index) * u64::from(header.e_phentsize.get());
        let at = header.e_phoff.get().saturating_add(at);
        if let Err(error) = file.read_exact_at(&mut bytes, at) {
            return not_read(error, "it ends within its program headers");
        }
        let Ok(segment) = Segment::read_from_bytes(&bytes) else {
            continue;
        };
        if segment.p_type != PT_NOTE {
            continue;
        }
        let mut notes = vec![0; segment.p_filesz.get().min(MAX_NOTES) as usize];
        if let Err(error) = file.read_exact_at(&mut notes, segment.p_offset.get()) {
            return not_read(error, "it ends within its notes");
        }
        if has_entry(&notes) {
            return Ok(Ok(()));
        }
    }
    Ok(Err("it has no PVH entry point".to_owned()))
}

fn not_read(error: io::Error, why: &str) -> io::Result<Result<(), String>> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        Ok(Err(why.to_owned()))
    } else {
        Err(error)
    }
}

fn has_entry(mut notes: &[u8]) -> bool {
    while let Ok((note, rest)) = Note::read_from_prefix(notes) {
        let padded = |size: U32| (size.get() as usize).next_multiple_of(4);
        let name = padded(note.n_namesz);
        if rest.starts_with(b"Xen\0") && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY {
            return true;
        }
        let Some(next) = rest.get(name.saturating_add(padded(note.n_descsz))..) else {
            return false;
        };
        notes = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8; 4], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(4u32.to_le_bytes());
        out.extend((desc.len() as u32).to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(name);
        out.extend(desc);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn the_entry_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 18, b"abcde");
        assert!(!has_entry(&notes));
        notes.extend(note(b"Xen\0", 6, b"linux\0"));
        assert!(!has_entry(&notes));
        notes.extend(note(b"Xen\0", 18, &[0; 8]));
        assert!(has_entry(&notes));
    }

    #[test]
    fn notes_with_absurd_sizes_end_the_search() {
        let mut notes = vec![0xff; 12];
        notes.extend(b"Xen\0");
        assert!(!has_entry(&notes));
    }

    #[test]
    fn row_53_what_is_no_kernel_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::write(&path, b"MZ").unwrap();
        assert!(check(&path).unwrap().unwrap_err().contains("too short"));
        std::fs::write(&path, [b'x'; 4096]).unwrap();
        assert!(check(&path).unwrap().unwrap_err().contains("not a 64-bit"));
        let own = check(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.unwrap_err().contains("no PVH"));
    }
}
