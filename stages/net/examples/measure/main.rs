//! What a network costs, apart from a machine: set-up and teardown, and frames through the redirect. As root:
//! `cargo run --release -p fcpipe-net --example measure [FIGURES.json]`. `cargo xtask bench net` runs it, and then one with a machine.
//!
//! What is in a figure of frames: one thread sends 64 frames with each system call, and whatever becomes of a frame happens on the same
//! processor before the call returns; so the time of a frame is that of its whole way. Interfaces count. The two redirects are measured
//! without the system call that a TAP takes for each frame, and then a TAP with it:
//!
//! - to the guest: the TAP is there and open, and nobody reads it; so a frame's way ends at its queue, which is full.
//! - from the guest: the guard, redirect and last filter hang at the sending end of a bridge without ports, in the TAP's place. What a guest
//!   leaves unfinished is judged at a TAP alone, where it can be left.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "an example for people to run by hand, which speaks to them and fails by a panic"
)]

#[path = "../../tests/main/packets.rs"]
mod packets;
mod sender;
#[path = "../../tests/main/sockets.rs"]
mod sockets;
#[path = "../../tests/main/tap.rs"]
mod tap;
#[path = "../../tests/main/world.rs"]
mod world;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fcpipe_net::filter::{Guest, from_guest};
use fcpipe_net::{Wanted, Wire, make, plan, undo};
use sender::Sender;
use serde_json::{Value, json};
use tap::{Header, Machine};
use world::{EVERYBODY, World, planned, sh, wanted};

const ROUNDS: usize = 200;
/// Between two rounds: what the kernel does behind a teardown is over by then.
const PAUSE: Duration = Duration::from_millis(50);
const MANY: usize = 30;
const MANY_ROUNDS: usize = 5;
const FRAMES: Duration = Duration::from_millis(700);
/// Ways alternate, so that a change of the host's speed meets all of them.
const TURNS: usize = 5;

/// The checksum of UDP over IPv4 without options.
const UNFINISHED: Header = Header([1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);

fn main() {
    if world::skip() {
        return;
    }
    let mut figures = json!({"set_up_ms": one(), "at_once_ms": many()});
    figures["frames_a_second"] = small_frames();
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(&path, format!("{figures:#}\n")).unwrap();
        println!("figures: {path}");
    }
}

/// Milliseconds, sorted.
fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn row(what: &str, times: &[Duration]) -> Value {
    let times = sorted(times);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (median, most, worst) = (at(0.5), at(0.99), at(1.0));
    println!("| {what} | {median:.2} | {most:.2} | {worst:.2} |");
    json!({"what": what, "median": median, "p99": most, "worst": worst})
}

/// One namespace, again and again.
fn one() -> Value {
    let world = World::new();
    let (mut looks, mut makes, mut both, mut undos) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        let namespace = world.namespace();
        let attachment = planned(&world, "bench").unwrap();
        looks.push(begun.elapsed());
        let making = Instant::now();
        make(&namespace, &attachment).unwrap();
        makes.push(making.elapsed());
        both.push(begun.elapsed());
        let begun = Instant::now();
        undo(&attachment).unwrap();
        undos.push(begun.elapsed());
    }
    println!("| one namespace, {ROUNDS} rounds, ms | median | 99 of 100 | worst |");
    println!("|---|---|---|---|");
    json!([
        row("open it and look", &looks),
        row("make TAP, filters and redirects", &makes),
        row("set up: both together", &both),
        row("take away", &undos),
    ])
}

/// Many namespaces at once, each by a thread of its own.
fn many() -> Value {
    let worlds: Vec<World> = (0..MANY).map(|_| World::new()).collect();
    let (mut makes, mut undos) = (vec![], vec![]);
    for _ in 0..MANY_ROUNDS {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        let attachments: Vec<_> = std::thread::scope(|scope| {
            let made: Vec<_> = worlds
                .iter()
                .map(|world| {
                    scope.spawn(move || {
                        let attachment = planned(world, "bench").unwrap();
                        make(&world.namespace(), &attachment).unwrap();
                        attachment
                    })
                })
                .collect();
            made.into_iter().map(|made| made.join().unwrap()).collect()
        });
        makes.push(begun.elapsed());
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for attachment in &attachments {
                scope.spawn(move || undo(attachment).unwrap());
            }
        });
        undos.push(begun.elapsed());
    }
    println!(
        "\n| {MANY} namespaces at once, {MANY_ROUNDS} rounds, ms in all | median | 99 of 100 | worst |"
    );
    println!("|---|---|---|---|");
    json!([row("set up", &makes), row("take away", &undos)])
}

/// A way that frames go, and all turns of it.
struct Way<'a> {
    what: &'static str,
    send: Box<dyn Fn() -> usize + 'a>,
    /// Counts those that arrived.
    count: Box<dyn Fn() -> u64 + 'a>,
    rates: Vec<f64>,
}

/// Frames of 100 bytes, to the guest and from it.
fn small_frames() -> Value {
    // Without redirects, and with them.
    let (plain, redirected) = (World::new(), World::new());
    let attachment = planned(&redirected, "bench").unwrap();
    let namespace = redirected.namespace();
    make(&namespace, &attachment).unwrap();
    let wire = &attachment.wires[0];
    let in_the_tap_s_place = in_the_tap_s_place(&redirected, wire);
    let read = World::new();
    let read_attachment = planned(&read, "bench").unwrap();
    let read_namespace = read.namespace();
    make(&read_namespace, &read_attachment).unwrap();

    let payload = packets::udp(9, 9, &[0; 58]);
    let packet = packets::ipv4(packets::V4, 17, 0, 0, &payload);
    // To nobody on the bridge: what the stacks would do with it is no part of the way.
    let frame = |from: [u8; 6]| packets::frame(packets::OTHER, from, 0x0800, &packet);
    let own = planned(&plain, "bench").unwrap().wires[0].mac;
    let counted = |world: &World, host: bool, link: &str, counters: &[&str]| -> u64 {
        let namespace = if host { &world.host } else { &world.container };
        let files = counters.iter().fold(String::new(), |mut files, counter| {
            let _ = write!(files, " /sys/class/net/{link}/statistics/{counter}");
            files
        });
        let text = sh(&format!("ip netns exec {namespace} cat {files}"));
        text.lines().map(|line| line.parse::<u64>().unwrap()).sum()
    };

    let from_host = Sender::open(&plain.host, "b9_veth_h", &frame(packets::OTHER));
    let to_redirect = Sender::open(&redirected.host, "b9_veth_h", &frame(packets::OTHER));
    let to_reader = Sender::open(&read.host, "b9_veth_h", &frame(packets::OTHER));
    let from_container = Sender::open(&plain.container, "b9_veth_c", &frame(own));
    let from_stand_in = Sender::open(&redirected.container, in_the_tap_s_place, &frame(wire.mac));
    let _open = Machine::open(&namespace, &wire.tap);
    let reader = Machine::open(&read_namespace, &wire.tap);
    let written = frame(read_attachment.wires[0].mac);
    let unguarded = World::new();
    let not_judged = Wanted {
        antispoof: false,
        ..wanted("bench")
    };
    let unguarded_namespace = unguarded.namespace();
    let unguarded_attachment = plan(&unguarded_namespace, &not_judged, EVERYBODY).unwrap();
    make(&unguarded_namespace, &unguarded_attachment).unwrap();
    let writer = Machine::open(&unguarded_namespace, &wire.tap);
    let to_tap = |machine: &Machine, header: &Header| {
        (0..Sender::FRAMES).for_each(|_| machine.send_with(header, &written));
        Sender::FRAMES
    };
    let arrived = |world| move || counted(world, true, "b9_veth_h", &["rx_packets"]);
    let mut to_guest = [
        Way {
            what: "the veth alone",
            send: Box::new(|| from_host.send()),
            count: Box::new(|| counted(&plain, false, "b9_veth_c", &["rx_packets"])),
            rates: vec![],
        },
        Way {
            what: "redirected, up to the queue of a TAP that nobody reads",
            send: Box::new(|| to_redirect.send()),
            count: Box::new(|| {
                let counters = ["tx_packets", "tx_dropped"];
                counted(&redirected, false, &wire.tap, &counters)
            }),
            rates: vec![],
        },
        Way {
            what: "redirected, and read from the TAP, a system call for each",
            send: Box::new(|| {
                let sent = to_reader.send();
                while reader.receive().is_some() {}
                sent
            }),
            count: Box::new(|| counted(&read, false, &wire.tap, &["tx_packets"])),
            rates: vec![],
        },
    ];
    let mut from_guest = [
        Way {
            what: "the veth alone",
            send: Box::new(|| from_container.send()),
            count: Box::new(arrived(&plain)),
            rates: vec![],
        },
        Way {
            what: "judged by the guard and redirected, without a TAP",
            send: Box::new(|| from_stand_in.send()),
            count: Box::new(arrived(&redirected)),
            rates: vec![],
        },
        Way {
            what: "written to a TAP, a system call for each, redirected and not judged (antispoof: off)",
            send: Box::new(|| to_tap(&writer, &Header::default())),
            count: Box::new(arrived(&unguarded)),
            rates: vec![],
        },
        Way {
            what: "the same, judged by all",
            send: Box::new(|| to_tap(&reader, &Header::default())),
            count: Box::new(arrived(&read)),
            rates: vec![],
        },
        Way {
            what: "the same, with a checksum left unfinished",
            send: Box::new(|| to_tap(&reader, &UNFINISHED)),
            count: Box::new(arrived(&read)),
            rates: vec![],
        },
    ];
    // The queue of the TAP that nobody reads takes the first thousand.
    for way in to_guest.iter().chain(&from_guest) {
        for _ in 0..32 {
            (way.send)();
        }
    }
    for _ in 0..TURNS {
        to_guest.iter_mut().for_each(turn);
        from_guest.iter_mut().for_each(turn);
    }
    println!(
        "\n| frames of 100 bytes, one processor, {TURNS} turns | a second | share | ns a frame |"
    );
    println!("|---|---|---|---|");
    let figures = json!({
        "to_guest": table("to the guest", &to_guest),
        "from_guest": table("from the guest", &from_guest),
    });
    undo(&attachment).unwrap();
    undo(&read_attachment).unwrap();
    undo(&unguarded_attachment).unwrap();
    figures
}

fn turn(way: &mut Way<'_>) {
    let before = (way.count)();
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < FRAMES {
        for _ in 0..16 {
            sent += (way.send)() as u64;
        }
    }
    let time = begun.elapsed();
    let arrived = (way.count)() - before;
    assert!(
        arrived * 100 > sent * 99,
        "{}: {sent} sent, {arrived} arrived",
        way.what
    );
    way.rates.push(arrived as f64 / time.as_secs_f64());
}

fn table(direction: &str, ways: &[Way<'_>]) -> Value {
    let median = |way: &Way<'_>| {
        let mut rates = way.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let alone = median(&ways[0]);
    let rows = ways.iter().map(|way| {
        let rate = median(way);
        let share = rate / alone * 100.0;
        let each = 1e9 / rate;
        println!(
            "| {direction}: {} | {rate:.0} | {share:.0} % | {each:.0} |",
            way.what
        );
        json!({"what": way.what, "a_second": rate, "all": way.rates})
    });
    rows.collect()
}

/// What stands at the TAP's ingress, at the sending end of an interface that takes frames without a system call for each.
fn in_the_tap_s_place(world: &World, wire: &Wire) -> &'static str {
    const NAME: &str = "stand-in";
    let guest = Guest {
        mac: wire.mac,
        addresses: wire.addresses.iter().map(|net| net.addr()).collect(),
    };
    let program = from_guest(&guest).unwrap();
    let mut bytecode = program.len().to_string();
    for i in &program {
        let _ = write!(bytecode, ",{} {} {} {}", i.code, i.jt, i.jf, i.k);
    }
    let file = std::env::temp_dir().join(format!("fcpipe-measure-{}", std::process::id()));
    std::fs::write(&file, bytecode).unwrap();
    let (name, path, veth) = (&world.container, file.display(), &wire.uplink.name);
    sh(&format!(
        "ip -n {name} link add {NAME} type bridge; ip -n {name} link set {NAME} up
         tc -n {name} qdisc add dev {NAME} clsact
         tc -n {name} filter add dev {NAME} egress prio 1 protocol all bpf bytecode-file {path} action mirred egress redirect dev {veth}
         tc -n {name} filter add dev {NAME} egress prio 2 protocol all bpf bytecode '1,6 0 0 2,' direct-action"
    ));
    let _ = std::fs::remove_file(file);
    NAME
}
