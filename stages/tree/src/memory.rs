//! Asks for large pages where much memory is filled for the first time.
//!
//! A page of 4 KiB costs a fault of about 1 µs when it is first written, which for the metadata of
//! 100,000 files was two thirds of making it.
#![allow(unsafe_code, reason = "madvise has no safe wrapper")]

use rustix::mm::Advice;

const HUGE: usize = 2 << 20;

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
    let whole = len.saturating_sub(skip) / HUGE * HUGE;
    if whole == 0 {
        return;
    }
    // SAFETY: the range lies within one allocation of the caller's, and this advice leaves the contents of
    // memory as they are.
    let _ = unsafe { rustix::mm::madvise(at.add(skip).cast(), whole, Advice::LinuxHugepage) };
}
