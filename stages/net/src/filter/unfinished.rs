//! What a machine leaves to be finished behind it: checksums, and frames that are to be cut into segments.
//!
//! With each frame a VMM hands the kernel a header (`struct virtio_net_hdr`) in which a guest may leave a checksum to be made, and say
//! where it goes: anywhere behind the frame's 20th byte. Whoever makes it, a network card or the kernel before a device that cannot,
//! does so after the guard has judged the frame, and could so write another sender's address into it. The guest may also say that one frame stands
//! for many segments: whoever cuts it into fragments of UDP numbers them from 0, and what the guard took for a later fragment, without ports, becomes a first.
//!
//! Linux leaves to others only what is of TCP and UDP, whole, and with the checksum in its own place. So that alone passes:
//!
//! | left to be finished | passes when |
//! |---|---|
//! | anything | the frame is IPv4 or IPv6 with TCP or UDP right behind the header, and no fragment |
//! | a checksum | it does not begin before that of TCP or UDP: what is behind is not judged |
//! | segments of UDP | they have 8 bytes or more: the second never begins at 0, in the units of 8 that fragments are numbered in |
//!
//! The kernel tells a program the size of segments, but not whether and where a checksum will be written. But what some helpers do depends on it:
//!
//! - `bpf_l4_csum_replace` changes a checksum for changed content. One that is still to be made does not have the content
//!   in it, and is left alone. So what stays as it was is the mark of an unfinished one; anything else is put back.
//! - `bpf_skb_change_tail` refuses (EINVAL) to make a frame shorter than where its unfinished checksum ends. Asked for one byte less than a
//!   frame may have there, it must refuse. If it does not, the frame is cut, and dropped.
//!
//! Both were so since there are these helpers (Linux 4.9, `net/core/filter.c`; the size of segments takes 5.7), and tests with frames see whether they are. Kernels
//! with "bpf: Fix bpf_skb_change_tail wrt csum partial skbs" (Debian's 6.1.192 is one) cut without refusing: there all unfinished checksums are dropped (docs/network.md).
//! Reading the kernel's own structure instead would take BTF and Linux 6.2. Classic BPF has no helpers.

use std::io;
use std::os::fd::OwnedFd;

use super::SHOT;
use crate::sys;

/// `TC_ACT_UNSPEC` of linux/pkt_cls.h: the next filter decides.
const NEXT: i32 = -1;

// enum bpf_func_id of linux/bpf.h
const L4_CSUM_REPLACE: i32 = 11;
const LOAD_BYTES: i32 = 26;
const CHANGE_TAIL: i32 = 38;
/// The size of the field, in the flags of `bpf_l4_csum_replace`.
const TWO_BYTES: i32 = 2;

const ETHERTYPE: i32 = 12;
const L3: i32 = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: i32 = 6;
const UDP: i32 = 17;
/// All of IPv4's flags and offset that only fragments have.
const FRAGMENT: u16 = 0x3fff;
/// Where `struct __sk_buff` of linux/bpf.h has the size of segments; 0 is a frame that stands for itself.
const GSO_SIZE: i16 = 176;
/// And where the frame begins and ends, of what is there to be read at once.
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// Fragments are numbered in units of so many bytes.
const UNIT: i32 = 8;
/// Where a checksum ends, from the beginning of its header.
const END_IN_UDP: i32 = 8;
const END_IN_TCP: i32 = 18;

/// A register. The first five are a call's arguments and lost with it; the result is in `R0`.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum R {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The end of the stack.
    R10 = 10,
}

/// Where on the stack the beginning of the network header is copied to, and how much of it.
const HEADER: i16 = -16;
const HEADER_LENGTH: i32 = 10;

/// A place that is jumped to, before it is known where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    LeftSomething,
    V6,
    Transport,
    Udp,
    Checksum,
    Next,
    Drop,
}

#[derive(Debug, Default)]
struct Assembler {
    code: Vec<[u8; 8]>,
    places: Vec<(Place, usize)>,
    jumps: Vec<(usize, Place)>,
}

// linux/bpf.h, linux/bpf_common.h: an operation's class and kind.
const MOV_IMM: u8 = 0xb7;
const MOV: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const AND_IMM: u8 = 0x57;
const LSH_IMM: u8 = 0x67;
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const STORE_HALF: u8 = 0x6b;
const JA: u8 = 0x05;
const JEQ_IMM: u8 = 0x15;
const JNE_IMM: u8 = 0x55;
const JLT_IMM: u8 = 0xa5;
const JSET_IMM: u8 = 0x45;
const JEQ: u8 = 0x1d;
const JGT: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

impl Assembler {
    /// `struct bpf_insn`: the destination is the lower half of its byte.
    fn put(&mut self, code: u8, to: R, from: R, offset: i16, value: i32) {
        let registers = to as u8 | (from as u8) << 4;
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        self.code.push([code, registers, o0, o1, v0, v1, v2, v3]);
    }

    fn imm(&mut self, code: u8, to: R, value: i32) {
        self.put(code, to, R::R0, 0, value);
    }

    fn mov(&mut self, to: R, from: R) {
        self.put(MOV, to, from, 0, 0);
    }

    fn go(&mut self, code: u8, one: R, other: R, value: i32, place: Place) {
        self.jumps.push((self.code.len(), place));
        self.put(code, one, other, 0, value);
    }

    fn here(&mut self, place: Place) {
        self.places.push((place, self.code.len()));
    }

    /// The frame is the first argument of every call, and is kept in `R6`.
    fn call(&mut self, helper: i32) {
        self.mov(R::R1, R::R6);
        self.imm(CALL, R::R0, helper);
    }

    /// Anything but 0 is a failure.
    fn or_drop(&mut self) {
        self.go(JNE_IMM, R::R0, R::R0, 0, Place::Drop);
    }

    /// `R2` becomes the beginning of the frame, of which the Ethernet header can be read there.
    fn ethernet(&mut self) {
        self.put(LOAD_WORD, R::R2, R::R6, DATA, 0);
        self.put(LOAD_WORD, R::R3, R::R6, DATA_END, 0);
        self.mov(R::R1, R::R2);
        self.imm(ADD_IMM, R::R1, L3);
        self.go(JGT, R::R1, R::R3, 0, Place::Drop);
    }

    fn exit(&mut self, verdict: i32) {
        self.imm(MOV_IMM, R::R0, verdict);
        self.imm(EXIT, R::R0, 0);
    }

    fn finish(mut self) -> Vec<[u8; 8]> {
        for (at, place) in self.jumps {
            let target = self.places.iter().find(|(name, _)| *name == place);
            // The kernel refuses a program that jumps to where it is; all places are there.
            let distance = target.map_or(-1, |(_, to)| *to as i16 - at as i16 - 1);
            self.code[at][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        self.code
    }
}

/// Drops frames of which more, or other things, are left to be finished than Linux leaves; of all others the next filter decides.
fn program() -> Vec<[u8; 8]> {
    let mut p = Assembler::default();
    p.mov(R::R6, R::R1);
    // R8: the size of segments.
    p.put(LOAD_WORD, R::R8, R::R6, GSO_SIZE, 0);
    // The kind of frame (R7) is in the place of a checksum that is changed from 0 to 1; only one that is finished becomes another.
    p.ethernet();
    p.put(LOAD_HALF, R::R7, R::R2, ETHERTYPE as i16, 0);
    p.imm(MOV_IMM, R::R2, ETHERTYPE);
    p.imm(MOV_IMM, R::R3, 0);
    p.imm(MOV_IMM, R::R4, 1);
    p.imm(MOV_IMM, R::R5, TWO_BYTES);
    p.call(L4_CSUM_REPLACE);
    p.or_drop();
    // What was known of the frame's place may have changed.
    p.ethernet();
    p.put(LOAD_HALF, R::R1, R::R2, ETHERTYPE as i16, 0);
    // R9: whether a checksum is finished.
    p.imm(MOV_IMM, R::R9, 0);
    p.go(JEQ, R::R7, R::R1, 0, Place::LeftSomething);
    p.imm(MOV_IMM, R::R9, 1);
    p.put(STORE_HALF, R::R2, R::R7, ETHERTYPE as i16, 0);
    p.go(JEQ_IMM, R::R8, R::R0, 0, Place::Next);

    p.here(Place::LeftSomething);
    p.imm(MOV_IMM, R::R2, L3);
    p.mov(R::R3, R::R10);
    p.imm(ADD_IMM, R::R3, HEADER.into());
    p.imm(MOV_IMM, R::R4, HEADER_LENGTH);
    p.call(LOAD_BYTES);
    p.or_drop();
    let big_endian = |value: u16| i32::from(value.to_be());
    p.go(JEQ_IMM, R::R7, R::R0, big_endian(IPV6), Place::V6);
    p.go(JNE_IMM, R::R7, R::R0, big_endian(IPV4), Place::Drop);
    p.put(LOAD_HALF, R::R1, R::R10, HEADER + 6, 0);
    p.go(JSET_IMM, R::R1, R::R0, big_endian(FRAGMENT), Place::Drop);
    // R7: where the transport's header begins; R1: which it is. A header of IPv4 that is too short is the guard's to refuse.
    p.put(LOAD_BYTE, R::R7, R::R10, HEADER, 0);
    p.imm(AND_IMM, R::R7, 0x0f);
    p.imm(LSH_IMM, R::R7, 2);
    p.imm(ADD_IMM, R::R7, L3);
    p.put(LOAD_BYTE, R::R1, R::R10, HEADER + 9, 0);
    p.go(JA, R::R0, R::R0, 0, Place::Transport);
    p.here(Place::V6);
    p.imm(MOV_IMM, R::R7, L3 + 40);
    p.put(LOAD_BYTE, R::R1, R::R10, HEADER + 6, 0);

    p.here(Place::Transport);
    p.go(JEQ_IMM, R::R1, R::R0, UDP, Place::Udp);
    p.go(JNE_IMM, R::R1, R::R0, TCP, Place::Drop);
    p.imm(ADD_IMM, R::R7, END_IN_TCP - 1);
    p.go(JA, R::R0, R::R0, 0, Place::Checksum);
    p.here(Place::Udp);
    p.imm(ADD_IMM, R::R7, END_IN_UDP - 1);
    p.go(JEQ_IMM, R::R8, R::R0, 0, Place::Checksum);
    p.go(JLT_IMM, R::R8, R::R0, UNIT, Place::Drop);
    p.here(Place::Checksum);
    p.go(JNE_IMM, R::R9, R::R0, 0, Place::Next);
    p.mov(R::R2, R::R7);
    p.imm(MOV_IMM, R::R3, 0);
    p.call(CHANGE_TAIL);
    p.go(JEQ_IMM, R::R0, R::R0, -libc::EINVAL, Place::Next);
    p.here(Place::Drop);
    p.exit(SHOT as i32);
    p.here(Place::Next);
    p.exit(NEXT);
    p.finish()
}

/// Gives it to the kernel, which checks and compiles it; a filter holds it from then on.
pub(crate) fn load() -> io::Result<OwnedFd> {
    sys::load_classifier(&program())
}
