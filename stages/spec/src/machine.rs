//! How large the guest is: from `linux.resources` and `machine`, by OCI's rules for what is 0, absent or
//! more than there is.

use crate::error::{Place, SpecError};
use crate::host::Host;
use crate::model::{Balloon, CpuQuota, CpuTemplate, HugePages, Machine};

/// More than this no VMM here gives a guest.
pub const MAX_VCPUS: u32 = 32;
/// Bytes. A guest with less does not boot reliably.
pub const MIN_MEMORY: u64 = 128 << 20;

const MIB: u64 = 1 << 20;
/// Microseconds: cgroup's own default, which runc leaves in place when a quota comes alone.
const DEFAULT_PERIOD: u64 = 100_000;
/// cgroup v1 spells "no limit" as the largest number of pages, and some programs pass that on.
const UNLIMITED: u64 = 1 << 62;

/// A value and where it stood.
#[derive(Debug)]
pub(crate) struct Said<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// What the layers of a spec say, the later over the earlier.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) vcpus: Option<Said<u64>>,
    pub(crate) memory: Option<Said<u64>>,
    pub(crate) quota: Option<Said<i64>>,
    pub(crate) period: Option<Said<u64>>,
    pub(crate) limit: Option<Said<i64>>,
    pub(crate) cpu_template: Option<CpuTemplate>,
    pub(crate) smt: Option<bool>,
    pub(crate) huge_pages: Option<HugePages>,
    pub(crate) balloon: Option<Said<Balloon>>,
    /// CPUs and bytes of memory where nothing is said of them.
    pub(crate) usual: (Option<u32>, Option<u64>),
}

type Warnings = Vec<(Place, String)>;

impl Wanted {
    pub(crate) fn resolve(self, host: Host, warnings: &mut Warnings) -> Result<Machine, SpecError> {
        let mut default = Machine::default();
        if let Some(vcpus) = self.usual.0 {
            default.vcpus = vcpus.clamp(1, host.cpus.clamp(1, MAX_VCPUS));
        }
        if let Some(memory) = self.usual.1 {
            default.memory = memory.max(MIN_MEMORY).next_multiple_of(2 * MIB);
        }
        let cpu_quota = cpu_quota(self.quota.as_ref(), self.period.as_ref(), warnings);
        let vcpus = match (self.vcpus, self.quota, cpu_quota) {
            (Some(said), _, _) => clamp_vcpus(said.value, said.place, host, warnings),
            (None, Some(said), Some(quota)) => {
                let wanted = quota.quota_us.div_ceil(quota.period_us);
                clamp_vcpus(wanted, said.place, host, warnings)
            }
            _ => default.vcpus,
        };
        let huge_pages = self.huge_pages.unwrap_or_default();
        let unit = match huge_pages {
            HugePages::None => MIB,
            HugePages::TwoMiB => 2 * MIB,
        };
        let memory = match (self.memory, self.limit) {
            (Some(said), _) => clamp_memory(said.value, unit, said.place, host, warnings),
            (None, Some(said)) => match u64::try_from(said.value) {
                Ok(0) => {
                    let text = "0 is no limit, so the guest has the default of 512 MiB";
                    warnings.push((said.place, text.to_owned()));
                    default.memory
                }
                Ok(limit) if limit < UNLIMITED => {
                    clamp_memory(limit, unit, said.place, host, warnings)
                }
                _ => default.memory,
            },
            (None, None) => default.memory,
        };
        let balloon = match self.balloon {
            Some(said) if said.value.size >= memory => {
                return Err(SpecError::Invalid {
                    place: Box::new(said.place),
                    problem: format!(
                        "a balloon of {} bytes leaves nothing of the guest's {} MiB",
                        said.value.size,
                        memory / MIB
                    ),
                    hint: None,
                });
            }
            other => other.map(|said| said.value),
        };
        Ok(Machine {
            vcpus,
            memory,
            cpu_quota,
            cpu_template: self.cpu_template,
            smt: self.smt.unwrap_or(false),
            huge_pages,
            balloon,
        })
    }
}

/// A quota that limits something; negative and 0 don't (runc leaves the cgroup's `max` for both).
fn cpu_quota(
    quota: Option<&Said<i64>>,
    period: Option<&Said<u64>>,
    warnings: &mut Warnings,
) -> Option<CpuQuota> {
    let quota = quota?;
    let quota_us = match u64::try_from(quota.value) {
        Ok(0) => {
            let text = "0 is no limit, so the guest has the default of 1 CPU";
            warnings.push((quota.place.clone(), text.to_owned()));
            return None;
        }
        Ok(value) => value,
        Err(_) => return None,
    };
    let period_us = match period {
        Some(Said { value: 0, place }) => {
            let text = format!("0 is no period; {DEFAULT_PERIOD} µs is taken");
            warnings.push((place.clone(), text));
            DEFAULT_PERIOD
        }
        Some(said) => said.value,
        None => {
            let text = format!("there is a quota but no period; {DEFAULT_PERIOD} µs is taken");
            warnings.push((quota.place.clone(), text));
            DEFAULT_PERIOD
        }
    };
    Some(CpuQuota {
        quota_us,
        period_us,
    })
}

fn clamp_vcpus(wanted: u64, place: Place, host: Host, warnings: &mut Warnings) -> u32 {
    let host_cpus = host.cpus.max(1);
    let most = host_cpus.min(MAX_VCPUS);
    let given = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, most);
    if wanted == 0 {
        warnings.push((place, "0 CPUs are too few; the guest has 1".to_owned()));
    } else if u64::from(given) < wanted {
        let why = if host_cpus < MAX_VCPUS {
            "than the host has"
        } else {
            "than a VM can have"
        };
        let text = format!("{wanted} CPUs are more {why}; the guest has {given}");
        warnings.push((place, text));
    }
    given
}

/// Whole units, rounded up, between the floor and what the host has. Rounding alone is not worth a
/// warning.
fn clamp_memory(wanted: u64, unit: u64, place: Place, host: Host, warnings: &mut Warnings) -> u64 {
    let most = (host.memory - host.memory % unit).max(MIN_MEMORY);
    if wanted < MIN_MEMORY {
        let text = format!("{wanted} bytes are too few; the guest has the least, 128 MiB");
        warnings.push((place, text));
        return MIN_MEMORY;
    }
    if wanted > most {
        let text = format!(
            "{wanted} bytes are more than the host has; the guest has {} MiB",
            most / MIB
        );
        warnings.push((place, text));
        return most;
    }
    wanted.next_multiple_of(unit).min(most)
}
