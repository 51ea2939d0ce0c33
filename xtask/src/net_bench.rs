//! `bench net`: what `fcpipe-net`'s own program measures without a machine, and then a machine and a container on one bridge.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::shell::{check, command, output};
use crate::{demo, setup};

/// MiB that are sent through TCP.
const AMOUNT: u64 = 256;
/// The container that stays one, beside the machine.
const PLAIN: &str = "fcbench-plain";
const MACHINE: &str = "fcbench-vm";
const HOST: &str = "fcbench-host";

pub(crate) fn run(fcpipe: &str) -> Result<()> {
    check(&mut command(
        "cargo",
        &[
            "run",
            "--release",
            "--quiet",
            "--package",
            "fcpipe-net",
            "--example",
            "measure",
        ],
    ))?;
    demo::import_kernel(fcpipe)?;
    let dir = std::env::temp_dir().join(format!("fcpipe-bench-net-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let result = with_machine(fcpipe, &dir);
    let id = ["delete", "--force", MACHINE];
    let _ = output(fcpipe_in(fcpipe, &dir).args(id));
    for name in [PLAIN, MACHINE, HOST] {
        let _ = output(&mut command("ip", &["netns", "del", name]));
    }
    let _ = fs::remove_dir_all(&dir);
    result
}

fn fcpipe_in(fcpipe: &str, dir: &Path) -> std::process::Command {
    let mut program = command(fcpipe, &["--progress", "quiet"]);
    program.env("FCPIPE_STATE_DIR", dir.join("state"));
    program
}

fn sh(script: &str) -> Result<String> {
    output(&mut command("sh", &["-ec", script]))
}

fn with_machine(fcpipe: &str, dir: &Path) -> Result<()> {
    sh(&format!(
        "ip netns add {HOST}; ip -n {HOST} link add b9_br0 type bridge
         ip -n {HOST} addr add 192.168.1.1/24 dev b9_br0; ip -n {HOST} link set b9_br0 up"
    ))?;
    for (name, link, number) in [(MACHINE, "a", 5), (PLAIN, "b", 6)] {
        sh(&format!(
            "ip netns add {name}
             ip -n {HOST} link add v{link} type veth peer name eth0 netns {name}
             ip -n {HOST} link set v{link} master b9_br0 up
             ip -n {name} addr add 192.168.1.{number}/24 dev eth0
             ip -n {name} link set eth0 up"
        ))?;
    }
    let bundle = bundle(dir)?;
    let mut start = fcpipe_in(fcpipe, dir);
    start.args(["run", "--detach", "--id", MACHINE]).arg(bundle);
    check(&mut start)?;
    let state = output(fcpipe_in(fcpipe, dir).args(["state", MACHINE]))?;
    let doctor = output(fcpipe_in(fcpipe, dir).args(["doctor"])).unwrap_or_default();
    let kvm = doctor.lines().find(|line| line.contains("kvm"));
    println!("machine: {}", vmm(&state));
    println!("accelerator: {}", kvm.unwrap_or("unknown").trim());

    let in_machine = |script: &str| -> Result<String> {
        let mut exec = fcpipe_in(fcpipe, dir);
        exec.args(["exec", MACHINE, "--", "sh", "-ec", script]);
        output(&mut exec)
    };
    let in_container = |script: &str| -> Result<String> {
        let arguments = ["netns", "exec", PLAIN, "sh", "-ec", script];
        output(&mut command("ip", &arguments))
    };
    println!(
        "| from | round trip to the bridge (ms: least/mean/most) | TCP to the bridge (MiB/s) | TCP from the bridge (MiB/s) |"
    );
    println!("|---|---|---|---|");
    for (who, exec) in [
        (
            "container",
            &in_container as &dyn Fn(&str) -> Result<String>,
        ),
        ("machine", &in_machine),
    ] {
        let ping = exec(
            "busybox ping -q -c 100 -i 0.02 192.168.1.1 2>/dev/null || busybox ping -q -c 20 192.168.1.1",
        )?;
        let ping = ping.lines().find_map(|line| line.split(" = ").nth(1));
        let ping = ping.unwrap_or("?").replace(" ms", "");
        let to = timed(
            &format!(
                "busybox dd if=/dev/zero bs=1M count={AMOUNT} 2>/dev/null | busybox nc 192.168.1.1 9000"
            ),
            "busybox nc -l -p 9000 > /dev/null",
            exec,
        )?;
        let from = timed(
            "busybox nc 192.168.1.1 9000 > /dev/null",
            &format!(
                "busybox dd if=/dev/zero bs=1M count={AMOUNT} 2>/dev/null | busybox nc -l -p 9000"
            ),
            exec,
        )?;
        println!("| {who} | {ping} | {to:.0} | {from:.0} |");
    }
    println!(
        "An emulated machine (tcg) proves nothing about a share of native speed: its processor is the limit."
    );
    Ok(())
}

/// MiB a second while `server` runs on the bridge's side and `client` on the other.
fn timed(client: &str, server: &str, exec: &dyn Fn(&str) -> Result<String>) -> Result<f64> {
    let mut listening = command("ip", &["netns", "exec", HOST, "sh", "-c", server])
        .stdin(std::process::Stdio::null())
        .spawn()
        .map_err(|e| format!("ip: {e}"))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let begun = Instant::now();
    let done = exec(client);
    let time = begun.elapsed();
    let _ = listening.kill();
    let _ = listening.wait();
    done?;
    Ok(AMOUNT as f64 / time.as_secs_f64())
}

fn vmm(state: &str) -> String {
    let state: serde_json::Value = serde_json::from_str(state).unwrap_or_default();
    let pid = state["pid"].to_string();
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    program.trim().to_owned()
}

fn bundle(dir: &Path) -> Result<std::path::PathBuf> {
    let bundle = dir.join("bundle");
    let bin = bundle.join("rootfs/bin");
    let busybox = crate::shell::find("busybox").ok_or("busybox is not installed")?;
    let make = || -> std::io::Result<()> {
        fs::create_dir_all(&bin)?;
        fs::copy(&busybox, bin.join("busybox"))?;
        for name in ["sh", "sleep"] {
            symlink("busybox", bin.join(name))?;
        }
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sleep", "100000"], "cwd": "/", "env": ["PATH=/bin"]},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "network", "path": format!("/var/run/netns/{MACHINE}")}]},
        });
        fs::write(bundle.join("config.json"), config.to_string())
    };
    make().map_err(|e| format!("{}: {e}", bundle.display()))?;
    let _ = setup::kernel_package()?;
    Ok(bundle)
}
