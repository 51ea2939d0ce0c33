//! `fcpipe start`: starts the process of a launch that was created.

use fcpipe_supervisor::Request;

use super::{Outcome, ask};
use crate::arguments::{Global, Start};

pub(crate) fn run(global: &Global, arguments: &Start) -> Outcome {
    ask(global, &arguments.id, &Request::Start)?;
    Ok(0)
}
