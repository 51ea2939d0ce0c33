//! What a network costs, apart from a machine: set-up and teardown, and frames through the redirect. By hand, as root:
//! `cargo run --release -p fcpipe-net --example measure`. `cargo xtask bench net` runs it, and adds a machine.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "an example for people to run by hand, which speaks to them and fails by a panic"
)]

#[path = "../tests/main/machine.rs"]
mod machine;
#[path = "../tests/main/world.rs"]
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fcpipe_net::{make, undo};
use machine::{Ear, Machine};
use world::{World, planned};

const ROUNDS: usize = 30;
const FRAMES: Duration = Duration::from_secs(3);

fn main() {
    if world::skip() {
        return;
    }
    one();
    thirty();
    frames();
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

fn one() {
    let world = World::new();
    let (mut plans, mut makes, mut undos) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let namespace = world.namespace();
        let attachment = planned(&world, "bench").unwrap();
        plans.push(begun.elapsed());
        let begun = Instant::now();
        make(&namespace, &attachment).unwrap();
        makes.push(begun.elapsed());
        let begun = Instant::now();
        undo(&attachment).unwrap();
        undos.push(begun.elapsed());
    }
    for (what, times) in [
        ("open and look", plans),
        ("make", makes),
        ("take away", undos),
    ] {
        let (middle, worst) = median(times);
        println!("one namespace, {what}: {middle:.2?} (median of {ROUNDS}), at most {worst:.2?}");
    }
}

fn thirty() {
    let worlds: Vec<World> = (0..30).map(|_| World::new()).collect();
    let attachments: Vec<_> = worlds
        .iter()
        .map(|w| planned(w, "bench").unwrap())
        .collect();
    for (what, undoing) in [("make", false), ("take away", true)] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (world, attachment) in worlds.iter().zip(&attachments) {
                scope.spawn(move || {
                    if undoing {
                        undo(attachment).unwrap();
                    } else {
                        make(&world.namespace(), attachment).unwrap();
                    }
                });
            }
        });
        println!(
            "30 namespaces at once, {what}: {:.1?} in all",
            begun.elapsed()
        );
    }
}

/// Frames of the container's, 100 bytes each, that arrive at the host's end of the veth pair in a second: sent by a packet socket on
/// the container's end, and written to the TAP. Then the other way.
fn frames() {
    let world = World::new();
    let mac = planned(&world, "bench").unwrap().wires[0].mac;
    let mut out = vec![2; 6];
    out.extend_from_slice(&mac);
    out.extend_from_slice(&[8, 0, 0x45, 0, 0, 86, 0, 0, 0, 0, 64, 17, 0, 0]);
    out.extend_from_slice(&[192, 168, 1, 5, 192, 168, 1, 1, 0, 9, 0, 9, 0, 66, 0, 0]);
    out.resize(100, 0);
    let mut back = mac.to_vec();
    back.extend_from_slice(&[2; 6]);
    back.extend_from_slice(&out[12..]);

    let container = Ear::open(&world.container, "b9_veth_c");
    let host = Ear::open(&world.host, "b9_veth_h");
    let at_host = || counted(&world.host, "b9_veth_h", "rx_packets");
    let alone = rate(at_host, || container.speak(&out));
    println!("frames to the host, veth alone: {alone:.0} a second");
    let at_container = || counted(&world.container, "b9_veth_c", "rx_packets");
    let alone_back = rate(at_container, || host.speak(&back));
    println!("frames from the host, veth alone: {alone_back:.0} a second");

    let attachment = planned(&world, "bench").unwrap();
    let namespace = world.namespace();
    make(&namespace, &attachment).unwrap();
    let machine = Machine::open(&namespace, "b9fc_bench");
    let redirected = rate(at_host, || machine.send(&out));
    println!(
        "frames to the host, written to the TAP, judged and redirected: {redirected:.0} a second, {:.0} % of the veth alone",
        redirected / alone * 100.0
    );
    // Somebody reads the TAP, as a VMM does.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if machine.receive().is_none() {
                    std::thread::yield_now();
                }
            }
        });
        let at_tap = || counted(&world.container, "b9fc_bench", "tx_packets");
        let redirected = rate(at_tap, || host.speak(&back));
        stop.store(true, Ordering::Relaxed);
        println!(
            "frames from the host, redirected and read from the TAP: {redirected:.0} a second, {:.0} % of the veth alone",
            redirected / alone_back * 100.0
        );
    });
    undo(&attachment).unwrap();
}

fn counted(namespace: &str, link: &str, counter: &str) -> u64 {
    let path = format!("/sys/class/net/{link}/statistics/{counter}");
    let text = world::sh(&format!("ip netns exec {namespace} cat {path}"));
    text.trim().parse().unwrap()
}

fn rate(count: impl Fn() -> u64, mut send: impl FnMut()) -> f64 {
    let before = count();
    let begun = Instant::now();
    while begun.elapsed() < FRAMES {
        for _ in 0..256 {
            send();
        }
    }
    let time = begun.elapsed();
    (count() - before) as f64 / time.as_secs_f64()
}
