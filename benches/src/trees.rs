//! The four trees that are measured, with the same contents every time.
//!
//! | tree | what |
//! |---|---|
//! | a | a Debian root: `debootstrap --variant=minbase`, about 190 MiB |
//! | b | 100,000 files of 1 byte to 32 KiB in 1,000 directories |
//! | c | 3 files of 1 GiB |
//! | d | 50,000 files of 1 byte to 4 KiB in one directory |
//!
//! Sizes are spread evenly over their logarithm, as in real trees: most files are small, most bytes
//! are in the larger ones.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;

pub(crate) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

const GIB: u64 = 1 << 30;

/// xorshift64*: quick, and the bytes can't be compressed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// 1 to 2^`bits`, evenly spread over the logarithm.
    fn size(&mut self, bits: u32) -> usize {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (unit * f64::from(bits)).exp2().round() as usize
    }
}

/// Makes those of the named trees that `dir` does not have yet.
pub(crate) fn make(dir: &Path, names: &[String]) -> Result<()> {
    fs::create_dir_all(dir)?;
    for name in names {
        let tree = dir.join(name);
        if tree.exists() {
            continue;
        }
        // A tree that was not finished never has its name.
        let part = dir.join(format!("{name}.part"));
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        match name.as_str() {
            "a" => debian(&part)?,
            "b" => many(&part, 1000, 100, 15)?,
            "c" => large(&part, 3, GIB)?,
            "d" => many(&part, 0, 50_000, 12)?,
            // For the memory figures alone.
            "million" => many(&part, 1000, 1000, 0)?,
            _ => return Err(format!("no such tree: {name} (a, b, c, d, million)").into()),
        }
        fs::rename(&part, &tree)?;
    }
    Ok(())
}

fn debian(dir: &Path) -> Result<()> {
    let done = Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(dir)
        .stdout(Stdio::null())
        .status()
        .map_err(|e| format!("debootstrap: {e}"))?;
    if !done.success() {
        return Err(format!("debootstrap (needs root and Debian's archive): {done}").into());
    }
    for entry in fs::read_dir(dir.join("var/cache/apt/archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// `files` files in each of `dirs` directories, or in the tree's root if `dirs` is 0.
fn many(root: &Path, dirs: usize, files: usize, bits: u32) -> Result<()> {
    let mut random = Random::new(u64::from(bits) + 1);
    let mut bytes = vec![0u8; 1 << 16];
    random.fill(&mut bytes);
    for d in 0..dirs.max(1) {
        let dir = match dirs {
            0 => root.to_path_buf(),
            _ => root.join(format!("dir-{d:04}")),
        };
        fs::create_dir_all(&dir)?;
        for f in 0..files {
            let size = random.size(bits);
            // Every file begins at another place of the same random bytes, and with its own number.
            let start = random.next() as usize % (bytes.len() - size);
            let body = &mut bytes[start..start + size];
            let number = ((d * files + f) as u64).to_le_bytes();
            let head = size.min(8);
            body[..head].copy_from_slice(&number[..head]);
            fs::write(dir.join(format!("file-{f:06}.dat")), body)?;
        }
    }
    Ok(())
}

fn large(root: &Path, files: u64, size: u64) -> Result<()> {
    fs::create_dir_all(root)?;
    let mut piece = vec![0u8; 1 << 20];
    for f in 0..files {
        let mut random = Random::new(f + 100);
        let mut file = File::create(root.join(format!("large-{f}.bin")))?;
        for _ in 0..size / piece.len() as u64 {
            random.fill(&mut piece);
            file.write_all(&piece)?;
        }
    }
    Ok(())
}
