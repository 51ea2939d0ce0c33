//! Classic BPF, as far as a filter of system calls needs it (seccomp(2), linux/bpf_common.h).

use fcpipe_proto::confine::Instruction;
use fcpipe_spec::SeccompOp;

/// `BPF_LD | BPF_W | BPF_ABS`: a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_J… | BPF_K`
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const NOT_LESS: u16 = 0x35;
/// `BPF_RET | BPF_K`
const GIVE: u16 = 0x06;

/// A field of `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field {
    Number,
    Arch,
}

/// On an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) index: u8,
    pub(super) op: SeccompOp,
    pub(super) value: u64,
    /// What a masked value is compared with.
    pub(super) value_two: u64,
}

/// Where a comparison goes.
#[derive(Debug, Clone, Copy)]
enum To {
    /// The next instruction but so many.
    Skip(u8),
    /// Past the rule.
    Miss,
}

/// Instructions one after another; whatever falls out of the end goes on behind it.
#[derive(Debug, Default, Clone)]
pub(super) struct Program(Vec<Instruction>);

impl Program {
    pub(super) fn load(&mut self, field: Field) {
        let offset = match field {
            Field::Number => 0,
            Field::Arch => 4,
        };
        self.0.push(Instruction(LOAD, 0, 0, offset));
    }

    /// The filter's answer.
    pub(super) fn give(&mut self, value: u32) {
        self.0.push(Instruction(GIVE, 0, 0, value));
    }

    /// `body` where what is loaded is this.
    pub(super) fn when_equal(&mut self, number: u32, body: &Program) {
        match u8::try_from(body.0.len()) {
            Ok(len) => self.0.push(Instruction(EQUAL, 0, len, number)),
            // Conditional jumps don't go that far.
            Err(_) => {
                self.0.push(Instruction(EQUAL, 1, 0, number));
                // A program of 2³² instructions is refused long before.
                self.0.push(Instruction(JUMP, 0, 0, body.0.len() as u32));
            }
        }
        self.0.extend_from_slice(&body.0);
    }

    /// This answer where what is loaded is between these two, both included.
    pub(super) fn when_between(&mut self, from: u32, to: u32, value: u32) {
        self.0.push(Instruction(NOT_LESS, 0, 2, from));
        self.0.push(Instruction(GREATER, 1, 0, to));
        self.give(value);
    }

    /// This answer where all conditions hold. `wide`: arguments have 64 bits.
    pub(super) fn when_all(&mut self, conditions: &[Condition], wide: bool, value: u32) {
        let mut rule: Vec<(Instruction, [To; 2])> = Vec::new();
        for condition in conditions {
            condition.write(wide, &mut rule);
        }
        let end = rule.len();
        for (at, (mut instruction, to)) in rule.into_iter().enumerate() {
            // At most 5 instructions a condition, and 6 of those in most rules; runs of them on one argument are rules of
            // their own, so this fits.
            let offset = |to| match to {
                To::Skip(n) => n,
                To::Miss => u8::try_from(end - at).unwrap_or(u8::MAX),
            };
            instruction.1 = offset(to[0]);
            instruction.2 = offset(to[1]);
            self.0.push(instruction);
        }
        self.give(value);
    }

    pub(super) fn finish(self) -> Vec<Instruction> {
        self.0
    }
}

impl Condition {
    fn write(&self, wide: bool, out: &mut Vec<(Instruction, [To; 2])>) {
        use To::{Miss, Skip};
        // Little-endian: the low word first.
        let low_at = 16 + 8 * u32::from(self.index);
        let mut put = |code, k, yes, no| out.push((Instruction(code, 0, 0, k), [yes, no]));
        let (next, high, low) = (Skip(0), (self.value >> 32) as u32, self.value as u32);
        // Jumps from the high word to behind the condition pass over two instructions: the low word's load and its test.
        match self.op {
            SeccompOp::Eq => {
                if wide {
                    put(LOAD, low_at + 4, next, next);
                    put(EQUAL, high, next, Miss);
                }
                put(LOAD, low_at, next, next);
                put(EQUAL, low, next, Miss);
            }
            SeccompOp::Ne => {
                if wide {
                    put(LOAD, low_at + 4, next, next);
                    put(EQUAL, high, next, Skip(2));
                }
                put(LOAD, low_at, next, next);
                put(EQUAL, low, Miss, next);
            }
            SeccompOp::Gt | SeccompOp::Ge => {
                if wide {
                    put(LOAD, low_at + 4, next, next);
                    put(GREATER, high, Skip(3), next);
                    put(EQUAL, high, next, Miss);
                }
                put(LOAD, low_at, next, next);
                let test = if self.op == SeccompOp::Gt {
                    GREATER
                } else {
                    NOT_LESS
                };
                put(test, low, next, Miss);
            }
            SeccompOp::Lt | SeccompOp::Le => {
                if wide {
                    put(LOAD, low_at + 4, next, next);
                    put(GREATER, high, Miss, next);
                    put(EQUAL, high, next, Skip(2));
                }
                put(LOAD, low_at, next, next);
                let test = if self.op == SeccompOp::Lt {
                    NOT_LESS
                } else {
                    GREATER
                };
                put(test, low, Miss, next);
            }
            SeccompOp::MaskedEq => {
                let (want_high, want_low) = ((self.value_two >> 32) as u32, self.value_two as u32);
                if wide {
                    put(LOAD, low_at + 4, next, next);
                    put(AND, high, next, next);
                    put(EQUAL, want_high & high, next, Miss);
                }
                put(LOAD, low_at, next, next);
                put(AND, low, next, next);
                put(EQUAL, want_low & low, next, Miss);
            }
        }
    }
}
