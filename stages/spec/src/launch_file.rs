//! The launch file's fields, as they are written. docs/launch-file.md describes them.
//!
//! Every field may be left out: a launch file over a bundle says only what it changes, and so does
//! a `--set`, which is read as a small launch file of its own. A field that is not here is an error.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer};

use crate::addresses::{Domain, Ip, Listed, Net, Pool, TapPrefix};
use crate::confine::RLIMITS;
use crate::draft::HOST_NAME_MAX;
use crate::model::{
    Antispoof, Backing, CpuTemplate, Group, HugePages, NetworkMode, Policy, Trust, Writes,
};
use crate::schema;
use crate::values::{ByteSize, HostPath, IdMaps, Named, Owner, Text};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
// What a `--set` may leave out and a file may not.
#[schemars(extend("anyOf" = schema::roots()))]
pub(crate) struct LaunchFile {
    /// Of this format: 1.
    #[schemars(extend("enum" = [1, null]))]
    pub(crate) version: Option<u64>,
    pub(crate) bundle: Option<HostPath>,
    pub(crate) rootfs: Option<Rootfs>,
    pub(crate) process: Option<Process>,
    pub(crate) mounts: Option<Vec<Mount>>,
    #[schemars(extend("maxLength" = HOST_NAME_MAX))]
    pub(crate) hostname: Option<Text>,
    #[schemars(extend("maxLength" = HOST_NAME_MAX))]
    pub(crate) domainname: Option<Text>,
    pub(crate) machine: Option<Machine>,
    pub(crate) disk: Option<Disk>,
    pub(crate) network: Option<Network>,
}

/// What annotations can say too: `dev.fcpipe.SECTION.KEY`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Settings {
    pub(crate) machine: Option<Machine>,
    pub(crate) disk: Option<Disk>,
    pub(crate) network: Option<Network>,
}

/// A path alone, or an object.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub(crate) struct Rootfs {
    pub(crate) path: Option<HostPath>,
    pub(crate) readonly: Option<bool>,
    pub(crate) trust: Option<Named<Trust>>,
    pub(crate) exclude: Option<Vec<Text>>,
    pub(crate) owner: Option<Owner>,
    pub(crate) idmap: Option<IdMaps>,
}

/// A process that stands alone in a file, which is read as if it stood in a spec.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct ProcessFile {
    #[serde(default)]
    pub(crate) process: Process,
}

/// The same as in an OCI config, as far as fcpipe reads it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct Process {
    #[schemars(extend("minItems" = 1))]
    pub(crate) args: Option<Vec<Text>>,
    /// NAME=value
    #[schemars(extend("items" = schema::text("^[^\\u0000=]+=[^\\u0000]*$")))]
    pub(crate) env: Option<Vec<Text>>,
    #[schemars(extend("pattern" = "^/[^\\u0000]*$"))]
    pub(crate) cwd: Option<Text>,
    pub(crate) user: Option<User>,
    pub(crate) terminal: Option<bool>,
    pub(crate) no_new_privileges: Option<bool>,
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) rlimits: Option<Vec<Rlimit>>,
    #[schemars(range(min = -1000, max = 1000))]
    pub(crate) oom_score_adj: Option<i64>,
    // What the guest does not have: said, and ignored.
    pub(crate) apparmor_profile: Option<Text>,
    pub(crate) selinux_label: Option<Text>,
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) scheduler: Option<IgnoredAny>,
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) io_priority: Option<IgnoredAny>,
    #[serde(rename = "execCPUAffinity")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub(crate) exec_cpu_affinity: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct ConsoleSize {
    #[schemars(range(max = 65_535))]
    pub(crate) height: Option<u64>,
    #[schemars(range(max = 65_535))]
    pub(crate) width: Option<u64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Capabilities {
    pub(crate) bounding: Option<Vec<Text>>,
    pub(crate) effective: Option<Vec<Text>>,
    pub(crate) inheritable: Option<Vec<Text>>,
    pub(crate) permitted: Option<Vec<Text>>,
    pub(crate) ambient: Option<Vec<Text>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(extend("required" = ["type", "soft", "hard"]))]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    #[schemars(extend("enum" = RLIMITS))]
    pub(crate) kind: Option<Text>,
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(crate) struct User {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// 0022 is 18: JSON has decimal numbers only.
    #[schemars(range(max = 0o777))]
    pub(crate) umask: Option<u32>,
    pub(crate) additional_gids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(extend("required" = ["destination"], "if" = schema::bind(), "then" = schema::of_bind(), "else" = schema::of_guest()))]
pub(crate) struct Mount {
    pub(crate) source: Option<Text>,
    #[schemars(extend("pattern" = schema::DESTINATION))]
    pub(crate) destination: Option<Text>,
    #[serde(rename = "type")]
    pub(crate) fstype: Option<Text>,
    #[schemars(extend("items" = schema::option()))]
    pub(crate) options: Option<Vec<Text>>,
    pub(crate) readonly: Option<bool>,
    pub(crate) recursive: Option<bool>,
    pub(crate) policy: Option<Named<Policy>>,
    pub(crate) immutable: Option<bool>,
    #[schemars(extend("pattern" = schema::DECLARED))]
    pub(crate) digest: Option<Text>,
    pub(crate) trust: Option<Named<Trust>>,
    pub(crate) exclude: Option<Vec<Text>>,
    pub(crate) owner: Option<Owner>,
    pub(crate) idmap: Option<IdMaps>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Machine {
    pub(crate) vcpus: Option<u64>,
    pub(crate) memory: Option<ByteSize>,
    pub(crate) cpu_template: Option<Named<CpuTemplate>>,
    pub(crate) smt: Option<bool>,
    pub(crate) huge_pages: Option<Named<HugePages>>,
    pub(crate) balloon: Option<Balloon>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Balloon {
    pub(crate) size: ByteSize,
    #[serde(default)]
    pub(crate) deflate_on_oom: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Disk {
    pub(crate) group: Option<Named<Group>>,
    pub(crate) writes: Option<Named<Writes>>,
    pub(crate) backing: Option<Named<Backing>>,
    pub(crate) size: Option<ByteSize>,
    pub(crate) journal: Option<bool>,
    pub(crate) rate_limit: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct Network {
    pub(crate) netns: Option<HostPath>,
    pub(crate) mode: Option<Named<NetworkMode>>,
    pub(crate) antispoof: Option<Named<Antispoof>>,
    pub(crate) tap_prefix: Option<TapPrefix>,
    pub(crate) addresses: Option<Listed<Net>>,
    pub(crate) gateways: Option<Listed<Ip>>,
    pub(crate) dns: Option<Listed<Ip>>,
    pub(crate) search: Option<Listed<Domain>>,
    pub(crate) pool: Option<Pool>,
    pub(crate) nat: Option<bool>,
    pub(crate) rate_limit: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
pub(crate) struct RateLimit {
    pub(crate) bandwidth: Option<ByteSize>,
    pub(crate) ops: Option<u64>,
}

impl<'de> Deserialize<'de> for Rootfs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const FIELDS: &[&str] = &["path", "readonly", "trust", "exclude", "owner", "idmap"];

        struct PathOrObject;

        impl<'de> Visitor<'de> for PathOrObject {
            type Value = Rootfs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or an object with a `path`")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Rootfs, E> {
                Ok(Rootfs {
                    path: Some(path.parse().map_err(E::custom)?),
                    ..Rootfs::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rootfs, A::Error> {
                // The derived reading (`remote` makes it an inherent function).
                Rootfs::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_struct("Rootfs", FIELDS, PathOrObject)
    }
}
