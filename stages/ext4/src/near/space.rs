//! Free blocks of a disk that was in use before, and where something new goes among them.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Run;
use crate::placement::NoRoom;

/// Runs of free blocks, each as long as it can be.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// From a run's first block to the one behind its last.
    runs: BTreeMap<u64, u64>,
    /// The same runs: length and first block.
    by_length: BTreeSet<(u64, u64)>,
}

impl Space {
    pub(super) fn new(runs: impl Iterator<Item = Run>) -> Space {
        let mut space = Space::default();
        for run in runs {
            space.insert(run.start, run.end);
        }
        space
    }

    /// Gives blocks that are in use back.
    pub(super) fn release(&mut self, run: Run) {
        let Run { mut start, mut end } = run;
        if let Some((&before, &until)) = self.runs.range(..start).next_back()
            && until == start
        {
            self.remove(before, until);
            start = before;
        }
        if let Some(&until) = self.runs.get(&end) {
            self.remove(end, until);
            end = until;
        }
        self.insert(start, end);
    }

    /// So many blocks: the shortest run that has them all, or else the longest runs there are. Gives runs in the order in
    /// which they are to be filled.
    pub(super) fn take(&mut self, mut blocks: u64) -> Result<Vec<Run>, NoRoom> {
        let mut taken = Vec::new();
        while blocks > 0 {
            let fits = self.by_length.range((blocks, 0)..).next();
            let (length, start) = *fits.or_else(|| self.by_length.last()).ok_or(NoRoom)?;
            self.remove(start, start + length);
            let here = length.min(blocks);
            taken.push(Run {
                start,
                end: start + here,
            });
            if here < length {
                self.insert(start + here, start + length);
            }
            blocks -= here;
        }
        Ok(taken)
    }

    /// All runs, in the order of the disk.
    pub(super) fn into_runs(self) -> Vec<Run> {
        let runs = self.runs.into_iter();
        runs.map(|(start, end)| Run { start, end }).collect()
    }

    fn insert(&mut self, start: u64, end: u64) {
        if start < end {
            self.runs.insert(start, end);
            self.by_length.insert((end - start, start));
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.runs.remove(&start);
        self.by_length.remove(&(end - start, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64) -> Run {
        Run { start, end }
    }

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut space = Space::new([run(0, 2), run(10, 20)].into_iter());
        space.release(run(4, 6));
        space.release(run(2, 4));
        space.release(run(8, 10));
        assert_eq!(space.into_runs(), [run(0, 6), run(8, 20)]);
    }

    #[test]
    fn the_shortest_run_that_suffices_is_taken() {
        let mut space = Space::new([run(0, 100), run(200, 203), run(300, 310)].into_iter());
        assert_eq!(space.take(3), Ok(vec![run(200, 203)]));
        assert_eq!(space.take(4), Ok(vec![run(300, 304)]));
        assert_eq!(space.take(103), Ok(vec![run(0, 100), run(304, 307)]));
        assert_eq!(space.take(4), Err(NoRoom));
    }
}
