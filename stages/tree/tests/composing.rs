//! Mounts in memory: the rules, one by one. `kernel` compares with real mounts.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use fcpipe_spec::{Content, IdRange};
use fcpipe_tree::{
    ComposeError, ComposeWarning, Kind, Layer, Meta, NodeId, Origin, Scan, ScanOptions, compose,
    scan,
};

use crate::common::*;
use crate::scanning::acl;

/// A root with some directories and links, and two sources.
struct World {
    place: Place,
}

impl World {
    fn new() -> Self {
        let place = Place::new();
        place.file("root/etc/hosts", b"root's");
        place.directory("root/mnt/deep/er");
        place.link("root/absolute", "/mnt");
        place.link("root/relative", "mnt/deep");
        place.link("root/mnt/up", "../../../../mnt/deep");
        place.link("root/dangling", "run/made");
        place.link("root/loop-a", "loop-b");
        place.link("root/loop-b", "loop-a");
        place.link("root/outside", "/../../../../../tmp");
        place.file("one/a", b"1");
        place.file("one/sub/x", b"1");
        place.file("two/b", b"22");
        place.file("file", b"a file");
        set_mtime(&place.path("root/mnt"), 1_000, 7);
        World { place }
    }

    fn mount(&self, destination: &str, source: &str) -> Layer {
        layer(destination, scan_of(&self.place.path(source)))
    }

    fn with(&self, mounts: &[(&str, &str)]) -> Result<fcpipe_tree::Composed, ComposeError> {
        let mut layers = vec![self.mount("/", "root")];
        layers.extend(mounts.iter().map(|(to, from)| self.mount(to, from)));
        compose(layers)
    }

    fn names(&self, mounts: &[(&str, &str)], path: &str) -> Vec<String> {
        names(self.with(mounts).unwrap().tree(), path)
    }
}

#[test]
fn a_root_alone_is_the_image_as_it_is() {
    let world = World::new();
    let scan = scan_of(&world.place.path("root"));
    let tree = Arc::clone(&scan.tree);
    let all = composed(vec![layer("/", scan)]);
    assert!(std::ptr::eq(&*tree, all.tree()));
    assert_eq!(
        all.origin(NodeId(3)),
        Origin::Scanned {
            layer: 0,
            node: NodeId(3)
        }
    );
}

#[test]
fn row_06_a_destination_never_leaves_the_root() {
    let world = World::new();
    let shown = |to, path| assert_eq!(world.names(&[(to, "two")], path), ["b"], "{to}");
    shown("mnt/deep", "/mnt/deep");
    shown("/../../mnt/deep", "/mnt/deep");
    shown("/mnt/./x/../deep//", "/mnt/deep");
    for to in ["/", "", "/..", "/mnt/..", "/absolute/.."] {
        let error = world.with(&[(to, "two")]).unwrap_err();
        assert!(
            matches!(error, ComposeError::OntoRoot { .. }),
            "{to}: {error:?}"
        );
    }
    let long = format!("/{}", "n".repeat(256));
    let error = world.with(&[(&long, "two")]).unwrap_err();
    assert!(matches!(error, ComposeError::BadName { .. }));
}

#[test]
fn row_07_later_mounts_cover_earlier_ones() {
    let world = World::new();
    // Two at one destination.
    assert_eq!(
        world.names(&[("/mnt", "one"), ("/mnt", "two")], "/mnt"),
        ["b"]
    );
    // The inner one second: it nests into the outer.
    let nested = [("/mnt", "one"), ("/mnt/sub", "two")];
    assert_eq!(world.names(&nested, "/mnt"), ["a", "sub"]);
    assert_eq!(world.names(&nested, "/mnt/sub"), ["b"]);
    // The inner one first: covered.
    let covered = [("/mnt/sub", "two"), ("/mnt", "one")];
    assert_eq!(world.names(&covered, "/mnt/sub"), ["x"]);
    // Made in a mount, not in what it covers.
    let made = [("/mnt", "one"), ("/mnt/new/er", "two")];
    assert_eq!(world.names(&made, "/mnt"), ["a", "new", "sub"]);
    assert_eq!(world.names(&made, "/mnt/new/er"), ["b"]);
}

#[test]
fn row_08_symlinks_are_followed_as_inside_a_chroot() {
    let world = World::new();
    for (to, path) in [
        ("/absolute/deep", "/mnt/deep"),
        ("/relative", "/mnt/deep"),
        ("/mnt/up/er", "/mnt/deep/er"),
        ("/dangling", "/run/made"),
        ("/dangling/x", "/run/made/x"),
        ("/outside", "/tmp"),
    ] {
        assert_eq!(world.names(&[(to, "two")], path), ["b"], "{to}");
    }
    // A link of a mount that is there by then.
    fs::create_dir(world.place.path("one/real")).unwrap();
    world.place.link("one/link", "/mnt/real");
    assert_eq!(
        world.names(&[("/mnt", "one"), ("/mnt/link", "two")], "/mnt/real"),
        ["b"]
    );
    for to in ["/loop-a", "/loop-a/x"] {
        let error = world.with(&[(to, "two")]).unwrap_err();
        assert!(matches!(error, ComposeError::Loop { .. }), "{error:?}");
    }
    // The host's own /tmp was not touched.
    assert!(!std::path::Path::new("/tmp/b").exists());
}

#[test]
fn row_09_a_directory_onto_a_file_and_a_file_onto_a_directory() {
    let world = World::new();
    let both = |error: ComposeError, source: &str, to: &str| {
        let text = error.to_string();
        let source = world.place.path(source);
        assert!(
            text.contains(source.to_str().unwrap()) && text.contains(to),
            "{text}"
        );
        error
    };
    let error = world.with(&[("/etc/hosts", "one")]).unwrap_err();
    let error = both(error, "one", "/etc/hosts");
    assert!(matches!(error, ComposeError::DirectoryOntoFile { .. }));
    let error = world.with(&[("/mnt", "file")]).unwrap_err();
    let error = both(error, "file", "/mnt");
    assert!(matches!(error, ComposeError::FileOntoDirectory { .. }));
    let error = world.with(&[("/etc/hosts/x", "one")]).unwrap_err();
    assert!(
        matches!(&error, ComposeError::NotADirectory { path, .. } if path.ends_with("etc/hosts")),
        "{error:?}"
    );
}

#[test]
fn row_10_a_missing_source_is_an_empty_directory_and_a_warning() {
    let world = World::new();
    let missing = Layer {
        destination: "/mnt/deep".into(),
        source: "/no/such".into(),
        scan: None,
    };
    let all = compose(vec![world.mount("/", "root"), missing]).unwrap();
    assert_eq!(names(all.tree(), "/mnt/deep"), [""; 0]);
    let node = at(all.tree(), "/mnt/deep");
    assert_eq!(all.origin(node), Origin::Made);
    assert_eq!(all.stamp(node), None);
    assert_eq!(
        all.warnings(),
        [ComposeWarning::MissingSource {
            source: "/no/such".into(),
            destination: "/mnt/deep".into()
        }]
    );
    assert!(all.warnings()[0].to_string().contains("/no/such"));
}

#[test]
fn what_is_made_has_its_parents_time_and_belongs_to_root() {
    let world = World::new();
    let all = world.with(&[("/mnt/new/er", "two")]).unwrap();
    let tree = all.tree();
    let mtime = tree.meta(at(tree, "/mnt")).mtime;
    assert_eq!((mtime.secs, mtime.nanos), (1_000, 7));
    let expected = Meta {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
    };
    assert_eq!(*tree.meta(at(tree, "/mnt/new")), expected);
    assert_eq!(
        all.source_path(at(tree, "/mnt/new")),
        PathBuf::from("/mnt/new")
    );
}

#[test]
fn a_mounts_own_metadata_travels_to_the_destination() {
    let world = World::new();
    let two = world.place.path("two");
    set_xattr(&two, "user.of", b"the source");
    fs::set_permissions(&two, std::os::unix::fs::PermissionsExt::from_mode(0o1750)).unwrap();
    set_mtime(&two, 123, 456);
    let all = world.with(&[("/mnt", "two")]).unwrap();
    let node = at(all.tree(), "/mnt");
    assert_eq!(all.tree().meta(node).mode, 0o1750);
    assert_eq!(all.tree().meta(node).mtime.secs, 123);
    assert_eq!(all.tree().xattrs(node).len(), 1);
    assert_eq!(all.source_path(node), two);
}

#[test]
fn row_17_the_same_source_at_two_places_is_two_copies() {
    let world = World::new();
    fs::hard_link(world.place.path("one/a"), world.place.path("one/sub/a2")).unwrap();
    let scan = Arc::new(scan_of(&world.place.path("one")));
    let mount = |to: &str| Layer {
        destination: to.into(),
        source: scan.source.clone(),
        scan: Some(Arc::clone(&scan)),
    };
    let all = compose(vec![
        world.mount("/", "root"),
        mount("/p"),
        mount("/q"),
        world.mount("/q/sub/new", "two"),
    ])
    .unwrap();
    let tree = all.tree();
    let (p, q) = (at(tree, "/p/a"), at(tree, "/q/a"));
    assert_ne!(p, q);
    assert_eq!((tree.names(p), tree.names(q)), (2, 2));
    assert_eq!(at(tree, "/p/sub/a2"), p);
    assert_eq!(all.stamp(p), all.stamp(q));
    // What is made in one is not in the other.
    assert_eq!(names(tree, "/p/sub"), ["a2", "x"]);
    assert_eq!(names(tree, "/q/sub"), ["a2", "new", "x"]);
}

#[test]
fn a_file_is_mounted_on_one_name_of_a_hard_linked_file() {
    let world = World::new();
    let hosts = world.place.path("root/etc/hosts");
    fs::hard_link(&hosts, world.place.path("root/etc/other")).unwrap();
    let all = world.with(&[("/etc/hosts", "file")]).unwrap();
    let tree = all.tree();
    assert_eq!(tree.kind(at(tree, "/etc/hosts")), Kind::File { size: 6 });
    assert_eq!(
        all.source_path(at(tree, "/etc/hosts")),
        world.place.path("file")
    );
    assert_eq!(tree.names(at(tree, "/etc/other")), 1);
    // Where nothing was, and twice.
    let all = world
        .with(&[("/etc/new/file", "one/a"), ("/etc/new/file", "file")])
        .unwrap();
    let node = at(all.tree(), "/etc/new/file");
    assert_eq!(all.source_path(node), world.place.path("file"));
}

#[test]
fn without_a_root_there_is_nothing() {
    let world = World::new();
    assert!(matches!(compose(Vec::new()), Err(ComposeError::NoRoot(_))));
    let file = vec![world.mount("/", "file")];
    assert!(matches!(compose(file), Err(ComposeError::NoRoot(_))));
}

fn scan_with(place: &Place, content: Content) -> Scan {
    scan(&place.top(), &content, &ScanOptions::default()).unwrap()
}

#[test]
fn owners_are_mapped_as_an_idmapped_mount_does_needs_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let path = place.file("f", b"");
    std::os::unix::fs::chown(&path, Some(100_033), Some(200_044)).unwrap();
    std::os::unix::fs::chown(place.top(), Some(100_000), Some(200_000)).unwrap();
    set_xattr(
        &path,
        "system.posix_acl_access",
        &acl(&[
            (1, 6, !0),
            (2, 4, 100_001),
            (4, 4, !0),
            (8, 4, 200_002),
            (16, 4, !0),
            (32, 4, !0),
        ]),
    );
    // Revision 3, of the user namespace whose root is 100000.
    let mut capability = vec![1, 0, 0, 3, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capability.extend_from_slice(&100_000u32.to_le_bytes());
    set_xattr(&path, "security.capability", &capability);
    let range = |host| IdRange {
        inside: 0,
        host,
        size: 1000,
    };
    let content = Content {
        uid_map: vec![range(100_000)],
        gid_map: vec![range(200_000)],
        ..Content::default()
    };
    let all = composed(vec![layer("/", scan_with(&place, content))]);
    let tree = all.tree();
    let node = at(tree, "f");
    assert_eq!((tree.meta(node).uid, tree.meta(node).gid), (33, 44));
    assert_eq!(tree.meta(NodeId::ROOT).uid, 0);
    let value = |name: &[u8]| {
        let found = tree.xattrs(node).iter().find(|x| x.name == name);
        found.unwrap().value.clone()
    };
    let expected = acl(&[
        (1, 6, !0),
        (2, 4, 1),
        (4, 4, !0),
        (8, 4, 2),
        (16, 4, !0),
        (32, 4, !0),
    ]);
    assert_eq!(value(b"system.posix_acl_access"), expected);
    let capability = value(b"security.capability");
    assert_eq!((capability.len(), capability[3]), (20, 2));

    std::os::unix::fs::chown(&path, Some(5), Some(200_044)).unwrap();
    let content = all.layers()[0].scan.as_ref().unwrap().content.clone();
    let all = composed(vec![layer("/", scan_with(&place, content))]);
    let meta = all.tree().meta(at(all.tree(), "f"));
    assert_eq!((meta.uid, meta.gid), (65_534, 44));
    let warned = all.warnings();
    assert!(
        matches!(warned, [ComposeWarning::Unmapped { path: p, what: "user", id: 5, files: 1, .. }] if *p == path),
        "{warned:?}"
    );

    let content = Content {
        owner: Some((7, 8)),
        ..Content::default()
    };
    let all = composed(vec![layer("/", scan_with(&place, content))]);
    for node in all.tree().nodes() {
        let meta = all.tree().meta(node);
        assert_eq!((meta.uid, meta.gid), (7, 8));
    }
}

#[test]
fn the_digest_of_stamps_knows_of_every_file() {
    let world = World::new();
    let digest = || world.with(&[("/mnt", "one")]).unwrap().stamps_digest();
    let before = digest();
    assert_eq!(before, digest());
    set_mtime(&world.place.path("one/sub/x"), 9, 9);
    let after = digest();
    assert_ne!(before, after);
    // A directory's own times say nothing about content.
    set_mtime(&world.place.path("one/sub"), 9, 9);
    assert_eq!(digest(), after);
}
