//! The fields of an OCI config.json that fcpipe reads, as they are written.
//!
//! From the OCI Runtime Specification 1.2, config.md and config-linux.md. The crate `oci-spec` has all of
//! them, but its types forget where a field stood, refuse whole files for values in fields that
//! nobody here reads, and take a `null` (which Go programs write for what is empty) for an error in places.
//! Every field may be left out or be null, and what is not here is ignored, as the specification asks.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::confine::{ActionName, ArchName, Personality, SeccompFlag, SeccompOp};
use crate::launch_file::Process;
use crate::values::{HostPath, Named, Text};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Config {
    pub(crate) oci_version: Option<Text>,
    pub(crate) root: Option<Root>,
    pub(crate) process: Option<Process>,
    pub(crate) mounts: Option<Vec<Mount>>,
    pub(crate) hostname: Option<Text>,
    pub(crate) domainname: Option<Text>,
    pub(crate) linux: Option<Linux>,
    pub(crate) annotations: Option<BTreeMap<String, Option<String>>>,
    pub(crate) hooks: Option<Hooks>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Root {
    pub(crate) path: Option<HostPath>,
    pub(crate) readonly: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Mount {
    pub(crate) destination: Option<Text>,
    #[serde(rename = "type")]
    pub(crate) fstype: Option<Text>,
    pub(crate) source: Option<Text>,
    pub(crate) options: Option<Vec<Text>>,
    pub(crate) uid_mappings: Option<Vec<IdMapping>>,
    pub(crate) gid_mappings: Option<Vec<IdMapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Linux {
    pub(crate) namespaces: Option<Vec<Namespace>>,
    pub(crate) uid_mappings: Option<Vec<IdMapping>>,
    pub(crate) gid_mappings: Option<Vec<IdMapping>>,
    pub(crate) cgroups_path: Option<Text>,
    pub(crate) resources: Option<Resources>,
    pub(crate) masked_paths: Option<Vec<Text>>,
    pub(crate) readonly_paths: Option<Vec<Text>>,
    pub(crate) sysctl: Option<BTreeMap<String, Option<Text>>>,
    pub(crate) devices: Option<Vec<Device>>,
    pub(crate) rootfs_propagation: Option<Text>,
    pub(crate) personality: Option<PersonalityField>,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) mount_label: Option<Text>,
    pub(crate) intel_rdt: Option<IgnoredAny>,
    pub(crate) time_offsets: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Device {
    #[serde(rename = "type")]
    pub(crate) kind: Option<Text>,
    pub(crate) path: Option<Text>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) file_mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct PersonalityField {
    pub(crate) domain: Option<Named<Personality>>,
    pub(crate) flags: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Seccomp {
    pub(crate) default_action: Option<Named<ActionName>>,
    pub(crate) default_errno_ret: Option<u64>,
    pub(crate) architectures: Option<Vec<Named<ArchName>>>,
    pub(crate) flags: Option<Vec<Named<SeccompFlag>>>,
    pub(crate) syscalls: Option<Vec<SeccompRule>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct SeccompRule {
    pub(crate) names: Option<Vec<Text>>,
    pub(crate) action: Option<Named<ActionName>>,
    pub(crate) errno_ret: Option<u64>,
    pub(crate) args: Option<Vec<SeccompArg>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct SeccompArg {
    pub(crate) index: Option<u64>,
    pub(crate) value: Option<u64>,
    pub(crate) value_two: Option<u64>,
    pub(crate) op: Option<Named<SeccompOp>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Hooks {
    pub(crate) prestart: Option<Vec<Hook>>,
    pub(crate) create_runtime: Option<Vec<Hook>>,
    pub(crate) create_container: Option<Vec<Hook>>,
    pub(crate) start_container: Option<Vec<Hook>>,
    pub(crate) poststart: Option<Vec<Hook>>,
    pub(crate) poststop: Option<Vec<Hook>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Hook {
    pub(crate) path: Option<Text>,
    pub(crate) args: Option<Vec<Text>>,
    pub(crate) env: Option<Vec<Text>>,
    /// Seconds.
    pub(crate) timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: Option<Text>,
    pub(crate) path: Option<Text>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct IdMapping {
    #[serde(default, rename = "containerID")]
    pub(crate) container: u32,
    #[serde(default, rename = "hostID")]
    pub(crate) host: u32,
    #[serde(default)]
    pub(crate) size: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Resources {
    pub(crate) cpu: Option<Cpu>,
    pub(crate) memory: Option<Memory>,
    pub(crate) pids: Option<Pids>,
    pub(crate) unified: Option<BTreeMap<String, Option<Text>>>,
    pub(crate) devices: Option<Vec<DeviceRule>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct DeviceRule {
    pub(crate) allow: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Pids {
    pub(crate) limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Cpu {
    /// Microseconds in each period; negative is no limit.
    pub(crate) quota: Option<i64>,
    /// Microseconds.
    pub(crate) period: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Memory {
    /// Bytes; -1 is no limit.
    pub(crate) limit: Option<i64>,
}
