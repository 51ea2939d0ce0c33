//! Packs one directory into an image, with the time of each step: the whole compiler without a cache.
//!
//! `cargo run --release -p fcpipe-ext4 --example pack -- DIR IMAGE [--threads N] [--buffered] [--no-clone]`

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fcpipe_ext4::{CopyOptions, Durability, Options, OutputFile, Silent, layout, write_image};
use fcpipe_tree::{Layer, ScanOptions, compose, scan};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut options = CopyOptions::default();
    let mut paths = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => options.threads = Some(args.next().ok_or("how many?")?.parse()?),
            "--buffered" => options.direct = false,
            "--no-clone" => options.clone = false,
            _ => paths.push(arg),
        }
    }
    let [source, image] = &paths[..] else {
        return Err("usage: pack DIR IMAGE [--threads N] [--buffered] [--no-clone]".into());
    };
    let source = Path::new(source);
    let began = Instant::now();
    let scanned = scan(source, &Default::default(), &ScanOptions::default())?;
    let scan_time = began.elapsed();
    let composed = compose(vec![Layer {
        destination: "/".into(),
        source: source.into(),
        scan: Some(Arc::new(scanned)),
    }])?;
    let compose_time = began.elapsed() - scan_time;
    let layout = layout(composed.tree(), &Options::default())?;
    let layout_time = began.elapsed() - compose_time - scan_time;
    let copying = Instant::now();
    let output = OutputFile::create(Path::new(image))?;
    let report = write_image(&layout.map, &composed, output.file(), &options, &Silent)?;
    let copy_time = copying.elapsed();
    output.commit(Durability::Machine)?;
    writeln!(
        std::io::stdout(),
        "scan {:.3} compose {:.3} layout {:.3} copy {:.3} commit {:.3} s; {report:?}",
        scan_time.as_secs_f64(),
        compose_time.as_secs_f64(),
        layout_time.as_secs_f64(),
        copy_time.as_secs_f64(),
        (copying.elapsed() - copy_time).as_secs_f64(),
    )?;
    Ok(())
}
