//! Programs of classic BPF that judge frames in the kernel.
//!
//! Classic, because tc's `bpf` classifier takes such a program as it is: there is no file to load, no verifier that differs from kernel to
//! kernel, and the kernel compiles it to machine code all the same. A program here returns [`ACCEPT`] or [`REFUSE`]; a load beyond
//! the end of the frame ends it with `REFUSE`, so what is too short to be judged does not pass.
//!
//! One program is not classic (`unfinished.rs`): it asks for what only the kernel's own notes tell (`layout.rs`).

mod guest;
pub(crate) mod layout;
#[cfg(test)]
mod tests;
pub(crate) mod unfinished;

pub use guest::{Guest, Refused, from_guest, is_no_dhcp, to_responder};

/// What tc takes for "this filter matches" and a socket for "all of it".
pub const ACCEPT: u32 = u32::MAX;
/// What tc takes for "the next filter, please" and a socket for "nothing of it".
pub const REFUSE: u32 = 0;
/// `TC_ACT_SHOT` of linux/pkt_cls.h, for a filter that decides itself.
pub(crate) const SHOT: u32 = 2;

/// `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl Instruction {
    /// As the kernel reads it.
    pub(crate) fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.jt;
        bytes[3] = self.jf;
        bytes[4..].copy_from_slice(&self.k.to_ne_bytes());
        bytes
    }
}

// linux/bpf_common.h
const LD: u16 = 0x00;
const LDX: u16 = 0x01;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
const RET: u16 = 0x06;
const WORD: u16 = 0x00;
const HALF: u16 = 0x08;
const BYTE: u16 = 0x10;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MSH: u16 = 0xa0;
const AND: u16 = 0x50;
const JA: u16 = 0x00;
const JEQ: u16 = 0x10;
const JGE: u16 = 0x30;
const JSET: u16 = 0x40;

/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT` of linux/filter.h: the kernel takes a VLAN tag out of a frame before tc sees it.
const VLAN_TAG_PRESENT: u32 = (-0x1000_i32 + 48) as u32;

/// A place in a program that is jumped to, before it is known where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

/// Writes a program. Conditional jumps of classic BPF reach 255 instructions and `ja` any number, so every jump to a label goes by
/// a `ja`, and labels are put in when all are known.
#[derive(Debug, Default)]
struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    /// Instructions whose `k` becomes a distance.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn put(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.code.push(Instruction { code, jt, jf, k });
    }

    fn load_byte(&mut self, at: u32) {
        self.put(LD | BYTE | ABS, 0, 0, at);
    }

    fn load_half(&mut self, at: u32) {
        self.put(LD | HALF | ABS, 0, 0, at);
    }

    fn load_word(&mut self, at: u32) {
        self.put(LD | WORD | ABS, 0, 0, at);
    }

    /// X becomes the length of the IPv4 header that begins at `at`.
    fn load_header_length(&mut self, at: u32) {
        self.put(LDX | BYTE | MSH, 0, 0, at);
    }

    fn load_byte_after_x(&mut self, at: u32) {
        self.put(LD | BYTE | IND, 0, 0, at);
    }

    fn load_half_after_x(&mut self, at: u32) {
        self.put(LD | HALF | IND, 0, 0, at);
    }

    fn load_vlan_tag_present(&mut self) {
        self.put(LD | BYTE | ABS, 0, 0, VLAN_TAG_PRESENT);
    }

    fn and(&mut self, mask: u32) {
        self.put(ALU | AND, 0, 0, mask);
    }

    fn go(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(JMP | JA, 0, 0, 0);
    }

    fn if_equal(&mut self, value: u32, label: Label) {
        self.put(JMP | JEQ, 0, 1, value);
        self.go(label);
    }

    fn unless_equal(&mut self, value: u32, label: Label) {
        self.put(JMP | JEQ, 1, 0, value);
        self.go(label);
    }

    fn unless_at_least(&mut self, value: u32, label: Label) {
        self.put(JMP | JGE, 1, 0, value);
        self.go(label);
    }

    fn if_any_bit(&mut self, bits: u32, label: Label) {
        self.put(JMP | JSET, 0, 1, bits);
        self.go(label);
    }

    fn end(&mut self, verdict: u32) {
        self.put(RET, 0, 0, verdict);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            // Every label is placed, and behind all jumps to it: the kernel refuses the program otherwise.
            let target = self.labels[label.0].unwrap_or(self.code.len());
            self.code[at].k = target.wrapping_sub(at + 1) as u32;
        }
        self.code
    }
}

/// A program of one verdict.
pub(crate) fn always(verdict: u32) -> Vec<Instruction> {
    let mut program = Assembler::default();
    program.end(verdict);
    program.finish()
}
