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
//! | segments of UDP | they have 8 bytes or more: the second never begins at 0, in the units of 8 that fragments are numbered in. All of the datagram has 65,535 at most: numbers have 13 bits, and what is beyond would be a first fragment again |
//!
//! The kernel tells a program of tc the size of segments, but not whether and where a checksum will be written: that the program reads in the
//! kernel's own notes of the frame (`layout.rs`), with the helper that reads any of the kernel's memory. Only programs under the GPL may call it.
//! So this one, and nothing else here, is offered under either: `SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only`.
//!
//! Classic BPF has no helpers. Others than this one show a little of the same from what they refuse (`bpf_skb_change_tail` did, to cut a
//! frame in its unfinished checksum), but not in each kernel.

use std::io;
use std::os::fd::OwnedFd;

use super::SHOT;
use super::layout::{Aspect, Field, Layout, Relocation};
use crate::sys;

/// `TC_ACT_UNSPEC` of linux/pkt_cls.h: the next filter decides.
const NEXT: i32 = -1;

// enum bpf_func_id of linux/bpf.h
const LOAD_BYTES: i32 = 26;
const PROBE_READ_KERNEL: i32 = 113;

/// `CHECKSUM_PARTIAL` of linux/skbuff.h: still to be made.
const PARTIAL: i32 = 3;

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
/// … and the frame's length, with the link's header.
const LENGTH: i16 = 0;
/// Fragments are numbered in units of so many bytes.
const UNIT: i32 = 8;
/// More than this does not fit into a packet. A VMM may take longer frames from its guest (QEMU does), and so does the kernel.
const LONGEST: i32 = 65_535;
/// Where a checksum is, from the beginning of its header.
const IN_UDP: i32 = 6;
const IN_TCP: i32 = 16;

/// A register. The first five are a call's arguments and lost with it; the result is in `R0`.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum R {
    R0,
    R1,
    R2,
    R3,
    R4,
    /// The first that a call leaves as it is.
    R6 = 6,
    R7,
    R8,
    R9,
    /// The end of the stack.
    R10 = 10,
}

/// Where on the stack the kind of frame and the beginning of the network header are copied to, and how much it is.
const COPY: i16 = -16;
const COPY_LENGTH: i32 = 12;
/// The network header there.
const HEADER: i16 = COPY + (L3 - ETHERTYPE) as i16;
/// Where on the stack a field of the kernel's goes.
const FIELD: i16 = -24;

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

#[derive(Debug)]
struct Assembler {
    code: Vec<[u8; 8]>,
    layout: Layout,
    relocations: Vec<Relocation>,
    places: Vec<(Place, usize)>,
    jumps: Vec<(usize, Place)>,
}

// linux/bpf.h, linux/bpf_common.h: an operation's class and kind.
const MOV_IMM: u8 = 0xb7;
const MOV: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const AND_IMM: u8 = 0x57;
const LSH_IMM: u8 = 0x67;
const RSH_IMM: u8 = 0x77;
const ADD: u8 = 0x0f;
const SUB: u8 = 0x1f;
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const LOAD_DOUBLE: u8 = 0x79;
const JA: u8 = 0x05;
const JEQ_IMM: u8 = 0x15;
const JNE_IMM: u8 = 0x55;
const JLT_IMM: u8 = 0xa5;
const JGT_IMM: u8 = 0x25;
const JSET_IMM: u8 = 0x45;
const JLT: u8 = 0xad;
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

    /// Anything but 0 is a failure.
    fn or_drop(&mut self) {
        self.go(JNE_IMM, R::R0, R::R0, 0, Place::Drop);
    }

    /// The next instruction has something of a field in it.
    fn relocate(&mut self, field: Field, aspect: Aspect) {
        let relocation = self.layout.relocation(self.code.len(), field, aspect);
        self.relocations.push(relocation);
    }

    /// Reads a field of the kernel's; of bits, with what is beside them.
    fn read(&mut self, to: R, field: Field) {
        self.mov(R::R1, R::R10);
        self.imm(ADD_IMM, R::R1, FIELD.into());
        self.imm(MOV_IMM, R::R2, field.size());
        self.mov(R::R3, R::R6);
        self.relocate(field, Aspect::Place);
        self.imm(ADD_IMM, R::R3, field.place());
        self.imm(CALL, R::R0, PROBE_READ_KERNEL);
        self.or_drop();
        let load = match field.size() {
            1 => LOAD_BYTE,
            2 => LOAD_HALF,
            _ => LOAD_DOUBLE,
        };
        self.put(load, to, R::R10, FIELD, 0);
    }

    fn exit(&mut self, verdict: i32) {
        self.imm(MOV_IMM, R::R0, verdict);
        self.imm(EXIT, R::R0, 0);
    }

    fn finish(mut self) -> Program {
        for (at, place) in self.jumps {
            let target = self.places.iter().find(|(name, _)| *name == place);
            // The kernel refuses a program that jumps to where it is; all places are there.
            let distance = target.map_or(-1, |(_, to)| *to as i16 - at as i16 - 1);
            self.code[at][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        Program {
            code: self.code,
            relocations: self.relocations,
            layout: self.layout.described(),
        }
    }
}

/// As the kernel takes it.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) code: Vec<[u8; 8]>,
    pub(crate) relocations: Vec<Relocation>,
    /// What they refer to.
    pub(crate) layout: Vec<u8>,
}

/// Drops frames of which more, or other things, are left to be finished than Linux leaves; of all others the next filter decides.
fn program() -> Program {
    let mut p = Assembler {
        code: Vec::new(),
        layout: Layout::new(),
        relocations: Vec::new(),
        places: Vec::new(),
        jumps: Vec::new(),
    };
    // R6: the frame; R8: the size of segments; R9: whether a checksum is still to be made.
    p.mov(R::R6, R::R1);
    p.put(LOAD_WORD, R::R8, R::R6, GSO_SIZE, 0);
    p.read(R::R9, Field::Summed);
    p.relocate(Field::Summed, Aspect::Up);
    p.imm(LSH_IMM, R::R9, Field::Summed.shift());
    p.relocate(Field::Summed, Aspect::Down);
    p.imm(RSH_IMM, R::R9, Field::Summed.shift());
    p.go(JEQ_IMM, R::R9, R::R0, PARTIAL, Place::LeftSomething);
    p.go(JEQ_IMM, R::R8, R::R0, 0, Place::Next);

    p.here(Place::LeftSomething);
    p.mov(R::R1, R::R6);
    p.imm(MOV_IMM, R::R2, ETHERTYPE);
    p.mov(R::R3, R::R10);
    p.imm(ADD_IMM, R::R3, COPY.into());
    p.imm(MOV_IMM, R::R4, COPY_LENGTH);
    p.imm(CALL, R::R0, LOAD_BYTES);
    p.or_drop();
    p.put(LOAD_HALF, R::R7, R::R10, COPY, 0);
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
    p.imm(ADD_IMM, R::R7, IN_TCP);
    p.go(JA, R::R0, R::R0, 0, Place::Checksum);
    p.here(Place::Udp);
    p.imm(ADD_IMM, R::R7, IN_UDP);
    p.go(JEQ_IMM, R::R8, R::R0, 0, Place::Checksum);
    p.go(JLT_IMM, R::R8, R::R0, UNIT, Place::Drop);
    // R7 is behind the transport's beginning by then. In 64 bits, what is shorter than its headers is very long.
    p.put(LOAD_WORD, R::R1, R::R6, LENGTH, 0);
    p.put(SUB, R::R1, R::R7, 0, 0);
    p.go(JGT_IMM, R::R1, R::R0, LONGEST - IN_UDP, Place::Drop);
    p.here(Place::Checksum);
    p.go(JNE_IMM, R::R9, R::R0, PARTIAL, Place::Next);
    // R7: where the checksum of this header is, and R9: where one will be written, both in the frame's memory.
    p.read(R::R9, Field::Data);
    p.put(ADD, R::R7, R::R9, 0, 0);
    p.read(R::R9, Field::Head);
    p.put(SUB, R::R7, R::R9, 0, 0);
    p.read(R::R9, Field::ChecksumStart);
    p.read(R::R8, Field::ChecksumOffset);
    p.put(ADD, R::R9, R::R8, 0, 0);
    p.go(JLT, R::R9, R::R7, 0, Place::Drop);
    p.go(JA, R::R0, R::R0, 0, Place::Next);
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
