//! The options of the commands about a machine, from its making to its end.

use std::path::PathBuf;

use clap::Args;

use super::*;

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// The launch's name [default: a random one].
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Pass standard input to the process.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process this terminal.
    #[arg(short, long = "tty")]
    pub(crate) terminal: bool,
    /// Leave it running, with its output in its log, and print its name.
    #[arg(short, long, conflicts_with_all = ["interactive", "terminal"])]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) launching: Launching,
    #[command(flatten)]
    pub(crate) building: Building,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// An OCI bundle directory, its config.json, or a launch file.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Override a field of the spec, such as machine.memory=1GiB.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Treat a missing mount source as an error, not as an empty directory.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Write the process id of the launch's machine to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the process's terminal to this Unix socket, as OCI runtimes do.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Keep the process's output in the launch's log, instead of passing on this command's own streams.
    #[arg(long)]
    pub(crate) log: bool,
    #[command(flatten)]
    pub(crate) launching: Launching,
    #[command(flatten)]
    pub(crate) building: Building,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct State {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Pass standard input to the process.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process this terminal.
    #[arg(short, long = "tty")]
    pub(crate) terminal: bool,
    /// Go on without this command once the process runs; a copy of it stays behind for the process's streams.
    #[arg(short, long, conflicts_with = "terminal")]
    pub(crate) detach: bool,
    /// Write the process id of that copy to this file: signals to it go to the process, and it ends with it.
    #[arg(long, value_name = "FILE", requires = "detach")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Run the OCI `process` object in this file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Add to the environment that the launch's own process has.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// The directory to run in.
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// The user to run as, by number: UID or UID:GID.
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The program and its arguments.
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// A name or a number.
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) signal: String,
    /// Send it to every process of the launch.
    #[arg(short, long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Go on until the process has ended.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Say when each line was written.
    #[arg(short, long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// One launch; all where none is named.
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Print what there is, and end.
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Print what the launch uses now, as one event, and end.
    #[arg(long, requires = "id")]
    pub(crate) stats: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// One launch; all where none is named.
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The launch's name.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// End it first, if it runs. One that does not exist is no error.
    #[arg(short, long)]
    pub(crate) force: bool,
}
