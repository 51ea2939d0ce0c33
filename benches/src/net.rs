//! A machine and a container on one bridge: round trips, and TCP streams to the bridge and from it.
//!
//! Both hang on a bridge in a "host" namespace by a veth pair each, and both use the same busybox: `httpd` to send, which lets the kernel do it
//! (sendfile), and `wget` to receive. The other end is this program, in the host's namespace: it pings, takes streams and sends them, and has the
//! only clock. The time of a stream is from its first byte to its last, so starting a process in the machine is no part of it.
//!
//! A machine whose processor is emulated says nothing about a share of native speed; so VMM and accelerator stand over the table.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::Result;
use crate::bed::busybox;

const USAGE: &str = "bench-ext4 net FCPIPE [--runs N] [--mib N] [--dir target/bench/net]";

/// Who is measured: its namespace and its address.
const CONTAINER: (&str, &str) = ("fcbench-plain", "192.168.1.6");
const MACHINE: (&str, &str) = ("fcbench-vm", "192.168.1.5");
const HOST: (&str, &str) = ("fcbench-host", "192.168.1.1");
const PINGS: &str = "200";
/// Where the server in the machine and in the container listens, and what it has.
const HTTP: &str = "8080";
const SERVED: &str = "srv";
const FILE: &str = "big";
/// For the guest's process: to ping, and nothing else.
const CAPABILITIES: &[&str] = &["CAP_NET_RAW"];
/// Without a byte for so long, a stream has failed.
const SILENCE: Duration = Duration::from_secs(60);

struct Asked {
    fcpipe: PathBuf,
    dir: PathBuf,
    runs: usize,
    amount: u64,
}

pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut args = args.iter();
    let mut asked = Asked {
        fcpipe: PathBuf::from(args.next().ok_or(USAGE)?),
        dir: "target/bench/net".into(),
        runs: 3,
        amount: 128 << 20,
    };
    while let Some(arg) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match arg.as_str() {
            "--runs" => asked.runs = value.parse()?,
            "--mib" => asked.amount = value.parse::<u64>()? << 20,
            "--dir" => asked.dir = value.into(),
            _ => return Err(USAGE.into()),
        }
    }
    fs::create_dir_all(&asked.dir)?;
    asked.dir = asked.dir.canonicalize()?;
    let platform = Platform::new()?;
    let result = measure(&asked);
    let _ = asked
        .program()
        .args(["delete", "--force", MACHINE.0])
        .output();
    drop(platform);
    result
}

impl Asked {
    fn program(&self) -> Command {
        let mut program = Command::new(&self.fcpipe);
        program
            .env("FCPIPE_STATE_DIR", self.dir.join("state"))
            .env("FCPIPE_CACHE_DIR", self.dir.join("cache"))
            .args(["--progress", "quiet"])
            .stdin(Stdio::null());
        program
    }

    fn in_machine(&self) -> Command {
        let mut exec = self.program();
        exec.args(["exec", MACHINE.0, "--"]);
        exec
    }
}

fn in_namespace(name: &str) -> Command {
    let mut exec = Command::new("ip");
    exec.args(["netns", "exec", name]).stdin(Stdio::null());
    exec
}

fn measure(asked: &Asked) -> Result<()> {
    let bundle = bundle(asked)?;
    let mut start = asked.program();
    start.args(["run", "--detach", "--id", MACHINE.0]);
    said(start.arg(&bundle))?;
    let vmm = vmm()?;
    let served = bundle.join("rootfs").join(SERVED);
    let mut container = Figures::of(CONTAINER.1, served, Box::new(|| in_namespace(CONTAINER.0)))?;
    let served = Path::new("/").join(SERVED);
    let mut machine = Figures::of(MACHINE.1, served, Box::new(|| asked.in_machine()))?;
    for _ in 0..asked.runs {
        container.add(asked.amount)?;
        machine.add(asked.amount)?;
    }
    let (runs, mib) = (asked.runs, asked.amount >> 20);
    println!("\nmachine: {vmm}; {}", crate::harness::host());
    println!(
        "| {runs} runs of {mib} MiB, medians | round trip, ms | to the bridge, MiB/s | from the bridge, MiB/s |"
    );
    println!("|---|---|---|---|");
    let rows = json!({
        "container": container.row("container"),
        "machine": machine.row("machine"),
    });
    if vmm.contains("tcg") {
        println!(
            "emulated (tcg): its processor is the limit, and this proves nothing about a share of native speed"
        );
    }
    let figures = json!({"vmm": vmm, "host": crate::harness::host(), "runs": runs, "rows": rows});
    let file = asked.dir.join("machine.json");
    fs::write(&file, format!("{figures:#}\n"))?;
    println!("figures: {}", file.display());
    Ok(())
}

/// Makes a command that runs where what is measured is.
type Exec<'a> = Box<dyn Fn() -> Command + 'a>;

struct Figures<'a> {
    address: &'static str,
    exec: Exec<'a>,
    /// Ends with this.
    server: Child,
    round_trip: Vec<f64>,
    to_bridge: Vec<f64>,
    from_bridge: Vec<f64>,
}

impl Drop for Figures<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl<'a> Figures<'a> {
    fn of(address: &'static str, served: PathBuf, exec: Exec<'a>) -> Result<Figures<'a>> {
        let mut server = exec();
        server.args(["busybox", "httpd", "-f", "-p", HTTP, "-h"]);
        let server = server.arg(served).stdout(Stdio::null()).spawn()?;
        Ok(Figures {
            address,
            exec,
            server,
            round_trip: Vec::new(),
            to_bridge: Vec::new(),
            from_bridge: Vec::new(),
        })
    }

    fn add(&mut self, amount: u64) -> Result<()> {
        self.round_trip.push(ping(self.address)?);
        self.to_bridge.push(take(self.address, amount)?);
        self.from_bridge.push(give(&self.exec, amount)?);
        Ok(())
    }

    fn row(&self, who: &str) -> Value {
        let (ping, to, from) = (
            middle(&self.round_trip),
            middle(&self.to_bridge),
            middle(&self.from_bridge),
        );
        println!("| {who} | {ping:.3} | {to:.0} | {from:.0} |");
        json!({
            "round_trip_ms": self.round_trip,
            "to_bridge_mib_s": self.to_bridge,
            "from_bridge_mib_s": self.from_bridge,
        })
    }
}

fn middle(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The mean round trip from the host, milliseconds.
fn ping(address: &str) -> Result<f64> {
    let mut ping = in_namespace(HOST.0);
    ping.args(["busybox", "ping", "-q", "-c", PINGS, "-i", "0.02", address]);
    let text = said(&mut ping)?;
    // round-trip min/avg/max = 0.055/0.076/0.120 ms
    let figures = text.lines().find_map(|line| line.split(" = ").nth(1));
    let mean = figures.and_then(|figures| figures.split('/').nth(1));
    Ok(mean.ok_or_else(|| format!("ping said: {text}"))?.parse()?)
}

/// Does something on a thread that is in the host's namespace: sockets belong to the namespace that they are opened in.
fn in_host<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = Path::new("/run/netns").join(HOST.0);
    let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let thread = std::thread::Builder::new().name("netns".to_owned());
    let thread = thread.spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })?;
    thread
        .join()
        .map_err(|_| "the thread in the namespace panicked")?
}

fn patient(end: &TcpStream) -> Result<()> {
    end.set_read_timeout(Some(SILENCE))?;
    Ok(end.set_write_timeout(Some(SILENCE))?)
}

fn rate(amount: u64, begun: Instant) -> f64 {
    amount as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64()
}

/// Gets the file from the server at `address`: MiB a second, from the first byte on.
fn take(address: &'static str, amount: u64) -> Result<f64> {
    let port: u16 = HTTP.parse()?;
    let deadline = Instant::now() + SILENCE;
    let mut end = loop {
        match in_host(move || Ok(TcpStream::connect((address, port))?)) {
            Ok(end) => break end,
            // The server is about to start.
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    patient(&end)?;
    end.write_all(format!("GET /{FILE} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut buffer = vec![0; 1 << 20];
    let mut got = end.read(&mut buffer)? as u64;
    let begun = Instant::now();
    loop {
        match end.read(&mut buffer)? {
            0 => break,
            read => got += read as u64,
        }
    }
    // There is a header before it.
    match (amount..amount + 4096).contains(&got) {
        true => Ok(rate(amount, begun)),
        false => Err(format!("{got} bytes came from {address}, not {amount}").into()),
    }
}

/// Has whoever `exec` is get as much: MiB a second, until it has read it all and gone.
fn give(exec: &Exec<'_>, amount: u64) -> Result<f64> {
    let listener = in_host(|| Ok(TcpListener::bind((HOST.1, 0))?))?;
    let url = format!("http://{}/{FILE}", listener.local_addr()?);
    let mut client = exec();
    client.args(["busybox", "wget", "-q", "-O", "/dev/null", &url]);
    let client = client
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut end, _) = listener.accept()?;
    patient(&end)?;
    // The question is short and comes whole.
    let mut buffer = vec![0; 1 << 20];
    let _ = end.read(&mut buffer)?;
    buffer.fill(0);
    let begun = Instant::now();
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {amount}\r\n\r\n");
    end.write_all(head.as_bytes())?;
    for _ in 0..amount >> 20 {
        end.write_all(&buffer)?;
    }
    end.shutdown(Shutdown::Write)?;
    // To whoever goes before it has read all, the rest cannot be delivered: that is an error here.
    while end.read(&mut buffer)? > 0 {}
    let rate = rate(amount, begun);
    let output = client.wait_with_output()?;
    if !output.status.success() {
        let text = output.stderr.escape_ascii();
        return Err(format!("{url}: {}: {text}", output.status).into());
    }
    Ok(rate)
}

/// The program that runs the machine, and what executes the guest.
fn vmm() -> Result<String> {
    for pid in said(Command::new("ip").args(["netns", "pids", MACHINE.0]))?.lines() {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = command
            .split(|&byte| byte == 0)
            .map(|word| word.escape_ascii().to_string())
            .collect();
        let program = words[0].rsplit('/').next().unwrap_or_default();
        if program.starts_with("firecracker") {
            return Ok(format!("{program}, kvm"));
        }
        if program.starts_with("qemu") {
            let at = words.iter().position(|word| word == "-accel");
            let accelerator = at.and_then(|at| words.get(at + 1));
            return Ok(format!("{program}, {}", accelerator.ok_or("no -accel")?));
        }
    }
    Err("no VMM runs in the machine's namespace".into())
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        let text = output.stderr.escape_ascii().to_string();
        return Err(format!("{command:?}: {}: {text}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The namespaces, as a platform makes them; gone when this is dropped.
struct Platform;

impl Platform {
    fn new() -> Result<Platform> {
        let (host, bridge) = HOST;
        let mut script = format!(
            "ip netns add {host}; ip -n {host} link add b9_br0 type bridge
             ip -n {host} addr add {bridge}/24 dev b9_br0; ip -n {host} link set b9_br0 up\n"
        );
        for ((name, address), link) in [(MACHINE, "a"), (CONTAINER, "b")] {
            script += &format!(
                "ip netns add {name}
                 ip -n {host} link add v{link} type veth peer name eth0 netns {name}
                 ip -n {host} link set v{link} master b9_br0 up
                 ip -n {name} addr add {address}/24 dev eth0
                 ip -n {name} link set eth0 up\n"
            );
        }
        // What a measurement that was killed left.
        Platform::end();
        let platform = Platform;
        said(Command::new("sh").args(["-ec", &script]))?;
        Ok(platform)
    }

    fn end() {
        for (name, _) in [CONTAINER, MACHINE, HOST] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        Platform::end();
    }
}

fn bundle(asked: &Asked) -> Result<PathBuf> {
    let bundle = asked.dir.join("bundle");
    busybox(&bundle.join("rootfs"), &["sh", "sleep"])?;
    let served = bundle.join("rootfs").join(SERVED);
    fs::create_dir_all(&served)?;
    fs::File::create(served.join(FILE))?.set_len(asked.amount)?;
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["sleep", "100000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "network", "path": format!("/var/run/netns/{}", MACHINE.0)}]},
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(bundle)
}
