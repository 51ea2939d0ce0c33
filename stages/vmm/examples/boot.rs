//! Boots a kernel and an initrd, some times in a row, and says how long each took: for measuring by hand.
//!
//! `cargo run -p fcpipe-vmm --example boot -- VMLINUX INITRD TIMES [KERNEL ARGUMENTS]`. The guest's program is expected to listen on
//! vsock port 1000, to send a line to whoever connects, and to reboot when it gets one.
#![allow(
    clippy::print_stdout,
    reason = "an example for people to run by hand, which speaks to them"
)]

use std::error::Error;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fcpipe_vmm::{Drive, Host, KernelFiles, MachineConfig, VmmChoice, choose};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "boot VMLINUX INITRD TIMES [KERNEL ARGUMENTS]";
    let vmlinux = PathBuf::from(args.next().ok_or(usage)?);
    let initrd = PathBuf::from(args.next().ok_or(usage)?);
    let times: u32 = args.next().ok_or(usage)?.parse()?;
    let cmdline_extra = args.next().unwrap_or_default();
    let chosen = choose(&Host::from_env(None), VmmChoice::Auto)?;
    println!("{}", chosen.reasons.join("\n"));
    for number in 1..=times {
        let dir = tempfile::tempdir()?;
        let disk = dir.path().join("disk, with a comma");
        std::fs::File::create(&disk)?.set_len(64 << 20)?;
        let config = MachineConfig {
            cage: fcpipe_vmm::Cage::default(),
            id: format!("boot-{number}"),
            vcpus: 1,
            memory_mib: 256,
            kernel: KernelFiles {
                bzimage: None,
                vmlinux: vmlinux.clone(),
            },
            initrd: initrd.clone(),
            cmdline_extra: cmdline_extra.clone(),
            vsock_cid: 3,
            dir: dir.path().to_owned(),
            inherit: Vec::new(),
            netns: None,
            nics: Vec::new(),
            tuning: fcpipe_vmm::Tuning::default(),
        };
        let drive = Drive {
            path: disk,
            read_only: number % 2 == 0,
        };
        let start = Instant::now();
        let prepared = chosen.vmm.prepare(&config, &|| false)?;
        let ready = start.elapsed();
        let machine = prepared.boot(&[drive], &|| false)?;
        let booted = start.elapsed();
        let deadline = Instant::now() + Duration::from_secs(30);
        let connected = machine.connect(1000, deadline, &|| false);
        let mut stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                println!("{}", error.logs().cloned().unwrap_or_default());
                return Err(error.into());
            }
        };
        let answered = start.elapsed();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello)?;
        stream.write_all(b"BYE\n")?;
        let exit = machine
            .wait_exit(Duration::from_secs(10))
            .ok_or("it did not end")?;
        let exited = start.elapsed();
        drop(machine);
        println!(
            "{number:3}: prepared {ready:.1?}, QEMU started {booted:.1?}, agent {answered:.2?}, exit {exited:.2?} ({exit}), gone {:.2?}",
            start.elapsed()
        );
    }
    Ok(())
}
