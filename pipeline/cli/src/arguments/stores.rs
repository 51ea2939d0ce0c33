//! The options of the commands about what is kept: kernels and the cache.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::*;

#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Import a kernel and the modules a guest needs.
    #[command(
        after_help = "Examples:\n  fcpipe kernel import linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb\n  \
                            fcpipe kernel import /boot/vmlinuz-6.1.0 --modules /lib/modules/6.1.0"
    )]
    Import {
        /// A Debian package, a vmlinuz, or an ELF vmlinux.
        file: PathBuf,
        /// The kernel's /lib/modules directory, where FILE is not a package.
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
    },
    /// List imported kernels; `*` marks the default.
    #[command(after_help = "Example:\n  fcpipe kernel ls")]
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the stages whose outputs are kept, the one used last first.
    #[command(after_help = "Example:\n  fcpipe cache ls")]
    Ls,
    /// Say how much of the disk is used, and by what.
    #[command(after_help = "Example:\n  fcpipe cache du")]
    Du,
    /// Remove what is of no use, then what was used longest ago. What a machine uses stays.
    #[command(
        after_help = "Examples:\n  fcpipe cache gc\n  fcpipe cache gc --max-size 20GiB --max-age 30d"
    )]
    Gc {
        /// Keep no more than this on the disk, such as 20GiB.
        #[arg(long, value_name = "SIZE")]
        max_size: Option<Size>,
        /// Keep nothing that was not used for as long as this, such as 30d, 12h or 45min.
        #[arg(long, value_name = "AGE")]
        max_age: Option<Age>,
    },
    /// Read everything that is kept, and drop what is not as it was written. Exit code 1 if something was damaged.
    #[command(
        after_help = "An object that nobody has looked at since it was made can't be told from a damaged one, \
                      and is dropped as well; that is no damage.\n\nExample:\n  fcpipe cache verify"
    )]
    Verify,
    /// Write what a launch needs of the cache to one file, for another host or another cache.
    #[command(
        after_help = "Examples:\n  fcpipe cache export ./bundle -o bundle.tar\n  \
                      fcpipe cache export 3fa94c01be -o image.tar"
    )]
    Export(Export),
    /// Take in a file that `cache export` wrote. Every digest is checked before anything is kept.
    #[command(
        after_help = "What the file says is believed: take files only from whom you would take an image. \
                      `cache export` prints a digest; send it by another way and give it to --digest.\n\n\
                      Example:\n  fcpipe cache import bundle.tar --digest \
                      blake3:2eacb4b73e697b784cae547729ea33141900c95c9a58c5618651c20a4b249d44"
    )]
    Import {
        /// The file; `-` for standard input.
        file: PathBuf,
        /// Refuse a file of another digest.
        #[arg(long, value_name = "blake3:HEX")]
        digest: Option<FileDigest>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A spec, whose outputs are made if they are not there; or the first digits of a key that `cache ls` shows.
    #[arg(value_name = "SPEC|KEY")]
    pub(crate) what: PathBuf,
    /// The file to write; an existing one is replaced when the new one is complete.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Override a field of the spec, such as machine.memory=1GiB.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Treat a missing mount source as an error, not as an empty directory.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Who writes the ext4 image.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) builder: Builder,
    /// For which imported kernel: a release or an id [default: the newest import].
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
}
