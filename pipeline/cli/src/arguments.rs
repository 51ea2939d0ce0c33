//! The command line as types. What each option means is said here once, for `--help` and for readers.

mod machines;
mod stores;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
pub(crate) use clap_complete::Shell;

pub(crate) use machines::*;
pub(crate) use stores::*;

use crate::amounts::{Age, FileDigest, Size};
use crate::exit::Convention;

#[derive(Debug, Parser)]
#[command(
    name = "fcpipe",
    version,
    about = "Turns an OCI bundle into a running microVM",
    after_help = "Examples:\n  fcpipe doctor\n  fcpipe run ./bundle\n  fcpipe explain ./bundle\n  \
                  fcpipe build ./bundle -o root.ext4\n\n\
                  Exit codes: `run` and `exec` give the guest process's own (128+n for signal n), 125 where fcpipe \
                  fails, 126 where the command can't be run, 127 where it isn't found. Other commands: \
                  0 done, 1 failed, 2 wrong usage or spec."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where images and other build outputs are kept for reuse [default: /var/cache/fcpipe of root, else ~/.cache/fcpipe].
    #[arg(
        long,
        global = true,
        env = "FCPIPE_CACHE_DIR",
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Where imported kernels are kept [default: /var/lib/fcpipe of root, else ~/.local/share/fcpipe].
    #[arg(
        long,
        global = true,
        env = "FCPIPE_DATA_DIR",
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where running launches keep their journal, sockets and disks [default: /var/lib/fcpipe/state of root, else ~/.local/state/fcpipe].
    #[arg(
        long,
        global = true,
        env = "FCPIPE_STATE_DIR",
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) state_dir: Option<PathBuf>,
    /// Settings: fcpipe's own, or those of a worker, under `runtime`.
    #[arg(
        long,
        global = true,
        env = "FCPIPE_CONFIG",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// What the file of `--config` says.
    #[arg(skip)]
    pub(crate) settings: fcpipe_spec::Config,
    /// What results on stdout look like.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Global options"
    )]
    pub(crate) format: Format,
    /// How progress is shown on stderr.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Global options"
    )]
    pub(crate) progress: Progress,
    /// Threads for scanning and copying [default: one per processor].
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    pub(crate) threads: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Progress {
    /// `tty` where stderr is a terminal, `plain` where it is not.
    #[default]
    Auto,
    /// Bars that are drawn over.
    Tty,
    /// A line for each stage that took work, and for each warning.
    Plain,
    /// A JSON object a line for every event.
    Json,
    /// Warnings and errors only.
    Quiet,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a spec as a microVM and run its process.
    #[command(
        after_help = "Examples:\n  fcpipe run ./bundle\n  echo hi | fcpipe run -i spec.yaml\n  \
                            fcpipe run spec.json --set machine.memory=1GiB --timings run.json\n  \
                            fcpipe run --detach --id c1 ./bundle && fcpipe logs -f c1"
    )]
    Run(Run),
    /// Boot a bundle up to its process, which `start` starts.
    #[command(after_help = "Example:\n  fcpipe create c1 --bundle ./bundle && fcpipe start c1")]
    Create(Create),
    /// Start the process of a launch that was created.
    #[command(after_help = "Example:\n  fcpipe create c1 --bundle ./bundle && fcpipe start c1")]
    Start(Start),
    /// List the launches there are.
    #[command(after_help = "Examples:\n  fcpipe ps\n  fcpipe ps --format json")]
    Ps,
    /// Say how far a launch is, as an OCI state.
    #[command(after_help = "Example:\n  fcpipe state c1")]
    State(State),
    /// Run a process beside a launch's own, and give its output and exit status.
    #[command(after_help = "Example:\n  fcpipe exec c1 --env LANG=C -- ls -la /mnt/code")]
    Exec(Exec),
    /// Send a signal to a launch's process.
    #[command(
        after_help = "A program that is a container's process 1, such as a shell, does not end at TERM unless it handles it; \
                      at KILL it does.\n\nExamples:\n  fcpipe kill c1\n  fcpipe kill c1 KILL --all"
    )]
    Kill(Kill),
    /// Show what a detached launch's process wrote.
    #[command(after_help = "Examples:\n  fcpipe logs c1\n  fcpipe logs -f -t c1")]
    Logs(Logs),
    /// Wait until a launch's process has ended, and print its exit code.
    #[command(after_help = "Example:\n  fcpipe wait c1")]
    Wait(Wait),
    /// Print what happened and what happens to launches: a JSON object a line.
    #[command(
        after_help = "Examples:\n  fcpipe events\n  fcpipe events c1 --no-follow\n  fcpipe events c1 --stats"
    )]
    Events(Events),
    /// Print what launches use, for Prometheus; with --format json, as JSON.
    #[command(after_help = "Examples:\n  fcpipe metrics\n  fcpipe metrics c1 --format json")]
    Metrics(Metrics),
    /// Take away a launch that has stopped.
    #[command(after_help = "Examples:\n  fcpipe delete c1\n  fcpipe delete --force c1")]
    Delete(Delete),
    /// Compile a spec's root file system into an ext4 image. Needs no root.
    #[command(after_help = "Examples:\n  fcpipe build ./bundle -o root.ext4\n  \
                            fcpipe build spec.yaml -o root.ext4 --digest --format json")]
    Build(Build),
    /// Check a spec and say what is wrong with it, with line and column.
    #[command(after_help = "Example:\n  fcpipe validate ./bundle/config.json")]
    Validate(Validate),
    /// Say what a launch would do: what is kept from before, what would run, and why.
    #[command(after_help = "Example:\n  fcpipe plan ./bundle --format json")]
    Plan(Plan),
    /// Say why stages would run again: the first difference, in the words of the spec and its files.
    #[command(
        after_help = "Examples:\n  fcpipe explain ./bundle\n  fcpipe explain ./bundle scan:/"
    )]
    Explain(Explain),
    /// Show what a past launch spent its time on, beside the launch before.
    #[command(
        after_help = "Examples:\n  fcpipe report\n  fcpipe report 3f2a --html report.html --trace trace.json\n  \
                            fcpipe report --of ./bundle"
    )]
    Report(Report),
    /// Import and list the kernels that microVMs boot.
    #[command(subcommand)]
    Kernel(Kernel),
    /// Look at, check, shrink and carry what is kept for reuse.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Say what this host can do, what is missing, and how to get it.
    #[command(after_help = "Examples:\n  fcpipe doctor\n  fcpipe doctor --format json")]
    Doctor,
    /// Print a JSON Schema: of the launch file, or of the receipt that --timings writes.
    #[command(
        after_help = "Examples:\n  fcpipe schema > launch-file.schema.json\n  \
                            fcpipe schema receipt > receipt.schema.json"
    )]
    Schema {
        /// Of what.
        #[arg(value_enum, default_value_t = SchemaOf::LaunchFile)]
        of: SchemaOf,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  fcpipe completions bash > /etc/bash_completion.d/fcpipe")]
    Completions {
        /// The shell that is to read it.
        shell: Shell,
    },
    /// Write manual pages, one for each command, to a directory.
    #[command(after_help = "Example:\n  fcpipe man /usr/local/share/man/man1")]
    Man {
        /// It is made where it is not there.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// What has a schema.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SchemaOf {
    LaunchFile,
    Receipt,
}

/// What every command that reads a spec takes.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// An OCI bundle directory, its config.json, or a launch file (JSON or YAML).
    #[arg(value_name = "SPEC")]
    pub(crate) path: PathBuf,
    /// Override a field of the spec, such as machine.memory=1GiB.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Treat a missing mount source as an error, not as an empty directory.
    #[arg(long)]
    pub(crate) strict: bool,
}

impl Spec {
    /// A spec as its file is.
    pub(crate) fn plain(path: PathBuf) -> Self {
        Spec {
            path,
            set: Vec::new(),
            strict: false,
        }
    }
}

/// What every command that builds takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Building {
    /// Who writes the ext4 image.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) builder: Builder,
    /// Whether earlier results are used.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) cache: Cache,
    /// Write the receipt (stages, keys, outcomes, times) to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) timings: Option<PathBuf>,
}

/// What every command that boots takes.
#[derive(Debug, Args)]
pub(crate) struct Launching {
    /// Which virtual machine monitor runs the guest.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) vmm: Vmm,
    /// Which imported kernel boots: a release or an id [default: the newest import].
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Seconds within which the guest must have booted.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        env = "FCPIPE_BOOT_TIMEOUT"
    )]
    pub(crate) boot_timeout: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// The image file to write; an existing one is replaced when the new one is complete.
    #[arg(short, long, value_name = "IMAGE")]
    pub(crate) output: PathBuf,
    /// Print the blake3 digest of the whole image.
    #[arg(long)]
    pub(crate) digest: bool,
    #[command(flatten)]
    pub(crate) building: Building,
}

/// What a plan needs to know of the launch it is for.
#[derive(Debug, Args)]
pub(crate) struct Planning {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// Which virtual machine monitor would run the guest.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) vmm: Vmm,
    /// Which imported kernel would boot: a release or an id [default: the newest import].
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    #[command(flatten)]
    pub(crate) building: Building,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) planning: Planning,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) planning: Planning,
    /// A stage, as `plan` and the receipt name it; all that would run where none is named.
    #[arg(value_name = "STAGE")]
    pub(crate) stage: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The launch's id, or how it begins [default: the latest launch].
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// List the launches that are kept of this spec.
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["id", "svg", "html", "trace"])]
    pub(crate) of: Option<PathBuf>,
    /// Write the chart as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the chart and a table as a page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the launch as a trace, for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    pub(crate) spec: Spec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Builder {
    /// fcpipe's own writer: parallel, reproducible, needs no root.
    #[default]
    Native,
    /// e2fsprogs' mke2fs as a subprocess, over a staged copy; needs root.
    Mke2fs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Cache {
    /// Reuse what is there, build what is not.
    #[default]
    Auto,
    /// Fail where something would have to be built.
    Require,
    /// Build everything, keep nothing.
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Vmm {
    /// The best this host can run.
    #[default]
    Auto,
    /// Firecracker, which needs KVM.
    Firecracker,
    /// QEMU's q35 machine, with KVM or emulated.
    Qemu,
}

impl From<Vmm> for fcpipe_vmm::VmmChoice {
    fn from(vmm: Vmm) -> Self {
        match vmm {
            Vmm::Auto => Self::Auto,
            Vmm::Firecracker => Self::Firecracker,
            Vmm::Qemu => Self::Qemu,
        }
    }
}

impl Arguments {
    /// What was asked for, or the exit code after help or a complaint has been printed.
    ///
    /// `run` and `exec` answer 125 to wrong usage, as they do to every failure of their own.
    pub(crate) fn read(words: impl Iterator<Item = OsString>) -> Result<Self, u8> {
        let words: Vec<OsString> = words.collect();
        Arguments::try_parse_from(&words).map_err(|error| {
            // A closed stderr is no reason to fail differently.
            let _ = error.print();
            // A value of a global option may come before it; none is called like a command by accident.
            let commands = Arguments::command();
            let asked = words.iter().skip(1);
            let asked = asked
                .filter_map(|word| commands.find_subcommand(word))
                .next();
            match (error.use_stderr(), asked.map(clap::Command::get_name)) {
                (false, _) => 0,
                (true, Some("run" | "exec")) => Convention::Run.failed(),
                (true, _) => Convention::Plain.wrong_spec(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _, Parser as _};

    use super::Arguments;

    #[test]
    fn wrong_usage_has_the_code_of_its_command() {
        for (line, code) in [
            ("fcpipe run", 125),
            ("fcpipe --state-dir s exec", 125),
            ("fcpipe kill run --signal", 2),
            ("fcpipe kill", 2),
            ("fcpipe rum", 2),
            ("fcpipe run --help", 0),
        ] {
            let words = line.split(' ').map(Into::into);
            assert_eq!(Arguments::read(words).unwrap_err(), code, "{line}");
        }
    }

    /// Each command's help says what every argument is, and has an example that is read as a command of that name.
    #[test]
    fn help_has_examples_and_leaves_no_argument_out() {
        fn look(command: &Command, words: &[&str]) {
            let name = [words, &[command.get_name()]].concat();
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name:?} {argument}");
            }
            let help = command.get_after_help().map(ToString::to_string);
            if command.has_subcommands() {
                command.get_subcommands().for_each(|sub| look(sub, &name));
                return;
            }
            let help = help.unwrap_or_else(|| panic!("{name:?} has no example"));
            let examples: Vec<&str> = help
                .lines()
                .flat_map(|line| line.split("&&"))
                .filter_map(|line| {
                    let line = line
                        .split(['|', '>'])
                        .find(|part| part.trim().starts_with("fcpipe "));
                    line.map(str::trim)
                })
                .collect();
            for example in &examples {
                Arguments::try_parse_from(example.split_whitespace())
                    .unwrap_or_else(|error| panic!("{example}: {error}"));
            }
            let its_own = |example: &&str| example.starts_with(&name.join(" "));
            assert!(examples.iter().any(its_own), "{name:?}: {help}");
        }
        look(&Arguments::command(), &[]);
    }
}
