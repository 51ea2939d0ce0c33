//! Skeleton.
mod map;
pub use map::*;
