//! Asks for large pages where much memory is filled for the first time, as long as the host has them at hand.
//!
//! A page of 4 KiB costs a fault of about 1 µs when it is first written, which for the metadata of
//! 100,000 files was two thirds of making it. A huge page costs a seventh of that for as much memory, but not in a virtual machine that gives
//! free huge pages back to its host: one that was given back has to be fetched, and that costs seven times
//! as much as small pages, which come out of blocks that are too small to be given back (docs/performance.md). Which ones
//! will come can't be asked. So each is taken at once and its time looked at: one that was dear is the last.
#![allow(unsafe_code, reason = "madvise has no safe wrapper")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::Advice;

const HUGE: usize = 2 << 20;

/// A huge page that takes longer than this would have been cheaper in small ones. Measured: 0.1 ms, or 4.7; small pages
/// for as much memory 0.7.
const DEAR: Duration = Duration::from_millis(1);

/// Whether huge pages are dear: from then on this process asks for no more.
static ARE_DEAR: AtomicBool = AtomicBool::new(false);

/// An empty vector with room for so many, in huge pages where that is worth it.
pub fn with_room<T>(room: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(room);
    let spare = out.spare_capacity_mut();
    advise(spare.as_mut_ptr().cast(), size_of_val(spare));
    out
}

/// Says that `bytes` had better lie in huge pages. Changes no byte; where the kernel has none to give,
/// nothing happens.
pub fn prefer_huge_pages(bytes: &mut [u8]) {
    advise(bytes.as_mut_ptr(), bytes.len());
}

/// The whole huge pages of a range that the caller has to itself.
fn advise(at: *mut u8, len: usize) {
    let skip = at.align_offset(HUGE);
    for page in 0..len.saturating_sub(skip) / HUGE {
        if ARE_DEAR.load(Ordering::Relaxed) {
            return;
        }
        let begun = Instant::now();
        for advice in [Advice::LinuxHugepage, Advice::LinuxPopulateWrite] {
            // SAFETY: the page lies within one allocation of the caller's, and both advices leave the
            // contents of memory as they are.
            let _ = unsafe { rustix::mm::madvise(at.add(skip + page * HUGE).cast(), HUGE, advice) };
        }
        if begun.elapsed() > DEAR {
            ARE_DEAR.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_as_they_are_whichever_pages_they_lie_in() {
        let mut bytes: Vec<u8> = (0..3 * HUGE + 5).map(|at| (at / 7) as u8).collect();
        let before = bytes.clone();
        for dear in [false, true] {
            ARE_DEAR.store(dear, Ordering::Relaxed);
            prefer_huge_pages(&mut bytes);
            assert!(bytes == before);
            let mut room: Vec<u64> = with_room(HUGE / 4);
            assert!(room.is_empty() && room.capacity() >= HUGE / 4);
            room.resize(HUGE / 4, 7);
            assert!(room.iter().all(|word| *word == 7));
        }
    }
}
