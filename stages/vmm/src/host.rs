//! What this host can run, and which VMM that makes it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Accelerator, VmmChoice, VmmKind};
use crate::error::VmmError;
use crate::kvm::{KvmFailure, try_kvm};
use crate::machine::Vmm;
use crate::qemu::Qemu;

const QEMU_PROGRAM: &str = "qemu-system-x86_64";
const QEMU_VARIABLE: &str = "FCPIPE_QEMU";
const QEMU_HINT: &str = "install it (`apt install qemu-system-x86`) or name it in FCPIPE_QEMU";
const VHOST_PROGRAM: &str = "vhost-device-vsock";
const VHOST_VARIABLE: &str = "FCPIPE_VHOST_VSOCK";
const VHOST_HINT: &str = "run `cargo xtask setup` (or `cargo install vhost-device-vsock`), or name it in FCPIPE_VHOST_VSOCK";

/// Where things are looked for. A value of its own so that a test, or somebody with another layout, can say otherwise.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/dev/kvm`.
    pub kvm_device: PathBuf,
    /// `/sys/module`.
    pub modules: PathBuf,
    /// FCPIPE_QEMU: then nothing else is looked at.
    pub qemu: Option<PathBuf>,
    /// FCPIPE_VHOST_VSOCK.
    pub vhost_vsock: Option<PathBuf>,
    /// The directories of PATH, then `~/.cargo/bin`, then `tools` in fcpipe's data directory.
    pub directories: Vec<PathBuf>,
}

impl Host {
    /// This host as the environment describes it. `data_dir` is fcpipe's.
    pub fn from_env(data_dir: Option<&Path>) -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let path: OsString = env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> = env::split_paths(&path)
            // An empty entry would mean the working directory.
            .filter(|dir| dir.is_absolute())
            .collect();
        directories.extend(set("HOME").map(|home| Path::new(&home).join(".cargo/bin")));
        directories.extend(data_dir.map(|dir| dir.join("tools")));
        Self {
            kvm_device: "/dev/kvm".into(),
            modules: "/sys/module".into(),
            qemu: set(QEMU_VARIABLE).map(PathBuf::from),
            vhost_vsock: set(VHOST_VARIABLE).map(PathBuf::from),
            directories,
        }
    }

    /// Looks at everything a VMM needs. Starts no program; takes well below a millisecond.
    pub fn probe(&self) -> HostCaps {
        HostCaps {
            kvm: self.kvm(),
            qemu: self.find(QEMU_PROGRAM, self.qemu.as_deref()),
            vhost_vsock: self.find(VHOST_PROGRAM, self.vhost_vsock.as_deref()),
        }
    }

    fn kvm(&self) -> KvmState {
        match try_kvm(&self.kvm_device) {
            Err(KvmFailure::Open(error)) => match error.kind() {
                io::ErrorKind::NotFound => KvmState::Missing,
                io::ErrorKind::PermissionDenied => KvmState::Denied,
                _ => KvmState::Unusable(error.to_string()),
            },
            Err(KvmFailure::Broken(why)) => KvmState::Unusable(why),
            // It answers like KVM, but runs only guests whose kernel was built for it: all others hang.
            Ok(()) if self.modules.join("kvm_pvm").exists() => KvmState::Unusable(
                "it is KVM-PVM (module kvm_pvm), which does not run ordinary kernels".to_owned(),
            ),
            Ok(()) => KvmState::Usable,
        }
    }

    fn find(&self, program: &str, named: Option<&Path>) -> Option<PathBuf> {
        let runnable = |path: &PathBuf| {
            path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
        };
        match named {
            Some(path) => Some(path.to_owned()).filter(runnable),
            None => self
                .directories
                .iter()
                .map(|dir| dir.join(program))
                .find(runnable),
        }
        // The child's working directory is another.
        .and_then(|path| std::path::absolute(path).ok())
    }

    fn looked(&self, named: Option<&Path>, variable: &str) -> String {
        match named {
            Some(path) => format!("{variable}={}", path.display()),
            None => {
                let directories: Vec<String> = self
                    .directories
                    .iter()
                    .map(|dir| dir.display().to_string())
                    .collect();
                directories.join(", ")
            }
        }
    }
}

/// What this host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCaps {
    pub kvm: KvmState,
    /// Where the programs are; `None` if they are not where they were looked for, or cannot be executed.
    pub qemu: Option<PathBuf>,
    pub vhost_vsock: Option<PathBuf>,
}

/// Whether the processor's virtualization can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmState {
    Usable,
    /// No `/dev/kvm`.
    Missing,
    /// The user may not open it.
    Denied,
    /// It is there and does not work; the words say how.
    Unusable(String),
}

impl fmt::Display for KvmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("/dev/kvm works"),
            Self::Missing => f.write_str("there is no /dev/kvm"),
            Self::Denied => f.write_str("this user may not open /dev/kvm"),
            Self::Unusable(why) => write!(f, "/dev/kvm cannot run guests: {why}"),
        }
    }
}

impl KvmState {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Usable => None,
            Self::Missing => Some(
                "load kvm-intel or kvm-amd, and switch virtualization on in the firmware (or nested virtualization, in a VM)",
            ),
            Self::Denied => Some("join the group `kvm`, or run as root"),
            Self::Unusable(_) => {
                Some("use a host whose KVM runs ordinary guests; until then guests are emulated")
            }
        }
    }
}

/// One thing that `doctor` has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    pub state: State,
    pub detail: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ok,
    /// Works, but worse than it could.
    Degraded,
    /// Without it no machine runs.
    Missing,
}

impl HostCaps {
    /// The caps in words, each with what to do about it.
    pub fn findings(&self) -> Vec<Finding> {
        let program = |what, path: &Option<PathBuf>, hint: &str| match path {
            Some(path) => Finding {
                what,
                state: State::Ok,
                detail: path.display().to_string(),
                hint: None,
            },
            None => Finding {
                what,
                state: State::Missing,
                detail: "not found".to_owned(),
                hint: Some(hint.to_owned()),
            },
        };
        vec![
            Finding {
                what: "kvm",
                state: if self.kvm == KvmState::Usable {
                    State::Ok
                } else {
                    State::Degraded
                },
                detail: self.kvm.to_string(),
                hint: self.kvm.hint().map(str::to_owned),
            },
            program("qemu", &self.qemu, QEMU_HINT),
            program("vhost-device-vsock", &self.vhost_vsock, VHOST_HINT),
        ]
    }
}

/// The VMM that a launch gets.
pub struct Chosen {
    pub vmm: Box<dyn Vmm>,
    pub accelerator: Accelerator,
    /// Why it is this one, for people: `plan` and `run` say it.
    pub reasons: Vec<String>,
}

/// Picks a VMM that works on this host, or says what is missing.
pub fn choose(host: &Host, choice: VmmChoice) -> Result<Chosen, VmmError> {
    let caps = host.probe();
    if choice == VmmChoice::Firecracker {
        let why = match &caps.kvm {
            KvmState::Usable => "this build has no driver for it".to_owned(),
            kvm => format!("this build has no driver for it, and {kvm}"),
        };
        return Err(VmmError::Unsupported {
            kind: VmmKind::Firecracker,
            why,
        });
    }
    let qemu = caps.qemu.ok_or_else(|| VmmError::NotFound {
        program: QEMU_PROGRAM,
        looked: host.looked(host.qemu.as_deref(), QEMU_VARIABLE),
        hint: QEMU_HINT,
    })?;
    let vhost_vsock = caps.vhost_vsock.ok_or_else(|| VmmError::NotFound {
        program: VHOST_PROGRAM,
        looked: host.looked(host.vhost_vsock.as_deref(), VHOST_VARIABLE),
        hint: VHOST_HINT,
    })?;
    let accelerator = match caps.kvm {
        KvmState::Usable => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    let mut reasons = vec![match choice {
        VmmChoice::Qemu => "qemu: asked for".to_owned(),
        _ => format!("qemu: {}", qemu.display()),
    }];
    reasons.push(match (&caps.kvm, caps.kvm.hint()) {
        (KvmState::Usable, _) => format!("{accelerator}: {}", caps.kvm),
        (kvm, Some(hint)) => {
            format!("{accelerator}: the guest is emulated, which is slower, because {kvm} ({hint})")
        }
        (kvm, None) => {
            format!("{accelerator}: the guest is emulated, which is slower, because {kvm}")
        }
    });
    Ok(Chosen {
        vmm: Box::new(Qemu::new(qemu, vhost_vsock, accelerator)),
        accelerator,
        reasons,
    })
}
