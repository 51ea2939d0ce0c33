//! Where a sparse file has data.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::model::{DataRun, HOLE_UNIT};

/// The largest file whose runs' ends fit 32 bits: 16 TiB less a unit, which is also ext4's limit.
pub(super) const MOST: u64 = HOLE_UNIT * u32::MAX as u64;

/// A file must be as long as this before XFS keeps blocks ready for it (`m_allocsize_blocks`).
const READY: u64 = 64 << 10;

/// Whether it is worth asking a file for its holes: it has fewer blocks than its size needs, or its blocks do not tell
/// ([`super::trust::Manner::keeps_ready`]). `blocks` are of 512 bytes, whatever the file system's are. One unit is never worth it.
pub(super) fn may_have(size: u64, blocks: u64, keeps_ready: bool) -> bool {
    size > HOLE_UNIT && (blocks.saturating_mul(512) < size || keeps_ready && size >= READY)
}

/// The runs of data in a file of `size` bytes (at most [`MOST`]), rounded outwards to units; `None`
/// where all of it is data.
pub(super) fn data_runs(file: BorrowedFd<'_>, size: u64) -> Result<Option<Vec<DataRun>>, Errno> {
    let mut runs: Vec<DataRun> = Vec::new();
    for run in fcpipe_sparse::Data::of(file, size)? {
        let run = run?;
        push(&mut runs, run.start, run.end);
    }
    let units = size.div_ceil(HOLE_UNIT) as u32;
    let whole = [DataRun {
        start: 0,
        end: units,
    }];
    Ok((runs != whole).then_some(runs))
}

/// Bytes `start..end` are data. Runs that come to touch after rounding are one.
fn push(runs: &mut Vec<DataRun>, start: u64, end: u64) {
    let run = DataRun {
        start: (start / HOLE_UNIT) as u32,
        end: end.div_ceil(HOLE_UNIT) as u32,
    };
    match runs.last_mut() {
        Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn runs_are_rounded_outwards_and_joined() {
        let mut runs = Vec::new();
        push(&mut runs, 512, 1024);
        push(&mut runs, 2048, 4097);
        push(&mut runs, 20000, 20001);
        let expected = [DataRun { start: 0, end: 2 }, DataRun { start: 4, end: 5 }];
        assert_eq!(runs, expected);
    }

    /// 1 MiB with a hole, for which XFS keeps 64 KiB ready for a while.
    #[test]
    fn blocks_that_are_kept_ready_hide_no_holes() {
        for blocks in [2048 - 8, 2048 - 8 + 128] {
            assert!(may_have(1 << 20, blocks, true));
        }
        assert!(!may_have(1 << 20, 2048 - 8 + 128, false));
        assert!(!may_have(READY - 1, 128, true));
    }

    #[test]
    fn row_19_a_sparse_file_of_a_tebibyte() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 40;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", 1 << 30).unwrap();
        let runs = data_runs(file.as_fd(), size).unwrap().unwrap();
        let unit = (1u64 << 30) / HOLE_UNIT;
        let expected = [DataRun {
            start: unit as u32,
            end: unit as u32 + 1,
        }];
        assert_eq!(runs, expected);
    }

    #[test]
    fn row_19_the_end_of_the_largest_file_is_no_number_too_small_for_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MOST).unwrap();
        file.write_all_at(b"x", MOST - 1).unwrap();
        let runs = data_runs(file.as_fd(), MOST).unwrap().unwrap();
        let expected = [DataRun {
            start: u32::MAX - 1,
            end: u32::MAX,
        }];
        assert_eq!(runs, expected);
    }

    #[test]
    fn a_file_without_any_data_and_one_of_data_only() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10_000).unwrap();
        assert_eq!(data_runs(file.as_fd(), 10_000).unwrap(), Some(Vec::new()));
        file.write_all_at(&[1; 10_000], 0).unwrap();
        assert_eq!(data_runs(file.as_fd(), 10_000).unwrap(), None);
    }
}
