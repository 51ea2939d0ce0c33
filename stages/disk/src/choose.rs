//! Which way a launch takes, and why. Pure: what the host and the guest can do is asked before.

use std::fmt;

/// Where a machine's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// To a reflink of the image: both share their blocks until one is written.
    Clone,
    /// To a sparse scratch disk, which the guest's device mapper joins with the image.
    Snapshot,
    /// To an ext4 on a scratch disk, over which the guest mounts an overlay file system.
    Overlay,
    /// To a copy of the image.
    Copy,
}

impl Way {
    /// The modules that the guest's kernel needs for it beyond those that every guest has; what these depend on not
    /// included.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Way::Clone | Way::Copy => &[],
            Way::Snapshot => &["dm_mod", "dm_snapshot"],
            Way::Overlay => &["overlay"],
        }
    }
}

impl fmt::Display for Way {
    /// As a spec spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Clone => "clone",
            Way::Snapshot => "snapshot",
            Way::Overlay => "overlay",
            Way::Copy => "copy",
        })
    }
}

/// Whether a launch's directory can hold reflinks of the store's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloneAnswer {
    /// It was tried.
    Yes {
        /// The file system both are on.
        file_system: String,
    },
    /// It was tried, and refused.
    No {
        /// What refused, in words: `/var/lib is on ext4, which cannot share blocks between files`.
        why: String,
    },
}

/// What the guest's kernel has, as modules or built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCan {
    /// The kernel, for words.
    pub kernel: String,
    /// Device mapper with its snapshot target.
    pub snapshot: bool,
    /// The overlay file system.
    pub overlay: bool,
}

/// A way and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub way: Way,
    /// For people; without a full stop.
    pub why: String,
    /// The spec left it open, so that another way may be taken where this one fails after all.
    pub auto: bool,
}

/// A way was asked for that cannot be gone here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{way} was asked for, but {why}")]
pub struct Refusal {
    pub way: Way,
    pub why: String,
}

/// Chooses. `wanted` is `None` where the spec says `auto`; `host` is asked only where its answer matters.
///
/// # Errors
/// When what is wanted cannot be had. `auto` always finds a way, because a copy can be made anywhere.
pub fn choose(
    wanted: Option<Way>,
    host: impl FnOnce() -> CloneAnswer,
    guest: &GuestCan,
) -> Result<Choice, Refusal> {
    let lacks = |what: &str| format!("the guest's kernel {} has no {what}", guest.kernel);
    if let Some(way) = wanted {
        let refused = match way {
            Way::Clone => match host() {
                CloneAnswer::Yes { .. } => None,
                CloneAnswer::No { why } => Some(why),
            },
            Way::Snapshot => (!guest.snapshot).then(|| lacks("dm_snapshot")),
            Way::Overlay => (!guest.overlay).then(|| lacks("overlay")),
            Way::Copy => None,
        };
        return match refused {
            Some(why) => Err(Refusal { way, why }),
            None => Ok(Choice {
                way,
                why: "the spec says so".to_owned(),
                auto: false,
            }),
        };
    }
    let no_clone = match host() {
        CloneAnswer::Yes { file_system } => {
            return Ok(auto(
                Way::Clone,
                format!("{file_system} shares the image's blocks"),
            ));
        }
        CloneAnswer::No { why } => why,
    };
    if guest.snapshot {
        let why = format!(
            "{no_clone}; the guest's kernel {} has dm_snapshot",
            guest.kernel
        );
        return Ok(auto(Way::Snapshot, why));
    }
    let why = format!("{no_clone}; {}", lacks("dm_snapshot"));
    if guest.overlay {
        return Ok(auto(Way::Overlay, format!("{why}, but has overlay")));
    }
    Ok(auto(Way::Copy, format!("{why} and no overlay")))
}

fn auto(way: Way, why: String) -> Choice {
    Choice {
        way,
        why,
        auto: true,
    }
}
