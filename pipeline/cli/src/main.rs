//! The `fcpipe` program: reads the command line, calls the libraries, shows what happens, and answers
//! with an exit code.
//!
//! Architecture invariant: nothing is decided here that a program using the libraries would also need.
//! A command's file turns arguments into a request and a result into words; `render` shows progress;
//! `exit` says which number means what.
//!
//! Architecture invariant: results go to stdout, everything else to stderr. A closed stdout is a quiet end.
//!
//! Where to begin reading: `arguments.rs` (all there is to ask for), then the command's file in
//! `commands/`.

mod amounts;
mod arguments;
mod chart;
mod commands;
mod complaint;
mod directories;
mod exit;
mod history;
mod render;
mod signals;
mod terminal;
mod why;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use exit::Convention;

/// With this as its first argument, the program is a machine's shim and nothing else.
const SHIM: &str = "__shim";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == SHIM) {
        fcpipe_vmm::shim_main();
        return ExitCode::SUCCESS;
    }
    signals::block_file_size();
    let mut arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(code) => return ExitCode::from(code),
    };
    let convention = match &arguments.command {
        Command::Run(_) | Command::Exec(_) => Convention::Run,
        _ => Convention::Plain,
    };
    if let Err(complaint) = commands::configure(&mut arguments.global) {
        return ExitCode::from(complaint.show(convention));
    }
    let global = &arguments.global;
    let result = match &arguments.command {
        Command::Run(run) => commands::run::run(global, run),
        Command::Create(create) => commands::create::run(global, create),
        Command::Start(start) => commands::start::run(global, start),
        Command::Ps => commands::ps::ps(global),
        Command::State(state) => commands::ps::state(global, state),
        Command::Exec(exec) => commands::exec::run(global, exec),
        Command::Kill(kill) => commands::kill::run(global, kill),
        Command::Logs(logs) => commands::logs::run(global, logs),
        Command::Wait(wait) => commands::wait::run(global, wait),
        Command::Events(events) => commands::events::run(global, events),
        Command::Metrics(metrics) => commands::metrics::run(global, metrics),
        Command::Delete(delete) => commands::delete::run(global, delete),
        Command::Build(build) => commands::build::run(global, build),
        Command::Plan(plan) => commands::plan::plan(global, plan),
        Command::Explain(explain) => commands::plan::explain(global, explain),
        Command::Report(report) => commands::report::run(global, report),
        Command::Validate(validate) => commands::validate::run(global, validate),
        Command::Kernel(kernel) => commands::kernel::run(global, kernel),
        Command::Cache(cache) => commands::cache::run(global, cache),
        Command::Schema { of } => commands::shell::schema(*of),
        Command::Completions { shell } => commands::shell::completions(*shell),
        Command::Man { dir } => commands::shell::man(dir),
        Command::Doctor => commands::doctor::run(global),
    };
    ExitCode::from(result.unwrap_or_else(|complaint| complaint.show(convention)))
}
