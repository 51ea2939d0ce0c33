//! The agent on the host: a process of its own, in a mount namespace of its own, with a loop
//! device for a disk. All of it needs root, loop devices, e2fsprogs and a static busybox; names
//! end in `as_root`. Without them the tests say that they were skipped (with `CI=true` they fail).

#[cfg(test)]
mod agent;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod terminals;
