//! What a launch uses, in figures: as the host sees its machine, and as the guest says of itself.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::life::Life;
use crate::message::Failed;

/// What one launch uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub host: HostStats,
    /// What the guest says of itself: for people to read. `None` where it does not answer.
    pub guest: Option<fcpipe_proto::Stats>,
}

/// As the host sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStats {
    /// From the order to the guest that can run its process, microseconds.
    pub boot_us: u64,
    /// The machine's CPU time, microseconds.
    pub cpu_us: Option<u64>,
    /// How long it was held up by its quota, microseconds.
    pub throttled_us: Option<u64>,
    /// Bytes of memory of the machine, page cache included.
    pub memory: Option<u64>,
    pub memory_peak: Option<u64>,
    pub memory_limit: Option<u64>,
    /// How often the host killed one of its processes for want of memory.
    pub oom_kills: Option<u64>,
    /// Bytes of the host's disk that the launch's own files take.
    pub disk_bytes: u64,
    /// Bytes of memory of the supervisor.
    pub supervisor_memory: u64,
    /// The machine's processes.
    pub pids: Vec<u32>,
}

/// How long a guest may take to say something about itself.
const PATIENCE: Duration = Duration::from_secs(5);

impl Stats {
    pub(crate) fn of(life: &Life) -> Result<Self, Failed> {
        let (guest, boot) = life.machine()?;
        let usage = guest.usage().unwrap_or_default();
        let shim = guest.shim().map(|mark| mark.pid);
        let processes = guest.processes();
        let host = HostStats {
            boot_us: boot.as_micros() as u64,
            cpu_us: usage.cpu_us,
            throttled_us: usage.throttled_us,
            memory: usage.memory,
            memory_peak: usage.memory_peak,
            memory_limit: usage.memory_limit,
            oom_kills: usage.oom_kills,
            disk_bytes: disk(&life.dir()),
            supervisor_memory: resident(),
            pids: processes.iter().map(|mark| mark.pid).chain(shim).collect(),
        };
        let guest = guest.session().stats(Instant::now() + PATIENCE).ok();
        Ok(Stats { host, guest })
    }

    /// In the text form of Prometheus, for the launch `id`.
    pub fn prometheus(&self, id: &str) -> String {
        let mut text = String::new();
        let mut line = |name: &str, labels: &str, value: Option<f64>| {
            if let Some(value) = value {
                let _ = writeln!(text, "fcpipe_{name}{{id=\"{id}\"{labels}}} {value}");
            }
        };
        let seconds = |us: Option<u64>| us.map(|us| us as f64 / 1e6);
        let plain = |value: Option<u64>| value.map(|value| value as f64);
        let host = &self.host;
        line("boot_seconds", "", seconds(Some(host.boot_us)));
        line("machine_cpu_seconds_total", "", seconds(host.cpu_us));
        line(
            "machine_throttled_seconds_total",
            "",
            seconds(host.throttled_us),
        );
        line("machine_memory_bytes", "", plain(host.memory));
        line("machine_memory_peak_bytes", "", plain(host.memory_peak));
        line("machine_memory_limit_bytes", "", plain(host.memory_limit));
        line("machine_oom_kills_total", "", plain(host.oom_kills));
        line("machine_disk_bytes", "", plain(Some(host.disk_bytes)));
        line(
            "supervisor_memory_bytes",
            "",
            plain(Some(host.supervisor_memory)),
        );
        let Some(guest) = &self.guest else {
            return text;
        };
        line("guest_uptime_seconds", "", seconds(Some(guest.uptime_us)));
        line("guest_boot_seconds", "", seconds(Some(guest.listening_us)));
        line(
            "container_cpu_seconds_total",
            "",
            seconds(Some(guest.cpu.usage_us)),
        );
        line(
            "container_memory_bytes",
            "",
            plain(Some(guest.memory.current)),
        );
        line(
            "container_memory_limit_bytes",
            "",
            plain(guest.memory.limit),
        );
        line(
            "container_oom_kills_total",
            "",
            plain(Some(guest.memory.oom_kills)),
        );
        line("container_pids", "", plain(Some(guest.pids.current)));
        for disk in &guest.disks {
            let labels = format!(",device=\"{}\"", disk.name);
            line(
                "guest_disk_read_bytes_total",
                &labels,
                plain(Some(disk.read_bytes)),
            );
            line(
                "guest_disk_written_bytes_total",
                &labels,
                plain(Some(disk.written_bytes)),
            );
        }
        for interface in &guest.interfaces {
            let labels = format!(",interface=\"{}\"", interface.name);
            let (received, sent) = (interface.received_bytes, interface.sent_bytes);
            line(
                "guest_network_received_bytes_total",
                &labels,
                plain(Some(received)),
            );
            line("guest_network_sent_bytes_total", &labels, plain(Some(sent)));
        }
        text
    }
}

/// The types of what [`Stats::prometheus`] gives, in its form: once before all launches.
pub fn prometheus_types(text: &str) -> String {
    let mut types = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for name in text.lines().filter_map(|line| line.split('{').next()) {
        if seen.insert(name) {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            let _ = writeln!(types, "# TYPE {name} {kind}");
        }
    }
    types
}

/// What a launch's own files take. They are few, and none is in a directory.
fn disk(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let blocks = entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks()));
    blocks.sum::<u64>() * 512
}

/// This process's resident memory: proc_pid_statm(5), the second field, in pages.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_in_the_text_form_of_prometheus() {
        let mut stats = Stats::default();
        stats.host.boot_us = 1_500_000;
        stats.host.memory = Some(4096);
        let mut guest = fcpipe_proto::Stats::default();
        guest.disks.push(fcpipe_proto::stats::Disk {
            name: "vda".to_owned(),
            read_bytes: 7,
            ..Default::default()
        });
        stats.guest = Some(guest);
        let text = stats.prometheus("c1");
        for line in [
            "fcpipe_boot_seconds{id=\"c1\"} 1.5",
            "fcpipe_machine_memory_bytes{id=\"c1\"} 4096",
            "fcpipe_guest_disk_read_bytes_total{id=\"c1\",device=\"vda\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // What is not known is not said.
        assert!(!text.contains("machine_cpu_seconds_total"));
        let types = prometheus_types(&text);
        assert!(types.contains("# TYPE fcpipe_guest_disk_read_bytes_total counter"));
        assert!(types.contains("# TYPE fcpipe_boot_seconds gauge"));
    }
}
