//! The requests that make a machine, typed: what Firecracker's API description says of each. Pure.
//!
//! The fields' names are the API's. A field that is not needed is left out, so that an older version does not meet one that
//! it does not know (it refuses those).

use serde::Serialize;

use crate::config::{CpuTemplate, MachineConfig, RateLimit};
use crate::error::VmmError;
use crate::firecracker::version::{Feature, Version};
use crate::firecracker::{INITRD, KERNEL, METRICS, VSOCK_SOCKET};

/// `reboot=k`: the keyboard controller's reset line, at which Firecracker exits. `panic=-1`: a panic reboots, so it ends the machine.
/// The `i8042` ones keep the kernel from looking for what is not there; the keyboard stays, for [`Action::SendCtrlAltDel`].
/// `cryptomgr.notests`: the self-tests of ciphers.
const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet cryptomgr.notests \
                       i8042.noaux i8042.nomux i8042.dumbkbd";

/// What a kernel takes, its final NUL included, less what Firecracker itself appends (`pci=off`).
const CMDLINE_LIMIT: usize = 2048 - 1 - 8;

/// The console's bytes a second, and how many may come at once: a boot with all its messages is below that.
const CONSOLE_RATE: u64 = 1 << 20;

/// One `PUT` or `PATCH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// JSON.
    pub(crate) body: String,
}

impl Request {
    fn new(path: impl Into<String>, body: &impl Serialize) -> Result<Self, VmmError> {
        let path = path.into();
        match serde_json::to_string(body) {
            Ok(body) => Ok(Self { path, body }),
            // Not for these types: no map, no name that is not UTF-8.
            Err(error) => Err(VmmError::Config {
                id: path,
                why: error.to_string(),
            }),
        }
    }
}

#[derive(Serialize)]
struct MachineConfiguration {
    vcpu_count: u32,
    mem_size_mib: u64,
    smt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_template: Option<CpuTemplate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    huge_pages: Option<&'static str>,
}

#[derive(Serialize)]
struct BootSource<'a> {
    kernel_image_path: &'a str,
    initrd_path: &'a str,
    boot_args: String,
}

#[derive(Serialize)]
struct Vsock<'a> {
    guest_cid: u32,
    uds_path: &'a str,
}

#[derive(Serialize)]
struct Entropy {}

#[derive(Serialize)]
struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
}

#[derive(Serialize)]
struct Metrics<'a> {
    metrics_path: &'a str,
}

#[derive(Serialize)]
struct Serial {
    rate_limiter: TokenBucket,
}

#[derive(Serialize)]
struct DriveBody<'a> {
    drive_id: &'a str,
    path_on_host: &'a str,
    is_root_device: bool,
    is_read_only: bool,
    /// `Unsafe`: the guest's flushes are not passed on; a writable drive lives as long as its launch.
    cache_type: &'static str,
    io_engine: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
}

#[derive(Serialize)]
struct NetworkInterface<'a> {
    iface_id: &'a str,
    host_dev_name: &'a str,
    guest_mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_rate_limiter: Option<RateLimiter>,
}

#[derive(Serialize)]
struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<TokenBucket>,
}

#[derive(Serialize)]
struct TokenBucket {
    size: u64,
    /// Milliseconds until an empty bucket is full.
    refill_time: u64,
}

impl TokenBucket {
    fn a_second(size: u64) -> Self {
        Self {
            size,
            refill_time: 1000,
        }
    }
}

impl RateLimiter {
    fn of(limit: RateLimit) -> Option<Self> {
        let limiter = Self {
            bandwidth: limit.bandwidth.map(TokenBucket::a_second),
            ops: limit.ops.map(TokenBucket::a_second),
        };
        (limiter.bandwidth.is_some() || limiter.ops.is_some()).then_some(limiter)
    }
}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Action {
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Serialize)]
struct ActionBody {
    action_type: Action,
}

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

#[derive(Serialize)]
struct VmBody {
    state: VmState,
}

/// Everything but the drives, in the order of sending.
pub(crate) fn without_drives(
    config: &MachineConfig,
    version: Version,
) -> Result<Vec<Request>, VmmError> {
    let tuning = &config.tuning;
    let boot_args = format!("{CMDLINE} {}", config.cmdline_extra)
        .trim_end()
        .to_owned();
    if boot_args.len() > CMDLINE_LIMIT {
        return Err(VmmError::Config {
            id: config.id.clone(),
            why: format!(
                "its kernel arguments are {} bytes long, and {CMDLINE_LIMIT} are the limit",
                boot_args.len()
            ),
        });
    }
    let mut requests = vec![
        Request::new(
            "/metrics",
            &Metrics {
                metrics_path: METRICS,
            },
        )?,
        Request::new(
            "/machine-config",
            &MachineConfiguration {
                vcpu_count: config.vcpus,
                mem_size_mib: config.memory_mib,
                smt: tuning.smt,
                cpu_template: tuning.cpu_template,
                huge_pages: tuning.huge_pages.then_some("2M"),
            },
        )?,
        Request::new(
            "/boot-source",
            &BootSource {
                kernel_image_path: KERNEL,
                initrd_path: INITRD,
                boot_args,
            },
        )?,
        Request::new(
            "/vsock",
            &Vsock {
                guest_cid: config.vsock_cid,
                uds_path: VSOCK_SOCKET,
            },
        )?,
        Request::new("/entropy", &Entropy {})?,
    ];
    if version.has(Feature::SerialRateLimit) {
        let rate_limiter = TokenBucket::a_second(CONSOLE_RATE);
        requests.push(Request::new("/serial", &Serial { rate_limiter })?);
    }
    if let Some(balloon) = tuning.balloon {
        requests.push(Request::new(
            "/balloon",
            &Balloon {
                amount_mib: balloon.mib,
                deflate_on_oom: balloon.deflate_on_oom,
            },
        )?);
    }
    for (index, nic) in config.nics.iter().enumerate() {
        let name = format!("net{index}");
        requests.push(Request::new(
            format!("/network-interfaces/{name}"),
            &NetworkInterface {
                iface_id: &name,
                host_dev_name: &nic.tap,
                guest_mac: nic.mac_text(),
                mtu: version.has(Feature::Mtu).then_some(nic.mtu),
                rx_rate_limiter: RateLimiter::of(tuning.net_limit),
                tx_rate_limiter: RateLimiter::of(tuning.net_limit),
            },
        )?);
    }
    Ok(requests)
}

/// The name in the machine's directory by which Firecracker opens drive `index`.
pub(crate) fn drive_name(index: usize) -> String {
    format!("drive{index}")
}

/// One drive. None is the root device: the initrd's program mounts what it is told to.
pub(crate) fn drive(
    config: &MachineConfig,
    index: usize,
    read_only: bool,
) -> Result<Request, VmmError> {
    let name = drive_name(index);
    Request::new(
        format!("/drives/{name}"),
        &DriveBody {
            drive_id: &name,
            path_on_host: &name,
            is_root_device: false,
            is_read_only: read_only,
            cache_type: "Unsafe",
            io_engine: "Sync",
            rate_limiter: RateLimiter::of(config.tuning.drive_limit),
        },
    )
}

pub(crate) fn action(action: Action) -> Result<Request, VmmError> {
    Request::new(
        "/actions",
        &ActionBody {
            action_type: action,
        },
    )
}

/// `PATCH /vm`.
pub(crate) fn vm_state(state: VmState) -> Result<Request, VmmError> {
    Request::new("/vm", &VmBody { state })
}
