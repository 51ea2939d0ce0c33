//! Directories that are as the index has them, made like those that were read: for when something else
//! has changed, and a Tree has to be put together.

use super::found::{Facts, Finds, Kept, Listing, Outcome, Part, Walked};
use crate::index::{Block, Index, flag};

/// Fewer directories than this for each thread are not worth one.
const SHARE: usize = 50;

/// Makes all of them, with several threads. `None` where the index can't be read any more.
pub(in crate::scan) fn recall(walked: &mut Walked, index: &Index, threads: usize) -> Option<()> {
    let first = walked.finds.len();
    let share = walked.dirs.len().div_ceil(threads).max(SHARE);
    let mut shares = walked.dirs.chunks_mut(share).enumerate();
    let one = |(number, dirs): (usize, &mut [Option<Outcome>])| {
        let mut finds = Finds {
            sets: index.sets.clone(),
            holes: Vec::new(),
            contents: Vec::new(),
        };
        for outcome in dirs.iter_mut().flatten() {
            if let Outcome::Same { dir, children } = outcome {
                let block = index.block(*dir)?;
                let children = std::mem::take(children);
                let listing = listing(&block, children, first + number, &mut finds);
                *outcome = Outcome::Listed(listing);
            }
        }
        Some(finds)
    };
    let one = &one;
    let found: Vec<Option<Finds>> = std::thread::scope(|scope| {
        let mine = shares.next();
        let others: Vec<_> = shares
            .map(|share| scope.spawn(move || one(share)))
            .collect();
        let mine = mine.map(one);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        mine.into_iter()
            .chain(others.into_iter().map(join))
            .collect()
    });
    for finds in found {
        walked.finds.push(finds?);
    }
    Some(())
}

/// `children`: the rows that are directories, with the numbers that they have in this walk.
fn listing(
    block: &Block,
    children: Option<Vec<Kept>>,
    worker: usize,
    finds: &mut Finds,
) -> Listing {
    let head = block.head();
    let facts = Facts {
        seen: head.seen,
        xattrs: head.xattrs.get(),
        worker: worker as u32,
        settled: head.flags.get() & flag::UNSETTLED == 0,
    };
    // By row: leaves have no number, and directories of the index are called by their own.
    let mut numbers: Vec<u32> = block.rows().iter().map(|row| row.body_at.get()).collect();
    for kept in children.into_iter().flatten() {
        numbers[kept.row as usize] = kept.number;
    }
    let kept = numbers.iter().enumerate().map(|(row, &number)| Kept {
        row: row as u32,
        number,
    });
    Listing {
        facts,
        parts: vec![Part::from_rows(block, kept, worker, finds)],
        known: None,
    }
}
