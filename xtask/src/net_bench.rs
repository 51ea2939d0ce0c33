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
/// For ping and for a server on port 80.
const CAPABILITIES: &[&str] = &["CAP_NET_RAW", "CAP_NET_BIND_SERVICE"];
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
    let in_host = |script: &str| -> Result<String> {
        let arguments = ["netns", "exec", HOST, "sh", "-ec", script];
        output(&mut command("ip", &arguments))
    };
    let served = dir.join("bundle/rootfs/srv").display().to_string();
    let mut servers = Vec::new();
    for name in [PLAIN, HOST] {
        let server = [
            "netns", "exec", name, "busybox", "httpd", "-f", "-h", &served,
        ];
        let server = command("ip", &server).spawn();
        servers.push(Server(server.map_err(|e| format!("ip: {e}"))?));
    }
    in_machine("busybox httpd -h /srv")?;
    for (who, address, exec) in [
        (
            "container",
            "192.168.1.6",
            &in_container as &dyn Fn(&str) -> Result<String>,
        ),
        ("machine", "192.168.1.5", &in_machine),
    ] {
        let ping = exec(
            "busybox ping -q -c 100 -i 0.02 192.168.1.1 2>/dev/null || busybox ping -q -c 20 192.168.1.1",
        )?;
        let ping = ping.lines().find_map(|line| line.split(" = ").nth(1));
        let ping = ping.unwrap_or("?").replace(" ms", "");
        let to = timed(&in_host, address)?;
        let from = timed(exec, "192.168.1.1")?;
        println!("| {who} | {ping} | {to:.0} | {from:.0} |");
    }
    println!(
        "An emulated machine (tcg) proves nothing about a share of native speed: its processor is the limit."
    );
    Ok(())
}

/// Ends with the measuring.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// MiB a second that whoever runs `exec` gets from the server at `address`, by HTTP over one connection; all must have come.
fn timed(exec: &dyn Fn(&str) -> Result<String>, address: &str) -> Result<f64> {
    let get = format!(
        "printf 'GET /big HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 60 {address} 80 | busybox wc -c"
    );
    let begun = Instant::now();
    let got = exec(&get)?;
    let time = begun.elapsed();
    let got: u64 = got.trim().parse().unwrap_or_default();
    if got < AMOUNT << 20 {
        return Err(format!("{got} bytes came from {address}, not {AMOUNT} MiB"));
    }
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
            "process": {
                "args": ["sleep", "100000"], "cwd": "/", "env": ["PATH=/bin"],
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            },
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "network", "path": format!("/var/run/netns/{MACHINE}")}]},
        });
        let srv = bundle.join("rootfs/srv");
        fs::create_dir_all(&srv)?;
        fs::File::create(srv.join("big"))?.set_len(AMOUNT << 20)?;
        fs::write(bundle.join("config.json"), config.to_string())
    };
    make().map_err(|e| format!("{}: {e}", bundle.display()))?;
    let _ = setup::kernel_package()?;
    Ok(bundle)
}
