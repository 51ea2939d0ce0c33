//! The outer machine itself: QEMU with an emulated AMD processor, whose console is our output.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use super::image::Made;
use super::results::Results;
use crate::Result;
use crate::shell::command;

/// MiB. A guest inside has 512 or less, and Debian and the page cache want the rest.
const MEMORY: &str = "3000";

/// Boots it and passes on what it says; the exit code of what ran in it.
pub(super) fn run(dir: &Path, made: &Made) -> Result<u8> {
    let drive = format!(
        "file={},format=raw,if=virtio,snapshot=on",
        made.disk.display()
    );
    let mut qemu = command("qemu-system-x86_64", &["-machine", "q35"]);
    // `npt`: nested page tables of the emulated processor, without which the inner kernel would shadow every page table.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,svm=on,npt=on"])
        .args([
            "-smp",
            "2",
            "-m",
            MEMORY,
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-device",
            "virtio-rng-pci",
        ])
        .arg("-kernel")
        .arg(&made.kernel)
        .arg("-initrd")
        .arg(&made.initrd)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests rdinit=/init",
        ])
        .args(["-drive", &drive])
        // `snapshot=on` keeps what is written there.
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    println!("lab: booting");
    let mut child = qemu
        .spawn()
        .map_err(|e| format!("qemu-system-x86_64: {e}"))?;
    let stdout = child.stdout.take().ok_or("no output of QEMU")?;
    let mut results = Results::default();
    let code = follow(BufReader::new(stdout), &mut results);
    let status = child
        .wait()
        .map_err(|e| format!("qemu-system-x86_64: {e}"))?;
    println!("{results}");
    code?.ok_or_else(|| format!("the lab's machine ended ({status}) before its command did"))
}

fn follow(mut console: impl BufRead, results: &mut Results) -> Result<Option<u8>> {
    let mut code = None;
    let mut line = Vec::new();
    let mut out = std::io::stdout().lock();
    while console
        .read_until(b'\n', &mut line)
        .map_err(|e| e.to_string())?
        > 0
    {
        let said = line.trim_ascii_end();
        if let Some(number) = said.strip_prefix(b"lab: exit ") {
            code = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse().ok());
        }
        // What tests are called is text.
        if let Ok(text) = std::str::from_utf8(said) {
            results.line(text);
        }
        // Whoever reads it may have gone.
        let _ = out.write_all(said).and_then(|()| out.write_all(b"\n"));
        let _ = out.flush();
        line.clear();
    }
    Ok(code)
}
