//! Frames of IPv4 put together, for all who send some.

pub(crate) const V4: [u8; 4] = [192, 168, 1, 5];
/// Nobody's.
pub(crate) const OTHER: [u8; 6] = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];

pub(crate) fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Of `options` more words in the header, and with `offset` as flags and offset.
pub(crate) fn ipv4(
    from: [u8; 4],
    protocol: u8,
    options: u8,
    offset: u16,
    payload: &[u8],
) -> Vec<u8> {
    let length = (20 + usize::from(options) * 4 + payload.len()) as u16;
    let mut packet = vec![0x45 + options, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(&offset.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&[192, 168, 1, 1]);
    packet.extend(std::iter::repeat_n(1, usize::from(options) * 4));
    packet.extend_from_slice(payload);
    packet
}

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend_from_slice(&to.to_be_bytes());
    datagram.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    datagram
}
