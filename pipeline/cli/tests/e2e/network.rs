//! The network: a machine where a container would have stood, in a platform's world of its own.

mod alone;
mod faults;
mod kills;
mod place;
mod platform;
mod resolver;

pub(crate) use platform::{Platform, assert_same, bundle, skip_without_namespaces};
