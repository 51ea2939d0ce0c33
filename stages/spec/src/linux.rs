//! The parts of an OCI config about what the guest enforces, from their fields to the model: capabilities and limits of
//! the process, most of `linux`, and hooks.

use std::collections::{BTreeMap, HashSet};

use crate::confine::{
    ActionName, ArchName, Capabilities, ConsoleSize, Device, DeviceKind, Hook, Hooks, RLIMITS,
    Rlimit, Seccomp, SeccompAction, SeccompArg, SeccompRule, capability,
};
use crate::draft::Draft;
use crate::error::{SpecError, quoted};
use crate::launch_file;
use crate::oci;
use crate::text::{Doc, FieldPath};
use crate::values::{ImagePath, Named, Text};

/// What a call fails with that a rule denies without saying how, as runc has it: EPERM.
const EPERM: u16 = 1;
/// The largest error number there is: `MAX_ERRNO` of linux/err.h.
const MAX_ERRNO: u64 = 4095;

pub(crate) fn capabilities(
    draft: &mut Draft,
    doc: &Doc,
    path: &FieldPath,
    sets: launch_file::Capabilities,
) -> Capabilities {
    let mut read = |name: &str, names: Option<Vec<Text>>| {
        let mut set = 0;
        for (index, Text(one)) in names.into_iter().flatten().enumerate() {
            match capability(&one) {
                Some(bit) => set |= bit,
                // As runc does, for configs that were written for a newer kernel.
                None => draft.warn(
                    doc,
                    &path.key(name).index(index),
                    format!("{} is no capability of Linux; it is left out", quoted(&one)),
                ),
            }
        }
        set
    };
    Capabilities {
        bounding: read("bounding", sets.bounding),
        effective: read("effective", sets.effective),
        inheritable: read("inheritable", sets.inheritable),
        permitted: read("permitted", sets.permitted),
        ambient: read("ambient", sets.ambient),
    }
}

pub(crate) fn rlimits(
    doc: &Doc,
    path: &FieldPath,
    limits: Vec<launch_file::Rlimit>,
) -> Result<Vec<Rlimit>, SpecError> {
    let mut seen = HashSet::new();
    let mut read = Vec::with_capacity(limits.len());
    for (index, limit) in limits.into_iter().enumerate() {
        let path = path.index(index);
        let missing = |field: &str| doc.invalid(&path.key(field), "is missing");
        let kind = limit.kind.ok_or_else(|| missing("type"))?.0;
        if !RLIMITS.contains(&kind.as_str()) {
            let problem = format!("{} is no limit of Linux", quoted(&kind));
            return Err(doc.invalid(&path.key("type"), problem));
        }
        if !seen.insert(kind.clone()) {
            return Err(doc.invalid(&path.key("type"), format!("{kind} is listed twice")));
        }
        let (soft, hard) = (
            limit.soft.ok_or_else(|| missing("soft"))?,
            limit.hard.ok_or_else(|| missing("hard"))?,
        );
        if soft > hard {
            let problem = format!("{soft} is more than the hard limit, {hard}");
            return Err(doc.invalid(&path.key("soft"), problem));
        }
        read.push(Rlimit { kind, soft, hard });
    }
    Ok(read)
}

pub(crate) fn console_size(
    doc: &Doc,
    path: &FieldPath,
    size: launch_file::ConsoleSize,
) -> Result<ConsoleSize, SpecError> {
    let number = |name: &str, value: Option<u64>| {
        let value = value.unwrap_or(0);
        u16::try_from(value).map_err(|_| {
            doc.invalid(
                &path.key(name),
                format!("{value} is more than a terminal can have, 65535"),
            )
        })
    };
    Ok(ConsoleSize {
        rows: number("height", size.height)?,
        columns: number("width", size.width)?,
    })
}

/// -1000 to 1000 (proc_pid_oom_score_adj(5)).
pub(crate) fn oom_score_adj(doc: &Doc, path: &FieldPath, score: i64) -> Result<i32, SpecError> {
    i32::try_from(score)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| doc.invalid(path, format!("{score} is not between -1000 and 1000")))
}

/// What `linux` says besides namespaces, maps, and the machine's size.
pub(crate) fn confinement(
    draft: &mut Draft,
    doc: &Doc,
    path: &FieldPath,
    linux: &mut oci::Linux,
) -> Result<(), SpecError> {
    draft.linux.masked_paths = paths(doc, &path.key("maskedPaths"), linux.masked_paths.take())?;
    draft.linux.readonly_paths =
        paths(doc, &path.key("readonlyPaths"), linux.readonly_paths.take())?;
    draft.linux.sysctl = strings(linux.sysctl.take());
    for (index, device) in linux.devices.take().into_iter().flatten().enumerate() {
        let device = self::device(doc, &path.key("devices").index(index), device)?;
        draft.linux.devices.push(device);
    }
    draft.linux.root_propagation = propagation(doc, path, linux.rootfs_propagation.take())?;
    if let Some(personality) = linux.personality.take() {
        draft.personality = personality.domain.map(|Named(domain)| domain);
        if personality.flags.is_some_and(|flags| !flags.is_empty()) {
            draft.warn(
                doc,
                &path.key("personality").key("flags"),
                "is ignored: OCI names none",
            );
        }
    }
    if let Some(filter) = linux.seccomp.take() {
        let filter = seccomp(doc, &path.key("seccomp"), filter)?;
        draft.seccomp = Some(filter);
    }
    for (name, there, why) in [
        (
            "mountLabel",
            text(&linux.mount_label),
            "the guest has no SELinux",
        ),
        (
            "intelRdt",
            linux.intel_rdt.is_some(),
            "a VM has no part in the host's cache allocation",
        ),
        (
            "timeOffsets",
            linux.time_offsets.is_some(),
            "the guest's clocks are its own, and begin with its boot",
        ),
    ] {
        if there {
            draft.warn(doc, &path.key(name), format!("is ignored: {why}"));
        }
    }
    if let Some(resources) = &mut linux.resources {
        let limit = resources.pids.take().and_then(|pids| pids.limit);
        // 0 and -1 are no limit.
        draft.linux.pids_limit = limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0);
        draft.linux.unified = strings(resources.unified.take());
        device_rules(draft, doc, path, resources.devices.take());
    }
    Ok(())
}

/// Rules about devices are not enforced: a guest has no device of the host's. Who could notice is a process that may make nodes of
/// its own; for all others the nodes that the config lists are all there is.
fn device_rules(
    draft: &mut Draft,
    doc: &Doc,
    path: &FieldPath,
    rules: Option<Vec<oci::DeviceRule>>,
) {
    const MKNOD: u64 = 1 << 27;
    let denies = rules.iter().flatten().any(|rule| rule.allow != Some(true));
    let makes_nodes = draft
        .capabilities
        .is_some_and(|sets| (sets.bounding | sets.permitted) & MKNOD != 0);
    if denies && makes_nodes {
        draft.warn(
            doc,
            &path.key("resources").key("devices"),
            "has no effect: with CAP_MKNOD the process can use every device of its machine, and none of the host",
        );
    }
}

fn text(text: &Option<Text>) -> bool {
    text.as_ref().is_some_and(|text| !text.0.is_empty())
}

fn strings(map: Option<BTreeMap<String, Option<Text>>>) -> BTreeMap<String, String> {
    map.into_iter()
        .flatten()
        .map(|(name, value)| (name, value.map(|text| text.0).unwrap_or_default()))
        .collect()
}

fn paths(doc: &Doc, path: &FieldPath, list: Option<Vec<Text>>) -> Result<Vec<String>, SpecError> {
    let mut read = Vec::new();
    for (index, Text(one)) in list.into_iter().flatten().enumerate() {
        read.push(inside(doc, &path.index(index), &one)?);
    }
    Ok(read)
}

/// An absolute path of the container, made normal.
fn inside(doc: &Doc, path: &FieldPath, text: &str) -> Result<String, SpecError> {
    let normal = ImagePath::normal(text);
    if normal.relative {
        return Err(doc.invalid(path, format!("{} is not an absolute path", quoted(text))));
    }
    // It was text, and still is.
    Ok(normal.path.to_string_lossy().into_owned())
}

fn propagation(
    doc: &Doc,
    path: &FieldPath,
    name: Option<Text>,
) -> Result<Option<crate::confine::Propagation>, SpecError> {
    use crate::model::Choice;
    let Some(Text(name)) = name.filter(|name| !name.0.is_empty()) else {
        return Ok(None);
    };
    let found = crate::confine::Propagation::named(&name);
    let unknown = || {
        let problem = format!(
            "{} is none of shared, slave, private and unbindable",
            quoted(&name)
        );
        doc.invalid(&path.key("rootfsPropagation"), problem)
    };
    found.ok_or_else(unknown).map(Some)
}

fn device(doc: &Doc, path: &FieldPath, device: oci::Device) -> Result<Device, SpecError> {
    let missing = |field: &str| doc.invalid(&path.key(field), "is missing");
    let Text(name) = device.path.ok_or_else(|| missing("path"))?;
    let kind = device.kind.ok_or_else(|| missing("type"))?;
    let kind = match kind.0.as_str() {
        "c" | "u" => DeviceKind::Character,
        "b" => DeviceKind::Block,
        "p" => DeviceKind::Fifo,
        other => {
            let problem = format!("{} is none of c, u, b and p", quoted(other));
            return Err(doc.invalid(&path.key("type"), problem));
        }
    };
    let number = |field: &str, value: Option<i64>, most: u32| match value {
        _ if kind == DeviceKind::Fifo => Ok(0),
        None => Err(missing(field)),
        Some(value) => u32::try_from(value)
            .ok()
            .filter(|number| *number <= most)
            .ok_or_else(|| {
                doc.invalid(
                    &path.key(field),
                    format!("{value} is no number of a device"),
                )
            }),
    };
    Ok(Device {
        path: inside(doc, &path.key("path"), &name)?,
        kind,
        // The kernel has 12 and 20 bits for them.
        major: number("major", device.major, 0xfff)?,
        minor: number("minor", device.minor, 0xf_ffff)?,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}

fn seccomp(doc: &Doc, path: &FieldPath, filter: oci::Seccomp) -> Result<Seccomp, SpecError> {
    let Some(Named(default)) = filter.default_action else {
        return Err(doc.invalid(&path.key("defaultAction"), "is missing"));
    };
    let errno = |path: &FieldPath, field: &str, number: Option<u64>| match number {
        None => Ok(EPERM),
        Some(number) if number <= MAX_ERRNO => Ok(number as u16),
        Some(number) => Err(doc.invalid(
            &path.key(field),
            format!("{number} is no error number: the largest is {MAX_ERRNO}"),
        )),
    };
    let default_errno = errno(path, "defaultErrnoRet", filter.default_errno_ret)?;
    let action = |path: &FieldPath, name: ActionName, errno: u16| {
        Ok(match name {
            ActionName::KillProcess => SeccompAction::KillProcess,
            ActionName::KillThread => SeccompAction::KillThread,
            ActionName::Trap => SeccompAction::Trap,
            ActionName::Errno => SeccompAction::Errno(errno),
            ActionName::Trace => SeccompAction::Trace(errno),
            ActionName::Log => SeccompAction::Log,
            ActionName::Allow => SeccompAction::Allow,
            ActionName::Notify => {
                return Err(doc.invalid_with_hint(
                    path,
                    "SCMP_ACT_NOTIFY cannot be had: who would be asked is a program of the host, and the calls are \
                     made in the guest",
                    "take SCMP_ACT_ERRNO or SCMP_ACT_ALLOW instead",
                ));
            }
        })
    };
    let mut rules = Vec::new();
    for (index, rule) in filter.syscalls.into_iter().flatten().enumerate() {
        let path = path.key("syscalls").index(index);
        let Some(Named(name)) = rule.action else {
            return Err(doc.invalid(&path.key("action"), "is missing"));
        };
        let number = errno(&path, "errnoRet", rule.errno_ret)?;
        let mut args = Vec::new();
        for (index, arg) in rule.args.into_iter().flatten().enumerate() {
            let path = path.key("args").index(index);
            let Some(Named(op)) = arg.op else {
                return Err(doc.invalid(&path.key("op"), "is missing"));
            };
            let index = arg.index.unwrap_or(0);
            let index = u8::try_from(index)
                .ok()
                .filter(|index| *index < 6)
                .ok_or_else(|| {
                    doc.invalid(
                        &path.key("index"),
                        format!("{index} is none of a call's six arguments"),
                    )
                })?;
            args.push(SeccompArg {
                index,
                value: arg.value.unwrap_or(0),
                value_two: arg.value_two.unwrap_or(0),
                op,
            });
        }
        rules.push(SeccompRule {
            names: rule
                .names
                .into_iter()
                .flatten()
                .map(|name| name.0)
                .collect(),
            action: action(&path.key("action"), name, number)?,
            args,
        });
    }
    Ok(Seccomp {
        default: action(&path.key("defaultAction"), default, default_errno)?,
        architectures: filter
            .architectures
            .into_iter()
            .flatten()
            .filter_map(|Named(arch)| match arch {
                ArchName::This(arch) => Some(arch),
                ArchName::Foreign => None,
            })
            .collect(),
        flags: filter
            .flags
            .into_iter()
            .flatten()
            .map(|Named(flag)| flag)
            .collect(),
        rules,
    })
}

pub(crate) fn hooks(doc: &Doc, hooks: oci::Hooks) -> Result<Hooks, SpecError> {
    let read = |name: &str, list: Option<Vec<oci::Hook>>| -> Result<Vec<Hook>, SpecError> {
        let mut read = Vec::new();
        for (index, hook) in list.into_iter().flatten().enumerate() {
            let path = FieldPath::new("hooks").key(name).index(index);
            let Some(Text(program)) = hook.path else {
                return Err(doc.invalid(&path.key("path"), "is missing"));
            };
            if !program.starts_with('/') {
                let problem = format!("{} is not an absolute path", quoted(&program));
                return Err(doc.invalid(&path.key("path"), problem));
            }
            let timeout = match hook.timeout {
                None => None,
                Some(seconds) => Some(u32::try_from(seconds).ok().filter(|s| *s > 0).ok_or_else(
                    || {
                        doc.invalid(
                            &path.key("timeout"),
                            format!("{seconds} is no number of seconds"),
                        )
                    },
                )?),
            };
            let texts =
                |list: Option<Vec<Text>>| list.into_iter().flatten().map(|text| text.0).collect();
            read.push(Hook {
                path: program,
                args: texts(hook.args),
                env: texts(hook.env),
                timeout,
            });
        }
        Ok(read)
    };
    Ok(Hooks {
        prestart: read("prestart", hooks.prestart)?,
        create_runtime: read("createRuntime", hooks.create_runtime)?,
        create_container: read("createContainer", hooks.create_container)?,
        start_container: read("startContainer", hooks.start_container)?,
        poststart: read("poststart", hooks.poststart)?,
        poststop: read("poststop", hooks.poststop)?,
    })
}
