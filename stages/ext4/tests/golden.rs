//! The bytes of images that must never change unless `FORMAT_VERSION` does.
//!
//! The digests say nothing about what is right; the other tests do. They say that it is the same.

use std::fs::File;

use fcpipe_ext4::{FORMAT_VERSION, Label, Options, digest_file};
use fcpipe_treegen::{Limits, Model, generate};

use crate::image::{Image, plain};

/// Version → the digests, by name. When bytes change on purpose: raise `FORMAT_VERSION`, and put what the
/// failing test prints here.
const VERSION: u32 = 2;
const GOLDEN: &[(&str, &str)] = &[
    ("empty", "5993c2e4715e6c75687bce56a2302273"),
    ("random 1", "d6a2abced826a825510633a41f72995e"),
    ("random 2", "1ed56b0d8e67949d8da42ac17b92023c"),
    (
        "random 3 with a journal, a label and 512 MiB",
        "e5cb73ed38e595834044461ccf612200",
    ),
];

fn digest(model: &Model, options: &Options) -> String {
    let image = Image::new(model, options);
    let file = File::open(image.path()).expect("an image");
    digest_file(&file, None).expect("readable").to_hex()[..32].to_owned()
}

#[test]
fn the_bytes_are_those_of_the_format_s_version() {
    let random = |seed| generate(seed, &Limits::default());
    let full = Options {
        size: Some(512 << 20),
        journal: true,
        label: Label::new(b"golden").expect("a label"),
    };
    let found = [
        digest(&Model::new(), &plain()),
        digest(&random(1), &plain()),
        digest(&random(2), &plain()),
        digest(&random(3), &full),
    ];
    let found: Vec<(&str, &str)> = GOLDEN
        .iter()
        .map(|g| g.0)
        .zip(found.iter().map(String::as_str))
        .collect();
    assert_eq!(
        (VERSION, GOLDEN),
        (FORMAT_VERSION, found.as_slice()),
        "the image's bytes have changed: raise FORMAT_VERSION, then note the new digests"
    );
}
