//! The root's disk under a scratch disk, joined by device mapper's snapshot target.
//!
//! The kernel's documentation is `Documentation/admin-guide/device-mapper/snapshot.rst`; the requests are those of
//! `linux/dm-ioctl.h`. The first disk, the *origin*, is opened read-only. A chunk that is written goes to the
//! scratch disk, and a table in memory says where. The table is not written (`N`, non-persistent): the scratch ends
//! with the VM, so there is nobody to read it, and each first write to a chunk would cost another one for the table.
//! A scratch disk that comes with changes has such a table (`P`), and the kernel goes on with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::sys::{self, DmIoctl, DmTarget};
use std::os::fd::AsFd;

/// Made by the kernel when device mapper is loaded.
pub(crate) const CONTROL: &str = "/dev/mapper/control";

const SECTOR: u64 = 512;
/// The unit in which the snapshot looks at the disk, in sectors: a block of ext4, so that a write never has to
/// read the rest of its chunk first.
const CHUNK: u64 = 8;

// From `linux/dm-ioctl.h`.
const DM_DEV_CREATE: u8 = 3;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_TABLE_LOAD: u8 = 9;

/// A mapped device. It stays when this is dropped: [`Joined::remove`] it.
#[derive(Debug)]
pub(crate) struct Joined {
    control: File,
    name: String,
    path: PathBuf,
}

impl Joined {
    /// Joins the two disks to one of the size of `origin`. `changes`: the scratch disk says what differs already.
    pub(crate) fn new(
        name: &str,
        origin: &Path,
        scratch: &Path,
        changes: bool,
    ) -> io::Result<Self> {
        let size = File::open(origin)?.seek(SeekFrom::End(0))?;
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let mut created = request(name);
        sys::device_mapper(control.as_fd(), DM_DEV_CREATE, &mut created)?;
        let this = Joined {
            control,
            name: name.to_owned(),
            path: PathBuf::from(format!("/dev/dm-{}", minor(created.dev))),
        };
        let form = if changes { 'P' } else { 'N' };
        let table = format!("{} {} {form} {CHUNK}", origin.display(), scratch.display());
        if let Err(error) = this.load(size / SECTOR, &table) {
            // The error that led here says more.
            let _ = this.remove();
            return Err(error);
        }
        Ok(this)
    }

    fn load(&self, sectors: u64, table: &str) -> io::Result<()> {
        let mut load = request(&self.name);
        load.target_count = 1;
        load.data_start = DmIoctl::HEADER as u32;
        load.target.length = sectors;
        // The only target: the next would be behind all.
        load.target.next = (size_of::<DmIoctl>() - DmIoctl::HEADER) as u32;
        put(&mut load.target.target_type, "snapshot")?;
        put(&mut load.parameters, table)?;
        sys::device_mapper(self.control.as_fd(), DM_TABLE_LOAD, &mut load)?;
        // Without the flag for suspending it resumes, with the table just loaded.
        sys::device_mapper(
            self.control.as_fd(),
            DM_DEV_SUSPEND,
            &mut request(&self.name),
        )
    }

    /// Where it appears, soon after.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the device away. What was written through it is on the scratch disk then.
    ///
    /// # Errors
    /// `EBUSY` while it is mounted anywhere.
    pub(crate) fn remove(&self) -> io::Result<()> {
        sys::device_mapper(
            self.control.as_fd(),
            DM_DEV_REMOVE,
            &mut request(&self.name),
        )
    }
}

/// A request about the device `name`, and nothing in it.
fn request(name: &str) -> DmIoctl {
    let mut request = DmIoctl {
        // The interface's: a kernel takes any minor number that is not above its own.
        version: [4, 0, 0],
        data_size: 0,
        data_start: 0,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
        target: DmTarget {
            sector_start: 0,
            length: 0,
            status: 0,
            next: 0,
            target_type: [0; 16],
        },
        parameters: [0; 128],
    };
    // Names are ours, and short.
    let len = name.len().min(request.name.len() - 1);
    request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
    request
}

/// Puts a text into a field, with at least one NUL behind it.
fn put(field: &mut [u8], text: &str) -> io::Result<()> {
    if text.len() >= field.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    field[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// `huge_decode_dev` of `linux/kdev_t.h`, the minor number.
fn minor(dev: u64) -> u64 {
    (dev & 0xff) | ((dev >> 12) & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_numbers_are_read_as_the_kernel_writes_them() {
        // huge_encode_dev: (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)
        let encode = |major: u64, minor: u64| (minor & 0xff) | major << 8 | (minor & !0xff) << 12;
        for number in [0, 1, 255, 256, 0xf_ffff] {
            assert_eq!(minor(encode(253, number)), number);
        }
    }

    #[test]
    fn a_text_keeps_its_nul() {
        let mut field = [0; 4];
        put(&mut field, "abc").unwrap();
        assert_eq!(&field, b"abc\0");
        put(&mut field, "abcd").unwrap_err();
    }
}
