//! What the machine boots: the imported kernel (a probe) and the initrd made for it (a stage).

use std::io::BufWriter;

use fcpipe_engine::{
    Cx, Digest, Failure, FailureKind, Identity, KeyWriter, Node, Output, Probe, Stage,
};
use fcpipe_kernel::{Kernel, KernelError, KernelStore};

use crate::stored::Stored;

use crate::disk::{MODULES, Writes};

/// The guest program that this fcpipe carries, as it was built with it.
pub(crate) static GUEST: &[u8] = include_bytes!(env!("FCPIPE_GUEST"));
/// The guest program's digest.
pub(crate) static GUEST_DIGEST: &[u8; 32] = include_bytes!(env!("FCPIPE_GUEST_BLAKE3"));

/// The kernel that a launch boots.
pub(crate) struct ChosenKernel(pub(crate) Kernel);

impl Output for ChosenKernel {
    fn identity(&self) -> Identity {
        Identity::new(self.0.digest.into())
    }
}

/// Finds the kernel in the data directory.
pub(crate) struct FindKernel {
    pub(crate) store: KernelStore,
    /// A release or an id; the default one where none is named.
    pub(crate) name: Option<String>,
}

impl Probe for FindKernel {
    const NAME: &'static str = "kernel";
    const VERSION: u32 = 1;
    type Output = ChosenKernel;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("name", &self.name);
        k.field("store", self.store.dir());
    }

    fn run(&self, cx: &Cx) -> Result<ChosenKernel, Failure> {
        match &self.name {
            Some(name) => self.store.find(name),
            None => self.store.default(),
        }
        .map(ChosenKernel)
        .map_err(|e| kernel_failure(cx, "what is to be booted", e))
    }
}

/// Stands for an initrd in [`Stored`].
pub(crate) enum Cpio {}

/// An initrd in the store.
pub(crate) type Initrd = Stored<Cpio>;

/// Puts guest program and modules into an initrd.
pub(crate) struct MakeInitrd {
    pub(crate) kernel: Node<ChosenKernel>,
    pub(crate) guest: Digest,
    /// What this launch's writes need decides over modules.
    pub(crate) writes: Node<Writes>,
}

impl Stage for MakeInitrd {
    const NAME: &'static str = "initrd";
    const VERSION: u32 = fcpipe_kernel::INITRD_VERSION;
    type Output = Initrd;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.node("kernel", &self.kernel);
        k.field("guest program", &self.guest);
        k.facet("modules for `disk.writes`", &self.writes, MODULES);
    }

    fn run(&self, cx: &Cx) -> Result<Initrd, Failure> {
        let kernel = cx.get(&self.kernel)?;
        let modules = cx.get(&self.writes)?.modules();
        let writer = cx.object("initrd")?;
        let mut buffered = BufWriter::with_capacity(1 << 20, writer.file());
        fcpipe_kernel::initrd(&kernel.0, GUEST, modules, &mut buffered)
            .map_err(|e| kernel_failure(cx, &kernel.0.id, e))?;
        buffered
            .into_inner()
            .map_err(|e| cx.fail(FailureKind::Store, "the initrd", e.into_error()))?;
        cx.publish(writer).map(Stored::new)
    }
}

fn kernel_failure(cx: &Cx, subject: impl std::fmt::Display, error: KernelError) -> Failure {
    cx.fail(FailureKind::Kernel, subject, error)
        .hint(fcpipe_kernel::HOW_TO_IMPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_program_s_digest_is_its_own() {
        assert_eq!(blake3::hash(GUEST).as_bytes(), GUEST_DIGEST);
    }
}
