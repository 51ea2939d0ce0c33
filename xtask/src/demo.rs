//! The main job, shown: a bundle of real things boots as a virtual machine, twice.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::shell::{check, command, find, output, root, target};
use crate::{release, setup};

pub(crate) fn run() -> Result<()> {
    setup::run()?;
    println!("demo: building fcpipe (minutes, the first time)");
    let fcpipe = release::build(&["fcpipe"])?.join("fcpipe");
    let fcpipe = release::words(&fcpipe)?;
    import_kernel(fcpipe)?;
    bundle(&root().join("target/demo/bundle"))?;
    for (number, what) in [(1, "builds what is missing"), (2, "finds everything built")] {
        println!("\ndemo: fcpipe run fixtures/hello/spec.json (run {number} {what})");
        let begun = Instant::now();
        let timings = target().join(format!("demo/run-{number}.json"));
        check(command(fcpipe, &["run", "fixtures/hello/spec.json", "--timings"]).arg(&timings))?;
        println!(
            "demo: run {number} took {:.2} s; {}",
            begun.elapsed().as_secs_f64(),
            stages(&timings)?
        );
    }
    println!("\ndemo: the program is {fcpipe}");
    Ok(())
}

/// The kernel that the demo and the tests boot, imported unless one is there.
pub(crate) fn import_kernel(fcpipe: &str) -> Result<()> {
    if !output(&mut command(fcpipe, &["kernel", "ls"]))?
        .trim()
        .is_empty()
    {
        return Ok(());
    }
    let package = setup::kernel_package()?;
    check(command(fcpipe, &["kernel", "import"]).arg(package))
}

/// An OCI bundle with busybox as its root file system.
fn bundle(dir: &Path) -> Result<()> {
    let make = || -> std::io::Result<()> {
        let rootfs = dir.join("rootfs");
        for name in ["bin", "etc", "mnt", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let busybox = find("busybox").ok_or(std::io::ErrorKind::NotFound)?;
        // A second demo must find the same file, or nothing would be reused.
        if !rootfs.join("bin/busybox").exists() {
            fs::copy(busybox, rootfs.join("bin/busybox"))?;
            for applet in [
                "sh", "cat", "ls", "uname", "grep", "head", "cut", "df", "echo",
            ] {
                symlink("busybox", rootfs.join("bin").join(applet))?;
            }
            fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
            fs::copy(
                root().join("fixtures/hello/config.json"),
                dir.join("config.json"),
            )?;
        }
        Ok(())
    };
    make().map_err(|e| format!("{}: {e}", dir.display()))
}

/// One line out of a receipt: which stages ran, which were hits.
fn stages(receipt: &Path) -> Result<String> {
    let text = fs::read_to_string(receipt).map_err(|e| format!("{}: {e}", receipt.display()))?;
    let receipt: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let of = |outcome: &str| -> Vec<String> {
        receipt["stages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|stage| stage["outcome"] == outcome)
            .filter_map(|stage| stage["id"].as_str().map(str::to_owned))
            .collect()
    };
    Ok(format!(
        "hit: {}; ran: {}",
        of("hit").join(" "),
        of("ran").join(" ")
    ))
}
