//! The last step: finds the program and becomes it.

use std::convert::Infallible;
use std::ffi::CString;

use fcpipe_proto::{Failure, FailureKind, Process};
use nix::errno::Errno;
use nix::unistd::execve;
use rustix::fs::{Access, FileType, access, stat};

/// What execve(2) takes.
pub(super) struct Program {
    name: String,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Looks the program up, as the user who is to run it.
    pub(super) fn find(process: &Process, home: &str) -> Result<Self, Failure> {
        let env = environment(&process.env, home)?;
        let name = process.args.first().filter(|n| !n.is_empty());
        let name =
            name.ok_or_else(|| Failure::new(FailureKind::NotFound, None, "no program named"))?;
        let name = find(name, &env)?;
        Ok(Program {
            path: c_string(&name)?,
            args: process
                .args
                .iter()
                .map(|a| c_string(a))
                .collect::<Result<_, _>>()?,
            env: env.iter().map(|v| c_string(v)).collect::<Result<_, _>>()?,
            name,
        })
    }

    /// Becomes the program. Returns only to say why it could not.
    pub(super) fn exec(self) -> Result<Infallible, Failure> {
        let Err(error) = execve(&self.path, &self.args, &self.env);
        let kind = match error {
            // Also an interpreter that is missing.
            Errno::ENOENT => FailureKind::NotFound,
            _ => FailureKind::NotExecutable,
        };
        Err(Failure::new(kind, Some(&self.name), error.desc()))
    }
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| {
        let why = "an argument or variable contains a zero byte";
        Failure::new(FailureKind::Setup, None, why)
    })
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
