//! What does not fit, and how it is said.

use fcpipe_ext4::{LayoutError, LayoutWarning, Options, layout};
use fcpipe_treegen::{Content, Inode, Kind, Model};

use crate::host::{assert_clean, dump};
use crate::image::{Image, assert_no_warnings, comes_out_as_it_went_in, plain};

fn file(size: u64) -> Inode {
    Inode::new(Kind::File(Content::plain(size, 1)))
}

#[test]
fn a_size_that_is_too_small_says_what_is_needed_and_that_is_enough() {
    let mut model = Model::new();
    model.add(Model::ROOT, b"file", file(50 << 20));
    let tree = model.tree().0;
    let sized = |size| Options {
        size: Some(size),
        ..plain()
    };
    let error = layout(&tree, &sized(20 << 20)).expect_err("no room");
    let LayoutError::TooSmall { size, needed } = error else {
        panic!("{error}");
    };
    assert_eq!(size, 20 << 20);
    // It is named in whole MiB.
    assert!(layout(&tree, &sized(needed - (1 << 20))).is_err());
    let image = Image::new(&model, &sized(needed));
    assert_eq!(image.layout.size, needed);
    assert_clean(&image.path());
}

#[test]
fn a_size_is_rounded_up_to_a_block_and_has_an_end() {
    let tree = Model::new().tree().0;
    let sized = |size| Options {
        size: Some(size),
        ..plain()
    };
    let rounded = layout(&tree, &sized((200 << 20) + 1)).expect("a layout");
    assert_eq!(rounded.size, (200 << 20) + 4096);
    let error = layout(&tree, &sized(u64::MAX)).expect_err("too large");
    assert!(matches!(error, LayoutError::TooLarge { .. }), "{error}");
}

#[test]
fn the_usual_size_has_room_for_a_third_more_in_bytes_and_inodes() {
    let mut model = Model::new();
    for n in 0..20_000 {
        model.add(Model::ROOT, format!("{n}").as_bytes(), file(20_000));
    }
    let image = layout(&model.tree().0, &plain()).expect("a layout");
    let needed = 20_000 * 5 * 4096;
    assert!(
        image.size > needed * 13 / 10 && image.size < needed * 14 / 10,
        "{}",
        image.size
    );
    let empty = layout(&Model::new().tree().0, &plain()).expect("a layout");
    assert_eq!(empty.size, 128 << 20);
}

#[test]
fn names_that_no_directory_can_have_are_refused() {
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let mut model = Model::new();
        model.add(Model::ROOT, name, file(1));
        let error = layout(&model.tree().0, &plain()).expect_err("no name");
        assert!(matches!(error, LayoutError::BadName { .. }), "{error}");
    }
}

#[test]
fn a_lost_and_found_of_the_tree_is_taken_as_it_is() {
    let mut model = Model::new();
    let mut own = Inode::new(Kind::Directory(Default::default()));
    own.meta.mode = 0o711;
    let own = model.add(Model::ROOT, b"lost+found", own);
    model.add(own, b"something", file(5));
    assert_no_warnings(&comes_out_as_it_went_in(&model).layout.warnings);

    let mut model = Model::new();
    model.add(Model::ROOT, b"lost+found", file(5));
    let image = Image::new(&model, &plain());
    assert_eq!(image.layout.warnings, [LayoutWarning::LostAndFoundTaken]);
    assert_clean(&image.path());
}

#[test]
fn a_journal_is_one_for_dumpe2fs_and_e2fsck() {
    let mut model = Model::new();
    model.add(Model::ROOT, b"file", file(5));
    let journaled = Image::new(
        &model,
        &Options {
            journal: true,
            ..plain()
        },
    );
    assert_clean(&journaled.path());
    if let Some(info) = dump(&journaled.path()) {
        assert!(info.contains("has_journal"), "{info}");
        assert!(info.contains("Total journal size:       16M"), "{info}");
    }
    let without = Image::new(&model, &plain());
    if let Some(info) = dump(&without.path()) {
        assert!(!info.contains("has_journal"), "{info}");
    }
}
