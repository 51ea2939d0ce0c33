//! Where the running kernel keeps what it notes of a frame: fields of its `struct sk_buff`, whose places differ from kernel to kernel.
//!
//! The kernel knows them, in the description of its own types (BTF). A program says by name what it means, in a description of a structure
//! that has only the fields it uses, and in a relocation for each instruction with a place in it; the kernel puts its own in when it
//! loads the program ("compile once, run everywhere", since Linux 5.17). Formats: Documentation/bpf/btf.rst, `struct bpf_core_relo` of linux/bpf.h.

/// A field of `struct sk_buff`. The description has them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Where the frame's memory begins: the checksum's place is counted from there.
    Head,
    /// Where the frame begins.
    Data,
    ChecksumStart,
    ChecksumOffset,
    /// Two bits: whether a checksum is still to be made.
    Summed,
}

impl Field {
    const ALL: [(Field, &str); 5] = [
        (Field::Head, "head"),
        (Field::Data, "data"),
        (Field::ChecksumStart, "csum_start"),
        (Field::ChecksumOffset, "csum_offset"),
        (Field::Summed, "ip_summed"),
    ];

    /// In bytes; of the bits, of what has to be read for them.
    pub(crate) fn size(self) -> i32 {
        match self {
            Field::Head | Field::Data => 8,
            Field::ChecksumStart | Field::ChecksumOffset => 2,
            Field::Summed => 1,
        }
    }

    /// Where it is in the described structure. The instructions have to name it, and the kernel replaces it.
    pub(crate) fn place(self) -> i32 {
        match self {
            Field::Head => 0,
            Field::Data => 8,
            Field::ChecksumStart => 16,
            Field::ChecksumOffset => 18,
            Field::Summed => 20,
        }
    }

    /// 0: no bits, but whole bytes.
    fn bits(self) -> u32 {
        match self {
            Field::Summed => 2,
            _ => 0,
        }
    }

    /// [`Aspect::Up`] and [`Aspect::Down`] in the described structure, of bits.
    pub(crate) fn shift(self) -> i32 {
        64 - self.bits() as i32
    }
}

/// What of a field an instruction has in it: `enum bpf_core_relo_kind` of linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Aspect {
    Place = 0,
    /// By how much 64 bits are moved up, so that nothing is above those of the field …
    Up = 4,
    /// … and down, so that nothing is below.
    Down = 5,
}

/// One instruction that the kernel completes: `struct bpf_core_relo`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Relocation {
    /// In bytes, from the program's beginning.
    at: u32,
    kind_of: u32,
    access: u32,
    aspect: u32,
}

/// One function of a program: `struct bpf_func_info`. Without one no relocation is taken.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Function {
    at: u32,
    kind_of: u32,
}

// The kinds, in the order of `Layout::described`: each is named by its number, from 1.
const BYTE: u32 = 1;
const SHORT: u32 = 2;
const POINTER: u32 = 3;
const FRAME: u32 = 4;
const SIGNATURE: u32 = 5;
const PROGRAM: u32 = 6;
/// Number 0 is `void`, and is not described.
const VOID: u32 = 0;

// BTF_KIND_… of linux/btf.h
const INT: u32 = 1;
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
/// The structure's places also have the size of those that are bits.
const WITH_BITS: u32 = 1 << 31;

/// The description, and what refers to it.
#[derive(Debug)]
pub(crate) struct Layout {
    strings: Vec<u8>,
    types: Vec<u32>,
    /// The text that leads to each field, among the strings.
    accesses: Vec<u32>,
}

impl Layout {
    pub(crate) fn new() -> Layout {
        let mut layout = Layout {
            strings: vec![0],
            types: Vec::new(),
            accesses: Vec::new(),
        };
        layout.int("u8", 8);
        layout.int("u16", 16);
        layout.kind("", PTR << 24, VOID);
        let fields = Field::ALL;
        layout.kind(
            "sk_buff",
            STRUCT << 24 | WITH_BITS | fields.len() as u32,
            24,
        );
        for (index, (field, name)) in fields.into_iter().enumerate() {
            let name = layout.string(name);
            let of = match field.size() {
                1 => BYTE,
                2 => SHORT,
                _ => POINTER,
            };
            let place = field.place() as u32 * 8;
            layout.types.extend([name, of, field.bits() << 24 | place]);
            let access = layout.string(&format!("0:{index}"));
            layout.accesses.push(access);
        }
        // u8 program(void *frame)
        layout.kind("", FUNC_PROTO << 24 | 1, BYTE);
        let argument = layout.string("frame");
        layout.types.extend([argument, POINTER]);
        layout.kind("unfinished", FUNC << 24, SIGNATURE);
        layout
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len();
        self.strings.extend(text.bytes().chain([0]));
        at as u32
    }

    fn kind(&mut self, name: &str, info: u32, size_or_type: u32) {
        let name = self.string(name);
        self.types.extend([name, info, size_or_type]);
    }

    fn int(&mut self, name: &str, bits: u32) {
        self.kind(name, INT << 24, bits / 8);
        self.types.push(bits);
    }

    /// For the instruction with this number.
    pub(crate) fn relocation(
        &self,
        instruction: usize,
        field: Field,
        aspect: Aspect,
    ) -> Relocation {
        Relocation {
            at: instruction as u32 * 8,
            kind_of: FRAME,
            access: self.accesses[field as usize],
            aspect: aspect as u32,
        }
    }

    /// The program is one function.
    pub(crate) fn function() -> Function {
        Function {
            at: 0,
            kind_of: PROGRAM,
        }
    }

    /// As `bpf(2)` takes it: `struct btf_header`, kinds, strings.
    pub(crate) fn described(&self) -> Vec<u8> {
        const MAGIC_VERSION: u32 = 0xeb9f | 1 << 16;
        const HEADER: u32 = 24;
        let types = self.types.len() as u32 * 4;
        let strings = self.strings.len() as u32;
        let header = [MAGIC_VERSION, HEADER, 0, types, types, strings];
        let words = header.iter().chain(&self.types);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(&self.strings);
        bytes
    }
}
