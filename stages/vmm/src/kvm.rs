//! Whether `/dev/kvm` answers as KVM does.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// `KVMIO` in linux/kvm.h.
const KVMIO: u8 = 0xAE;
/// `_IO(KVMIO, 0x00)`; the answer has been 12 since Linux 2.6.22 and is promised to stay.
const KVM_GET_API_VERSION: Opcode = opcode::none(KVMIO, 0x00);
const API_VERSION: i32 = 12;
/// `_IO(KVMIO, 0x01)`, with machine type 0; a descriptor of a new, empty machine.
const KVM_CREATE_VM: Opcode = opcode::none(KVMIO, 0x01);

/// Why a machine cannot be made with this device.
pub(crate) enum KvmFailure {
    Open(io::Error),
    /// It opens, but does not do what KVM does.
    Broken(String),
}

/// Makes a machine and throws it away.
pub(crate) fn try_kvm(device: &Path) -> Result<(), KvmFailure> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        // A FIFO or a tape in its place must not hold anybody up.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(device)
        .map_err(KvmFailure::Open)?;
    close(new_machine(|opcode| call(&device, opcode))?);
    Ok(())
}

/// The descriptor of a new machine, from a device that speaks as KVM does.
fn new_machine(call: impl Fn(Opcode) -> io::Result<i32>) -> Result<i32, KvmFailure> {
    let version = call(KVM_GET_API_VERSION)
        .map_err(|error| KvmFailure::Broken(format!("KVM_GET_API_VERSION: {error}")))?;
    if version != API_VERSION {
        return Err(KvmFailure::Broken(format!(
            "its API version is {version} and not {API_VERSION}"
        )));
    }
    call(KVM_CREATE_VM).map_err(|error| KvmFailure::Broken(format!("KVM_CREATE_VM: {error}")))
}

/// An ioctl without an argument whose result is its return value.
struct Call(Opcode);

#[allow(unsafe_code, reason = "rustix knows no KVM ioctls")]
// SAFETY: both opcodes above take an integer argument that must be zero, and neither reads nor writes memory; the output
// is the return value.
unsafe impl Ioctl for Call {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

#[allow(unsafe_code, reason = "rustix knows no KVM ioctls")]
fn call(device: &impl AsFd, opcode: Opcode) -> io::Result<i32> {
    // SAFETY: `Call` describes the two opcodes that are passed here rightly; another device than KVM's that answers to
    // them does so without touching this process's memory, as the argument is no pointer.
    Ok(unsafe { rustix::ioctl::ioctl(device, Call(opcode)) }?)
}

#[allow(unsafe_code, reason = "KVM_CREATE_VM returns a bare number")]
fn close(machine: i32) {
    // SAFETY: KVM_CREATE_VM has just made this descriptor for us and nothing else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with this API version, which may make machines or not: what comes of it.
    fn device(version: i32, machine: Option<i32>) -> Result<i32, String> {
        let answer = |opcode| match opcode {
            KVM_GET_API_VERSION => Ok(version),
            KVM_CREATE_VM => machine.ok_or_else(|| io::ErrorKind::OutOfMemory.into()),
            other => panic!("{other:?}"),
        };
        new_machine(answer).map_err(|failure| match failure {
            KvmFailure::Broken(why) => why,
            KvmFailure::Open(error) => panic!("{error}"),
        })
    }

    #[test]
    fn row_43_another_api_version_is_not_kvm() {
        assert_eq!(device(12, Some(77)), Ok(77));
        for version in [0, 11, 13] {
            let why = device(version, Some(77)).unwrap_err();
            assert_eq!(why, format!("its API version is {version} and not 12"));
        }
        let why = device(12, None).unwrap_err();
        assert!(why.starts_with("KVM_CREATE_VM: "), "{why}");
    }
}
