//! The last step: finds the program and becomes it.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::net::UnixStream;

use fcpipe_proto::{Failure, FailureKind, Process};
use nix::errno::Errno;
use nix::unistd::execve;
use rustix::fs::{Access, FileType, access, stat};

use crate::handoff::{self, Report};

/// Becomes the program. Returns only to say why it could not.
pub(super) fn exec(
    process: &Process,
    home: &str,
    control: &mut UnixStream,
) -> Result<Infallible, Failure> {
    let env = environment(&process.env, home)?;
    let name = process.args.first().filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| Failure::new(FailureKind::NotFound, None, "no program named"))?;
    let program = find(name, &env)?;
    let c_strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
        let converted = list.iter().map(|s| CString::new(s.as_str()));
        converted.collect::<Result<_, _>>().map_err(|_| {
            let why = "an argument or variable contains a zero byte";
            Failure::new(FailureKind::Setup, None, why)
        })
    };
    let (args, env) = (c_strings(&process.args)?, c_strings(&env)?);
    let path = c_strings(std::slice::from_ref(&program))?.remove(0);

    // An agent that is gone has taken the machine with it.
    let _ = handoff::send(control, &Report::Exec, &[]);
    let Err(error) = execve(&path, &args, &env);
    let kind = match error {
        // Also an interpreter that is missing.
        Errno::ENOENT => FailureKind::NotFound,
        _ => FailureKind::NotExecutable,
    };
    Err(Failure::new(kind, Some(&program), error.desc()))
}

/// The environment without doubles, the last of which counts, and with a `HOME`.
fn environment(given: &[String], home: &str) -> Result<Vec<String>, Failure> {
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 1);
    let mut names = std::collections::BTreeSet::new();
    for variable in given.iter().rev() {
        let Some((name, value)) = variable.split_once('=') else {
            let why = "an environment variable without \"=\"";
            return Err(Failure::new(FailureKind::Setup, Some(variable), why));
        };
        let empty_home = name == "HOME" && value.is_empty();
        if !empty_home && names.insert(name) {
            env.push(variable.clone());
        }
    }
    env.reverse();
    if !names.contains("HOME") {
        env.push(format!("HOME={home}"));
    }
    Ok(env)
}

/// A name without a slash is looked up in `PATH`, as runc does: what cannot be executed is passed
/// over.
fn find(name: &str, env: &[String]) -> Result<String, Failure> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let path = env.iter().find_map(|v| v.strip_prefix("PATH="));
    let missing = |why: &str| Failure::new(FailureKind::NotFound, Some(name), why);
    let path = path.ok_or_else(|| missing("not found: the environment has no PATH"))?;
    let mut candidates = path.split(':').map(|dir| {
        let dir = if dir.is_empty() { "." } else { dir };
        format!("{}/{name}", dir.trim_end_matches('/'))
    });
    candidates
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| missing("not found in PATH"))
}

fn is_executable(path: &str) -> bool {
    let file =
        stat(path).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    file && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(given: &[&str]) -> Result<Vec<String>, Failure> {
        environment(
            &given.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>(),
            "/h",
        )
    }

    #[test]
    fn the_last_of_two_variables_counts() {
        assert_eq!(
            env(&["A=1", "B=2", "A=3=4"]).unwrap(),
            ["B=2", "A=3=4", "HOME=/h"]
        );
        assert_eq!(env(&["HOME=/me"]).unwrap(), ["HOME=/me"]);
        assert_eq!(env(&["HOME="]).unwrap(), ["HOME=/h"]);
        assert!(env(&["A"]).is_err());
    }

    #[test]
    fn programs_are_looked_up_in_path() {
        let path = |p: &str| vec![format!("PATH={p}")];
        assert_eq!(find("sh", &path("/nowhere:/bin")).unwrap(), "/bin/sh");
        assert_eq!(find("./x", &path("/bin")).unwrap(), "./x");
        // A directory, and a file that is not executable.
        assert!(find("etc", &path("/:/etc")).is_err());
        assert_eq!(
            find("passwd", &path("/etc")).unwrap_err().kind,
            FailureKind::NotFound
        );
        assert!(find("sh", &[]).is_err());
    }
}
