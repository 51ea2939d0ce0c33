//! `bench-ext4`: how fast an image is made, beside every other way to make one.
//!
//! `bench-ext4 FCPIPE [--runs N] [--trees a,b,c,d] …` runs the comparison (see [`harness`]). The same
//! program is also each of the small tools that are compared, so that one build makes them all:
//!
//!     bench-ext4 make-trees DIR [a,b,c,d]
//!     bench-ext4 mkext4-driver SRC IMAGE
//!     bench-ext4 arcbox-driver SRC IMAGE
//!     bench-ext4 floor SRC OUT
//!     bench-ext4 floor-blocks SRC OUT
//!     bench-ext4 write BYTES OUT
//!     bench-ext4 walk SRC
//!
//! `bench-ext4 launch FCPIPE …` measures what a launch costs beside its machine (see [`launch`]),
//! `bench-ext4 cache FCPIPE …` measures launches of which something was built before (see [`cache`]),
//! `bench-ext4 delta FCPIPE …` those of which something has changed (see [`delta`]),
//! `bench-ext4 net FCPIPE …` a machine beside a container on a bridge (see [`net`]).
//!
//! `bench-ext4 summary DIR` says what of all that was to be reached and what was.
//!
//! Architecture invariant: it knows fcpipe only as a program that it runs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is a program that speaks to people"
)]

mod bed;
mod cache;
mod delta;
mod drivers;
mod figures;
mod floor;
mod goals;
mod harness;
mod launch;
mod mounts;
mod net;
mod options;
mod run;
mod trees;
mod walk;
mod ways;

use std::path::Path;
use std::process::ExitCode;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-ext4: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["make-trees", dir] => trees::make(Path::new(dir), &trees::NAMES.map(String::from)),
        ["make-trees", dir, names] => {
            let names: Vec<String> = names.split(',').map(String::from).collect();
            trees::make(Path::new(dir), &names)
        }
        ["mkext4-driver", src, image] => drivers::mkext4(Path::new(src), Path::new(image)),
        ["arcbox-driver", src, image] => drivers::arcbox(Path::new(src), Path::new(image)),
        ["floor", src, out] => {
            let written = floor::run(Path::new(src), Path::new(out), false)?;
            println!("{written} bytes");
            Ok(())
        }
        ["summary", dir] => goals::summary(Path::new(dir)),
        ["write", bytes, out] => floor::write(bytes.parse()?, Path::new(out)),
        ["floor-blocks", src, out] => {
            let written = floor::run(Path::new(src), Path::new(out), true)?;
            println!("{written} bytes");
            Ok(())
        }
        ["walk", src] => {
            println!("{} names", walk::stat(Path::new(src))?);
            Ok(())
        }
        ["launch", ..] => launch::bench(&args[1..]),
        ["cache", ..] => cache::bench(&args[1..]),
        ["delta", ..] => delta::bench(&args[1..]),
        ["net", ..] => net::bench(&args[1..]),
        _ => harness::run(&harness::Asked::from(args)?),
    }
}
