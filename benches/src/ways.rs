//! The ways to make an image of a tree, as commands.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::drivers::Needs;

impl std::str::FromStr for Way {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Way, String> {
        let way = Way::ALL.into_iter().find(|way| way.name() == name);
        way.ok_or_else(|| "no such way".to_owned())
    }
}

/// What every run is given.
pub(crate) struct Job<'a> {
    pub(crate) fcpipe: &'a Path,
    pub(crate) tree: &'a Path,
    pub(crate) needs: Needs,
    /// A fresh directory on the file system that is measured.
    pub(crate) out: &'a Path,
}

/// A way to make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Fcpipe,
    Floor,
    FloorBlocks,
    Write,
    Mke2fs,
    Loop,
    Mkext4,
    Arcbox,
    Erofs,
    Copy,
}

impl Way {
    pub(crate) const ALL: [Way; 10] = [
        Way::Fcpipe,
        Way::Floor,
        Way::FloorBlocks,
        Way::Write,
        Way::Mkext4,
        Way::Arcbox,
        Way::Mke2fs,
        Way::Loop,
        Way::Erofs,
        Way::Copy,
    ];

    /// As it stands in tables and after `--ways`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Fcpipe => "fcpipe",
            Way::Floor => "floor",
            Way::FloorBlocks => "floor-blocks",
            Way::Write => "write",
            Way::Mke2fs => "mke2fs-d",
            Way::Loop => "loop-cp",
            Way::Mkext4 => "mkext4",
            Way::Arcbox => "arcbox-ext4",
            Way::Erofs => "mkfs.erofs",
            Way::Copy => "cp-a",
        }
    }

    /// What it is, for the table's foot.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Way::Fcpipe => "fcpipe build --cache off",
            Way::Floor => "read every file once in parallel, write the same bytes to one file",
            Way::FloorBlocks => "the same with each file at a multiple of 4 KiB, as ext4 has it",
            Way::Write => "write as many bytes to one file, read nothing",
            Way::Mke2fs => "mke2fs -t ext4 -d, inodes sized right",
            Way::Loop => "mkfs.ext4, loop mount, cp -a, umount; inodes sized right",
            Way::Mkext4 => "the crate mkext4 0.0.3",
            Way::Arcbox => "the crate arcbox-ext4 0.1.2",
            Way::Erofs => "mkfs.erofs, uncompressed",
            Way::Copy => "cp -a to a directory, no image at all",
        }
    }

    /// Whether this host has what it needs; if not, why.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Way::Mke2fs if find("mke2fs").is_none() => Some("mke2fs is not installed"),
            Way::Erofs if find("mkfs.erofs").is_none() => Some("mkfs.erofs is not installed"),
            Way::Loop if !rustix::process::geteuid().is_root() => Some("it needs root"),
            Way::Loop if find("mkfs.ext4").is_none() => Some("mkfs.ext4 is not installed"),
            _ => None,
        }
    }

    /// The commands of one run, in order.
    pub(crate) fn commands(self, job: &Job<'_>) -> Result<Vec<Command>> {
        let image = job.out.join("image");
        let ours = |tool: &str| -> Result<Command> {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(tool).arg(job.tree).arg(&image);
            Ok(command)
        };
        let inodes = job.needs.inodes().to_string();
        let size = format!("{}k", job.needs.image() / 1024);
        Ok(match self {
            Way::Fcpipe => vec![fcpipe(job, &image)?],
            Way::Floor => vec![ours("floor")?],
            Way::FloorBlocks => vec![ours("floor-blocks")?],
            Way::Write => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("write")
                    .arg(job.needs.bytes.to_string())
                    .arg(&image);
                vec![command]
            }
            Way::Mkext4 => vec![ours("mkext4-driver")?],
            Way::Arcbox => vec![ours("arcbox-driver")?],
            Way::Mke2fs => vec![with(
                "mke2fs",
                ["-q", "-F", "-t", "ext4", "-b", "4096", "-N", &inodes, "-d"],
                [job.tree, &image, Path::new(&size)],
            )],
            Way::Loop => {
                let mount = job.out.join("mount");
                std::fs::create_dir(&mount)?;
                let contents = job.tree.join(".");
                vec![
                    with("truncate", ["-s", &size], [&image]),
                    with("mkfs.ext4", ["-q", "-F", "-N", &inodes], [&image]),
                    with("mount", ["-o", "loop"], [&image, &mount]),
                    with("cp", ["-a"], [&contents, &mount]),
                    with("umount", [], [&mount]),
                ]
            }
            Way::Erofs => vec![with("mkfs.erofs", ["--quiet"], [&*image, job.tree])],
            Way::Copy => vec![with("cp", ["-a", "--reflink=never"], [job.tree, &image])],
        })
    }
}

fn with<const A: usize, const P: usize>(
    program: &str,
    words: [&str; A],
    paths: [&Path; P],
) -> Command {
    let program = find(program).unwrap_or_else(|| program.into());
    let mut command = Command::new(program);
    command.args(words).args(paths).env("LC_ALL", "C");
    command
}

/// fcpipe on a launch file with that root. A program called `pack` is the example of that name of
/// fcpipe-ext4, which measures the compiler without the command around it.
fn fcpipe(job: &Job<'_>, image: &Path) -> Result<Command> {
    let mut command = Command::new(job.fcpipe);
    if job.fcpipe.file_stem().is_some_and(|name| name == "pack") {
        command.arg(job.tree).arg(image);
        return Ok(command);
    }
    let spec = job.out.join("launch.json");
    let content = serde_json::json!({
        "version": 1,
        "rootfs": job.tree,
        "process": {"args": ["/bin/true"], "cwd": "/"},
    });
    std::fs::write(&spec, content.to_string())?;
    command.arg("build").arg(&spec).arg("-o").arg(image);
    command.args(["--cache", "off", "--progress", "quiet"]);
    for (option, name) in [("--cache-dir", "cache"), ("--state-dir", "state")] {
        command.arg(option).arg(job.out.join(name));
    }
    Ok(command)
}

/// Where a program is: many of these are for root, and not on everyone's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
}
