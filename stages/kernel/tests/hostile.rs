//! Files with some bytes changed: whatever comes of them, no panic, and a store that is whole.
//!
//! A run prints its seed; `FCPIPE_TEST_SEED=<seed>` runs the same again.

use std::time::{Duration, Instant};

use crate::make::{
    ALL_BUILTIN, CONTROL, Lab, PACKINGS, Packing, RELEASE, bzimage, deb, file_entry, module, pack,
    usual_modules, vmlinux,
};

/// xorshift64*: enough to choose bytes with.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = match std::env::var("FCPIPE_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => {
                std::time::SystemTime::UNIX_EPOCH
                    .elapsed()
                    .unwrap()
                    .as_nanos() as u64
                    | 1
            }
        };
        println!("FCPIPE_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    /// Changes one to four places: a bit, a byte, a word of ones, a cut, a repetition. Half of the
    /// places lie in the first `head` bytes.
    fn mutate(&mut self, good: &[u8], head: usize) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                break;
            }
            let span = if self.below(2) == 0 {
                head.min(bytes.len())
            } else {
                bytes.len()
            };
            let at = self.below(span);
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 => {
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
                3 => bytes.truncate(at),
                4 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                _ => {
                    let end = (at + 8).min(bytes.len());
                    for byte in &mut bytes[at..end] {
                        *byte = self.below(256) as u8;
                    }
                }
            }
        }
        bytes
    }
}

/// Changes `good` and hands it to `check`, for a while.
fn storm(good: &[&[u8]], head: usize, mut check: impl FnMut(&[u8])) {
    let mut random = Random::new();
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 200 || (rounds < 20_000 && start.elapsed() < Duration::from_secs(3)) {
        let good = good[random.below(good.len())];
        check(&random.mutate(good, head));
        rounds += 1;
    }
    println!("{rounds} files");
}

/// Imports something; the outcome does not matter, but the store must be sound.
fn import_anything(lab: &Lab, bytes: &[u8]) {
    if let Ok(kernel) = lab.import(bytes) {
        kernel.verify().unwrap();
        std::fs::remove_dir_all(lab.store.dir().join(kernel.id)).unwrap();
    }
    assert_eq!(lab.stored(), [".lock"]);
}

#[test]
fn row_53_changed_boot_images_do_not_panic() {
    let inside = vmlinux(RELEASE, ALL_BUILTIN);
    let images: Vec<Vec<u8>> = PACKINGS.iter().map(|&p| bzimage(p, &inside)).collect();
    let good: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let lab = Lab::new();
    storm(&good, 0x260, |bytes| import_anything(&lab, bytes));
}

#[test]
fn row_53_changed_payloads_do_not_panic() {
    let mut strings = ALL_BUILTIN.to_vec();
    strings.extend((0..20_000_u32).flat_map(|n| (n * n / 3).to_le_bytes()));
    let inside = vmlinux(RELEASE, &strings);
    let payloads: Vec<Vec<u8>> = PACKINGS[1..].iter().map(|&p| pack(p, &inside)).collect();
    let good: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    let lab = Lab::new();
    storm(&good, 64, |bytes| {
        let mut payload = bytes.to_vec();
        if !payload.starts_with(&[0x1f, 0x8b]) {
            payload.extend((inside.len() as u32).to_le_bytes());
        }
        import_anything(&lab, &crate::make::bzimage_around(&payload, RELEASE));
    });
}

#[test]
fn row_53_changed_elf_kernels_do_not_panic() {
    let lab = Lab::new();
    storm(&[&vmlinux(RELEASE, ALL_BUILTIN)], 120, |bytes| {
        import_anything(&lab, bytes);
    });
}

#[test]
fn row_53_changed_packages_do_not_panic() {
    let mut data = vec![file_entry(
        &format!("./boot/vmlinuz-{RELEASE}"),
        &bzimage(Packing::Lz4, &vmlinux(RELEASE, b"")),
    )];
    for (name, bytes) in usual_modules() {
        data.push(file_entry(
            &format!("./lib/modules/{RELEASE}/{name}"),
            &bytes,
        ));
    }
    let packages: Vec<Vec<u8>> = [Packing::Plain, Packing::Gzip, Packing::Xz, Packing::Zstd]
        .iter()
        .map(|&p| deb(p, CONTROL, &data))
        .collect();
    let good: Vec<&[u8]> = packages.iter().map(Vec::as_slice).collect();
    let lab = Lab::new();
    storm(&good, 2048, |bytes| import_anything(&lab, bytes));
}

#[test]
fn row_53_changed_modules_do_not_panic() {
    let lab = Lab::new();
    let dir = lab.modules_dir(&usual_modules());
    let file = lab.write("vmlinux", &vmlinux(RELEASE, b""));
    let target = dir.join("kernel/drivers/block/virtio_blk.ko");
    let good = module(
        "virtio_blk",
        "virtio,virtio_ring",
        &["softdep=pre: vsock post: jbd2"],
    );
    let packed = pack(Packing::Xz, &good);
    storm(&[&good, &packed], 64, |bytes| {
        std::fs::write(&target, bytes).unwrap();
        if let Ok(kernel) = lab.store.import(&file, Some(&dir)) {
            kernel.verify().unwrap();
            std::fs::remove_dir_all(lab.store.dir().join(kernel.id)).unwrap();
        }
        assert_eq!(lab.stored(), [".lock"]);
    });
}
