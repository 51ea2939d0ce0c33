//! What the machine is given as disks: which way (a probe), and the launch's own file (an effect).

use std::io;
use std::path::{Path, PathBuf};

use fcpipe_disk::{Choice, DiskError, GuestCan, Way};
use fcpipe_engine::{
    Amount, Cx, Digest, Effect, Failure, FailureKind, Identity, KeyWriter, Lease, Node, Output,
    Probe, UndoError,
};
use fcpipe_vmm::Drive;
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::kernel::ChosenKernel;
use crate::machine::launch_dir;

/// Where a launch's writes go, and why there: `disk.writes`, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writes(Choice);

/// The facet that says which modules the guest needs for it.
pub(crate) const MODULES: &str = "modules";

impl Writes {
    /// As a spec spells it: `clone`, `snapshot`, `overlay` or `copy`.
    pub fn way(&self) -> String {
        self.0.way.to_string()
    }

    /// The reason, for people.
    pub fn why(&self) -> &str {
        &self.0.why
    }

    pub(crate) fn modules(&self) -> &'static [&'static str] {
        self.0.way.modules()
    }
}

impl Output for Writes {
    fn identity(&self) -> Identity {
        let way = self.way();
        let modules = self.modules().join(",");
        Identity::new(Digest::of("fcpipe writes 1", &[way.as_bytes()])).with_facet(
            MODULES,
            Digest::of("fcpipe modules 1", &[modules.as_bytes()]),
        )
    }
}

/// Decides where writes go, by what the file systems of store and state directory can do, and the guest's kernel.
pub(crate) struct ChooseWrites {
    pub(crate) wanted: fcpipe_spec::Writes,
    pub(crate) kernel: Node<ChosenKernel>,
    /// The state directory, below which the launch's own file will be.
    pub(crate) state: PathBuf,
}

impl Probe for ChooseWrites {
    const NAME: &'static str = "writes";
    const VERSION: u32 = 1;
    type Output = Writes;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("writes", &self.wanted.to_string());
        k.field("state directory", &self.state);
        k.node("kernel", &self.kernel);
    }

    fn run(&self, cx: &Cx) -> Result<Writes, Failure> {
        let kernel = cx.get(&self.kernel)?;
        let guest = GuestCan {
            kernel: kernel.0.release.clone(),
            snapshot: has_all(&kernel, Way::Snapshot),
            overlay: has_all(&kernel, Way::Overlay),
        };
        let wanted = match self.wanted {
            fcpipe_spec::Writes::Auto => None,
            fcpipe_spec::Writes::Clone => Some(Way::Clone),
            fcpipe_spec::Writes::Snapshot => Some(Way::Snapshot),
            fcpipe_spec::Writes::Overlay => Some(Way::Overlay),
            fcpipe_spec::Writes::Copy => Some(Way::Copy),
        };
        let host = || fcpipe_disk::can_clone(cx.store().root(), &self.state);
        fcpipe_disk::choose(wanted, host, &guest)
            .map(Writes)
            .map_err(|refusal| {
                let kind = match refusal.way {
                    Way::Clone | Way::Copy => FailureKind::Host,
                    Way::Snapshot | Way::Overlay => FailureKind::Kernel,
                };
                cx.fail(kind, "disk.writes", refusal)
                    .hint("`disk.writes: auto` takes what can be had, and `fcpipe plan` says what that is")
            })
    }
}

fn has_all(kernel: &ChosenKernel, way: Way) -> bool {
    way.modules().iter().all(|name| kernel.0.has_module(name))
}

/// Makes the launch's own file: its whole disk, or the scratch disk beside the image.
pub(crate) struct PrivateDisk {
    pub(crate) image: Node<Image>,
    pub(crate) writes: Node<Writes>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DiskEntry {
    path: PathBuf,
}

/// The machine's disks.
pub(crate) struct Disks {
    /// In the order of their numbers.
    pub(crate) drives: Vec<Drive>,
    /// What the guest is to do with them.
    pub(crate) writes: fcpipe_proto::Writes,
    /// The image's, while a machine reads it: nobody collects it before everything of the launch is undone.
    _lease: Option<Lease>,
}

impl Effect for PrivateDisk {
    const NAME: &'static str = "disk";
    type Entry = DiskEntry;
    type Output = Disks;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.node("image", &self.image);
        k.node("writes", &self.writes);
    }

    fn intend(&self, cx: &Cx) -> Result<DiskEntry, Failure> {
        Ok(DiskEntry {
            path: launch_dir(cx)?.join("root.img"),
        })
    }

    fn make(&self, entry: &DiskEntry, cx: &Cx) -> Result<Disks, Failure> {
        let image = cx.get(&self.image)?;
        let choice = &cx.get(&self.writes)?.0;
        // Held while it is read: nobody collects it meanwhile.
        let lease = cx.lease(image.object())?;
        let image = image.object();
        let failed = |e| disk_failure(cx, e);
        let scratch = match choice.way {
            Way::Clone => {
                clone(&image.path, &entry.path, choice, cx)?;
                None
            }
            Way::Copy => {
                copy(&image.path, &entry.path, cx)?;
                None
            }
            Way::Snapshot => {
                fcpipe_disk::scratch(&entry.path, image.size).map_err(failed)?;
                Some(fcpipe_proto::Writes::Snapshot { scratch: 1 })
            }
            Way::Overlay => {
                fcpipe_disk::scratch_ext4(&entry.path, image.size).map_err(failed)?;
                Some(fcpipe_proto::Writes::Overlay { scratch: 1 })
            }
        };
        let own = Drive {
            path: entry.path.clone(),
            read_only: false,
        };
        Ok(match scratch {
            None => Disks {
                drives: vec![own],
                writes: fcpipe_proto::Writes::Direct,
                _lease: None,
            },
            Some(writes) => {
                let shared = Drive {
                    path: image.path.clone(),
                    read_only: true,
                };
                Disks {
                    drives: vec![shared, own],
                    writes,
                    _lease: Some(lease),
                }
            }
        })
    }

    fn undo(entry: &DiskEntry) -> Result<(), UndoError> {
        match std::fs::remove_file(&entry.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A file system that clones one file may still refuse another: then a copy does, unless a clone was asked for.
fn clone(image: &Path, disk: &Path, choice: &Choice, cx: &Cx) -> Result<(), Failure> {
    match fcpipe_disk::clone(image, disk) {
        Err(error @ DiskError::CannotClone { .. }) if choice.auto => {
            cx.warn(format_args!("{error}; it is copied"));
            copy(image, disk, cx)
        }
        cloned => cloned.map_err(|e| disk_failure(cx, e)),
    }
}

fn copy(image: &Path, disk: &Path, cx: &Cx) -> Result<(), Failure> {
    let bytes =
        fcpipe_disk::copy(image, disk, &|| cx.cancelled()).map_err(|e| disk_failure(cx, e))?;
    cx.progress(Amount {
        bytes_read: bytes,
        bytes_written: bytes,
        ..Amount::default()
    });
    Ok(())
}

fn disk_failure(cx: &Cx, error: DiskError) -> Failure {
    let kind = match &error {
        DiskError::Cancelled { .. } => FailureKind::Cancelled,
        DiskError::Disk { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            FailureKind::Space
        }
        _ => FailureKind::Host,
    };
    cx.fail(kind, "the machine's disk", error)
}
