//! A launch while it is put together: an OCI config, then a launch file over it, then the `--set`
//! options. Each layer is checked against its own document, so every error has a place.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use crate::addresses::{Domain, Ip, Listed};
use crate::confine::{Capabilities, ConsoleSize, Hooks, Linux, Personality, Rlimit, Seccomp};
use crate::error::{Place, SpecError, escaped, quoted, shown};
use crate::host::Host;
use crate::launch_file::{self, LaunchFile, Settings};
use crate::linux;
use crate::machine::{Said, Wanted};
use crate::model::{
    Balloon, Content, Disk, LaunchSpec, Mount, MountKind, Network, NetworkMode, Process, RateLimit,
    Root, Trust,
};
use crate::mounts;
use crate::text::{Doc, FieldPath};
use crate::values::{IdMaps, ImagePath, Named, Owner, Text};

/// Longest name the kernel takes (sethostname(2)), bytes.
pub(crate) const HOST_NAME_MAX: usize = 64;

const MAX_WARNINGS: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) root: Option<Said<PathBuf>>,
    pub(crate) root_readonly: bool,
    root_trust: Trust,
    root_content: Content,
    root_mapped: bool,
    pub(crate) mounts: Vec<Mounted>,
    args: Option<Vec<String>>,
    env: Vec<String>,
    cwd: Option<PathBuf>,
    user: User,
    terminal: bool,
    no_new_privileges: bool,
    console_size: Option<ConsoleSize>,
    /// `None`: all there are.
    pub(crate) capabilities: Option<Capabilities>,
    rlimits: Vec<Rlimit>,
    oom_score_adj: Option<i32>,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) personality: Option<Personality>,
    pub(crate) linux: Linux,
    pub(crate) hooks: Hooks,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) machine: Wanted,
    disk: Disk,
    pub(crate) network: Network,
    network_mode: Option<Place>,
    network_addresses: Option<Place>,
    pub(crate) cgroups_path: Option<PathBuf>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Of the user namespace: what every source without a map of its own has.
    pub(crate) user_namespace: IdMaps,
    warnings: Vec<(Place, String)>,
    warnings_left_out: usize,
}

#[derive(Debug, Default)]
struct User {
    uid: u32,
    gid: u32,
    umask: Option<u32>,
    additional_gids: Vec<u32>,
}

#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) mount: Mount,
    /// Its content has a map of its own, be it the empty one.
    pub(crate) mapped: bool,
}

/// Where a layer's settings stand in its document.
pub(crate) enum Form {
    /// `machine.memory`.
    Fields,
    /// `annotations["dev.fcpipe.machine.memory"]`.
    Annotations,
}

impl Form {
    pub(crate) fn path(&self, dotted: &str) -> FieldPath {
        match self {
            Form::Fields => FieldPath::new(dotted),
            Form::Annotations => {
                FieldPath::new("annotations").key(&format!("{}{dotted}", crate::layers::ANNOTATION))
            }
        }
    }
}

impl Draft {
    pub(crate) fn warn(&mut self, doc: &Doc, path: &FieldPath, text: impl Into<String>) {
        // Nobody reads more, and finding the place of one takes time in proportion to the file.
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push((doc.place(path), text.into()));
        } else {
            self.warnings_left_out += 1;
        }
    }

    /// A launch file, or `--set` options. Its bundle is in the draft already.
    pub(crate) fn launch_file(
        &mut self,
        doc: &Doc,
        base: &Path,
        file: LaunchFile,
    ) -> Result<(), SpecError> {
        if let Some(rootfs) = file.rootfs {
            self.rootfs(doc, base, rootfs);
        }
        if let Some(process) = file.process {
            self.process(doc, process)?;
        }
        for (index, mount) in file.mounts.into_iter().flatten().enumerate() {
            let path = FieldPath::new("mounts").index(index);
            let read = mounts::read(self, doc, &path, base, mount, true)?;
            self.mounts.push(Mounted {
                mount: read.mount,
                mapped: read.own_map,
            });
        }
        self.names(doc, file.hostname, file.domainname)?;
        let settings = Settings {
            machine: file.machine,
            disk: file.disk,
            network: file.network,
        };
        self.settings(doc, base, settings, &Form::Fields);
        Ok(())
    }

    fn rootfs(&mut self, doc: &Doc, base: &Path, rootfs: launch_file::Rootfs) {
        if let Some(path) = rootfs.path {
            // Written `rootfs: PATH` or `rootfs: {path: PATH}`.
            let field = FieldPath::new("rootfs");
            let object = doc.root.get("rootfs").is_some_and(|node| node.has("path"));
            let field = if object { field.key("path") } else { field };
            self.root = Some(Said {
                value: path.below(base),
                place: doc.place(&field),
            });
        }
        self.root_readonly = rootfs.readonly.unwrap_or(self.root_readonly);
        if let Some(Named(trust)) = rootfs.trust {
            self.root_trust = trust;
        }
        if let Some(exclude) = rootfs.exclude {
            self.root_content.exclude = exclude.into_iter().map(|text| text.0).collect();
        }
        if let Some(Owner(uid, gid)) = rootfs.owner {
            self.root_content.owner = Some((uid, gid));
        }
        if let Some(maps) = rootfs.idmap {
            self.root_mapped = true;
            self.root_content.uid_map = maps.uid;
            self.root_content.gid_map = maps.gid;
        }
    }

    pub(crate) fn process(
        &mut self,
        doc: &Doc,
        process: launch_file::Process,
    ) -> Result<(), SpecError> {
        let path = FieldPath::new("process");
        if let Some(args) = process.args {
            let args: Vec<String> = args.into_iter().map(|text| text.0).collect();
            if args.is_empty() {
                return Err(doc.invalid(&path.key("args"), "names no program to run"));
            }
            self.args = Some(args);
        }
        for (index, variable) in process.env.into_iter().flatten().enumerate() {
            let Text(variable) = variable;
            if name_of(&variable).is_none_or(str::is_empty) {
                return Err(doc.invalid(
                    &path.key("env").index(index),
                    format!("{} is not NAME=value", quoted(&variable)),
                ));
            }
            self.env.push(variable);
        }
        if let Some(Text(cwd)) = process.cwd {
            if !cwd.starts_with('/') {
                return Err(doc.invalid(
                    &path.key("cwd"),
                    format!("{} is not an absolute path", quoted(&cwd)),
                ));
            }
            self.cwd = Some(ImagePath::normal(&cwd).path);
        }
        if let Some(user) = process.user {
            let path = path.key("user");
            if let Some(umask) = user.umask.filter(|umask| *umask > 0o777) {
                return Err(doc.invalid_with_hint(
                    &path.key("umask"),
                    format!("{umask} is more than 511, which is 0777"),
                    "JSON has decimal numbers only: 0022 is 18",
                ));
            }
            self.user = User {
                uid: user.uid.unwrap_or(self.user.uid),
                gid: user.gid.unwrap_or(self.user.gid),
                umask: user.umask.or(self.user.umask),
                additional_gids: user
                    .additional_gids
                    .unwrap_or_else(|| std::mem::take(&mut self.user.additional_gids)),
            };
        }
        self.terminal = process.terminal.unwrap_or(self.terminal);
        self.no_new_privileges = process.no_new_privileges.unwrap_or(self.no_new_privileges);
        if let Some(size) = process.console_size {
            self.console_size = Some(linux::console_size(doc, &path.key("consoleSize"), size)?);
        }
        if let Some(sets) = process.capabilities {
            let path = path.key("capabilities");
            self.capabilities = Some(linux::capabilities(self, doc, &path, sets));
        }
        if let Some(limits) = process.rlimits {
            self.rlimits = linux::rlimits(doc, &path.key("rlimits"), limits)?;
        }
        if let Some(score) = process.oom_score_adj {
            self.oom_score_adj = Some(linux::oom_score_adj(doc, &path.key("oomScoreAdj"), score)?);
        }
        let said = |text: Option<Text>| text.is_some_and(|text| !text.0.is_empty());
        for (name, there, why) in [
            (
                "apparmorProfile",
                said(process.apparmor_profile),
                "the guest has no AppArmor",
            ),
            (
                "selinuxLabel",
                said(process.selinux_label),
                "the guest has no SELinux",
            ),
            (
                "scheduler",
                process.scheduler.is_some(),
                "all of the guest's CPU time is the process's",
            ),
            (
                "ioPriority",
                process.io_priority.is_some(),
                "all of the guest's disk is the process's",
            ),
            (
                "execCPUAffinity",
                process.exec_cpu_affinity.is_some(),
                "the guest's CPUs are not the host's",
            ),
        ] {
            if there {
                self.warn(doc, &path.key(name), format!("is ignored: {why}"));
            }
        }
        Ok(())
    }

    pub(crate) fn names(
        &mut self,
        doc: &Doc,
        hostname: Option<Text>,
        domainname: Option<Text>,
    ) -> Result<(), SpecError> {
        for (field, name, slot) in [
            ("hostname", hostname, &mut self.hostname),
            ("domainname", domainname, &mut self.domainname),
        ] {
            let Some(Text(name)) = name.filter(|name| !name.0.is_empty()) else {
                continue;
            };
            if name.len() > HOST_NAME_MAX {
                return Err(doc.invalid(
                    &FieldPath::new(field),
                    format!("has {} bytes; the kernel takes {HOST_NAME_MAX}", name.len()),
                ));
            }
            *slot = Some(name);
        }
        Ok(())
    }

    pub(crate) fn settings(&mut self, doc: &Doc, base: &Path, settings: Settings, form: &Form) {
        if let Some(machine) = settings.machine {
            let wanted = &mut self.machine;
            if let Some(value) = machine.vcpus {
                let place = doc.place(&form.path("machine.vcpus"));
                wanted.vcpus = Some(Said { value, place });
            }
            if let Some(memory) = machine.memory {
                let place = doc.place(&form.path("machine.memory"));
                let value = memory.0;
                wanted.memory = Some(Said { value, place });
            }
            if let Some(balloon) = machine.balloon {
                wanted.balloon = Some(Said {
                    value: Balloon {
                        size: balloon.size.0,
                        deflate_on_oom: balloon.deflate_on_oom,
                    },
                    place: doc.place(&form.path("machine.balloon.size")),
                });
            }
            set(
                &mut wanted.cpu_template,
                machine.cpu_template.map(|name| Some(named(name))),
            );
            set(&mut wanted.smt, machine.smt.map(Some));
            set(
                &mut wanted.huge_pages,
                machine.huge_pages.map(|name| Some(named(name))),
            );
        }
        if let Some(disk) = settings.disk {
            set(&mut self.disk.group, disk.group.map(named));
            set(&mut self.disk.writes, disk.writes.map(named));
            set(&mut self.disk.backing, disk.backing.map(named));
            set(&mut self.disk.size, disk.size.map(|size| Some(size.0)));
            set(&mut self.disk.journal, disk.journal);
            limit(&mut self.disk.rate_limit, disk.rate_limit);
        }
        if let Some(network) = settings.network {
            if let Some(netns) = network.netns {
                self.network.netns = Some(netns.below(base));
            }
            if let Some(Named(mode)) = network.mode {
                self.network.mode = mode;
                self.network_mode = Some(doc.place(&form.path("network.mode")));
            }
            let own = &mut self.network;
            set(&mut own.antispoof, network.antispoof.map(named));
            set(&mut own.tap_prefix, network.tap_prefix.map(|text| text.0));
            if let Some(addresses) = network.addresses {
                own.addresses = addresses.0.into_iter().map(|net| net.0).collect();
                self.network_addresses = Some(doc.place(&form.path("network.addresses")));
            }
            let ips = |list: Listed<Ip>| list.0.into_iter().map(|ip| ip.0).collect();
            set(&mut own.gateways, network.gateways.map(ips));
            set(&mut own.dns, network.dns.map(|list| Some(ips(list))));
            let names = |list: Listed<Domain>| list.0.into_iter().map(|name| name.0).collect();
            set(&mut own.search, network.search.map(names));
            set(&mut own.pool, network.pool.map(|pool| pool.0));
            set(&mut own.nat, network.nat);
            limit(&mut self.network.rate_limit, network.rate_limit);
        }
    }

    /// The process alone.
    pub(crate) fn finish_process(mut self, whole: &Doc) -> Result<Process, SpecError> {
        self.take_process(whole)
    }

    fn take_process(&mut self, whole: &Doc) -> Result<Process, SpecError> {
        let Some(args) = self.args.take() else {
            return Err(whole.invalid(
                &FieldPath::new("process.args"),
                "is missing: there is no program to run",
            ));
        };
        Ok(Process {
            args,
            env: last_of_each(std::mem::take(&mut self.env)),
            cwd: self.cwd.take().unwrap_or_else(|| PathBuf::from("/")),
            uid: self.user.uid,
            gid: self.user.gid,
            additional_gids: std::mem::take(&mut self.user.additional_gids),
            umask: self.user.umask,
            terminal: self.terminal,
            no_new_privileges: self.no_new_privileges,
            console_size: self.console_size,
            capabilities: self.capabilities,
            rlimits: std::mem::take(&mut self.rlimits),
            oom_score_adj: self.oom_score_adj,
            seccomp: self.seccomp.take(),
            personality: self.personality,
        })
    }

    fn check_network(&mut self) -> Result<(), SpecError> {
        let network = &self.network;
        let invalid = |place: Place, problem: String, hint: &str| {
            Err(SpecError::Invalid {
                place: Box::new(place),
                problem,
                hint: Some(hint.to_owned()),
            })
        };
        if let (NetworkMode::Redirect | NetworkMode::Bridge, None, Some(place)) =
            (network.mode, &network.netns, &self.network_mode)
        {
            let problem = format!("`{}` needs a network namespace", network.mode);
            let hint = "name one in network.netns (OCI: linux.namespaces)";
            return invalid(place.clone(), problem, hint);
        }
        match (network.mode, &self.network_mode, &self.network_addresses) {
            (NetworkMode::Bridge, Some(place), _) if network.addresses.is_empty() => invalid(
                place.clone(),
                "`bridge` needs an address for the guest".to_owned(),
                "the namespace's own stays the namespace's: name another in network.addresses, as in 192.168.1.7/24",
            ),
            (mode, _, Some(place)) if mode != NetworkMode::Bridge => invalid(
                place.clone(),
                "is for mode `bridge`".to_owned(),
                "in mode `redirect` the guest has the namespace's addresses, in mode `own` one of network.pool",
            ),
            _ => Ok(()),
        }
    }

    /// Checks what only the whole can tell, and fills in the rest. `whole` is the document whose
    /// missing fields are to be named.
    pub(crate) fn finish(
        mut self,
        file: PathBuf,
        whole: &Doc,
        root_field: &str,
        host: Host,
        strict: bool,
    ) -> Result<LaunchSpec, SpecError> {
        self.check_network()?;
        let process = self.take_process(whole)?;
        let Some(root) = self.root else {
            return Err(whole.invalid_with_hint(
                &FieldPath::new(root_field),
                "is missing",
                "name the root file system's directory, or an OCI `bundle` that has one",
            ));
        };
        let root_path = root_directory(root)?;
        let machine = self.machine.resolve(host, &mut self.warnings)?;
        let own = |content: &mut Content, mapped: bool| {
            if !mapped {
                content.uid_map.clone_from(&self.user_namespace.uid);
                content.gid_map.clone_from(&self.user_namespace.gid);
            }
        };
        own(&mut self.root_content, self.root_mapped);
        let mut mounts = Vec::with_capacity(self.mounts.len());
        for Mounted { mut mount, mapped } in self.mounts {
            if let MountKind::Bind(bind) = &mut mount.kind {
                own(&mut bind.content, mapped);
            }
            mounts.push(mount);
        }
        if strict && !self.warnings.is_empty() {
            let (place, warning) = self.warnings.swap_remove(0);
            return Err(SpecError::Strict {
                place: Box::new(place),
                warning,
            });
        }
        let mut warnings: Vec<String> = self
            .warnings
            .into_iter()
            .map(|(place, text)| format!("{place}: {text}"))
            .collect();
        if self.warnings_left_out > 0 {
            let count = self.warnings_left_out;
            warnings.push(format!("{}: {count} more warnings", shown(&file)));
        }
        Ok(LaunchSpec {
            file,
            process,
            linux: self.linux,
            hooks: self.hooks,
            root: Root {
                path: root_path,
                readonly: self.root_readonly,
                trust: self.root_trust,
                content: self.root_content,
            },
            mounts,
            hostname: self.hostname,
            domainname: self.domainname,
            machine,
            disk: self.disk,
            network: self.network,
            cgroups_path: self.cgroups_path,
            annotations: self.annotations,
            warnings,
        })
    }
}

fn name_of(variable: &str) -> Option<&str> {
    variable.split_once('=').map(|(name, _)| name)
}

/// Of two variables of a name the last counts, as for runc (libcontainer/env.go).
fn last_of_each(variables: Vec<String>) -> Vec<String> {
    let mut names = HashSet::new();
    let keep: Vec<bool> = variables
        .iter()
        .rev()
        .map(|variable| names.insert(name_of(variable)))
        .collect();
    let keep = keep.into_iter().rev();
    std::iter::zip(variables, keep)
        .filter_map(|(variable, keep)| keep.then_some(variable))
        .collect()
}

/// The root with its symlinks followed, as mount(2) follows those of a source.
fn root_directory(root: Said<PathBuf>) -> Result<PathBuf, SpecError> {
    let found = std::fs::canonicalize(&root.value)
        .and_then(|path| Ok((std::fs::metadata(&path)?.is_dir(), path)));
    let problem = match found {
        Ok((true, path)) => return Ok(path),
        Ok((false, _)) => "is not a directory".to_owned(),
        Err(error) => format!(
            "cannot be used as the root: {}",
            escaped(&error.to_string())
        ),
    };
    Err(SpecError::Host {
        place: Box::new(root.place),
        path: root.value,
        problem,
    })
}

fn named<T>(Named(value): Named<T>) -> T {
    value
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn limit(slot: &mut RateLimit, limit: Option<launch_file::RateLimit>) {
    if let Some(limit) = limit {
        set(
            &mut slot.bandwidth,
            limit.bandwidth.map(|size| Some(size.0)),
        );
        set(&mut slot.ops, limit.ops.map(Some));
    }
}
