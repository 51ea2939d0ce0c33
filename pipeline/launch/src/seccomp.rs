//! A filter of system calls, from the names of an OCI config to the program that the guest's kernel runs.
//!
//! It is compiled here, on the host: what cannot be had is an error before anything boots, and the guest only loads it.
//! What a program means is what runc and libseccomp make of the same config; docs/oci.md says where it differs.

mod bpf;
mod calls;

use std::collections::BTreeMap;

use fcpipe_proto::Seccomp;
use fcpipe_spec::{
    Seccomp as Wanted, SeccompAction as Action, SeccompArch, SeccompArg, SeccompFlag, SeccompRule,
};

use bpf::{Condition, Field, Program};
use calls::Table;

/// Numbers from here on are of the x32 ABI (asm/unistd.h, `__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;
/// No call: what a tracer writes that wants none.
const NO_CALL: u32 = u32::MAX;
const ENOSYS: u16 = 38;

/// The kernel takes no more instructions (linux/bpf_common.h, `BPF_MAXINSNS`).
const MOST: usize = 4096;

/// The filter is larger than the kernel takes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filter needs {0} instructions, and the kernel takes {MOST}")]
pub(crate) struct TooLarge(usize);

/// What is done about one system call.
#[derive(Debug, Default)]
struct Call {
    /// About every call of it. A config may have others with conditions besides; this one covers them, as with libseccomp.
    always: Option<Action>,
    /// The first that fits counts.
    sometimes: Vec<(Vec<Condition>, Action)>,
}

pub(crate) fn compile(wanted: &Wanted) -> Result<Seccomp, TooLarge> {
    let has = |arch| wanted.architectures.contains(&arch);
    let mut program = Program::default();
    program.load(Field::Arch);
    let native = block(wanted, &calls::X86_64, has(SeccompArch::X32));
    program.when_equal(calls::X86_64.audit, &native);
    if has(SeccompArch::X86) {
        program.when_equal(calls::X86.audit, &block(wanted, &calls::X86, false));
    }
    // Of another architecture than all that are named.
    program.give(value(Action::KillThread));
    let program = program.finish();
    if program.len() > MOST {
        return Err(TooLarge(program.len()));
    }
    let flags = wanted.flags.iter().map(|flag| match flag {
        // There is one thread.
        SeccompFlag::Tsync => 0,
        SeccompFlag::Log => 2,
        SeccompFlag::SpecAllow => 4,
        // About notifications, which there are none of: the kernel refuses it without.
        SeccompFlag::WaitKillableRecv => 0,
    });
    Ok(Seccomp {
        flags: flags.fold(0, |all, flag| all | flag),
        program,
    })
}

/// What is done about the calls of one architecture. `x32`: those of that ABI are among them, but the kernels of guests
/// have none of it.
fn block(wanted: &Wanted, table: &Table, x32: bool) -> Program {
    let mut block = Program::default();
    block.load(Field::Number);
    if table.has_x32 {
        let action = if x32 {
            Action::Errno(ENOSYS)
        } else {
            Action::KillThread
        };
        block.when_between(X32, NO_CALL - 1, value(action));
    }
    let calls = collect(wanted, table);
    // A program that asks for a call that is newer than the config must learn that there is none, and do without: a
    // library takes "not permitted" for an answer. Only where the config knows no better.
    let permissive = matches!(
        wanted.default,
        Action::Allow | Action::Log | Action::Trace(_)
    );
    if let Some((last, _)) = calls.last_key_value().filter(|_| !permissive) {
        block.when_between(last + 1, NO_CALL - 1, value(Action::Errno(ENOSYS)));
    }
    for (number, call) in &calls {
        let mut body = Program::default();
        match call.always {
            Some(action) => body.give(value(action)),
            None => {
                for (conditions, action) in &call.sometimes {
                    body.when_all(conditions, table.wide, value(*action));
                }
                body.give(value(wanted.default));
            }
        }
        block.when_equal(*number, &body);
    }
    block.give(value(wanted.default));
    block
}

fn collect(wanted: &Wanted, table: &Table) -> BTreeMap<u32, Call> {
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    for rule in &wanted.rules {
        for name in &rule.names {
            // One that this architecture does not have cannot be made.
            if let Some(number) = (table.number)(name) {
                calls.entry(number).or_default().add(rule);
            }
            if let Some((number, which)) = (table.multiplexed)(name) {
                calls
                    .entry(number)
                    .or_default()
                    .add_multiplexed(rule, which);
            }
        }
    }
    calls
}

impl Call {
    fn add(&mut self, rule: &SeccompRule) {
        if rule.args.is_empty() {
            self.always.get_or_insert(rule.action);
            return;
        }
        let condition = |arg: &SeccompArg| Condition {
            index: arg.index,
            op: arg.op,
            value: arg.value,
            value_two: arg.value_two,
        };
        let conditions: Vec<Condition> = rule.args.iter().map(condition).collect();
        let mut seen = [false; 6];
        let twice = conditions
            .iter()
            .any(|c| std::mem::replace(&mut seen[usize::from(c.index)], true));
        if twice {
            // Conditions on one argument can't all be meant at once: as runc reads it, each is a rule.
            self.sometimes
                .extend(conditions.into_iter().map(|c| (vec![c], rule.action)));
        } else {
            self.sometimes.push((conditions, rule.action));
        }
    }

    /// The same call by way of one that stands for many, its number in the first argument. The other arguments are in
    /// memory, where no filter can see them: what is allowed under conditions is then not allowed, and what is
    /// forbidden under conditions is forbidden.
    fn add_multiplexed(&mut self, rule: &SeccompRule, which: u64) {
        if !rule.args.is_empty() && rule.action == Action::Allow {
            return;
        }
        let condition = Condition {
            index: 0,
            op: fcpipe_spec::SeccompOp::Eq,
            value: which,
            value_two: 0,
        };
        self.sometimes.push((vec![condition], rule.action));
    }
}

/// `SECCOMP_RET_…` of linux/seccomp.h.
fn value(action: Action) -> u32 {
    match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(number) => 0x0005_0000 | u32::from(number),
        Action::Trace(number) => 0x7ff0_0000 | u32::from(number),
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

#[cfg(test)]
mod tests;
