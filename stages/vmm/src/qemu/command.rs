//! QEMU's command line. Pure: nothing here looks at the host.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::config::{Accelerator, Drive, MachineConfig, Nic};
use crate::qemu::VHOST_SOCKET;

/// q35 without what a guest of ours never looks at. Dropping the HPET costs nothing: guests have the ACPI PM timer and the TSC.
/// (`graphics=off` stays out: the firmware would then speak on the serial line.)
const MACHINE: &str =
    "q35,sata=off,smbus=off,hpet=off,usb=off,vmport=off,smm=off,memory-backend=memory";

/// QEMU gives up what it will not need again, as a guest may break into it.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// `reboot=t`: the triple fault is what QEMU sees fastest, and `-no-reboot` makes it exit then. `panic=-1`: a panic
/// reboots, so it ends the machine. `cryptomgr.notests`: the self-tests of ciphers, 0.2 s under emulation.
/// `no_timer_check`, which a kernel sets itself where it finds KVM: it counts the timer's interrupts in a moment that it measures by the
/// processor's speed, and where a busy host delivers none in it, it panics ("IO-APIC + timer doesn't work").
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet no_timer_check cryptomgr.notests";

/// The arguments; relative names in them are of `config.dir`.
pub(crate) fn arguments(
    config: &MachineConfig,
    accelerator: Accelerator,
    kernel: &Path,
    initrd: &Path,
    drives: &[Drive],
) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.add("-name", format!("fcpipe-{}", config.id.replace(',', ",,")));
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.flag("-no-reboot");
    args.add("-display", "none");
    args.add("-sandbox", SANDBOX);
    args.add("-machine", MACHINE);
    match accelerator {
        Accelerator::Kvm => {
            args.add("-accel", "kvm");
            args.add("-cpu", "host");
        }
        Accelerator::Tcg => {
            args.add("-accel", "tcg,thread=multi");
            args.add("-cpu", "max");
        }
    }
    args.add("-smp", smp(config));
    args.add("-m", format!("{}M", config.memory_mib));
    // Shared, because the vsock device's process reads and writes the guest's memory.
    args.add(
        "-object",
        format!(
            "memory-backend-memfd,id=memory,size={}M,share=on{}",
            config.memory_mib,
            if config.tuning.huge_pages {
                ",hugetlb=on,hugetlbsize=2M"
            } else {
                ""
            }
        ),
    );
    // `-kernel` and `-initrd` are whole arguments: no comma means anything in them.
    args.add("-kernel", kernel);
    args.add("-initrd", initrd);
    args.add("-append", cmdline(&config.cmdline_extra));
    args.add("-chardev", "stdio,id=console,signal=off");
    args.add("-serial", "chardev:console");
    args.add("-device", "virtio-rng-pci");
    for (index, drive) in drives.iter().enumerate() {
        args.add("-blockdev", blockdev(index, drive));
        args.add(
            "-device",
            // On its own QEMU stops the whole machine when the host's disk is full, and waits for an operator.
            format!(
                "virtio-blk-pci,drive=drive{index},serial=drive{index},werror=report,rerror=report"
            ),
        );
    }
    for (index, nic) in config.nics.iter().enumerate() {
        args.add("-netdev", netdev(index, nic));
        args.add("-device", net_device(index, nic));
    }
    args.add("-chardev", format!("socket,id=vsock,path={VHOST_SOCKET}"));
    args.add("-device", "vhost-user-vsock-pci,chardev=vsock");
    args.list
}

/// By name, as Firecracker opens it too: QEMU is in the TAP's namespace by then. No script may run, and the kernel's vhost is for
/// hosts that have it.
fn netdev(index: usize, nic: &Nic) -> String {
    format!(
        "tap,id=net{index},ifname={},script=no,downscript=no,vhost=off",
        nic.tap
    )
}

/// `romfile=`: nobody boots from it, and the firmware would spend time on its ROM.
fn net_device(index: usize, nic: &Nic) -> String {
    format!(
        "virtio-net-pci,netdev=net{index},mac={},host_mtu={},romfile=",
        nic.mac_text(),
        nic.mtu
    )
}

/// Threads come in pairs of one core, as Firecracker pairs them.
fn smp(config: &MachineConfig) -> String {
    match config.vcpus {
        cpus if config.tuning.smt && cpus % 2 == 0 => {
            format!("{cpus},sockets=1,cores={},threads=2", cpus / 2)
        }
        cpus => cpus.to_string(),
    }
}

fn cmdline(extra: &str) -> String {
    format!("{CMDLINE} {extra}").trim_end().to_owned()
}

/// `no-flush`: a drive lives as long as its launch, so there is nothing to save from a power cut.
fn blockdev(index: usize, drive: &Drive) -> OsString {
    let mut value = OsString::from(format!(
        "driver=raw,node-name=drive{index},read-only={},cache.no-flush=on,file.driver=file,file.filename=",
        if drive.read_only { "on" } else { "off" }
    ));
    value.push(comma_doubled(drive.path.as_os_str()));
    value
}

/// In QEMU's `key=value,…` syntax a comma in a value is written twice.
fn comma_doubled(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(byte);
        }
    }
    OsString::from_vec(out)
}

#[derive(Default)]
struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.list.push(flag.into());
    }

    fn add(&mut self, flag: &str, value: impl AsRef<OsStr>) {
        self.flag(flag);
        self.list.push(value.as_ref().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_15_a_drives_path_may_hold_any_byte() {
        let drive = Drive {
            path: OsStr::from_bytes(b"/a,b\xff=\n").into(),
            read_only: true,
        };
        let value = blockdev(3, &drive);
        assert!(value.as_bytes().ends_with(
            b"read-only=on,cache.no-flush=on,file.driver=file,file.filename=/a,,b\xff=\n"
        ));
    }

    #[test]
    fn an_interface_has_its_address_and_mtu_and_runs_no_script() {
        let nic = Nic {
            tap: "b9fc_web-1".to_owned(),
            mac: [2, 0, 0, 0xab, 0, 9],
            mtu: 1450,
        };
        assert_eq!(
            netdev(1, &nic),
            "tap,id=net1,ifname=b9fc_web-1,script=no,downscript=no,vhost=off"
        );
        assert_eq!(
            net_device(1, &nic),
            "virtio-net-pci,netdev=net1,mac=02:00:00:ab:00:09,host_mtu=1450,romfile="
        );
    }

    #[test]
    fn the_extra_arguments_come_last_so_that_they_win() {
        assert!(cmdline("loglevel=7 fcpipe.boot=x").ends_with(" loglevel=7 fcpipe.boot=x"));
        assert_eq!(cmdline(""), CMDLINE);
    }
}
