//! Properties of frames. A failing case prints its seed (proptest), and is kept.

use fcpipe_proto::frame::{Frame, HEADER, MAX_CONTROL_FROM_GUEST, MAX_DATA, StreamId, WINDOW};
use fcpipe_proto::{ProcessId, ProtoError};
use proptest::prelude::*;

fn stream() -> impl Strategy<Value = StreamId> {
    (1..=ProcessId::MAX, 0..3_u32).prop_map(|(p, s)| StreamId::from_wire(p * 4 + s).unwrap())
}

fn frame() -> impl Strategy<Value = Frame> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 1..most);
    prop_oneof![
        bytes(300).prop_map(Frame::Control),
        (stream(), bytes(3000)).prop_map(|(s, b)| Frame::Data(s, b)),
        stream().prop_map(Frame::Eof),
        (stream(), 1..=WINDOW).prop_map(|(s, c)| Frame::Credit(s, c)),
        stream().prop_map(Frame::Reset),
    ]
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in(frames in prop::collection::vec(frame(), 0..20)) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|f| f.encode(&mut bytes));
        let mut from = bytes.as_slice();
        for frame in frames {
            prop_assert_eq!(Frame::read(&mut from, 300), Ok(Some(frame)));
        }
        prop_assert_eq!(Frame::read(&mut from, 300), Ok(None));
    }

    /// Whatever comes, it is frames within their limits and then at most one error.
    #[test]
    fn row_47_any_bytes_are_parsed_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut from = bytes.as_slice();
        loop {
            match Frame::read(&mut from, MAX_CONTROL_FROM_GUEST) {
                Ok(Some(Frame::Data(_, d))) => prop_assert!((1..=MAX_DATA).contains(&d.len())),
                Ok(Some(Frame::Credit(_, c))) => prop_assert!((1..=WINDOW).contains(&c)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => {
                    let ok = matches!(e, ProtoError::Broken { .. } | ProtoError::Closed);
                    prop_assert!(ok, "{e}");
                    break;
                }
            }
        }
    }

    /// Headers that are nearly right, which random bytes hardly ever are.
    #[test]
    fn row_47_lengths_beside_the_limits(kind in 0..8_u8, len in 0..200_000_u32, number in 0..20_u32) {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.resize(HEADER + len as usize, 1);
        let stream = number >= 4 && number % 4 != 3;
        let allowed = match kind {
            1 => number == 0 && (1..=MAX_CONTROL_FROM_GUEST as u32).contains(&len),
            2 => stream && (1..=MAX_DATA as u32).contains(&len),
            3 | 5 => stream && len == 0,
            // The payload is 0x01010101, more than a window.
            _ => false,
        };
        let read = Frame::read(&mut bytes.as_slice(), MAX_CONTROL_FROM_GUEST);
        prop_assert_eq!(read.is_ok(), allowed, "{:?}", read);
    }
}
