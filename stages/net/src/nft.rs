//! The program `nft`: a set of rules on its standard input, or a question. It has no more time than [`PATIENCE`].

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// It takes some ten milliseconds; a busy host may take a hundred times that. What takes longer hangs: a lock of the kernel's that somebody keeps.
const PATIENCE: Duration = Duration::from_secs(30);
/// As much of a complaint as is read.
const WORDS: u64 = 4096;

/// Applies rules, as one transaction.
pub(crate) fn apply(rules: &str) -> io::Result<()> {
    let (status, complaint) = run("nft", &["-f", "-"], rules, PATIENCE)?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(complaint)),
    }
}

/// Whether there is a table of IPv4. None without the program: only it makes one.
pub(crate) fn has_table(name: &str) -> io::Result<bool> {
    match run("nft", &["list", "table", "ip", name], "", PATIENCE) {
        Ok((status, _)) => Ok(status.success()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// How it ended and the first line of its complaint. It is killed if it has not ended in time.
fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    patience: Duration,
) -> io::Result<(ExitStatus, String)> {
    // Files, and no pipes: nobody waits for the other.
    let (mut rules, mut words) = (nameless()?, nameless()?);
    rules.write_all(input.as_bytes())?;
    rules.rewind()?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(rules)
        .stdout(Stdio::null())
        .stderr(words.try_clone()?)
        .spawn()?;
    match ends_within(&child, patience) {
        Ok(true) => {}
        late => {
            let _ = child.kill();
            // One that the kernel holds does not even die.
            if let Ok(true) = ends_within(&child, Duration::from_secs(1)) {
                child.wait()?;
            }
            late?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "it did not end within {} s and was killed",
                    patience.as_secs()
                ),
            ));
        }
    }
    let status = child.wait()?;
    let mut said = Vec::new();
    words.rewind()?;
    words.take(WORDS).read_to_end(&mut said)?;
    let line = said.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok((status, line.escape_ascii().to_string()))
}

/// A file without a name, in memory.
fn nameless() -> io::Result<File> {
    Ok(memfd_create("nft", MemfdFlags::CLOEXEC)?.into())
}

fn ends_within(child: &Child, time: Duration) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_its_rules_and_its_first_complaint_is_told() {
        let script = "read rule; echo \"no: $rule\" >&2; echo more >&2; exit 3";
        let (status, said) = run("sh", &["-c", script], "drop all\n", PATIENCE).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(3), "no: drop all"));
        let missing = run("no-such-nft", &[], "", PATIENCE).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    /// Without the bound, this would take as long as the program.
    #[test]
    fn a_program_that_hangs_is_killed() {
        let late = run("sleep", &["3600"], "", Duration::from_millis(50)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let mine = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let sleeps = mine.split_whitespace().filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"sleep\x003600"))
        });
        assert_eq!(sleeps.count(), 0, "it still runs");
    }
}
