//! `/init` of an fcpipe VM.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|a| a == fcpipe_guest::container::ARGUMENT)
    {
        return fcpipe_guest::container::main();
    }
    if std::process::id() == 1 {
        fcpipe_guest::boot::main();
    }
    fcpipe_guest::console::say("this is the init program of an fcpipe VM; it runs nowhere else");
    ExitCode::from(2)
}
