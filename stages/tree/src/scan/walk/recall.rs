//! Reading from the index those directories that are as it has them: for when something else has changed, and a Tree has
//! to be put together.

use super::found::{Outcome, Recalled, Walked};
use crate::index::{Blocks, Index};

/// Fewer directories than this for each thread are not worth one.
pub(in crate::scan) const SHARE: usize = 50;

/// Reads all of them, with several threads. `None` where the index can't be read any more. Whether what was read is whole is for
/// the caller to ask.
pub(in crate::scan) fn recall<'a>(
    walked: &mut Walked,
    index: &'a Index,
    threads: usize,
) -> Option<Blocks<'a>> {
    let all = index.all(threads)?;
    let share = walked.dirs.len().div_ceil(threads).max(SHARE);
    let mut shares = walked.dirs.chunks_mut(share);
    let one = |dirs: &mut [Option<Outcome>]| {
        for outcome in dirs.iter_mut().flatten() {
            if let Outcome::Same { dir, children } = outcome {
                let block = all.block(*dir)?;
                *outcome = Outcome::Recalled(Recalled::new(block, children.take()));
            }
        }
        Some(())
    };
    let one = &one;
    std::thread::scope(|scope| {
        let mine = shares.next();
        let others: Vec<_> = shares
            .map(|share| scope.spawn(move || one(share)))
            .collect();
        let mine = mine.map_or(Some(()), one);
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        others.into_iter().map(join).fold(mine, Option::and)
    })?;
    Some(all)
}
