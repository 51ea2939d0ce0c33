//! Row 63 at the TAP: this test is the machine, and whatever it likes goes in. What comes out at the host's end of the veth pair, and
//! at another machine on the bridge, is judged by a parser that knows nothing of the programs in the kernel (`judge.rs`).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};

use crate::bench::Bench;
use crate::ear::is_chatter;
use crate::frames::arp;
use crate::judge::{frames, offence};
use crate::packets::{OTHER, V4, frame, ipv4, udp};
use crate::random::random;
use crate::tap::Header;
use crate::world::skip;

#[test]
fn needs_root_row_63_what_a_malicious_guest_sends_reaches_nobody() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let (good, bad) = frames(bench.mac);
    for (name, frame) in &good {
        let offence = offence(frame, bench.mac);
        assert_eq!(offence, None, "the test's own judge: {name}: {frame:02x?}");
        bench.machine.send(frame);
    }
    let mut heard = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    for (name, frame) in &good {
        // The namespace's own stack could have said those.
        while !is_chatter(frame) && !heard.contains(frame) {
            assert!(Instant::now() < deadline, "not heard: {name}: {frame:02x?}");
            heard.extend(bench.ear.all_from(bench.bridge));
        }
    }
    while bench.machine.receive().is_some() {}
    for (_, frame) in &bad {
        bench.machine.send(frame);
    }
    // What was sent last is heard, so none of them is still to come.
    let last = &good[0].1;
    bench.machine.send(last);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut heard = Vec::new();
    while !heard.contains(last) {
        assert!(Instant::now() < deadline, "not heard: {}", good[0].0);
        heard.extend(bench.ear.all_from(bench.bridge));
    }
    heard.retain(|frame| frame != last);
    let named = |frame: &Vec<u8>| bad.iter().find(|bad| bad.1 == *frame).map(|bad| &bad.0);
    let names: Vec<_> = heard.iter().map(|frame| (named(frame), frame)).collect();
    assert!(names.is_empty(), "heard: {names:02x?}");
    // The namespace's own stack has heard none of it either: nothing answers at the TAP.
    let question = arp(1, OTHER, [192, 168, 1, 9], V4);
    let asks = frame([0xff; 6], OTHER, 0x0806, &question);
    bench.machine.send(&asks);
    std::thread::sleep(Duration::from_millis(200));
    while let Some(answer) = bench.machine.receive() {
        assert_eq!(answer[6..12], bench.bridge, "{answer:02x?}");
    }
    bench.end();
}

#[test]
fn needs_root_row_63_random_frames() {
    if skip() {
        return;
    }
    let count: u32 = std::env::var("FCPIPE_SOAK_FRAMES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(20_000);
    let seed: u64 = std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_nanos() as u64
        });
    println!("seed {seed} (FCPIPE_SEED repeats it)");
    let mut random = random(seed);
    let bench = Bench::new();
    let neighbour = bench.neighbour();
    let (good, bad) = frames(bench.mac);
    let seeds: Vec<Vec<u8>> = good.into_iter().chain(bad).map(|named| named.1).collect();
    let (mut heard, mut offences) = (0, Vec::new());
    for number in 0..count {
        let mut frame = seeds[random(seeds.len())].clone();
        for _ in 0..random(4) {
            // Mostly in the headers.
            let at = random(frame.len().min(80));
            frame[at] = [random(256) as u8, 0, 0x3a, 0x11, 0x86, 0xff][random(6)];
        }
        if random(8) == 0 {
            frame.truncate(14 + random(frame.len() - 13));
        }
        let mut header = Header::default();
        if random(3) == 0 {
            header.unfinished(random(80), random(24));
        }
        if random(8) == 0 {
            header.segments([1, 3, 4, 5][random(4)], random(64));
        }
        bench.machine.send_with(&header, &frame);
        if number % 64 == 63 {
            let mut out = bench.ear.drain(bench.bridge);
            let got = std::iter::from_fn(|| neighbour.receive());
            out.extend(got.filter(|frame| frame[6..12] != bench.bridge));
            for frame in out {
                heard += 1;
                offences.extend(offence(&frame, bench.mac).map(|what| (what, frame)));
            }
            while bench.machine.receive().is_some() {}
        }
    }
    println!("{count} frames, {heard} heard");
    assert!(heard > count / 100, "the test hears nothing");
    assert!(offences.is_empty(), "{offences:02x?}");
    bench.end();
}

pub(crate) fn question(mac: [u8; 6], kind: MessageType, asked: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_xid(0x1234_5678)
        .set_flags(Flags::default().set_broadcast())
        .set_chaddr(&mac);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(asked) = asked {
        let option = DhcpOption::RequestedIpAddress(asked);
        message.opts_mut().insert(option);
    }
    let payload = udp(68, 67, &message.to_vec().unwrap());
    frame([0xff; 6], mac, 0x0800, &ipv4([0; 4], 17, 0, 0, &payload))
}

#[test]
fn needs_root_dhcp_is_answered_at_the_tap_and_stays_there() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    while bench.machine.receive().is_some() {}
    let answer = |bench: &Bench| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let frame = bench.machine.receive();
            let dhcp = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 17;
            if let Some(frame) = frame.filter(dhcp) {
                return Message::from_bytes(&frame[42..]).unwrap();
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let own = Ipv4Addr::from(V4);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Discover, None));
    let offer = answer(&bench);
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!((offer.yiaddr(), offer.xid()), (own, 0x1234_5678));
    bench
        .machine
        .send(&question(bench.mac, MessageType::Request, Some(own)));
    let ack = answer(&bench);
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    let option = |code| ack.opts().get(code).cloned();
    let router = Ipv4Addr::new(192, 168, 1, 1);
    assert_eq!(
        option(OptionCode::Router),
        Some(DhcpOption::Router(vec![router]))
    );
    let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0));
    assert_eq!(option(OptionCode::SubnetMask), Some(mask));
    assert_eq!(
        option(OptionCode::InterfaceMtu),
        Some(DhcpOption::InterfaceMtu(1450))
    );
    let dns = Ipv4Addr::new(10, 0, 0, 53);
    let dns = DhcpOption::DomainNameServer(vec![dns]);
    assert_eq!(option(OptionCode::DomainNameServer), Some(dns));
    let other = Ipv4Addr::new(192, 168, 1, 9);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Request, Some(other)));
    assert_eq!(answer(&bench).opts().msg_type(), Some(MessageType::Nak));
    assert_eq!(bench.ear.all_from(bench.bridge), Vec::<Vec<u8>>::new());

    // Garbage, lengths that lie, another's MAC: no answer, and the server lives.
    for cut in [42, 60, 200, 281, 282, 285] {
        let mut broken = question(bench.mac, MessageType::Discover, None);
        broken.truncate(cut);
        bench.machine.send(&broken);
    }
    let mut lying = question(bench.mac, MessageType::Discover, None);
    lying[44] = 255;
    bench.machine.send(&lying);
    let mut of_another = question(bench.mac, MessageType::Discover, None);
    of_another[70] ^= 0xff;
    bench.machine.send(&of_another);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(bench.machine.receive().filter(|f| f[23] == 17), None);
    bench
        .machine
        .send(&question(bench.mac, MessageType::Discover, None));
    assert_eq!(answer(&bench).opts().msg_type(), Some(MessageType::Offer));
    bench.end();
}

/// The thread that answers is a host's, and no guest is to keep it busy.
#[test]
fn needs_root_row_63_questions_of_dhcp_without_end_are_answered_now_and_then() {
    if skip() {
        return;
    }
    let bench = Bench::new();
    let asks = question(bench.mac, MessageType::Discover, None);
    let begun = Instant::now();
    let (mut asked, mut answered) = (0, 0);
    while answered == 0 || begun.elapsed() < Duration::from_secs(1) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no answer");
        bench.machine.send(&asks);
        asked += 1;
        let received = std::iter::from_fn(|| bench.machine.receive());
        answered += received
            .filter(|frame| frame[12..14] == [8, 0] && frame[23] == 17)
            .count() as u64;
    }
    // 50 in each second, of which the first and the last may be short.
    let most = 50 * (begun.elapsed().as_secs() + 2);
    println!("{answered} answers to {asked} questions");
    assert!(answered <= most, "{answered} answers");
    bench.end();
}
