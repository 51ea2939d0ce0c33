//! Skeleton.
mod model;
pub use model::*;
