//! `cargo xtask`: everything that is done to the project rather than by it.
//!
//! `setup` installs what is missing, `demo` shows the main job, `test` runs every check in the order
//! that fails soonest. Nothing here is needed to use fcpipe.
//!
//! Architecture invariant: xtask is a plain program around other programs. It depends on no crate of
//! the project, so that it builds in seconds and can judge a tree that does not compile.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task runner speaks to people"
)]

mod bench;
mod demo;
mod fuzz;
mod lab;
mod release;
mod rows;
mod setup;
mod shell;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

type Result<T> = std::result::Result<T, String>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, show, test and measure fcpipe")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on a fresh Debian or Ubuntu with Rust.
    Setup,
    /// Build fcpipe as it is given away, one file without libraries, and say where it is.
    Build,
    /// Set up, build, and boot a bundle with mounts, twice.
    Demo,
    /// Run every check: fmt, clippy, tidy, unit and property tests, end to end.
    Test,
    /// Check the house rules: edges between crates, who prints, what stands where.
    Tidy {
        /// Print the rows of docs/guarantees.md and the tests that each has.
        #[arg(long)]
        rows: bool,
    },
    /// Measure against peers: `ext4`, `cache`, `delta`, `launch`; `net` against a container; `all` of them.
    Bench {
        area: String,
        /// Passed on to the measuring program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Run an area's random tests in full numbers: `ext4`, `run`, `cache`, `life`, `delta`, `net`.
    Soak { area: String },
    /// Run the end-to-end tests with a real Firecracker, in an emulated machine that has KVM.
    Lab {
        /// The Firecracker to test with [default: what FCPIPE_FIRECRACKER names; without either the lab is skipped].
        #[arg(long, value_name = "FILE")]
        firecracker: Option<std::path::PathBuf>,
        /// Its jailer [default: what FCPIPE_JAILER names].
        #[arg(long, value_name = "FILE")]
        jailer: Option<std::path::PathBuf>,
        /// Build with optimization.
        #[arg(long)]
        release: bool,
        /// Run this shell command there, and not the tests.
        #[arg(long, value_name = "COMMAND")]
        command: Option<String>,
        /// Arguments of the test binary: names of tests.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Fuzz a target for a number of seconds.
    Fuzz {
        target: String,
        #[arg(long, default_value_t = 600)]
        seconds: u32,
    },
}

fn build() -> Result<()> {
    setup::musl()?;
    println!("{}", release::build(&["fcpipe"])?.join("fcpipe").display());
    Ok(())
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Build => build(),
        Task::Demo => demo::run(),
        Task::Test => test::run(),
        Task::Tidy { rows: true } => rows::print(),
        Task::Tidy { rows: false } => tidy::run(),
        Task::Bench { area, rest } => bench::run(&area, &rest),
        Task::Soak { area } => test::soak(&area),
        Task::Lab {
            firecracker,
            jailer,
            release,
            command,
            arguments,
        } => lab::run(lab::Wanted {
            firecracker,
            jailer,
            release,
            command,
            arguments,
        }),
        Task::Fuzz { target, seconds } => fuzz::run(&target, seconds),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            std::process::ExitCode::FAILURE
        }
    }
}
