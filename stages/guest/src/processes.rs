//! The processes that the host knows, and the thread that waits for all that end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fcpipe_proto::message::SignalOutcome;
use fcpipe_proto::mux::Inlet;
use fcpipe_proto::process::Signal;
use fcpipe_proto::pump::Stop;
use fcpipe_proto::{ExitStatus, ProcessId, WindowSize};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait};

use crate::console::say;
use crate::container::terminal;
use crate::sys;

/// All processes that were started and have not ended.
#[derive(Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<ProcessId, Entry>,
    /// How many threads are between starting a process and entering it here. While there are any,
    /// exits that nobody claims are kept: one may be of a process that is about to be entered.
    starting: usize,
    unclaimed: BTreeMap<i32, ExitStatus>,
    /// The container's first process began, once and for all.
    init_began: bool,
}

/// A process.
struct Entry {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    streams: StreamsOf,
    /// The agent's end of its terminal, if it has one.
    terminal: Option<Arc<OwnedFd>>,
    running: bool,
    exited: Option<ExitStatus>,
}

/// What ends with a process.
#[derive(Clone)]
pub(crate) struct StreamsOf {
    pub(crate) stop: Arc<Stop>,
    pub(crate) stdin: Option<Arc<Inlet>>,
}

impl StreamsOf {
    fn end(&self) {
        self.stop.set();
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
    }
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to be the container's first process: there is one a boot.
    pub(crate) fn claim_init(&self) -> bool {
        !std::mem::replace(&mut self.lock().init_began, true)
    }

    /// The first process, if it runs: others join its namespaces.
    pub(crate) fn init(&self) -> Option<Arc<OwnedFd>> {
        let table = self.lock();
        let init = table.entries.get(&ProcessId::INIT)?;
        init.running.then(|| Arc::clone(&init.pidfd))
    }

    /// Those that run.
    pub(crate) fn running(&self) -> Vec<ProcessId> {
        let table = self.lock();
        let running = table.entries.iter().filter(|(_, e)| e.running);
        running.map(|(id, _)| *id).collect()
    }

    /// Starts a process with `spawn` and enters it.
    ///
    /// # Errors
    /// Those of `spawn`, or when the process ended at once.
    pub(crate) fn spawn(
        &self,
        id: ProcessId,
        streams: StreamsOf,
        spawn: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<Pid> {
        self.lock().starting += 1;
        let spawned = spawn().and_then(|pid| {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
            Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
        });
        let mut table = self.lock();
        table.starting -= 1;
        let exited = match &spawned {
            Ok((pid, _)) => table.unclaimed.remove(&pid.as_raw_pid()),
            Err(_) => None,
        };
        if table.starting == 0 {
            table.unclaimed.clear();
        }
        let (pid, pidfd) = spawned?;
        let entry = Entry {
            pid,
            pidfd: Arc::new(pidfd),
            streams,
            terminal: None,
            running: false,
            exited,
        };
        table.entries.insert(id, entry);
        self.changed.notify_all();
        Ok(pid)
    }

    /// The process runs its program. `say` is called with nothing, and again with the exit if it
    /// is over already.
    pub(crate) fn started(
        &self,
        id: ProcessId,
        terminal: Option<Arc<OwnedFd>>,
        say: impl Fn(Option<ExitStatus>),
    ) {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&id) else {
            return;
        };
        entry.running = true;
        entry.terminal = terminal;
        say(None);
        if let Some(status) = entry.exited {
            entry.streams.end();
            table.entries.remove(&id);
            say(Some(status));
        }
        self.changed.notify_all();
    }

    /// The process never ran its program: it is killed, should it still be there, and forgotten.
    pub(crate) fn forget(&self, id: ProcessId) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.remove(&id) {
            if entry.exited.is_none() {
                // It may have ended this moment.
                let _ = sys::pidfd_signal(entry.pidfd.as_fd(), Signal::KILL.get());
            }
            entry.streams.end();
        }
        self.changed.notify_all();
    }

    /// Whether it has been started and has not ended.
    pub(crate) fn is_running(&self, id: ProcessId) -> bool {
        let table = self.lock();
        let entry = table.entries.get(&id);
        entry.is_some_and(|e| e.running && e.exited.is_none())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, id: ProcessId, signal: Signal, all: bool) -> SignalOutcome {
        let found = {
            let table = self.lock();
            let entry = table.entries.get(&id).filter(|e| e.exited.is_none());
            entry.map(|e| (e.pid, Arc::clone(&e.pidfd)))
        };
        let Some((pid, pidfd)) = found else {
            return SignalOutcome::NotRunning;
        };
        if all {
            signal_all_beside(pid, signal);
        }
        // Asked before, for it may end by it. What others of the container did about it is not known.
        let dropped = id == ProcessId::INIT && !all && is_dropped(pid, signal);
        match sys::pidfd_signal(pidfd.as_fd(), signal.get()) {
            Ok(()) if dropped => SignalOutcome::Dropped,
            Ok(()) => SignalOutcome::Sent,
            Err(_) => SignalOutcome::NotRunning,
        }
    }

    /// Gives its terminal another size, if it has one.
    pub(crate) fn resize(&self, id: ProcessId, size: WindowSize) {
        let terminal = self
            .lock()
            .entries
            .get(&id)
            .and_then(|e| e.terminal.clone());
        if let Some(terminal) = terminal
            && let Err(e) = terminal::resize(terminal.as_fd(), size)
        {
            say(&format!("the terminal of process {id} keeps its size: {e}"));
        }
    }

    /// Lets its terminal go: once the pumps have as well, the kernel hangs up on whoever uses it.
    pub(crate) fn hang_up(&self, id: ProcessId) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get_mut(&id)
            && entry.terminal.take().is_some()
        {
            entry.streams.end();
        }
    }

    /// Kills all and waits until all have ended; `false` at the deadline.
    pub(crate) fn end_all(&self, deadline: Instant) -> bool {
        let mut table = self.lock();
        table.init_began = true;
        loop {
            for entry in table.entries.values() {
                let _ = sys::pidfd_signal(entry.pidfd.as_fd(), Signal::KILL.get());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if table.entries.is_empty() && table.starting == 0 {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            // Again and again: one may have been started meanwhile.
            let step = left.min(Duration::from_millis(50));
            let waited = self.changed.wait_timeout(table, step);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The reaper's life: waits for every child, the host's and orphans that come to init.
    /// `killed` is called before anything is said about one that was.
    pub(crate) fn reap(&self, killed: impl Fn(), say: impl Fn(ProcessId, ExitStatus)) -> ! {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    if let Some(status) = exit_status(status) {
                        if matches!(
                            status,
                            ExitStatus::Signal {
                                signal: Signal::KILL,
                                ..
                            }
                        ) {
                            killed();
                        }
                        self.ended(pid, status, &say);
                    }
                }
                Ok(None) | Err(Errno::INTR) => {}
                // No children: until one is started.
                Err(_) => {
                    let table = self.lock();
                    let step = Duration::from_millis(100);
                    if table.entries.is_empty() {
                        drop(self.changed.wait_timeout(table, step));
                    }
                }
            }
        }
    }

    fn ended(&self, pid: Pid, status: ExitStatus, say: &impl Fn(ProcessId, ExitStatus)) {
        let mut table = self.lock();
        let known = table.entries.iter().find(|(_, e)| e.pid == pid);
        match known.map(|(id, entry)| (*id, entry.running)) {
            Some((id, true)) => {
                if let Some(entry) = table.entries.remove(&id) {
                    entry.streams.end();
                }
                say(id, status);
            }
            Some((id, false)) => {
                if let Some(entry) = table.entries.get_mut(&id) {
                    entry.exited = Some(status);
                }
            }
            None if table.starting > 0 => {
                table.unclaimed.insert(pid.as_raw_pid(), status);
            }
            None => {}
        }
        self.changed.notify_all();
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    if let Some(code) = status.exit_status() {
        // The kernel keeps the lowest eight bits.
        return Some(ExitStatus::Code { code: code as u8 });
    }
    let signal = Signal::new(status.terminating_signal()?)?;
    // WCOREDUMP of wait(2).
    let core = status.as_raw() & 0x80 != 0;
    Some(ExitStatus::Signal { signal, core })
}

/// Whether the kernel drops a signal to the first process of a PID namespace: one that would end another process, and that it has no handler for
/// (`SigCgt` of proc_pid_status(5)) and does not wait for (`SigBlk`).
fn is_dropped(pid: Pid, signal: Signal) -> bool {
    if signal == Signal::KILL || !signal.ends_by_default() {
        return false;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.unwrap_or_default();
    let lacks = |set: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(set));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal.get() - 1) & 1 == 0)
    };
    lacks("SigCgt:") && lacks("SigBlk:")
}

/// Signals every process in the PID namespace of `pid` but that one, which comes last: a container
/// whose PID 1 has gone has nobody left to signal.
fn signal_all_beside(pid: Pid, signal: Signal) {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    let first = pid.as_raw_nonzero().to_string();
    let Ok(inside) = namespace(&first) else {
        return;
    };
    let Ok(all) = std::fs::read_dir("/proc") else {
        return;
    };
    for entry in all.flatten() {
        let name = entry.file_name();
        let Some(other) = name.to_str().filter(|n| **n != *first) else {
            continue;
        };
        let Some(number) = other.parse().ok().and_then(Pid::from_raw) else {
            continue;
        };
        // The descriptor first, then the question: so it is the process that was asked about.
        let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty()) else {
            continue;
        };
        if namespace(other).is_ok_and(|n| n == inside) {
            let _ = sys::pidfd_signal(pidfd.as_fd(), signal.get());
        }
    }
}
