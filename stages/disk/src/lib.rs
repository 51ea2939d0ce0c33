//! What a virtual machine is given as disks: an image that many launches share, and a place of its own for writes.
//!
//! There are four ways ([`Way`]), and one is chosen for a launch ([`choose`]) by what was asked for, what the
//! host's file systems can do ([`can_clone`]) and what the guest's kernel can ([`GuestCan`]). Then the launch's one
//! file is made: a reflink ([`clone`]), a copy ([`copy`]), or a scratch disk for a guest that gets the image itself,
//! read-only ([`scratch`], [`scratch_ext4`]). `docs/disks.md` compares them.
//!
//! Architecture invariant: nothing here opens an image for writing, and nothing knows what is in it. What a
//! launch makes is one file, made new, that removing undoes.
//!
//! Begin reading at [`choose`].

mod choose;
mod error;
mod private;
mod probe;
mod scratch;

pub use choose::{Choice, CloneAnswer, GuestCan, Refusal, Way, choose};
pub use error::DiskError;
pub use private::{clone, copy, join, share};
pub use probe::{can_clone, file_system};
pub use scratch::{SCRATCH_EXT4_LEAST, scratch, scratch_ext4, scratch_with};
