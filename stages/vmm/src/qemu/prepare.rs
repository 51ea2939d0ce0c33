//! The first phase: the vsock device's process; and the second: QEMU itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::child::{Child, Program, in_words};
use crate::config::{Drive, MachineConfig, VmmKind};
use crate::console::Capture;
use crate::error::{Logs, VmmError};
use crate::machine::{Machine, Prepared};
use crate::mark::ProcessMark;
use crate::pvh;
use crate::qemu::command::arguments;
use crate::qemu::machine::QemuMachine;
use crate::qemu::{QEMU, Qemu, VHOST_SOCKET, VHOST_VSOCK, VSOCK_SOCKET};
use crate::running::LAST_WORDS;
use crate::vsock::SocketDir;

/// Between two looks for the device's socket.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct PreparedQemu {
    program: Qemu,
    config: MachineConfig,
    /// Absolute: QEMU's working directory is the launch's.
    kernel: PathBuf,
    initrd: PathBuf,
    sockets: SocketDir,
    device: Device,
    started: Instant,
}

/// The vsock device's process, which ends with this.
pub(crate) struct Device {
    pub(crate) child: Child,
    pub(crate) log: Capture,
    /// QEMU, once it runs: without its device it is of no use and is ended too.
    qemu: Arc<OnceLock<Child>>,
}

impl PreparedQemu {
    pub(crate) fn new(program: Qemu, mut config: MachineConfig) -> Result<Self, VmmError> {
        let started = Instant::now();
        config.check()?;
        let dir = &config.dir;
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| VmmError::Io { what, path, source }
        };
        config.dir = std::path::absolute(dir).map_err(io("no such directory", dir))?;
        let dir = &config.dir;
        let kernel = choose_kernel(&config)?;
        let initrd = std::path::absolute(&config.initrd)
            .map_err(io("the initrd's path is not usable", &config.initrd))?;
        let sockets =
            SocketDir::open(dir).map_err(io("cannot open the launch's directory", dir))?;
        for name in [VSOCK_SOCKET, VHOST_SOCKET] {
            sockets
                .remove(name)
                .map_err(io("cannot remove an old socket", &dir.join(name)))?;
        }
        let device = Device::start(&program.vhost_vsock, &config)?;
        Ok(Self {
            program,
            kernel,
            initrd,
            sockets,
            device,
            started,
            config,
        })
    }

    /// The device listens as soon as its socket has a name (bind and listen are neighbours there, and QEMU needs 20 ms
    /// to come to its connect). It must not be tried out: it serves the first that connects, and only that one.
    fn wait_for_device(&self, cancel: &dyn Fn() -> bool) -> Result<(), VmmError> {
        let deadline = self.started + self.program.device_timeout;
        loop {
            if let Some(status) = self.device.child.status() {
                return Err(VmmError::Exited {
                    program: VHOST_VSOCK,
                    status: in_words(status),
                    logs: self.device.logs(),
                });
            }
            if self.sockets.exists(VHOST_SOCKET) {
                return Ok(());
            }
            if cancel() {
                return Err(VmmError::Cancelled);
            }
            if Instant::now() >= deadline {
                return Err(VmmError::NotReady {
                    program: VHOST_VSOCK,
                    waited: self.started.elapsed(),
                    logs: self.device.logs(),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Prepared for PreparedQemu {
    fn processes(&self) -> Vec<ProcessMark> {
        vec![self.device.child.mark]
    }

    fn boot(
        self: Box<Self>,
        drives: &[Drive],
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Machine>, VmmError> {
        self.wait_for_device(cancel)?;
        let config = &self.config;
        let mut absolute = Vec::with_capacity(drives.len());
        for drive in drives {
            let path = std::path::absolute(&drive.path).map_err(|source| VmmError::Io {
                what: "the drive's path is not usable",
                path: drive.path.clone(),
                source,
            })?;
            absolute.push(Drive {
                path,
                read_only: drive.read_only,
            });
        }
        let (console, stdout) = Capture::pipe(&config.dir, "vmm-console", "console.log")?;
        let (log, stderr) = Capture::pipe(&config.dir, "vmm-qemu-log", "qemu.log")?;
        let qemu = Child::spawn(
            Program {
                name: QEMU,
                path: self.program.qemu.clone(),
                args: arguments(
                    config,
                    self.program.accelerator,
                    &self.kernel,
                    &self.initrd,
                    &absolute,
                ),
                dir: config.dir.clone(),
                stdout,
                stderr,
                inherit: config.inherit.clone(),
                netns: config.netns.clone(),
                cage: config.cage.clone(),
            },
            || {},
        )?;
        self.device.belongs_to(&qemu);
        Ok(Box::new(QemuMachine::new(
            qemu,
            self.device,
            self.sockets,
            console,
            log,
        )))
    }
}

impl Device {
    fn start(program: &Path, config: &MachineConfig) -> Result<Self, VmmError> {
        let (log, output) = Capture::pipe(&config.dir, "vmm-vsock-log", "vhost-device-vsock.log")?;
        let stderr = output.try_clone().map_err(|source| VmmError::Spawn {
            program: program.to_owned(),
            source,
        })?;
        let qemu = Arc::new(OnceLock::<Child>::new());
        let owner = Arc::clone(&qemu);
        let child = Child::spawn(
            Program {
                name: VHOST_VSOCK,
                path: program.to_owned(),
                args: vec![
                    "--guest-cid".into(),
                    config.vsock_cid.to_string().into(),
                    "--socket".into(),
                    VHOST_SOCKET.into(),
                    "--uds-path".into(),
                    VSOCK_SOCKET.into(),
                ],
                dir: config.dir.clone(),
                stdout: output,
                stderr,
                inherit: Vec::new(),
                netns: config.netns.clone(),
                cage: config.cage.clone(),
            },
            move || {
                if let Some(qemu) = owner.get() {
                    end_orphan(qemu);
                }
            },
        )?;
        Ok(Self { child, log, qemu })
    }

    /// From now on `qemu` ends when the device does.
    fn belongs_to(&self, qemu: &Child) {
        // Set once, by the only caller.
        let _ = self.qemu.set(qemu.clone());
        if !self.child.is_running() {
            end_orphan(qemu);
        }
    }

    fn logs(&self) -> Box<Logs> {
        let mut logs = Box::<Logs>::default();
        self.add_logs(&mut logs);
        logs
    }

    pub(crate) fn add_logs(&self, logs: &mut Logs) {
        if !self.child.is_running() {
            self.log.wait_end(LAST_WORDS);
        }
        logs.push(VHOST_VSOCK, self.log.tail());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.child.kill();
        // So that its log file has them too.
        self.log.wait_end(LAST_WORDS);
    }
}

fn end_orphan(qemu: &Child) {
    qemu.signal_kill(Some(format!("{VHOST_VSOCK} ended")));
}

/// The ELF kernel if QEMU can start it, because nothing has to be decompressed then (1.3 s to the agent and not 1.6 s,
/// emulated); else the compressed one. As under Firecracker, an ELF kernel runs where it was linked: it is the
/// decompressor that does KASLR.
fn choose_kernel(config: &MachineConfig) -> Result<PathBuf, VmmError> {
    let KernelChoice { path, why } = match pvh::check(&config.kernel.vmlinux) {
        Ok(Ok(())) => KernelChoice {
            path: Some(&config.kernel.vmlinux),
            why: String::new(),
        },
        Ok(Err(why)) => KernelChoice {
            path: config.kernel.bzimage.as_ref(),
            why,
        },
        Err(error) => KernelChoice {
            path: config.kernel.bzimage.as_ref(),
            why: error.to_string(),
        },
    };
    let unusable = |why: String| VmmError::Kernel {
        path: config.kernel.vmlinux.clone(),
        kind: VmmKind::Qemu,
        why,
    };
    let path = path.ok_or_else(|| unusable(why))?;
    std::path::absolute(path).map_err(|error| unusable(error.to_string()))
}

struct KernelChoice<'a> {
    path: Option<&'a PathBuf>,
    why: String,
}
