//! What this host can run, and which VMM that makes it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Accelerator, VmmChoice, VmmKind};
use crate::error::VmmError;
use crate::firecracker::Firecracker;
use crate::kvm::{KvmFailure, try_kvm};
use crate::machine::Vmm;
use crate::qemu::Qemu;

const FIRECRACKER_PROGRAM: &str = "firecracker";
const FIRECRACKER_VARIABLE: &str = "FCPIPE_FIRECRACKER";
const FIRECRACKER_HINT: &str =
    "put a release of Firecracker (1.8 or later) on the PATH, or name it in FCPIPE_FIRECRACKER";
const JAILER_PROGRAM: &str = "jailer";
const JAILER_VARIABLE: &str = "FCPIPE_JAILER";
const JAILER_HINT: &str = "name Firecracker's jailer in FCPIPE_JAILER, or name none";
const KVM_VARIABLE: &str = "FCPIPE_KVM";
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
    /// FCPIPE_KVM: whether KVM is to be used, whatever it looks like.
    pub kvm: Option<bool>,
    /// FCPIPE_FIRECRACKER: then nothing else is looked at.
    pub firecracker: Option<PathBuf>,
    /// FCPIPE_JAILER: then Firecracker runs in its jailer's jails. It is not looked for.
    pub jailer: Option<PathBuf>,
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
            kvm: match set(KVM_VARIABLE) {
                Some(word) if word == "on" => Some(true),
                Some(word) if word == "off" => Some(false),
                _ => None,
            },
            firecracker: set(FIRECRACKER_VARIABLE).map(PathBuf::from),
            jailer: set(JAILER_VARIABLE).map(PathBuf::from),
            qemu: set(QEMU_VARIABLE).map(PathBuf::from),
            vhost_vsock: set(VHOST_VARIABLE).map(PathBuf::from),
            directories,
        }
    }

    /// Looks at everything a VMM needs. Starts no program; takes well below a millisecond.
    pub fn probe(&self) -> HostCaps {
        HostCaps {
            kvm: self.kvm(),
            firecracker: self.find(FIRECRACKER_PROGRAM, self.firecracker.as_deref()),
            jailer: match &self.jailer {
                None => Jailer::NotAsked,
                Some(named) => match self.find(JAILER_PROGRAM, Some(named)) {
                    Some(path) => Jailer::Found(path),
                    None => Jailer::Missing,
                },
            },
            qemu: self.find(QEMU_PROGRAM, self.qemu.as_deref()),
            vhost_vsock: self.find(VHOST_PROGRAM, self.vhost_vsock.as_deref()),
        }
    }

    fn kvm(&self) -> KvmState {
        match self.kvm {
            Some(true) => return KvmState::Usable,
            Some(false) => {
                return KvmState::Unusable(format!("{KVM_VARIABLE}=off says not to use it"));
            }
            None => {}
        }
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
    pub firecracker: Option<PathBuf>,
    pub jailer: Jailer,
    /// Where the programs are; `None` if they are not where they were looked for, or cannot be executed.
    pub qemu: Option<PathBuf>,
    pub vhost_vsock: Option<PathBuf>,
}

/// Whether Firecracker is to run in a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jailer {
    NotAsked,
    Found(PathBuf),
    /// It was named, and is not there.
    Missing,
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
        let without_qemu = match self.why_not_firecracker() {
            None => State::Degraded,
            Some(_) => State::Missing,
        };
        vec![
            Finding {
                what: "kvm",
                state: match self.kvm {
                    KvmState::Usable => State::Ok,
                    _ => State::Degraded,
                },
                detail: self.kvm.to_string(),
                hint: self.kvm.hint().map(str::to_owned),
            },
            program(
                "firecracker",
                &self.firecracker,
                State::Degraded,
                FIRECRACKER_HINT,
            ),
            self.jailer(),
            program("qemu", &self.qemu, without_qemu, QEMU_HINT),
            program(
                "vhost-device-vsock",
                &self.vhost_vsock,
                without_qemu,
                VHOST_HINT,
            ),
            self.automatic(),
        ]
    }

    fn jailer(&self) -> Finding {
        let (state, detail, hint) = match &self.jailer {
            Jailer::NotAsked => (State::Ok, "none is used".to_owned(), None),
            Jailer::Found(path) => (State::Ok, path.display().to_string(), None),
            Jailer::Missing => (
                State::Degraded,
                "FCPIPE_JAILER names no program".to_owned(),
                Some(JAILER_HINT.to_owned()),
            ),
        };
        Finding {
            what: "jailer",
            state,
            detail,
            hint,
        }
    }

    /// What `--vmm auto` takes, and why.
    fn automatic(&self) -> Finding {
        let (detail, hint) = match (self.why_not_firecracker(), &self.qemu, &self.vhost_vsock) {
            (None, _, _) => (
                "firecracker, as it is there and /dev/kvm works".to_owned(),
                None,
            ),
            (Some(why), Some(_), Some(_)) => (format!("qemu, because {why}"), None),
            (Some(why), None, _) => (
                format!("none: {why}, and there is no QEMU"),
                Some(QEMU_HINT.to_owned()),
            ),
            (Some(why), Some(_), None) => (
                format!("none: {why}, and QEMU needs {VHOST_PROGRAM}"),
                Some(VHOST_HINT.to_owned()),
            ),
        };
        Finding {
            what: "--vmm auto",
            state: match hint {
                None => State::Ok,
                Some(_) => State::Missing,
            },
            detail,
            hint,
        }
    }

    /// Firecracker needs KVM: it emulates nothing.
    fn why_not_firecracker(&self) -> Option<String> {
        match (&self.firecracker, &self.kvm) {
            (Some(_), KvmState::Usable) => None,
            (None, _) => Some("firecracker was not found".to_owned()),
            (Some(_), kvm) => Some(format!("firecracker needs KVM, and {kvm}")),
        }
    }
}

fn program(what: &'static str, path: &Option<PathBuf>, without: State, hint: &str) -> Finding {
    match path {
        Some(path) => Finding {
            what,
            state: State::Ok,
            detail: path.display().to_string(),
            hint: None,
        },
        None => Finding {
            what,
            state: without,
            detail: "not found".to_owned(),
            hint: Some(hint.to_owned()),
        },
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
    let why_not = caps.why_not_firecracker();
    match (choice, why_not) {
        (VmmChoice::Firecracker | VmmChoice::Auto, None) => firecracker(host, caps, choice),
        (VmmChoice::Firecracker, Some(why)) if caps.firecracker.is_some() => {
            Err(VmmError::Unsupported {
                kind: VmmKind::Firecracker,
                why,
            })
        }
        (VmmChoice::Firecracker, Some(_)) => Err(no_firecracker(host)),
        (VmmChoice::Auto, Some(why)) => qemu(host, caps, format!("qemu, because {why}")),
        (VmmChoice::Qemu, _) => qemu(host, caps, "qemu: asked for".to_owned()),
    }
}

fn no_firecracker(host: &Host) -> VmmError {
    VmmError::NotFound {
        program: FIRECRACKER_PROGRAM,
        looked: host.looked(host.firecracker.as_deref(), FIRECRACKER_VARIABLE),
        hint: FIRECRACKER_HINT,
    }
}

fn firecracker(host: &Host, caps: HostCaps, choice: VmmChoice) -> Result<Chosen, VmmError> {
    let program = caps.firecracker.ok_or_else(|| no_firecracker(host))?;
    let because = match choice {
        VmmChoice::Firecracker => "asked for".to_owned(),
        _ => format!("{}, and {}", program.display(), caps.kvm),
    };
    let mut reasons = vec![format!("firecracker: {because}")];
    let mut vmm = Firecracker::new(program);
    match caps.jailer {
        Jailer::NotAsked => {}
        Jailer::Found(jailer) => {
            reasons.push(format!("jailed: by {}", jailer.display()));
            vmm.jailer = Some(jailer);
        }
        // Never without, when it was asked for.
        Jailer::Missing => {
            return Err(VmmError::NotFound {
                program: JAILER_PROGRAM,
                looked: host.looked(host.jailer.as_deref(), JAILER_VARIABLE),
                hint: JAILER_HINT,
            });
        }
    }
    Ok(Chosen {
        vmm: Box::new(vmm),
        accelerator: Accelerator::Kvm,
        reasons,
    })
}

fn qemu(host: &Host, caps: HostCaps, because: String) -> Result<Chosen, VmmError> {
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
    let accelerated = match (&caps.kvm, caps.kvm.hint()) {
        (KvmState::Usable, _) => format!("{accelerator}: {}", caps.kvm),
        (kvm, Some(hint)) => {
            format!("{accelerator}: the guest is emulated, which is slower, because {kvm} ({hint})")
        }
        (kvm, None) => {
            format!("{accelerator}: the guest is emulated, which is slower, because {kvm}")
        }
    };
    Ok(Chosen {
        vmm: Box::new(Qemu::new(qemu, vhost_vsock, accelerator)),
        accelerator,
        reasons: vec![because, accelerated],
    })
}
