//! The first phase: the process, and all of its configuration but the drives; and the second: drives and start.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::child::{Child, Program};
use crate::config::{Drive, MachineConfig, VmmKind};
use crate::console::Capture;
use crate::error::VmmError;
use crate::firecracker::client::Process;
use crate::firecracker::files::Home;
use crate::firecracker::http::Connection;
use crate::firecracker::jail::Jail;
use crate::firecracker::machine::FirecrackerMachine;
use crate::firecracker::request::{self, Action};
use crate::firecracker::version::Version;
use crate::firecracker::{API_SOCKET, FIRECRACKER, Firecracker, INITRD, KERNEL, LOG, METRICS};
use crate::machine::{Machine, Prepared, Vmm};
use crate::mark::ProcessMark;
use crate::running::Running;

/// What an instance may be called, in Firecracker's words: letters, digits and hyphens, 64 of them.
const ID: usize = 64;

/// An ELF file's first bytes. Firecracker before 1.17 starts nothing else.
const ELF: &[u8] = b"\x7fELF";

pub(crate) struct PreparedFirecracker {
    settings: Firecracker,
    config: MachineConfig,
    process: Process,
    connection: Connection,
    version: Version,
}

impl PreparedFirecracker {
    pub(crate) fn new(
        settings: &Firecracker,
        config: &MachineConfig,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Self, VmmError> {
        config.check()?;
        if settings.drive_slots(config.nics.len(), &config.tuning) == 0 {
            return Err(VmmError::Config {
                id: config.id.clone(),
                why: format!(
                    "with {} network interfaces there is no room for a drive",
                    config.nics.len()
                ),
            });
        }
        check_kernel(&config.kernel.vmlinux)?;
        let process = spawn(settings, config)?;
        match configure(&process, settings, config, cancel) {
            Ok((connection, version)) => Ok(Self {
                settings: settings.clone(),
                config: config.clone(),
                process,
                connection,
                version,
            }),
            Err(error) => Err(process.end_of(error)),
        }
    }

    fn start(&mut self, drives: &[Drive], cancel: &dyn Fn() -> bool) -> Result<(), VmmError> {
        let (process, connection) = (&self.process, &mut self.connection);
        for (index, drive) in drives.iter().enumerate() {
            let name = request::drive_name(index);
            process.give(&name, &drive.path, drive.read_only)?;
            let request = request::drive(&self.config, index, drive.read_only)?;
            process.put(connection, &request, self.settings.request_timeout, cancel)?;
        }
        let start = request::action(Action::InstanceStart)?;
        process.put(connection, &start, self.settings.start_timeout, cancel)
    }
}

impl Prepared for PreparedFirecracker {
    fn processes(&self) -> Vec<ProcessMark> {
        vec![self.process.running.child.mark]
    }

    fn boot(
        mut self: Box<Self>,
        drives: &[Drive],
        cancel: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Machine>, VmmError> {
        let config = &self.config;
        let slots = self.settings.drive_slots(config.nics.len(), &config.tuning);
        if drives.len() > slots {
            return Err(VmmError::Config {
                id: self.config.id.clone(),
                why: format!(
                    "it has {} drives, and there is room for {slots}",
                    drives.len()
                ),
            });
        }
        if let Err(error) = self.start(drives, cancel) {
            return Err(self.process.end_of(error));
        }
        Ok(Box::new(FirecrackerMachine::new(
            self.process,
            self.version,
            self.settings.request_timeout,
        )))
    }
}

/// Everything but the drives.
fn configure(
    process: &Process,
    settings: &Firecracker,
    config: &MachineConfig,
    cancel: &dyn Fn() -> bool,
) -> Result<(Connection, Version), VmmError> {
    let mut connection = process.connect(settings.api_timeout, cancel)?;
    let timeout = settings.request_timeout;
    let version = process.version(&mut connection, timeout, cancel)?;
    if let Some(why) = version.refusal() {
        return Err(VmmError::Unsupported {
            kind: VmmKind::Firecracker,
            why,
        });
    }
    process.give(KERNEL, &config.kernel.vmlinux, true)?;
    process.give(INITRD, &config.initrd, true)?;
    for request in request::without_drives(config, version)? {
        process.put(&mut connection, &request, timeout, cancel)?;
    }
    Ok((connection, version))
}

/// Starts the process. What it writes is read from the beginning: `--log-path` and not `PUT /logger`.
fn spawn(settings: &Firecracker, config: &MachineConfig) -> Result<Process, VmmError> {
    let dir = std::path::absolute(&config.dir).map_err(|source| VmmError::Io {
        what: "no such directory",
        path: config.dir.clone(),
        source,
    })?;
    let id = instance_id(&config.id);
    let own = arguments().map(OsString::from);
    let (path, args, home) = match &settings.jailer {
        None => {
            let mut args: Vec<OsString> = vec!["--id".into(), id.into()];
            args.extend(own);
            (&settings.program, args, Home::open(&dir, None)?)
        }
        Some(jailer) => {
            let jail = jail(settings, config, &dir, &id)?;
            let mut args = jail.arguments(&settings.program);
            args.extend(own);
            let root = jail.root.clone();
            (jailer, args, Home::open(&root, Some(jail))?)
        }
    };
    let (console, stdout) = Capture::pipe(&dir, "vmm-console", "console.log")?;
    let (log, stderr) = home.pipe(LOG, "vmm-log", &dir.join("firecracker.log"))?;
    let (metrics, metrics_end) = home.pipe(METRICS, "vmm-metrics", &dir.join("metrics.log"))?;
    let mut inherit = config.inherit.clone();
    inherit.push(Arc::new(metrics_end.into()));
    let child = Child::spawn(
        Program {
            name: FIRECRACKER,
            path: path.clone(),
            args,
            dir,
            stdout,
            stderr: stderr.into(),
            inherit: inherit.clone(),
            netns: config.netns.clone(),
            cage: config.cage.clone(),
        },
        || {},
    )?;
    Ok(Process {
        running: Running::new(child, console, log),
        home,
        _metrics: metrics,
        _held: match settings.jailer {
            None => Vec::new(),
            Some(_) => inherit,
        },
    })
}

/// What the jailer needs is looked at before it is started.
fn jail(
    settings: &Firecracker,
    config: &MachineConfig,
    dir: &Path,
    id: &str,
) -> Result<Jail, VmmError> {
    let unsupported = |why: &str| VmmError::Unsupported {
        kind: VmmKind::Firecracker,
        why: why.to_owned(),
    };
    if !rustix::process::geteuid().is_root() {
        return Err(unsupported("its jailer works for root alone"));
    }
    // Becoming another user disarms PR_SET_PDEATHSIG.
    if config.cage.shim().is_none() {
        return Err(unsupported(
            "a jailed one would outlive this process: there is no PID namespace that ends with it",
        ));
    }
    Jail::make(dir, &settings.program, id)
}

/// Besides `--id`, which the jailer gives it.
fn arguments() -> [&'static str; 7] {
    [
        "--api-sock",
        API_SOCKET,
        "--log-path",
        LOG,
        "--level",
        "Info",
        "--show-level",
    ]
}

/// The launch's id as far as Firecracker takes it; only shown to people.
fn instance_id(id: &str) -> String {
    let id: String = id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(ID)
        .collect();
    match id.is_empty() {
        true => "fcpipe".to_owned(),
        false => id,
    }
}

fn check_kernel(path: &Path) -> Result<(), VmmError> {
    use std::io::Read;
    let unusable = |why: String| VmmError::Kernel {
        path: path.to_owned(),
        kind: VmmKind::Firecracker,
        why,
    };
    let mut magic = [0; ELF.len()];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(|error| unusable(error.to_string()))?;
    match magic == ELF {
        true => Ok(()),
        false => Err(unusable("it is no ELF file".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_becomes_one_that_firecracker_takes() {
        assert_eq!(instance_id("web_1.a"), "web-1-a");
        assert_eq!(instance_id(&"x".repeat(100)).len(), 64);
        assert_eq!(instance_id(""), "fcpipe");
    }
}
