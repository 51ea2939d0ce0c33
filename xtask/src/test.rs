//! Every check, in the order that fails soonest, with the time of each phase.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::shell::{check, command, find, root};
use crate::{setup, tidy};

pub(crate) fn run() -> Result<()> {
    let mut phases = Phases::default();
    let result = all(&mut phases);
    phases.print();
    result
}

fn all(phases: &mut Phases) -> Result<()> {
    phases.run("setup", setup::run)?;
    phases.run("fmt", || cargo(&["fmt", "--all", "--check"]))?;
    phases.run("clippy", || {
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    })?;
    phases.run("tidy", tidy::run)?;
    phases.run("dependencies", dependencies)?;
    phases.run("unit and property tests", || {
        cargo(&[
            "test",
            "--workspace",
            "--exclude",
            "fcpipe",
            "--locked",
            "--quiet",
        ])?;
        cargo(&[
            "test",
            "--package",
            "fcpipe",
            "--bins",
            "--locked",
            "--quiet",
        ])
    })?;
    phases.run("end to end", || {
        // One virtual machine at a time: two cores emulate one well.
        end_to_end(&["--test-threads=1"])
    })
}

fn end_to_end(arguments: &[&str]) -> Result<()> {
    let mut cargo = command(
        "cargo",
        &[
            "test",
            "--package",
            "fcpipe",
            "--test",
            "e2e",
            "--locked",
            "--quiet",
            "--",
        ],
    );
    check(
        cargo
            .args(arguments)
            .env("FCPIPE_TEST_KERNEL_DEB", setup::kernel_package()?),
    )
}

/// Licences, sources and bans by cargo-deny, unused dependencies by cargo-machete. Both are the
/// maintainers' tools and take minutes to build, so they are used where they are installed.
fn dependencies() -> Result<()> {
    for (program, arguments) in [
        (
            "cargo-deny",
            &["--locked", "check", "bans", "licenses", "sources"][..],
        ),
        ("cargo-machete", &[][..]),
    ] {
        let Some(path) = find(program) else {
            println!("skipped: {program} is not installed (cargo install --locked {program})");
            continue;
        };
        // Not by `cargo`: within a `cargo run` cargo-machete takes its own name for a directory.
        check(Command::new(path).args(arguments).current_dir(root()))?;
    }
    Ok(())
}

/// An area's random tests in full numbers.
pub(crate) fn soak(area: &str) -> Result<()> {
    setup::run()?;
    match area {
        "ext4" => release_tests("fcpipe-ext4", "main", "", &[("FCPIPE_SOAK_TREES", "500")]),
        "life" => {
            let counts = [
                ("FCPIPE_SOAK_RUNS", "100"),
                ("FCPIPE_SOAK_BYTES", "1073741824"),
                ("FCPIPE_SOAK_EXECS", "100"),
                ("FCPIPE_SOAK_LAUNCHES", "100"),
            ];
            release_tests("fcpipe", "e2e", "cleanup::row_33_50", &counts)?;
            release_tests("fcpipe", "e2e", "streams::", &counts)?;
            release_tests("fcpipe", "e2e", "firecracker::row_51", &counts)
        }
        "run" => release_tests("fcpipe", "e2e", "", &[("FCPIPE_SOAK_RUNS", "20")]),
        "cache" => {
            release_tests("fcpipe-tree", "main", "edits", &[("FCPIPE_SOAK", "1")])?;
            let counts = [
                ("FCPIPE_SOAK_KILLS", "200"),
                ("FCPIPE_SOAK_FLIPS", "40"),
                ("FCPIPE_SOAK_FULL", "400"),
            ];
            release_tests("fcpipe", "e2e", "cache::", &counts)
        }
        "delta" => {
            let counts = [
                ("FCPIPE_SOAK_SEQUENCES", "500"),
                ("FCPIPE_SOAK_EDITS", "20"),
            ];
            release_tests("fcpipe-ext4", "lib", "near::", &counts)?;
            release_tests(
                "fcpipe",
                "e2e",
                "disks::kills",
                &[("FCPIPE_SOAK_KILLS", "200")],
            )
        }
        "net" => {
            let frames = [("FCPIPE_SOAK_FRAMES", "2000000")];
            release_tests("fcpipe-net", "main", "", &frames)?;
            let counts = [
                ("FCPIPE_SOAK_NET_KILLS", "50"),
                ("FCPIPE_SOAK_TRANSFER", "1000"),
            ];
            release_tests("fcpipe", "e2e", "network::", &counts)
        }
        _ => Err(format!(
            "no such area: {area} (ext4, run, cache, delta, life, net)"
        )),
    }
}

/// One test binary (`lib`: the tests inside of the library), optimised, a test at a time, saying what it does; of its tests those that match
/// `filter`.
fn release_tests(package: &str, binary: &str, filter: &str, counts: &[(&str, &str)]) -> Result<()> {
    let mut arguments = vec!["test", "--release", "--package", package];
    match binary {
        "lib" => arguments.push("--lib"),
        binary => arguments.extend(["--test", binary]),
    }
    arguments.extend([filter, "--", "--test-threads=1", "--nocapture"]);
    let mut tests = command("cargo", &arguments);
    check(
        tests
            .envs(counts.iter().copied())
            .env("FCPIPE_TEST_KERNEL_DEB", setup::kernel_package()?),
    )
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let mut cargo = command("cargo", arguments);
    if let Ok(package) = setup::kernel_package() {
        cargo.env("FCPIPE_TEST_KERNEL_DEB", package);
    }
    check(&mut cargo)
}

#[derive(Default)]
struct Phases(Vec<(&'static str, Duration, bool)>);

impl Phases {
    fn run(&mut self, name: &'static str, phase: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("── {name}");
        let begun = Instant::now();
        let result = phase();
        self.0.push((name, begun.elapsed(), result.is_ok()));
        result
    }

    fn print(&self) {
        println!("── time of each phase");
        for (name, time, fine) in &self.0 {
            let failed = if *fine { "" } else { "  FAILED" };
            println!("{:8.1} s  {name}{failed}", time.as_secs_f64());
        }
        let total: Duration = self.0.iter().map(|(_, time, _)| *time).sum();
        println!("{:8.1} s  in all", total.as_secs_f64());
    }
}
