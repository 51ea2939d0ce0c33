//! The fields of an OCI config.json that fcpipe reads, as they are written.
//!
//! From the OCI Runtime Specification 1.2, config.md and config-linux.md. The crate `oci-spec` has all of
//! them, but its types forget where a field stood, refuse whole files for values in fields that
//! nobody here reads, and take a `null` (which Go programs write for what is empty) for an error in places.
//! Every field may be left out or be null, and what is not here is ignored, as the specification asks.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::launch_file::Process;
use crate::values::{HostPath, Text};

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
