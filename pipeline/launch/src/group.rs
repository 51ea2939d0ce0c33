//! How many images a launch has: one with everything in it, or one for each source that is worth it.
//!
//! Sources that change apart are better apart: what did not change is not even looked at then, and one image serves every launch
//! that mounts the source, wherever it mounts it. Small ones are put together, since each image is two disks of the
//! machine, and a machine has few.

use std::sync::Arc;

use fcpipe_engine::{Cx, Digest, Failure, Identity, KeyWriter, Node, Output, Probe};
use serde::{Deserialize, Serialize};

use crate::plan::Part;
use crate::scan::Scanned;

/// The images of a launch: `disk.group`, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    images: Vec<Vec<usize>>,
    per_source: bool,
    why: String,
    /// Sources that the host does not have.
    missing: Vec<usize>,
}

/// Images at most, where the machine has room for them. With a scratch disk for each that is twelve drives.
pub(crate) const IMAGES: usize = 6;
/// A source with as many bytes or names is worth an image.
const BYTES: u64 = 8 << 20;
const NAMES: u64 = 1000;
/// How many times larger a source must have become to be taken out of the company that it was in at the last launch.
const OUTGROWN: u64 = 4;

/// What was decided last, by destination: those that had an image of their own.
#[derive(Serialize, Deserialize)]
struct Before {
    alone: Vec<std::path::PathBuf>,
    together: Vec<std::path::PathBuf>,
}

const HINT: &str = "group";

impl Grouping {
    /// `single` or `per-source`.
    pub fn way(&self) -> &'static str {
        match self.per_source {
            true => "per-source",
            false => "single",
        }
    }

    /// How many images there are.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// The reason, for people.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The same with only those images; the others have no members.
    pub(crate) fn only(&self, wanted: &[bool]) -> Grouping {
        let mut only = self.clone();
        for (members, _) in only
            .images
            .iter_mut()
            .zip(wanted)
            .filter(|(_, wanted)| !**wanted)
        {
            members.clear();
        }
        only
    }

    /// Whether an empty directory stands for a source.
    pub(crate) fn is_missing(&self, source: usize) -> bool {
        self.missing.contains(&source)
    }

    pub(crate) fn is_per_source(&self) -> bool {
        self.per_source
    }

    /// For each image the numbers of its sources; the first image is the root's.
    pub(crate) fn members(&self) -> &[Vec<usize>] {
        &self.images
    }

    /// The image that a source is in, and its number there.
    pub(crate) fn place_of(&self, source: usize) -> Option<(usize, usize)> {
        self.images.iter().enumerate().find_map(|(image, members)| {
            let at = members.iter().position(|member| *member == source)?;
            Some((image, at))
        })
    }
}

impl Output for Grouping {
    fn identity(&self) -> Identity {
        let text = format!("{:?}", (&self.images, self.per_source, &self.missing));
        Identity::new(Digest::of("fcpipe group 1", &[text.as_bytes()]))
    }
}

/// Decides, by what was asked for, how much there is in each source, and what was decided before.
pub(crate) struct ChooseGroup {
    pub(crate) wanted: fcpipe_spec::Group,
    pub(crate) native: bool,
    /// For how many images there is room, at most [`IMAGES`].
    pub(crate) room: usize,
    pub(crate) parts: Arc<[Part]>,
}

impl Probe for ChooseGroup {
    const NAME: &'static str = "group";
    const VERSION: u32 = 1;
    type Output = Grouping;

    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("group", &self.wanted.to_string());
        k.field("images at most", &self.room.to_string());
        for part in self.parts.iter() {
            let at = part.destination.display();
            k.facet(&format!("tree of {at}"), &part.scan, crate::scan::TREE);
        }
    }

    fn run(&self, cx: &Cx) -> Result<Grouping, Failure> {
        let amount = |scan: &Node<Scanned>| Ok(cx.get(scan)?.amount());
        let amounts: Vec<(u64, u64)> = self
            .parts
            .iter()
            .map(|part| amount(&part.scan))
            .collect::<Result<_, Failure>>()?;
        let before: Option<Before> = cx.hint(HINT);
        let size = |source: usize| {
            let at = &self.parts[source].destination;
            let known = before.as_ref();
            let (alone, together) = (
                known.is_some_and(|before| before.alone.contains(at)),
                known.is_some_and(|before| before.together.contains(at)),
            );
            match (alone, together) {
                // So that a source at the limit does not go to and fro, which would build its image each time.
                (true, _) => Size::Large,
                (_, true) => size_of(amounts[source], OUTGROWN),
                _ => size_of(amounts[source], 1),
            }
        };
        let mut grouping = choose(self.wanted, self.native, self.room, size, &amounts);
        for (source, part) in self.parts.iter().enumerate() {
            if cx.get(&part.scan)?.is_missing() {
                grouping.missing.push(source);
            }
        }
        if grouping.per_source {
            let named = |alone: bool| {
                let images = grouping.images.iter().skip(1);
                let of = images.filter(|members| (members.len() == 1) == alone);
                of.flatten()
                    .map(|&source| self.parts[source].destination.clone())
                    .collect()
            };
            cx.leave_hint(
                HINT,
                &Before {
                    alone: named(true),
                    together: named(false),
                },
            );
        }
        Ok(grouping)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

fn size_of((bytes, names): (u64, u64), times: u64) -> Size {
    if bytes >= BYTES * times || names >= NAMES * times {
        Size::Large
    } else {
        Size::Small
    }
}

fn choose(
    wanted: fcpipe_spec::Group,
    native: bool,
    room: usize,
    size: impl Fn(usize) -> Size,
    amounts: &[(u64, u64)],
) -> Grouping {
    use fcpipe_spec::Group;
    let sources = amounts.len();
    let single = |why: &str| Grouping {
        images: vec![(0..sources).collect()],
        per_source: false,
        why: why.to_owned(),
        missing: Vec::new(),
    };
    let any_large = (0..sources).any(|source| size(source) == Size::Large);
    let why = match wanted {
        Group::Single => return single("the spec says so"),
        _ if sources == 1 => return single("the root is the only source"),
        _ if room < 2 => return single("the machine has room for one image"),
        // mke2fs is there to compare with: it makes the image that the reference makes.
        Group::Auto if !native => return single("mke2fs makes it"),
        Group::Auto if !any_large => return single("all sources are small"),
        Group::PerSource => "the spec says so".to_owned(),
        Group::Auto => "what did not change is left alone when another source does".to_owned(),
    };
    let mut large: Vec<usize> = (1..sources).filter(|&s| size(s) == Size::Large).collect();
    // The largest stay alone: the root and one of small ones are beside them.
    large.sort_by_key(|&source| std::cmp::Reverse((amounts[source], std::cmp::Reverse(source))));
    large.truncate(room - 2);
    large.sort_unstable();
    let small: Vec<usize> = (1..sources).filter(|s| !large.contains(s)).collect();
    let mut images = vec![vec![0]];
    images.extend(large.into_iter().map(|source| vec![source]));
    if !small.is_empty() {
        images.push(small);
    }
    Grouping {
        images,
        per_source: true,
        why,
        missing: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use fcpipe_spec::Group;

    use super::*;

    fn chosen(wanted: Group, amounts: &[(u64, u64)]) -> Grouping {
        let size = |source: usize| size_of(amounts[source], 1);
        choose(wanted, true, IMAGES, size, amounts)
    }

    #[test]
    fn small_sources_share_an_image() {
        let grouping = chosen(Group::Auto, &[(BYTES, 1), (1, 1), (3 << 30, 3), (2, 2)]);
        assert_eq!(grouping.images, [vec![0], vec![2], vec![1, 3]]);
        assert_eq!(grouping.place_of(3), Some((2, 1)));
    }

    #[test]
    fn one_image_holds_what_is_small_or_alone() {
        assert!(!chosen(Group::Auto, &[(1, 1), (1, 1)]).per_source);
        assert!(!chosen(Group::PerSource, &[(BYTES, NAMES)]).per_source);
        assert!(!chosen(Group::Single, &[(BYTES, NAMES), (BYTES, NAMES)]).per_source);
        assert!(chosen(Group::PerSource, &[(1, 1), (1, 1)]).per_source);
    }

    #[test]
    fn however_many_sources_there_are_the_images_are_few() {
        let amounts: Vec<(u64, u64)> = (0..100).map(|i| (BYTES + i, 1)).collect();
        let grouping = chosen(Group::Auto, &amounts);
        assert_eq!(grouping.images.len(), IMAGES);
        assert_eq!(grouping.images[1..5].concat(), [96, 97, 98, 99]);
        assert_eq!(grouping.images.concat().len(), 100);
    }

    #[test]
    fn row_54_there_are_no_more_images_than_the_machine_has_room_for() {
        let amounts = [(1, 1), (BYTES, 1), (BYTES + 1, 1), (1, 1)];
        for (room, images) in [
            (0, vec![vec![0, 1, 2, 3]]),
            (1, vec![vec![0, 1, 2, 3]]),
            (2, vec![vec![0], vec![1, 2, 3]]),
            (3, vec![vec![0], vec![2], vec![1, 3]]),
            (6, vec![vec![0], vec![1], vec![2], vec![3]]),
        ] {
            let size = |source: usize| size_of(amounts[source], 1);
            let grouping = choose(Group::Auto, true, room, size, &amounts);
            assert_eq!(grouping.images, images, "room for {room}");
        }
    }
}
