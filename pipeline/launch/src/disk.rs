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

use crate::image::{Blocks, Image};
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

/// Makes the launch's own files: for each image a whole disk, or a scratch disk beside it.
pub(crate) struct PrivateDisk {
    /// The root's first.
    pub(crate) images: Vec<Node<Image>>,
    pub(crate) writes: Node<Writes>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DiskEntry {
    path: PathBuf,
    /// Of further images.
    #[serde(default)]
    others: Vec<PathBuf>,
}

/// The machine's disks.
pub(crate) struct Disks {
    /// In the order of their numbers.
    pub(crate) drives: Vec<Drive>,
    /// For each image the disk that it is on, and what the guest is to do with it.
    pub(crate) images: Vec<(u32, fcpipe_proto::Writes)>,
    /// The images', while a machine reads them: nobody collects them before everything of the launch is undone.
    _leases: Vec<Lease>,
}

impl Disks {
    /// Tells the guest which disk is which.
    pub(crate) fn describe(&self, root: &mut fcpipe_proto::RootFs) {
        let mut images = self.images.iter().copied();
        if let Some((disk, writes)) = images.next() {
            (root.disk, root.writes) = (disk, writes);
        }
        root.beside = images
            .map(|(disk, writes)| fcpipe_proto::Beside { disk, writes })
            .collect();
    }
}

impl Effect for PrivateDisk {
    const NAME: &'static str = "disk";
    type Entry = DiskEntry;
    type Output = Disks;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        for image in &self.images {
            k.node("image", image);
        }
        k.node("writes", &self.writes);
    }

    fn intend(&self, cx: &Cx) -> Result<DiskEntry, Failure> {
        let dir = launch_dir(cx)?;
        // An overlay over an image with changes needs a disk for both: the last ones are for that.
        let others = (1..self.images.len() * 2).map(|number| dir.join(format!("disk{number}.img")));
        Ok(DiskEntry {
            path: dir.join("root.img"),
            others: others.collect(),
        })
    }

    fn make(&self, entry: &DiskEntry, cx: &Cx) -> Result<Disks, Failure> {
        let choice = &cx.get(&self.writes)?.0;
        let mut disks = Disks {
            drives: Vec::new(),
            images: Vec::new(),
            _leases: Vec::new(),
        };
        let mut paths = std::iter::once(&entry.path).chain(&entry.others);
        for image in &self.images {
            let image = cx.get(image)?;
            let mut maker = Maker {
                cx,
                choice,
                paths: &mut paths,
                disks: &mut disks,
            };
            maker.add(&image)?;
        }
        Ok(disks)
    }

    fn undo(entry: &DiskEntry) -> Result<(), UndoError> {
        for path in std::iter::once(&entry.path).chain(&entry.others) {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Adds the disks of one image after the other.
struct Maker<'a, 'p> {
    cx: &'a Cx,
    choice: &'a Choice,
    /// Names for files of the launch's own.
    paths: &'a mut dyn Iterator<Item = &'p PathBuf>,
    disks: &'a mut Disks,
}

impl<'p> Maker<'_, 'p> {
    fn add(&mut self, image: &Image) -> Result<(), Failure> {
        let cx = self.cx;
        let own = self.path()?;
        let failed = |e| disk_failure(cx, e);
        // Held while it is read: nobody collects it meanwhile.
        let (base, changes) = match &image.blocks {
            Blocks::Whole { image, .. } => (image, None),
            Blocks::Changed { base, changes } => (base, Some(changes)),
        };
        let mut leases = vec![cx.lease(base)?];
        if let Some(changes) = changes {
            leases.push(cx.lease(changes)?);
        }
        let cancelled = || cx.cancelled();
        let count = |bytes| {
            cx.progress(Amount {
                bytes_read: bytes,
                bytes_written: bytes,
                ..Amount::default()
            });
        };
        let (shared, scratch) = match (self.choice.way, changes) {
            (Way::Clone, None) => {
                clone(&base.path, own, self.choice, cx)?;
                (None, None)
            }
            (Way::Copy, None) => {
                copy(&base.path, own, cx)?;
                (None, None)
            }
            // Whichever the file system can: a clone, or a copy.
            (Way::Clone | Way::Copy, Some(changes)) => {
                let joined = fcpipe_disk::join(&base.path, &changes.path, own, &cancelled);
                count(joined.map_err(failed)?);
                (None, None)
            }
            (Way::Snapshot, None) => {
                fcpipe_disk::scratch(own, base.size).map_err(failed)?;
                (Some(base.path.clone()), Some(Scratch::Empty))
            }
            (Way::Snapshot, Some(changes)) => {
                let size = image.size();
                let made = fcpipe_disk::scratch_with(&changes.path, own, size, &cancelled);
                count(made.map_err(failed)?);
                (Some(base.path.clone()), Some(Scratch::Changes))
            }
            (Way::Overlay, None) => {
                fcpipe_disk::scratch_ext4(own, base.size).map_err(failed)?;
                (Some(base.path.clone()), Some(Scratch::Ext4))
            }
            (Way::Overlay, Some(changes)) => {
                let whole = self.path()?;
                let joined = fcpipe_disk::join(&base.path, &changes.path, whole, &cancelled);
                count(joined.map_err(failed)?);
                fcpipe_disk::scratch_ext4(own, base.size).map_err(failed)?;
                (Some(whole.clone()), Some(Scratch::Ext4))
            }
        };
        let disks = &mut *self.disks;
        let number = disks.drives.len() as u32;
        disks.drives.extend(shared.map(|path| Drive {
            path,
            read_only: true,
        }));
        disks.drives.push(Drive {
            path: own.clone(),
            read_only: false,
        });
        let scratch_number = number + 1;
        let writes = match scratch {
            None => fcpipe_proto::Writes::Direct,
            Some(Scratch::Ext4) => fcpipe_proto::Writes::Overlay {
                scratch: scratch_number,
            },
            Some(scratch) => fcpipe_proto::Writes::Snapshot {
                scratch: scratch_number,
                changes: matches!(scratch, Scratch::Changes),
            },
        };
        disks.images.push((number, writes));
        disks._leases.append(&mut leases);
        Ok(())
    }

    fn path(&mut self) -> Result<&'p PathBuf, Failure> {
        self.paths.next().ok_or_else(|| {
            let why = "there are fewer names than disks";
            self.cx
                .fail(FailureKind::Internal, "the machine's disks", why)
        })
    }
}

/// What a scratch disk holds at first.
enum Scratch {
    Empty,
    Changes,
    Ext4,
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
