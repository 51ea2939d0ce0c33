//! The network of a machine: it stands where a container would have stood.
//!
//! A platform has made a network namespace with one end of a veth pair in it, an address on that end, and whatever it takes on the
//! host for that address to be reached. This crate puts a TAP beside the veth and joins the two, so that the
//! guest has the veth's MAC, addresses, routes and MTU, and nothing on the host side changes.
//!
//! ```text
//! Namespace::open ─► plan (looks, makes nothing) ─► Attachment ─► make ─► Attached
//!                                                       └──────► undo
//! ```
//!
//! An [`Attachment`] is a plan that can be written down: it is enough to undo whatever [`make`] did or began to do,
//! in another process, and it never takes away what somebody else made ([`Mark`]).
//!
//! Namespaces are entered by descriptor, on a thread that ends there ([`Namespace::inside`]): never for the whole process, and
//! without `ip netns exec`, whose mounts serialise. What is opened inside (netlink sockets, TAPs, packet sockets) belongs to the
//! namespace and is used from any thread.
//!
//! Architecture invariant: what the guest sends is judged in the kernel, before it reaches the namespace's stack or the
//! veth ([`filter`]). What a filter cannot read does not pass.
//!
//! Architecture invariant: `unsafe` is in `sys` alone.
//!
//! Where to begin reading: `attach.rs`, then `filter/guest.rs`. docs/network.md has the way of a frame.

mod attach;
mod bridge;
pub mod dhcp;
mod dns;
mod error;
pub mod filter;
mod links;
mod look;
mod mark;
mod namespace;
mod netlink;
mod nft;
mod own;
mod serve;
mod sys;
mod tc;

pub use attach::{Attached, Attachment, Mode, Wanted, Wire, make, plan, undo};
pub use dns::{Dns, resolvers};
pub use error::NetError;
pub use look::{Route, Uplink};
pub use mark::Mark;
pub use namespace::{Identity, Namespace};
pub use own::{OwnNetwork, make_own, plan_own, undo_own};
pub use serve::{News, Service};
