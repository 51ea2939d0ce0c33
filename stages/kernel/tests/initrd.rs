//! The initrd's bytes.

use std::io::{self, Write};

use fcpipe_kernel::{INITRD_VERSION, ImportOptions, InitrdInfo, Kernel, KernelError, initrd};

use crate::make::{Lab, module, oracle, usual_modules};

const GUEST: &[u8] = b"\x7fELF, of odd length";

fn packed(kernel: &Kernel) -> (Vec<u8>, InitrdInfo) {
    let mut out = Vec::new();
    let info = initrd(kernel, GUEST, &[], &mut out).unwrap();
    (out, info)
}

/// One entry of a newc archive, as `Documentation/driver-api/early-userspace/buffer-format.rst` has it.
#[derive(Debug)]
struct Entry {
    name: String,
    fields: [u32; 13],
    content: Vec<u8>,
}

/// A second, independent reading of the format.
fn unpack(archive: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        assert_eq!(&archive[at..at + 6], b"070701");
        let fields = std::array::from_fn(|n| {
            let hex = &archive[at + 6 + 8 * n..at + 14 + 8 * n];
            u32::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap()
        });
        let name_size = fields[11] as usize;
        let name = &archive[at + 110..at + 110 + name_size];
        assert_eq!(name.last(), Some(&0));
        let content = (at + 110 + name_size).next_multiple_of(4);
        let end = content + fields[6] as usize;
        entries.push(Entry {
            name: String::from_utf8(name[..name_size - 1].to_vec()).unwrap(),
            fields,
            content: archive[content..end].to_vec(),
        });
        at = end.next_multiple_of(4);
        if entries.last().unwrap().name == "TRAILER!!!" {
            assert!(archive[at..].iter().all(|&b| b == 0) && archive.len().is_multiple_of(512));
            return entries;
        }
    }
}

#[test]
fn it_holds_what_a_guest_expects() {
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let (archive, info) = packed(&kernel);
    assert_eq!(info.size, archive.len() as u64);
    assert_eq!(info.digest, blake3::hash(&archive));
    assert_eq!(info.modules, 8);
    let entries = unpack(&archive);
    let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "dev",
            "proc",
            "sys",
            "newroot",
            "modules",
            "dev/console",
            "init",
            "modules/00-virtio.ko",
            "modules/01-virtio_ring.ko",
            "modules/02-virtio_pci.ko",
            "modules/03-virtio_blk.ko",
            "modules/04-vsock.ko",
            "modules/05-vmw_vsock_virtio_transport.ko",
            "modules/06-jbd2.ko",
            "modules/07-ext4.ko",
            "modules/order",
            "TRAILER!!!"
        ]
    );
    for (n, entry) in entries.iter().enumerate() {
        let [
            ino,
            mode,
            uid,
            gid,
            _,
            mtime,
            _,
            _,
            _,
            major,
            minor,
            _,
            check,
        ] = entry.fields;
        let last = n + 1 == entries.len();
        assert_eq!(ino as usize, if last { 0 } else { n + 1 });
        assert_eq!((uid, gid, mtime, check), (0, 0, 0, 0));
        let (expected, device) = match entry.name.as_str() {
            "init" => (0o100_755, (0, 0)),
            "dev/console" => (0o020_600, (5, 1)),
            "TRAILER!!!" => (0, (0, 0)),
            name if name.contains('/') => (0o100_644, (0, 0)),
            _ => (0o040_755, (0, 0)),
        };
        assert_eq!((mode, (major, minor)), (expected, device), "{}", entry.name);
    }
    assert_eq!(entries[6].content, GUEST);
    let order = String::from_utf8(entries[15].content.clone()).unwrap();
    let listed: Vec<String> = order.lines().map(|l| format!("modules/{l}")).collect();
    assert_eq!(listed, names[7..15]);
    for (module, entry) in kernel.modules.iter().zip(&entries[7..]) {
        assert_eq!(blake3::hash(&entry.content), module.digest);
    }
}

#[test]
fn cpio_reads_it() {
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let (archive, _) = packed(&kernel);
    let Some(output) = oracle("cpio", &["-itv", "--quiet", "-n"], &archive) else {
        return;
    };
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let listing = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines.len(), 16);
    let line = |end: &str| lines.iter().find(|l| l.ends_with(end)).unwrap();
    assert!(line(" dev/console").starts_with("crw-------"));
    assert!(line(" dev/console").contains("5,   1"));
    assert!(line(" init").starts_with("-rwxr-xr-x   1 0        0"));
    assert!(line(" init").contains("Jan  1  1970"));
    assert!(line(" newroot").starts_with("drwxr-xr-x"));
}

#[test]
fn equal_input_gives_equal_bytes_anywhere() {
    let (a, b) = (Lab::new(), Lab::new());
    let kernel_a = a.import_with_modules(&usual_modules()).unwrap();
    let kernel_b = b.import_with_modules(&usual_modules()).unwrap();
    assert!(packed(&kernel_a).0 == packed(&kernel_b).0);
}

fn names(kernel: &Kernel, asked: &[&str]) -> Vec<String> {
    let mut archive = Vec::new();
    initrd(kernel, GUEST, asked, &mut archive).unwrap();
    let entries = unpack(&archive).into_iter().map(|entry| entry.name);
    entries
        .filter_map(|name| Some(name.strip_prefix("modules/")?.split_once('-')?.1.to_owned()))
        .collect()
}

#[test]
fn a_launch_gets_the_modules_it_asks_for_and_what_they_need() {
    let lab = Lab::new();
    let usual = lab.import_with_modules(&usual_modules()).unwrap();
    let usual = names(&usual, &[]);
    let mut modules = usual_modules();
    modules.extend([
        (
            "kernel/drivers/md/dm-snapshot.ko",
            module("dm_snapshot", "dm-mod,dm-bufio", &[]),
        ),
        (
            "kernel/drivers/md/dm-bufio.ko",
            module("dm_bufio", "dm-mod", &[]),
        ),
        (
            "kernel/drivers/md/dm-mod.ko",
            module("dm_mod", "", &["softdep=post: fuse"]),
        ),
        ("kernel/fs/fuse/fuse.ko", module("fuse", "", &[])),
        ("kernel/fs/overlayfs/overlay.ko", module("overlay", "", &[])),
    ]);
    let kernel = lab.import_with_modules(&modules).unwrap();
    assert_eq!(names(&kernel, &[]), usual);
    let more = |asked: &[&str]| -> Vec<String> {
        let mut names = names(&kernel, asked);
        names.retain(|name| !usual.contains(name));
        names
    };
    assert_eq!(more(&["overlay"]), ["overlay.ko"]);
    // In the order of loading, whatever the order of asking; a soft dependency comes along.
    assert_eq!(
        more(&["dm_snapshot"]),
        ["fuse.ko", "dm_mod.ko", "dm_bufio.ko", "dm_snapshot.ko"]
    );
    assert_eq!(
        more(&["dm_snapshot", "overlay"]),
        more(&["overlay", "dm_snapshot"])
    );
    // What the kernel does not have adds nothing, and neither does what nobody could ask for.
    assert_eq!(more(&["virtiofs", "soundcore"]), [""; 0]);
}

#[test]
fn modules_that_the_importer_asked_for_are_for_every_guest() {
    let lab = Lab::new();
    let dir = lab.modules_dir(&usual_modules());
    let image = lab.write("given", &crate::make::vmlinux(crate::make::RELEASE, b""));
    let extra = ["soundcore".to_owned()];
    let options = ImportOptions {
        modules: Some(&dir),
        extra: &extra,
    };
    let kernel = lab.store.import_with(&image, &options).unwrap();
    assert!(names(&kernel, &[]).contains(&"soundcore.ko".to_owned()));
}

/// If this fails, the bytes changed: raise `INITRD_VERSION` and put the new digest here.
#[test]
fn the_bytes_of_this_version_are_fixed() {
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let digest = packed(&kernel).1.digest.to_hex();
    assert_eq!(
        (INITRD_VERSION, digest.as_str()),
        (
            2,
            "2c5bfe74987b4df2029252432affafe55649ffaacaf40abad358679ea1b3aa9c"
        )
    );
}

#[test]
fn a_module_that_changed_in_the_store_is_not_packed() {
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let path = &kernel.modules[2].path;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[70] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    let error = initrd(&kernel, GUEST, &[], &mut io::sink()).unwrap_err();
    assert!(
        matches!(&error, KernelError::DamagedStore { path: p, .. } if p == path),
        "{error}"
    );
    std::fs::remove_file(path).unwrap();
    let error = initrd(&kernel, GUEST, &[], &mut io::sink()).unwrap_err();
    assert!(error.to_string().contains("virtio_pci.ko"), "{error}");
}

#[test]
fn what_cannot_be_written_is_an_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(self.0);
            self.0 -= n;
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lab = Lab::new();
    let kernel = lab.import_with_modules(&usual_modules()).unwrap();
    let whole = packed(&kernel).0.len();
    for room in (0..whole).step_by(331) {
        let error = initrd(&kernel, GUEST, &[], &mut Full(room)).unwrap_err();
        assert!(matches!(error, KernelError::Initrd(_)), "{room}: {error}");
    }
    initrd(&kernel, GUEST, &[], &mut Full(whole)).unwrap();
    assert!(matches!(
        initrd(&kernel, b"", &[], &mut io::sink()),
        Err(KernelError::BadGuest(_))
    ));
}
