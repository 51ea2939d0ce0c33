//! A source that is a regular file.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::assemble::{declared, made_directory, unsettled};
use super::settle::Clock;
use super::xattrs::{self, Set};
use super::{FILE_NAME, Request, Scan, ScanError, ScanRoot, ScanWarning, Stamp, holes};
use crate::index::Seen;
use crate::model::NewKind;
use crate::model::writer::Writer;
use crate::sys::{self, Entrance};

/// A source that is a regular file: a Tree with a made-up root that holds it.
pub(super) fn file(
    request: &Request<'_>,
    found: BorrowedFd<'_>,
    looked: &Statx,
) -> Result<Scan, ScanError> {
    let io =
        |action| move |errno: Errno| ScanError::io(request.source.to_path_buf(), action, errno);
    let opened = sys::open_source(found, request.source).map_err(io("open it"))?;
    let clock = Clock::new(request.started, request.manner.skew);
    let (stat, settled) = clock.stat(opened.as_fd(), c"").map_err(io("look at it"))?;
    let seen = Seen::new(&stat);
    let stamp = seen.stamp();
    if stamp != sys::stamp_of(looked) {
        return Err(ScanError::Changed {
            path: request.source.to_path_buf(),
        });
    }
    let mut data = None;
    if holes::may_have(stamp.size, stat.stx_blocks, request.manner.keeps_ready) {
        if stamp.size > holes::MOST {
            return Err(ScanError::FileTooLarge {
                path: request.source.to_path_buf(),
                size: stamp.size,
            });
        }
        data = holes::data_runs(opened.as_fd(), stamp.size).map_err(io("find its holes"))?;
    }
    // By node: the made-up root, and the file.
    let mut contents = Vec::new();
    if request.manner.fields.reads() {
        let file = std::fs::File::from(opened.try_clone().map_err(|source| ScanError::Io {
            path: request.source.to_path_buf(),
            action: "read it",
            source,
        })?);
        let hash = sys::hash_content(&file, &mut Vec::new()).map_err(|source| ScanError::Io {
            path: request.source.to_path_buf(),
            action: "read it",
            source,
        })?;
        let (after, _) = sys::stamp_of_open(opened.as_fd()).map_err(io("look at it"))?;
        if after != stamp {
            return Err(ScanError::Changed {
                path: request.source.to_path_buf(),
            });
        }
        contents = vec![[0; 32], hash];
    }
    let mut sets = xattrs::Sets::new();
    let set = sets
        .read(opened.as_fd(), c"", 0)
        .map_err(|e| e.of(request.source.to_path_buf()))?;
    let meta = seen.meta();
    let mut writer = Writer::new(made_directory(meta.mtime), Vec::new(), 2);
    let Set { xattrs, foreign } = sets.sets[set as usize].clone();
    let set = writer.xattr_set(xattrs);
    let kind = NewKind::File {
        size: stamp.size,
        data: data.as_deref(),
    };
    writer.add(FILE_NAME, meta, kind, set);
    Ok(Scan {
        source: request.source.to_path_buf(),
        root: ScanRoot::File,
        tree: Arc::new(writer.finish()),
        stamps: vec![Stamp::default(), stamp],
        warnings: foreign
            .into_iter()
            .map(|name| ScanWarning::ForeignAttribute {
                name,
                path: request.source.to_path_buf(),
                count: 1,
            })
            .collect(),
        content: request.content.clone(),
        bytes: stamp.size,
        entries: 1,
        started: request.started,
        unsettled: unsettled(settled),
        fields: request.manner.fields,
        seen: Some(seen),
        contents,
        declared: declared(request),
        cross_mounts: request.options.cross_mounts,
        entrance: Entrance::AsSeen,
    })
}
