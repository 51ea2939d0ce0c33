//! What of a launch is in the store: made without a machine (`stock`), and looked after behind one (`settle`).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fcpipe_engine::{Failure, Key, Node, Run, Store};
use fcpipe_kernel::KernelStore;
use fcpipe_spec::LaunchSpec;

use crate::image::{Builder, MakeImage};
use crate::kernel::FindKernel;
use crate::launch::{Host, Launched, initrd, plan_image};

/// What `stock` is asked for.
pub struct StockRequest {
    pub builder: Builder,
    pub strict: bool,
    /// Whose initrd is wanted; nothing where no kernel is imported.
    pub kernel: Option<(KernelStore, Option<String>)>,
}

/// Makes everything of a launch that is kept in the store, or finds it there, and gives the records' keys.
pub fn stock(spec: &LaunchSpec, request: StockRequest, host: &Host) -> Launched<Vec<Key>> {
    let run = match Run::start(host.settings("stock", spec, None)) {
        Ok(run) => run,
        Err(failure) => return Launched::failed(failure),
    };
    let (plan, parts) = plan_image(
        &run,
        spec,
        request.builder,
        request.strict,
        host.own.clone(),
    );
    let journal = spec.disk.journal;
    run.stage(
        "image",
        MakeImage {
            plan,
            parts,
            journal,
        },
    );
    if let Some((store, name)) = request.kernel {
        let kernel = run.probe("kernel", FindKernel { store, name });
        initrd(&run, spec, kernel, host);
    }
    let finished = run.finish();
    let recorded = |key: &Key| host.store.record(key).is_some();
    // Probes and effects have keys and no records.
    let keys = finished.explained.iter().filter_map(|node| node.key);
    let keys = keys.filter(recorded).collect();
    Launched::ended(Ok(keys), finished)
}

/// How long a launch that has ended goes on looking at what it made.
const GRACE: Duration = Duration::from_millis(250);

/// Waits for the end of a launch. Meanwhile, when the machine has booted, what was made is brought to the disk and looked at,
/// and then the store is let go of, so that a machine that runs for months keeps no collector out.
pub(crate) fn settle<B: Send + Sync + 'static, R>(
    run: &Run,
    booted: &Node<B>,
    store: &Store,
    end: impl FnOnce() -> Result<R, Failure>,
) -> Result<R, Failure> {
    let ended: OnceLock<Instant> = OnceLock::new();
    let late = || ended.get().is_some_and(|at| at.elapsed() > GRACE);
    std::thread::scope(|scope| {
        let behind = std::thread::Builder::new().name("settle".to_owned());
        // Without a thread it is left to the end of the command.
        let _ = behind.spawn_scoped(scope, || {
            if run.wait(booted).is_ok() {
                // What fails here is tried again, and told, at the end of the command.
                let _ = store.settle(&late);
                run.release_store();
            }
        });
        let result = end();
        let _ = ended.set(Instant::now());
        result
    })
}
