//! Filters against what they are said to mean, and against those of libseccomp.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use fcpipe_proto::confine::Instruction;
use fcpipe_spec::SeccompOp as Op;

use super::*;

/// `struct seccomp_data`, as far as filters here look.
struct Data {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

const NATIVE: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) {
                    arg as u32
                } else {
                    (arg >> 32) as u32
                }
            }
            _ => panic!("offset {offset}"),
        }
    }
}

/// The kernel's interpreter, as far as filters of libseccomp and of ours need it.
fn run(program: &[Instruction], data: &Data) -> u32 {
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let Instruction(code, yes, no, k) = program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { yes } else { no });
        match code {
            0x20 => a = data.word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

fn rule(names: &[&str], action: Action, args: &[(u8, Op, u64, u64)]) -> SeccompRule {
    let arg = |&(index, op, value, value_two): &(u8, Op, u64, u64)| SeccompArg {
        index,
        value,
        value_two,
        op,
    };
    SeccompRule {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        action,
        args: args.iter().map(arg).collect(),
    }
}

fn filter(default: Action, rules: Vec<SeccompRule>) -> Wanted {
    Wanted {
        default,
        architectures: vec![SeccompArch::X86_64],
        flags: Vec::new(),
        rules,
    }
}

fn number(name: &str) -> u32 {
    (calls::X86_64.number)(name).unwrap()
}

#[track_caller]
fn gives(wanted: &Wanted, call: u32, args: [u64; 6], action: Action) {
    let program = compile(wanted).unwrap().program;
    let data = Data {
        arch: NATIVE,
        number: call,
        args,
    };
    assert_eq!(run(&program, &data), value(action), "{call} {args:?}");
}

#[test]
fn each_comparison_looks_at_all_64_bits() {
    let values = [
        0,
        1,
        5,
        6,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 32) + 5,
        (1 << 32) + 6,
        u64::MAX,
    ];
    for op in [Op::Ne, Op::Lt, Op::Le, Op::Eq, Op::Ge, Op::Gt, Op::MaskedEq] {
        for wanted in values {
            for two in [0, 5, wanted] {
                let rules = vec![rule(&["kill"], Action::Allow, &[(2, op, wanted, two)])];
                let filter = filter(Action::Errno(7), rules);
                for given in values {
                    let holds = match op {
                        Op::Ne => given != wanted,
                        Op::Lt => given < wanted,
                        Op::Le => given <= wanted,
                        Op::Eq => given == wanted,
                        Op::Ge => given >= wanted,
                        Op::Gt => given > wanted,
                        Op::MaskedEq => given & wanted == two & wanted,
                    };
                    let action = if holds {
                        Action::Allow
                    } else {
                        Action::Errno(7)
                    };
                    gives(&filter, number("kill"), [9, 9, given, 9, 9, 9], action);
                }
            }
        }
    }
}

#[test]
fn a_call_has_its_rule_or_the_default() {
    let wanted = filter(
        Action::Errno(1),
        vec![
            rule(&["read", "nosuchcall", "write"], Action::Allow, &[]),
            rule(&["read"], Action::KillProcess, &[]),
            rule(&["mkdir"], Action::Trap, &[(1, Op::Eq, 3, 0)]),
            rule(
                &["mkdir"],
                Action::Trace(5),
                &[(1, Op::Eq, 4, 0), (0, Op::Ge, 2, 0)],
            ),
            rule(
                &["kill"],
                Action::Log,
                &[(0, Op::Eq, 1, 0), (0, Op::Eq, 2, 0)],
            ),
            rule(&["sync"], Action::Log, &[(0, Op::Eq, 1, 0)]),
            rule(&["sync"], Action::Allow, &[]),
        ],
    );
    gives(&wanted, number("read"), [0; 6], Action::Allow);
    gives(&wanted, number("write"), [0; 6], Action::Allow);
    gives(&wanted, number("open"), [0; 6], Action::Errno(1));
    gives(&wanted, number("mkdir"), [0, 3, 0, 0, 0, 0], Action::Trap);
    gives(
        &wanted,
        number("mkdir"),
        [2, 4, 0, 0, 0, 0],
        Action::Trace(5),
    );
    gives(
        &wanted,
        number("mkdir"),
        [1, 4, 0, 0, 0, 0],
        Action::Errno(1),
    );
    // Two conditions on one argument are two rules.
    gives(&wanted, number("kill"), [2, 0, 0, 0, 0, 0], Action::Log);
    gives(
        &wanted,
        number("kill"),
        [3, 0, 0, 0, 0, 0],
        Action::Errno(1),
    );
    // A rule about every call covers those with conditions.
    gives(&wanted, number("sync"), [1, 0, 0, 0, 0, 0], Action::Allow);
    // Newer than anything in the config: the library is to find another way.
    gives(&wanted, 500, [0; 6], Action::Errno(ENOSYS));
    gives(&wanted, NO_CALL, [0; 6], Action::Errno(1));
    gives(&wanted, X32, [0; 6], Action::KillThread);
    let open = filter(Action::Allow, vec![rule(&["sync"], Action::Errno(1), &[])]);
    gives(&open, 500, [0; 6], Action::Allow);
}

#[test]
fn other_architectures_are_those_that_are_named() {
    let mut wanted = filter(
        Action::Allow,
        vec![
            rule(&["socket"], Action::Errno(13), &[]),
            rule(&["bind"], Action::Errno(14), &[(2, Op::Eq, 1, 0)]),
        ],
    );
    let at = |wanted: &Wanted, number, args| {
        let program = compile(wanted).unwrap().program;
        run(
            &program,
            &Data {
                arch: I386,
                number,
                args,
            },
        )
    };
    let socketcall = 102;
    assert_eq!(at(&wanted, 1, [0; 6]), value(Action::KillThread));
    wanted.architectures.push(SeccompArch::X86);
    assert_eq!(at(&wanted, 1, [0; 6]), value(Action::Allow));
    assert_eq!(
        at(&wanted, socketcall, [1, 0, 0, 0, 0, 0]),
        value(Action::Errno(13))
    );
    assert_eq!(
        at(&wanted, socketcall, [2, 0, 0, 0, 0, 0]),
        value(Action::Errno(14))
    );
    assert_eq!(
        at(&wanted, socketcall, [3, 0, 0, 0, 0, 0]),
        value(Action::Allow)
    );
}

#[test]
fn a_filter_that_no_kernel_takes_is_an_error() {
    let many = (0..2000).map(|n| rule(&["kill"], Action::Allow, &[(0, Op::Eq, n, 0)]));
    let error = compile(&filter(Action::Trap, many.collect())).unwrap_err();
    assert!(error.to_string().contains("4096"), "{error}");
}

/// Random configs, as libseccomp compiles them the way runc asks it to, give the same answers.
#[test]
fn filters_do_as_libseccomp_s() {
    let Some(python) = python_with_seccomp() else {
        return;
    };
    let seed = std::env::var("FCPIPE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut random = Random(seed);
    let names = [
        "read",
        "kill",
        "clone",
        "personality",
        "socket",
        "mkdir",
        "prctl",
        "futex",
        "openat2",
    ];
    for _ in 0..60 {
        let mut rules = Vec::new();
        let (allowed, default) = match random.below(3) {
            0 => (Action::Allow, Action::Errno(random.below(200) as u16)),
            1 => (Action::Errno(3), Action::Allow),
            _ => (Action::Log, Action::KillProcess),
        };
        for call in names {
            match random.below(4) {
                0 => {}
                1 => rules.push(rule(&[call], allowed, &[])),
                2 => {
                    for _ in 0..3 {
                        rules.push(rule(&[call], allowed, &[(1, Op::Eq, random.value(), 0)]));
                    }
                }
                // One alone: with several on different arguments libseccomp 2.5 forgets to come back from the first.
                _ => {
                    let mut args = Vec::new();
                    for index in 0..6 {
                        if random.below(3) == 0 {
                            args.push((index, random.op(), random.value(), random.value()));
                        }
                    }
                    rules.push(rule(&[call], allowed, &args));
                }
            }
        }
        let wanted = filter(default, rules);
        let ours = compile(&wanted).unwrap().program;
        let theirs = libseccomp(python, &wanted);
        for _ in 0..2000 {
            let call = names[random.below(names.len() as u64) as usize];
            let data = Data {
                arch: NATIVE,
                number: number(call),
                args: std::array::from_fn(|_| random.value()),
            };
            // Beyond the last that is named, runc adds what we do.
            let last = wanted
                .rules
                .iter()
                .flat_map(|r| &r.names)
                .map(|n| number(n))
                .max();
            if last.is_none_or(|last| data.number > last) {
                continue;
            }
            assert_eq!(
                run(&ours, &data),
                run(&theirs, &data),
                "FCPIPE_SEED={seed}: {call} {:?} of {wanted:?}",
                data.args
            );
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn value(&mut self) -> u64 {
        let few = [0, 1, 2, 3, 0xffff_ffff, 1 << 32, (1 << 32) + 1, u64::MAX];
        few[self.below(8) as usize]
    }

    fn op(&mut self) -> Op {
        let all = [Op::Ne, Op::Lt, Op::Le, Op::Eq, Op::Ge, Op::Gt, Op::MaskedEq];
        all[self.below(7) as usize]
    }
}

/// The distribution's own: another one on the path does not see its modules.
fn python_with_seccomp() -> Option<&'static str> {
    let python = "/usr/bin/python3";
    let found = Command::new(python)
        .args(["-c", "import seccomp"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if found {
        return Some(python);
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "missing under CI: python3-seccomp"
    );
    let _ = writeln!(
        std::io::stdout(),
        "skipped: python3-seccomp is not installed"
    );
    None
}

fn libseccomp(python: &str, wanted: &Wanted) -> Vec<Instruction> {
    let action = |action| match action {
        Action::Allow => "ALLOW".to_owned(),
        Action::Log => "LOG".to_owned(),
        Action::KillProcess => "KILL_PROCESS".to_owned(),
        Action::Errno(number) => format!("ERRNO({number})"),
        other => panic!("{other:?}"),
    };
    let mut script = format!(
        "import sys\nfrom seccomp import *\nf = SyscallFilter({})\n",
        action(wanted.default)
    );
    for rule in &wanted.rules {
        let mut args = String::new();
        for arg in &rule.args {
            let op = match arg.op {
                Op::Ne => "NE",
                Op::Lt => "LT",
                Op::Le => "LE",
                Op::Eq => "EQ",
                Op::Ge => "GE",
                Op::Gt => "GT",
                Op::MaskedEq => "MASKED_EQ",
            };
            write!(
                args,
                ", Arg({}, {op}, {}, {})",
                arg.index, arg.value, arg.value_two
            )
            .unwrap();
        }
        // The same rule twice is no error to runc's users either.
        writeln!(
            script,
            "try: f.add_rule({}, '{}'{args})\nexcept OSError as e: assert e.errno == 17 or 'EXIST' in str(e)\nexcept \
             RuntimeError as e: assert '-17' in str(e), e",
            action(rule.action),
            rule.names[0]
        )
        .unwrap();
    }
    script.push_str("f.export_bpf(sys.stdout)\n");
    let mut child = Command::new(python)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}");
    let instruction = |bytes: &[u8; 8]| {
        let k = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Instruction(
            u16::from_le_bytes([bytes[0], bytes[1]]),
            bytes[2],
            bytes[3],
            k,
        )
    };
    output
        .stdout
        .as_chunks::<8>()
        .0
        .iter()
        .map(instruction)
        .collect()
}
