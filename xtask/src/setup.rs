//! Installs what the demo and the tests need on a fresh Debian or Ubuntu: says what, and is quick
//! where nothing is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::shell::{check, command, downloads, find, output};

/// A program that must be there, and the package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("busybox", "busybox-static"),
    ("debootstrap", "debootstrap"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    // What packs kernels and modules, and what reads them, to judge our own readers.
    ("modinfo", "kmod"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("ping", "iputils-ping"),
    ("sysctl", "procps"),
    ("setfacl", "acl"),
    ("setfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("cpio", "cpio"),
    ("strace", "strace"),
    ("rsync", "rsync"),
    ("fuse2fs", "fuse2fs"),
    ("runc", "runc"),
];

/// A module that the distribution's Python must have, and its package: libseccomp's own words, to judge our filters.
const MODULE: (&str, &str) = ("seccomp", "python3-seccomp");

/// The package that always names the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// For the guest's programs, which are static.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";

/// The version whose CONNECT protocol was tested.
const VSOCK: (&str, &str) = ("vhost-device-vsock", "0.3.0");

pub(crate) fn run() -> Result<()> {
    packages()?;
    musl()?;
    vsock()?;
    kernel()?;
    Ok(())
}

fn packages() -> Result<()> {
    let mut missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    // Debian's `busybox` needs libraries, and the roots that it is copied to have none.
    if find("busybox").is_some_and(|busybox| needs_libraries(&busybox)) {
        missing.push("busybox-static");
    }
    let (module, package) = MODULE;
    let import = format!("import {module}");
    if output(&mut command("/usr/bin/python3", &["-c", &import])).is_err() {
        missing.push(package);
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing {}", missing.join(" "));
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(missing);
    apt(&install)
}

fn needs_libraries(program: &Path) -> bool {
    // Of a static one ldd says that on stderr, and fails.
    let ldd = Command::new("ldd").arg(program).output();
    ldd.is_ok_and(|ldd| ldd.status.success() && ldd.stdout.windows(2).any(|two| two == b"=>"))
}

/// apt-get, by sudo where we are not root. Its chatter goes to a log that is shown on failure.
fn apt(arguments: &[&str]) -> Result<()> {
    let root = output(&mut command("id", &["-u"]))?.trim() == "0";
    let mut apt = match root {
        true => command("apt-get", arguments),
        false => {
            let mut sudo = command("sudo", &["apt-get"]);
            sudo.args(arguments);
            sudo
        }
    };
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    let done = apt.output().map_err(|e| match root {
        true => format!("apt-get: {e} (is this Debian or Ubuntu?)"),
        false => format!("sudo apt-get: {e} (install sudo, or run `cargo xtask setup` as root)"),
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "apt-get {} failed:\n{}{}",
        arguments.join(" "),
        String::from_utf8(done.stdout).unwrap_or_default(),
        String::from_utf8(done.stderr).unwrap_or_default()
    ))
}

pub(crate) fn musl() -> Result<()> {
    let there = output(&mut command(
        "rustc",
        &["--print", "target-libdir", "--target", MUSL],
    ))
    .is_ok_and(|dir| PathBuf::from(dir.trim()).is_dir());
    if there {
        return Ok(());
    }
    println!("setup: rustup target add {MUSL} (the guest program is static)");
    check(&mut command("rustup", &["target", "add", MUSL])).map_err(|e| {
        format!("{e} (a Rust without rustup must bring the standard library of {MUSL} itself)")
    })
}

fn vsock() -> Result<()> {
    let (program, version) = VSOCK;
    if find(program).is_some() {
        return Ok(());
    }
    println!("setup: cargo install {program} {version} (vsock for QEMU; about a minute)");
    check(
        command(
            "cargo",
            &[
                "install",
                program,
                "--version",
                version,
                "--locked",
                "--quiet",
            ],
        )
        // A log of warnings of somebody else's program helps nobody.
        .env_remove("RUSTFLAGS"),
    )
}

/// Fetches the kernel's package, to be read by `fcpipe kernel import`, not installed.
fn kernel() -> Result<()> {
    if kernel_package().is_ok() {
        return Ok(());
    }
    println!("setup: downloading Debian's cloud kernel");
    let dir = downloads();
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let depends = || output(&mut command("apt-cache", &["depends", KERNEL]));
    let mut listing = depends().unwrap_or_default();
    if !listing.contains("Depends: linux-image") {
        apt(&["update", "-q"])?;
        listing = depends()?;
    }
    let package = listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image"))
        .ok_or_else(|| format!("apt-cache depends {KERNEL} names no kernel"))?;
    // It is this user's file: apt's own user may not write here, of which it warns where it is asked by root.
    let user = "APT::Sandbox::User=root";
    check(
        command("apt-get", &["download", "-q", "-o", user, package])
            .current_dir(&dir)
            .stdout(Stdio::null()),
    )?;
    kernel_package().map(drop)
}

/// The kernel package that `setup` fetched.
pub(crate) fn kernel_package() -> Result<PathBuf> {
    let dir = downloads();
    let mut found: Vec<PathBuf> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            name.starts_with("linux-image") && name.ends_with(".deb")
        })
        .collect();
    found.sort();
    found
        .pop()
        .ok_or_else(|| format!("no kernel package in {}", dir.display()))
}
