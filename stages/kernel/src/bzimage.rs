//! x86 boot images: the setup header, and the ELF kernel that is packed inside.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header". The
//! payload is described there under `payload_offset`; that its last four bytes are the unpacked
//! size is `size_append` in `scripts/Makefile.lib` (gzip has it by itself, as ISIZE).

use std::path::Path;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::decompress::{Codec, read_bounded};
use crate::error::KernelError;
use crate::limits::MAX_VMLINUX;
use crate::release::Release;

/// The setup header as it stands at 0x1f1, up to `payload_length`; field names as in boot.rst.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SetupHeader {
    pub(crate) setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    boot_flag: U16,
    jump: U16,
    header: [u8; 4],
    pub(crate) version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    pub(crate) kernel_version: U16,
    type_of_loader: u8,
    loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    ramdisk_image: U32,
    ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: U32,
    initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable_kernel: u8,
    min_alignment: u8,
    pub(crate) xloadflags: U16,
    cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    pub(crate) payload_offset: U32,
    pub(crate) payload_length: U32,
}

/// Where the setup header begins in the file.
pub(crate) const SETUP_HEADER: usize = 0x1f1;
/// `payload_offset` exists from protocol 2.08 (Linux 2.6.26), `xloadflags` from 2.12 (3.8).
const VERSION_WITH_XLOADFLAGS: u16 = 0x020c;
/// The kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;

/// What a bzImage says of itself, and what is packed in it.
#[derive(Debug)]
pub(crate) struct BzImage {
    /// The first word of the version string.
    pub(crate) release: Release,
    /// The unpacked payload: an ELF file, with the relocation table that the build appends.
    pub(crate) vmlinux: Vec<u8>,
}

/// Reads the header of `image` and unpacks its payload. `path` is for messages only.
pub(crate) fn unpack(path: &Path, image: &[u8]) -> Result<BzImage, KernelError> {
    let truncated = |what: &str| KernelError::Truncated {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let corrupt = |what: String| KernelError::Corrupt {
        path: path.to_owned(),
        what,
    };
    let (header, _) = image
        .get(SETUP_HEADER..)
        .and_then(|rest| SetupHeader::read_from_prefix(rest).ok())
        .ok_or_else(|| truncated("it ends within the setup header"))?;
    if header.version.get() < VERSION_WITH_XLOADFLAGS {
        return Err(corrupt(format!(
            "boot protocol {}.{:02} is older than 2.12 (Linux 3.8), the first that tells 64-bit kernels",
            header.version.get() >> 8,
            header.version.get() & 0xff,
        )));
    }
    if header.xloadflags.get() & XLF_KERNEL_64 == 0 {
        return Err(KernelError::WrongArch {
            path: path.to_owned(),
            found: "32-bit x86".to_owned(),
        });
    }
    // Zero means four, for images from before the field was honest.
    let setup_sects = match header.setup_sects {
        0 => 4,
        n => usize::from(n),
    };
    // None of this overflows: 256 * 512 + 2^32 + 2^32 in 64 bits.
    let start = (setup_sects + 1) * 512 + header.payload_offset.get() as usize;
    let end = start + header.payload_length.get() as usize;
    let payload = image.get(start..end).ok_or_else(|| {
        truncated(&format!(
            "the kernel inside ends at byte {end}, the file at byte {}",
            image.len()
        ))
    })?;
    let release = version_string(image, &header)
        .and_then(Release::first_word)
        .ok_or_else(|| corrupt("its header has no version string".to_owned()))?;
    let vmlinux = unpack_payload(path, payload)?;
    Ok(BzImage { release, vmlinux })
}

/// `kernel_version` points, less 0x200, at a NUL-terminated string.
fn version_string<'a>(image: &'a [u8], header: &SetupHeader) -> Option<&'a [u8]> {
    let at = match header.kernel_version.get() {
        0 => return None,
        pointer => usize::from(pointer) + 0x200,
    };
    // The kernel's own bound for the whole string is far below this.
    let bytes = image.get(at..)?;
    let bytes = &bytes[..bytes.len().min(512)];
    let end = bytes.iter().position(|&b| b == 0)?;
    Some(&bytes[..end])
}

fn unpack_payload(path: &Path, payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let corrupt = |what: String| KernelError::Corrupt {
        path: path.to_owned(),
        what,
    };
    // CONFIG_KERNEL_UNCOMPRESSED.
    if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    }
    let Some(codec) = Codec::sniff(payload) else {
        return Err(match Codec::sniff_unsupported(payload) {
            Some(name) => KernelError::UnsupportedCompression {
                path: path.to_owned(),
                what: "the kernel inside",
                codec: name.to_owned(),
            },
            None => corrupt("the kernel inside begins with no known magic number".to_owned()),
        });
    };
    let (packed, size) = payload
        .split_last_chunk::<4>()
        .ok_or_else(|| corrupt("the kernel inside is a few bytes long".to_owned()))?;
    let size = u32::from_le_bytes(*size);
    if u64::from(size) > MAX_VMLINUX {
        return Err(KernelError::TooLarge {
            path: path.to_owned(),
            what: "the kernel inside",
            limit: MAX_VMLINUX,
        });
    }
    // gzip's size is part of its own format; for the others it follows and would be garbage.
    let packed = if codec == Codec::Gzip {
        payload
    } else {
        packed
    };
    let vmlinux = read_bounded(codec.reader(packed), u64::from(size), size as usize)
        .map_err(|e| corrupt(format!("the kernel inside does not unpack: {e}")))?;
    if vmlinux.len() != size as usize {
        return Err(corrupt(format!(
            "the kernel inside unpacks to {} bytes, not to {size}",
            vmlinux.len()
        )));
    }
    Ok(vmlinux)
}
