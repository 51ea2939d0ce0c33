//! What of a launch is in the store: made without a machine (`stock`), and looked after behind one (`settle`).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fcpipe_engine::{CancelToken, EventSender, Failure, Key, Node, Run, Settings};
use fcpipe_kernel::KernelStore;
use fcpipe_spec::LaunchSpec;

use crate::group::IMAGES;
use crate::image::Image;
use crate::kernel::FindKernel;
use crate::launch::{Anew, Host, Launched, choose_group, images, initrd, scan_sources};
use crate::plan::Builder;

/// What `stock` is asked for.
pub struct StockRequest {
    pub builder: Builder,
    pub strict: bool,
    /// Whose initrd is wanted; nothing where no kernel is imported.
    pub kernel: Option<(KernelStore, Option<String>)>,
}

/// Makes everything of a launch that is kept in the store, or finds it there, and gives the records' keys.
pub fn stock(spec: &LaunchSpec, request: StockRequest, host: &Host) -> Launched<Vec<Key>> {
    let launched = stock_once(spec, &request, host);
    // An image that is a base and changes is two keys' objects. What leaves the store is whole: it is made anew, without what it was
    // near to.
    let keys = launched.result.as_deref().unwrap_or_default();
    let borrowing = keys.iter().filter(|key| {
        let record = host.store.record(key);
        record.is_some_and(|record| record.borrowed_objects().next().is_some())
    });
    let borrowing: Vec<Key> = borrowing.copied().collect();
    if borrowing.is_empty() {
        return launched;
    }
    for key in borrowing {
        if let Err(error) = host.store.forget(&key) {
            return Launched::failed(Failure::new(
                "stock",
                fcpipe_engine::FailureKind::Store,
                "the record of an image with changes",
                Some(error.into()),
            ));
        }
    }
    stock_once(spec, &request, host)
}

fn stock_once(spec: &LaunchSpec, request: &StockRequest, host: &Host) -> Launched<Vec<Key>> {
    let run = match Run::start(host.settings("stock", spec, None)) {
        Ok(run) => run,
        Err(failure) => return Launched::failed(failure),
    };
    let parts = scan_sources(&run, spec, request.strict, host.own.clone());
    let group = match choose_group(&run, spec, request.builder, &parts, IMAGES) {
        Ok(group) => group,
        Err(failure) => return Launched::ended(Err(failure), run.finish()),
    };
    images(&run, spec, request.builder, &parts, &group, Anew::Whole);
    if let Some((store, name)) = request.kernel.clone() {
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

/// Makes new bases of images that are far from theirs.
pub(crate) struct Renewal<'a> {
    pub(crate) spec: &'a LaunchSpec,
    pub(crate) builder: Builder,
    pub(crate) strict: bool,
    pub(crate) host: &'a Host,
    /// For how many images the machine has room.
    pub(crate) room: usize,
    pub(crate) images: &'a [Node<Image>],
}

impl Renewal<'_> {
    /// Which images are far from their base.
    fn due(&self, run: &Run) -> Vec<bool> {
        let far = |node: &Node<Image>| run.wait(node).is_ok_and(|image| image.is_far());
        self.images.iter().map(far).collect()
    }

    /// The sources are looked at again, and what is there then is the next base. Whatever goes wrong, this launch has
    /// nothing to do with it, and the next one tries again.
    fn work(&self, due: &[bool], cancel: &CancelToken) {
        let settings = Settings {
            events: EventSender::none(),
            cancel: cancel.clone(),
            // Behind a launch there is no hurry.
            threads: 1,
            ..self.host.settings("renewal", self.spec, None)
        };
        let Ok(run) = Run::start(settings) else {
            return;
        };
        let parts = scan_sources(&run, self.spec, self.strict, self.host.own.clone());
        if let Ok(group) = choose_group(&run, self.spec, self.builder, &parts, self.room)
            && group.images() == due.len()
        {
            let group = group.only(due);
            images(&run, self.spec, self.builder, &parts, &group, Anew::Base);
        }
        run.finish();
    }
}

/// How long a launch that has ended goes on looking at what it made.
const GRACE: Duration = Duration::from_millis(250);

/// Waits for the end of a launch. Meanwhile, when the machine has booted, what was made is brought to the disk and looked at,
/// and then the store is let go of, so that a machine that runs for months keeps no collector out.
pub(crate) fn settle<B: Send + Sync + 'static, R>(
    run: &Run,
    booted: &Node<B>,
    renewal: &Renewal<'_>,
    end: impl FnOnce() -> Result<R, Failure>,
) -> Result<R, Failure> {
    let ended: OnceLock<Instant> = OnceLock::new();
    // Ends the renewal, and nothing else.
    let enough = CancelToken::new().ok();
    let store = &renewal.host.store;
    let late = || ended.get().is_some_and(|at| at.elapsed() > GRACE);
    std::thread::scope(|scope| {
        let behind = std::thread::Builder::new().name("settle".to_owned());
        // Without a thread it is left to the end of the command.
        let _ = behind.spawn_scoped(scope, || {
            // Before the values of what led here are forgotten.
            let due = renewal.due(run);
            if run.wait(booted).is_ok() {
                // What fails here is tried again, and told, at the end of the command.
                let _ = store.settle(&late);
                if let Some(enough) = &enough
                    && due.contains(&true)
                {
                    renewal.work(&due, enough);
                    let _ = store.settle(&late);
                }
                run.release_store();
            }
        });
        let result = end();
        let _ = ended.set(Instant::now());
        if let Some(enough) = &enough {
            enough.cancel();
        }
        result
    })
}
