//! Exit codes: a public, documented part of the command line (`fcpipe --help`).

use fcpipe_engine::{Failure, FailureKind};

/// How `run` ends when fcpipe itself fails, as `docker run` does.
pub(crate) const RUN_FAILED: u8 = 125;
/// `run`: the command exists and can't be run.
const NOT_EXECUTABLE: u8 = 126;
/// `run`: the command isn't found.
const NOT_FOUND: u8 = 127;

/// Which commands' conventions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// `run`: the guest process's status shares the number, so ours are at the end of the range.
    Run,
    /// Every other command: 0 done, 1 failed, 2 wrong usage or spec.
    Plain,
}

impl Convention {
    pub(crate) fn failed(self) -> u8 {
        match self {
            Convention::Run => RUN_FAILED,
            Convention::Plain => 1,
        }
    }

    pub(crate) fn wrong_spec(self) -> u8 {
        match self {
            Convention::Run => RUN_FAILED,
            Convention::Plain => 2,
        }
    }

    pub(crate) fn failure(self, failure: &Failure) -> u8 {
        match (self, failure.kind) {
            (Convention::Run, FailureKind::CommandNotFound) => NOT_FOUND,
            (Convention::Run, FailureKind::CommandNotExecutable) => NOT_EXECUTABLE,
            (_, FailureKind::Spec) => self.wrong_spec(),
            _ => self.failed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_failure_has_a_code() {
        let code =
            |kind, convention: Convention| convention.failure(&Failure::new("", kind, "", None));
        assert_eq!(code(FailureKind::CommandNotFound, Convention::Run), 127);
        assert_eq!(
            code(FailureKind::CommandNotExecutable, Convention::Run),
            126
        );
        assert_eq!(code(FailureKind::Spec, Convention::Run), 125);
        assert_eq!(code(FailureKind::Spec, Convention::Plain), 2);
        assert_eq!(code(FailureKind::Space, Convention::Plain), 1);
    }
}
