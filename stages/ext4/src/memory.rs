//! Asks for large pages where much memory is filled for the first time.
//!
//! A page of 4 KiB costs a fault of about 1 µs when it is first written, which for the metadata of
//! 100,000 files was two thirds of making it.
#![allow(unsafe_code, reason = "madvise has no safe wrapper")]

use rustix::mm::Advice;

const HUGE: usize = 2 << 20;

/// Says that `bytes` had better lie in huge pages. Changes no byte; where the kernel has none to give,
/// nothing happens.
pub(crate) fn prefer_huge_pages(bytes: &mut [u8]) {
    let skip = bytes.as_ptr().align_offset(HUGE);
    let Some(whole) = bytes.len().checked_sub(skip) else {
        return;
    };
    let whole = whole / HUGE * HUGE;
    if whole == 0 {
        return;
    }
    let at = bytes[skip..].as_mut_ptr();
    // SAFETY: the range lies within `bytes`, and this advice leaves the contents of memory as they are.
    let _ = unsafe { rustix::mm::madvise(at.cast(), whole, Advice::LinuxHugepage) };
}
