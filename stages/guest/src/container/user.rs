//! Who the process is: limits, ids, umask, working directory.

use std::io::{self, Read};
use std::os::fd::AsFd;

use fcpipe_proto::{Failure, Process, Rlimit};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, makedev};
use rustix::process::{Resource, chdir, setrlimit, umask};
use rustix::thread::{
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{failed, privileges, setup};

/// The part of `/etc/passwd` that is read.
const PASSWD: u64 = 4 << 20;

/// Becomes the user of the process, with its capabilities, and goes to its directory. Gives the user's home.
///
/// The order is runc's: what only root may first, capabilities kept over the change of ids. No other thread exists, so
/// what rustix calls the thread's ids are the process's.
pub(super) fn become_user(process: &Process) -> Result<String, Failure> {
    let (uid, gid) = (id(process.uid)?, id(process.gid)?);
    let groups: Result<Vec<Gid>, Failure> = process
        .additional_gids
        .iter()
        .map(|g| Ok(Gid::from_raw(id(*g)?)))
        .collect();
    let (uid, gid, groups) = (Uid::from_raw(uid), Gid::from_raw(gid), groups?);
    let keep = |keep| set_keep_capabilities(keep).map_err(|e| failed(None, "its capabilities", e));

    let home = read_passwd().and_then(|passwd| home_of(&passwd, process.uid));
    give_streams(uid);
    // A directory that only root may enter, or only the user: whichever can.
    let entered = chdir(&process.cwd);
    if let Some(capabilities) = &process.capabilities {
        privileges::bound(capabilities)?;
        keep(true)?;
    }
    set_thread_groups(&groups).map_err(|e| failed(None, "its additional groups", e))?;
    set_thread_res_gid(gid, gid, gid).map_err(|e| failed(None, "its group", e))?;
    set_thread_res_uid(uid, uid, uid).map_err(|e| failed(None, "its user", e))?;
    entered
        .or_else(|_| chdir(&process.cwd))
        .map_err(|e| failed(Some(&process.cwd), "the working directory", e))?;
    if let Some(capabilities) = &process.capabilities {
        keep(false)?;
        privileges::take(capabilities)?;
    }
    umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022) & 0o777));
    Ok(home.unwrap_or_else(|| "/".to_owned()))
}

/// Resource limits; hard ones are raised while the process is root.
pub(super) fn limit(process: &Process) -> Result<(), Failure> {
    process.rlimits.iter().try_for_each(set_limit)
}

/// The largest number means "no change" to the kernel.
fn id(number: u32) -> Result<u32, Failure> {
    if number == u32::MAX {
        return Err(setup("4294967295 is not an id that a process can have"));
    }
    Ok(number)
}

/// Gives the pipes, or the terminal, to the user, who could otherwise not open `/dev/stdout`.
fn give_streams(uid: Uid) {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        // Everybody's already, and the agent's own.
        let null = fstat(fd).is_ok_and(|s| s.st_rdev == makedev(1, 3));
        if !null {
            // The stream itself works without it.
            let _ = fchown(fd, Some(uid), None);
        }
    }
}

/// The container's `/etc/passwd`, if it is a file.
fn read_passwd() -> Option<Vec<u8>> {
    // Without waiting for the other end of what may be a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let stat = fstat(&fd).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut passwd = Vec::new();
    let file = std::fs::File::from(fd);
    file.take(PASSWD).read_to_end(&mut passwd).ok()?;
    Some(passwd)
}

/// The home of the first entry with this id (passwd(5)).
fn home_of(passwd: &[u8], uid: u32) -> Option<String> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.split(':');
        let found: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (found == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

fn set_limit(limit: &Rlimit) -> Result<(), Failure> {
    let resource = match limit.kind.as_str() {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => {
            return Err(failed(
                Some(&limit.kind),
                "no such limit",
                io::ErrorKind::InvalidInput,
            ));
        }
    };
    let bound = |value: u64| (value != u64::MAX).then_some(value);
    let limits = rustix::process::Rlimit {
        current: bound(limit.soft),
        maximum: bound(limit.hard),
    };
    setrlimit(resource, limits).map_err(|e| failed(Some(&limit.kind), "setting the limit", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_id() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\nbad\xff:x:7:7::/bad:\nweb:x:33:33::/var/www:\n\
                       none:x:5:5:::\nagain:x:33:33::/other:/bin/sh\nshort:x:9";
        assert_eq!(home_of(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_of(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(passwd, 5), None);
        assert_eq!(home_of(passwd, 9), None);
        assert_eq!(home_of(passwd, 1), None);
    }
}
