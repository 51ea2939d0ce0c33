//! Init: from the kernel's first process to a listening agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fcpipe_proto::{AGENT_PORT, BOOT_ID_ARGUMENT};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot};

use crate::agent::{Agent, Settings};
use crate::cgroup::Cgroup;
use crate::console::say;
use crate::vsock::Listener;
use crate::{keys, net, serve};

/// Where the initrd keeps modules; `order` lists their names.
const MODULES: &str = "/modules";
/// The agent's own root, while it is not yet the root.
const NEW_ROOT: &str = "/newroot";

/// How many files a process may open at the most, as systemd has it.
const OPEN_FILES: u64 = 524_288;

/// Init's life. Whatever goes wrong ends the machine: a VM without an agent is of no use.
pub fn main() -> ! {
    std::panic::set_hook(Box::new(|info| {
        say(&format!("the agent panicked: {info}"));
        reset();
    }));
    if let Err(e) = run() {
        say(&format!("init failed: {e}"));
    }
    reset()
}

/// Resets the machine, which ends the VMM.
pub(crate) fn reset() -> ! {
    if std::process::id() == 1 {
        let _ = reboot(RebootCommand::Restart);
    }
    // Not a VM (a test), or a kernel that cannot: as init this is a kernel panic, which ends the
    // VM as well.
    std::process::exit(1)
}

fn run() -> Result<(), BootError> {
    if let Err(e) = keys::block() {
        say(&format!("Ctrl-Alt-Del resets at once: {e}"));
    }
    // Before anything can fail, so that it can be said.
    make_mount("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    load_modules(Path::new(MODULES))?;
    enter_own_root()?;
    let cgroup = mount_all()?;

    let boot_id = fs::read_to_string("/proc/cmdline").map_err(at("reading", "/proc/cmdline"))?;
    let boot_id = boot_id_of(&boot_id).unwrap_or_default().to_owned();
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(at("writing", "/proc/self/oom_score_adj"))?;
    // The kernel's own default for it is too few for servers. Inherited by all processes that bring no limit.
    let open_files = Rlimit {
        current: Some(1024),
        maximum: Some(OPEN_FILES),
    };
    if let Err(e) = setrlimit(Resource::Nofile, open_files) {
        say(&format!("few files can be open: {e}"));
    }
    if let Err(e) = net::loopback_up() {
        say(&format!("lo stays down: {e}"));
    }
    let listener = Listener::bind(AGENT_PORT).map_err(BootError::Listen)?;

    let agent = Arc::new(Agent::new(Settings {
        boot_id,
        program: PathBuf::from("/proc/self/exe"),
        base: PathBuf::from("/container"),
        disk: Box::new(disk_path),
        cgroup,
    }));
    agent.start_watching().map_err(BootError::Thread)?;
    if let Err(e) = keys::listen(&agent) {
        say(&format!("Ctrl-Alt-Del resets at once: {e}"));
    }
    serve::serve(&agent, |patience: Duration| listener.accept(patience));
    Ok(())
}

/// Virtio disks are named in the order in which the VMM presents them.
fn disk_path(index: u32) -> Option<PathBuf> {
    let letter = u8::try_from(index).ok().filter(|i| *i < 26)? + b'a';
    Some(PathBuf::from(format!("/dev/vd{}", char::from(letter))))
}

fn boot_id_of(cmdline: &str) -> Option<&str> {
    cmdline
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(BOOT_ID_ARGUMENT)?.strip_prefix('='))
}

/// Loads what `order` lists, and gives the memory of the files back. A module that the kernel does
/// not take is said, not fatal: it may be there already, or its device may not.
fn load_modules(dir: &Path) -> Result<(), BootError> {
    let order = match fs::read_to_string(dir.join("order")) {
        Ok(order) => order,
        // A kernel with everything built in.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at("reading", "/modules/order")(e)),
    };
    for name in order.lines().filter(|line| !line.is_empty()) {
        let path = dir.join(name);
        let loaded =
            fs::File::open(&path).and_then(|file| Ok(rustix::system::finit_module(&file, c"", 0)?));
        match loaded {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => say(&format!("module {name}: {e}")),
        }
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

/// Moves to a tmpfs of its own. The kernel's initial root cannot be pivoted away from
/// (pivot_root(2), "EINVAL"), and containers need that.
fn enter_own_root() -> Result<(), BootError> {
    if let Err(e) = fs::create_dir(NEW_ROOT)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(at("making", NEW_ROOT)(e));
    }
    make_mount("tmpfs", NEW_ROOT, MountFlags::NOSUID, "mode=0755,size=1m")?;
    std::env::set_current_dir(NEW_ROOT).map_err(at("entering", NEW_ROOT))?;
    let moved = mount_move(".", "/").map_err(io::Error::from);
    moved.map_err(at("moving to /", NEW_ROOT))?;
    let entered = rustix::process::chroot(".").map_err(io::Error::from);
    entered.map_err(at("entering", "/"))?;
    std::env::set_current_dir("/").map_err(at("entering", "/"))
}

fn mount_all() -> Result<Option<Cgroup>, BootError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for dir in ["/dev", "/proc", "/sys", "/container"] {
        fs::create_dir(dir).map_err(at("making", dir))?;
    }
    make_mount("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    make_mount("proc", "/proc", plain, "")?;
    make_mount("sysfs", "/sys", plain, "")?;
    let cgroup = Cgroup::mount(Path::new("/sys/fs/cgroup"));
    Ok(match cgroup {
        Ok(cgroup) => Some(cgroup),
        Err(e) => {
            say(&format!("no limits for the workload: {e}"));
            None
        }
    })
}

fn make_mount(
    fstype: &'static str,
    on: &'static str,
    flags: MountFlags,
    data: &str,
) -> Result<(), BootError> {
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(fstype, on, fstype, flags, data.as_c_str()).map_err(|e| at("mounting on", on)(e.into()))
}

/// Why a VM has no agent.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("{action} {path}: {source}")]
    At {
        action: &'static str,
        path: &'static str,
        source: io::Error,
    },
    #[error("listening on vsock port {AGENT_PORT}: {0}")]
    Listen(io::Error),
    #[error("starting a thread: {0}")]
    Thread(io::Error),
}

fn at(action: &'static str, path: &'static str) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::At {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_found_among_the_kernel_s_arguments() {
        let id = boot_id_of("console=ttyS0 quiet fcpipe.boot=6f-1 panic=-1\n");
        assert_eq!(id, Some("6f-1"));
        assert_eq!(boot_id_of("fcpipe.bootx=1 xfcpipe.boot=2"), None);
    }

    #[test]
    fn disks_have_letters() {
        assert_eq!(disk_path(0), Some("/dev/vda".into()));
        assert_eq!(disk_path(25), Some("/dev/vdz".into()));
        assert_eq!(disk_path(26), None);
    }
}
