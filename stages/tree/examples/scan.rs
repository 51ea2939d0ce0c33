//! Times scans of one directory: `cargo run --release -p fcpipe-tree --example scan -- DIR [RUNS] [INDEXES]`. With a
//! directory for indexes, the second and all later scans are warm.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use fcpipe_tree::{IndexDir, ScanOptions, look};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let source = Path::new(args.first().ok_or("usage: scan DIR [RUNS]")?);
    let runs: usize = args.get(1).map_or(Ok(5), |n| n.parse())?;
    let indexes = args.get(2).map(|path| IndexDir::new(path.into()));
    for _ in 0..runs {
        let began = Instant::now();
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let looked = look(
            source,
            &Default::default(),
            &ScanOptions::default(),
            indexes.as_ref(),
        )?;
        let scan_time = began.elapsed();
        let (tree, stamps) = (looked.tree_digest(), looked.digest_of_stamps());
        let changes = looked.changes().map(|changes| changes.len());
        let dropping = Instant::now();
        drop(looked);
        let drop_time = dropping.elapsed();
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        writeln!(
            std::io::stdout(),
            "look {:.1} end {:.1} cpu {:.1} ms, changes {changes:?}, tree {} stamps {}",
            scan_time.as_secs_f64() * 1e3,
            drop_time.as_secs_f64() * 1e3,
            ((used.tv_sec - cpu.tv_sec) * 1_000_000_000 + used.tv_nsec - cpu.tv_nsec) as f64 / 1e6,
            tree.to_hex(),
            stamps.to_hex(),
        )?;
    }
    Ok(())
}
