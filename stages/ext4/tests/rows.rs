//! What trees may hold, by the row of the list of inputs that each test covers. The kernel is the judge.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fcpipe_ext4::{LayoutError, LayoutWarning, XattrProblem, layout};
use fcpipe_tree::{DataRun, Timestamp};
use fcpipe_treegen::{Content, Inode, Kind, Model};

use crate::host::{Mount, assert_clean, has_root};
use crate::image::{Image, assert_no_warnings, comes_out_as_it_went_in, plain};

fn file(size: u64) -> Inode {
    Inode::new(Kind::File(Content::plain(size, size ^ 0x5eed)))
}

fn directory() -> Inode {
    Inode::new(Kind::Directory(Default::default()))
}

#[test]
fn row_15_names_that_are_not_text() {
    let mut model = Model::new();
    for name in [
        b"\xff\xfe\x80".as_slice(),
        b"new\nline",
        b"\x1b[2J",
        b" ",
        b"-rf",
        b"...",
        "ä\u{0308}".as_bytes(),
        &[b'x'; 255],
        &[0xff; 255],
    ] {
        model.add(Model::ROOT, name, file(1));
    }
    assert_no_warnings(&comes_out_as_it_went_in(&model).layout.warnings);
}

#[test]
fn row_16_paths_deeper_than_path_max() {
    let mut model = Model::new();
    let mut at = Model::ROOT;
    for _ in 0..40 {
        at = model.add(at, &[b'd'; 250], directory());
    }
    model.add(at, b"bottom", file(5000));
    comes_out_as_it_went_in(&model);
}

#[test]
fn row_17_more_hard_links_than_ext4_counts_become_several_files() {
    let mut model = Model::new();
    let dir = model.add(Model::ROOT, b"many", directory());
    let first = model.add(dir, b"first", file(3000));
    for n in 0..65_004 {
        model.link(dir, format!("link {n}").as_bytes(), first);
    }
    let image = Image::new(&model, &plain());
    assert!(
        matches!(
            image.layout.warnings.as_slice(),
            [LayoutWarning::LinksSplit {
                names: 65_005,
                inodes: 2,
                ..
            }]
        ),
        "{:?}",
        image.layout.warnings
    );
    assert_clean(&image.path());
    if !has_root("links through the kernel") {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mount = Mount::new(&image.path(), "ro");
    let mut links = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(mount.path().join("many")).expect("a directory") {
        let meta = entry.expect("an entry").metadata().expect("metadata");
        *links.entry((meta.ino(), meta.nlink())).or_insert(0u64) += 1;
    }
    // Each inode counts just those names that lead to it.
    assert!(
        links.iter().all(|(&(_, nlink), &names)| nlink == names),
        "{links:?}"
    );
    assert_eq!(links.values().sum::<u64>(), 65_005);
    let content = std::fs::read(mount.path().join("many/link 65003")).expect("a file");
    assert_eq!(
        content,
        std::fs::read(mount.path().join("many/first")).expect("a file")
    );
    mount.unmount();
}

#[test]
fn row_18_symlinks_of_every_length() {
    let mut model = Model::new();
    let links = [1, 58, 59, 60, 61, 255, 4094, 4095];
    for len in links {
        let target = vec![b'/'; len];
        model.add(
            Model::ROOT,
            format!("{len}").as_bytes(),
            Inode::new(Kind::Symlink(target)),
        );
    }
    model.add(
        Model::ROOT,
        b"dangling",
        Inode::new(Kind::Symlink(b"no/where".to_vec())),
    );
    comes_out_as_it_went_in(&model);
    for bad in [vec![b'x'; 4096], Vec::new(), b"a\0b".to_vec()] {
        let mut model = Model::new();
        model.add(Model::ROOT, b"bad", Inode::new(Kind::Symlink(bad)));
        let error = layout(&model.tree().0, &plain()).expect_err("no symlink");
        assert!(matches!(error, LayoutError::BadSymlink { .. }), "{error}");
    }
}

#[test]
fn row_19_a_tebibyte_with_little_in_it() {
    let mut model = Model::new();
    let run = |start: u64| DataRun {
        start: start as u32,
        end: start as u32 + 1,
    };
    let content = Content {
        size: 1 << 40,
        data: Some(vec![run(0), run(1 << 20), run((1 << 28) - 1)]),
        seed: 1,
    };
    model.add(Model::ROOT, b"huge", Inode::new(Kind::File(content)));
    let image = comes_out_as_it_went_in(&model);
    assert_eq!(image.layout.size, 128 << 20);
    assert!(image.stored() < 8 << 20, "{} bytes", image.stored());
}

#[test]
fn row_20_sizes_about_a_block_s_and_above_ext4_s() {
    let mut model = Model::new();
    for size in [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, (1 << 20) + 1] {
        model.add(Model::ROOT, format!("{size}").as_bytes(), file(size));
    }
    comes_out_as_it_went_in(&model);

    let sparse = |size| {
        let mut model = Model::new();
        let content = Content {
            size,
            data: Some(Vec::new()),
            seed: 0,
        };
        model.add(Model::ROOT, b"big", Inode::new(Kind::File(content)));
        model
    };
    // 2^32 blocks, less one: what a 32-bit number of a block in a file can reach.
    let most = ((1u64 << 32) - 1) * 4096;
    comes_out_as_it_went_in(&sparse(most));
    let error = layout(&sparse(most + 1).tree().0, &plain()).expect_err("too large");
    assert!(
        matches!(&error, LayoutError::FileTooLarge { path, .. } if path.as_slice() == b"/big"),
        "{error}"
    );
}

#[test]
fn row_21_xattrs_in_the_inode_in_a_block_and_outside() {
    let mut model = Model::new();
    let sizes = [0, 1, 40, 100, 1000, 4000, 4076, 5000, 20_000, 65_536];
    for size in sizes {
        let mut inode = file(10);
        inode
            .xattrs
            .insert(b"user.value".to_vec(), vec![b'v'; size]);
        model.add(Model::ROOT, format!("{size}").as_bytes(), inode);
    }
    let mut all = directory();
    let acl = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255, 255,
        255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
    ];
    all.meta.mode = 0o755;
    all.xattrs
        .insert(b"system.posix_acl_access".to_vec(), acl.to_vec());
    all.xattrs
        .insert(b"system.posix_acl_default".to_vec(), acl.to_vec());
    all.xattrs.insert(b"trusted.mark".to_vec(), vec![0, 1, 2]);
    model.add(Model::ROOT, b"directory", all);
    let mut able = file(100);
    // cap_net_raw+ep as the kernel keeps it: revision 2.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    able.xattrs
        .insert(b"security.capability".to_vec(), capability.to_vec());
    model.add(Model::ROOT, b"able", able);
    comes_out_as_it_went_in(&model);

    let one = |name: &[u8], value: Vec<u8>| {
        let mut model = Model::new();
        let mut inode = file(1);
        inode.xattrs.insert(name.to_vec(), value);
        model.add(Model::ROOT, b"file", inode);
        layout(&model.tree().0, &plain()).map(drop)
    };
    let why = |result: Result<(), LayoutError>| match result.expect_err("no such xattr") {
        LayoutError::Xattr { path, problem, .. } => {
            assert_eq!(path.as_slice(), b"/file");
            problem
        }
        other => panic!("{other}"),
    };
    assert_eq!(
        why(one(b"user.x", vec![0; 65_537])),
        XattrProblem::ValueTooLong
    );
    assert_eq!(why(one(b"nonsense.x", vec![])), XattrProblem::UnknownPrefix);
    assert_eq!(why(one(b"user.", vec![])), XattrProblem::BadName);
    assert_eq!(
        why(one(b"system.posix_acl_access", vec![9; 8])),
        XattrProblem::BadAcl
    );
}

#[test]
fn row_21_more_names_of_xattrs_than_a_block_holds_name_the_file() {
    let mut model = Model::new();
    let mut inode = file(1);
    for n in 0..20 {
        let name = format!("user.{n:0>250}");
        inode.xattrs.insert(name.into_bytes(), Vec::new());
    }
    model.add(Model::ROOT, b"crowded", inode);
    let error = layout(&model.tree().0, &plain()).expect_err("no room");
    assert!(
        matches!(&error, LayoutError::Xattr { path, problem: XattrProblem::NoRoom, .. }
            if path.as_slice() == b"/crowded"),
        "{error}"
    );
}

#[test]
fn row_22_large_ids_special_bits_and_odd_times() {
    let mut model = Model::new();
    for (n, (uid, gid)) in [(65_535, 65_536), (u32::MAX - 1, 1 << 31), (100_000, 0)]
        .into_iter()
        .enumerate()
    {
        let mut inode = file(1);
        (inode.meta.uid, inode.meta.gid) = (uid, gid);
        model.add(Model::ROOT, format!("id {n}").as_bytes(), inode);
    }
    for mode in [0o4755, 0o2755, 0o1777, 0o7777, 0] {
        let mut inode = directory();
        inode.meta.mode = mode;
        model.add(Model::ROOT, format!("{mode:o}").as_bytes(), inode);
    }
    let ends = [
        -(1i64 << 31),
        -1,
        0,
        (1 << 31) - 1,
        1 << 31,
        (1 << 34) - (1 << 31) - 1,
    ];
    for secs in ends {
        let mut inode = file(0);
        inode.meta.mtime = Timestamp {
            secs,
            nanos: 999_999_999,
        };
        model.add(Model::ROOT, format!("time {secs}").as_bytes(), inode);
    }
    assert_no_warnings(&comes_out_as_it_went_in(&model).layout.warnings);
}

#[test]
fn row_22_times_that_ext4_has_no_room_for_are_clamped_and_said() {
    let mut model = Model::new();
    for secs in [-(1i64 << 31) - 1, 1 << 34] {
        let mut inode = file(0);
        inode.meta.mtime = Timestamp { secs, nanos: 5 };
        model.add(Model::ROOT, format!("{secs}").as_bytes(), inode);
    }
    let image = Image::new(&model, &plain());
    assert_clean(&image.path());
    let clamped = |w: &LayoutWarning| matches!(w, LayoutWarning::TimeClamped { .. });
    assert_eq!(
        image.layout.warnings.iter().filter(|w| clamped(w)).count(),
        2
    );
    if !has_root("times through the kernel") {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mount = Mount::new(&image.path(), "ro");
    let mtime = |name: &str| {
        std::fs::metadata(mount.path().join(name))
            .expect("there")
            .mtime()
    };
    assert_eq!(mtime("-2147483649"), -(1 << 31));
    assert_eq!(mtime("17179869184"), (1 << 34) - (1 << 31) - 1);
    mount.unmount();
}

#[test]
fn row_23_devices_fifos_and_sockets() {
    let mut model = Model::new();
    for (major, minor) in [
        (1, 3),
        (255, 255),
        (256, 256),
        (4095, (1 << 20) - 1),
        (0, 0),
    ] {
        let name = format!("c {major}:{minor}");
        model.add(
            Model::ROOT,
            name.as_bytes(),
            Inode::new(Kind::CharDevice { major, minor }),
        );
        let name = format!("b {major}:{minor}");
        model.add(
            Model::ROOT,
            name.as_bytes(),
            Inode::new(Kind::BlockDevice { major, minor }),
        );
    }
    model.add(Model::ROOT, b"fifo", Inode::new(Kind::Fifo));
    model.add(Model::ROOT, b"socket", Inode::new(Kind::Socket));
    comes_out_as_it_went_in(&model);

    let mut model = Model::new();
    let bad = Kind::CharDevice {
        major: 4096,
        minor: 0,
    };
    model.add(Model::ROOT, b"bad", Inode::new(bad));
    let error = layout(&model.tree().0, &plain()).expect_err("no such device");
    assert!(matches!(error, LayoutError::BadDevice { .. }), "{error}");
}

#[test]
fn row_24_a_large_directory_whose_every_name_the_kernel_finds() {
    let mut model = Model::new();
    let dir = model.add(Model::ROOT, b"large", directory());
    let one = model.add(dir, b"0", file(0));
    for n in 1..60_000u32 {
        // Names of different lengths, so that blocks end at different places.
        let name = format!("{n}{}", "x".repeat((n % 37) as usize));
        model.link(dir, name.as_bytes(), one);
    }
    let crowd = model.add(Model::ROOT, b"subdirectories", directory());
    for n in 0..65_100u32 {
        model.add(crowd, format!("{n}").as_bytes(), directory());
    }
    let image = Image::new(&model, &plain());
    assert_no_warnings(&image.layout.warnings);
    assert_clean(&image.path());
    if !has_root("looking names up by the kernel") {
        return;
    }
    let mount = Mount::new(&image.path(), "ro");
    let found = |path: &Path| path.symlink_metadata().is_ok();
    for n in 1..60_000u32 {
        let name = format!("{n}{}", "x".repeat((n % 37) as usize));
        assert!(
            found(&mount.path().join("large").join(&name)),
            "{name} is not found"
        );
    }
    for n in 0..65_100u32 {
        assert!(
            found(&mount.path().join("subdirectories").join(n.to_string())),
            "{n}"
        );
    }
    let none = std::ffi::OsStr::from_bytes(b"60001");
    assert!(!found(&mount.path().join("large").join(none)));
    mount.unmount();
}

/// Nineteen names whose hash is the same, 0x85fc5400, found by trying 2^33: more than a leaf holds, so the index must say that they go
/// on in the next one.
#[test]
fn row_24_names_of_one_hash_are_found_in_two_leaves() {
    const MIDDLES: &str = "000008dd1871 00000adccc7f 00003f4b293a 00004c964f92 00005e151c51 00006198080d 00006a87ae6c \
                           000074d0036f 00007832e958 0000bd8a66c9 0000ca138a7f 0000ef6a7802 000110c8e7cf 00011400ce54 \
                           000127bde560 000179b0c8da 00019126f0d9 00019ee20155 0001dfe8a13b";
    let mut model = Model::new();
    let dir = model.add(Model::ROOT, b"dir", directory());
    let ends = (&"x".repeat(224), "x".repeat(15));
    let mut names: Vec<String> = MIDDLES
        .split(' ')
        .map(|middle| format!("{}0000{middle}{}", ends.0, ends.1))
        .collect();
    names.extend((0..300).map(|n| n.to_string()));
    for name in &names {
        model.add(dir, name.as_bytes(), file(1));
    }
    comes_out_as_it_went_in(&model);
}
