use super::*;

fn meta() -> Meta {
    Meta {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp { secs: 3, nanos: 4 },
    }
}

fn xattr(name: &str, value: &str) -> Xattr {
    Xattr {
        name: name.into(),
        value: value.into(),
    }
}

/// What the tests change one thing of: a directory with one node in it.
#[derive(Clone)]
struct One<'a> {
    root: Meta,
    root_xattrs: Vec<Xattr>,
    name: &'a [u8],
    meta: Meta,
    kind: NewKind<'a>,
    xattrs: Vec<Xattr>,
    second_name: Option<&'a [u8]>,
}

impl Default for One<'_> {
    fn default() -> Self {
        One {
            root: meta(),
            root_xattrs: Vec::new(),
            name: b"name",
            meta: meta(),
            kind: NewKind::File {
                size: 9000,
                data: None,
            },
            xattrs: vec![xattr("user.a", "b")],
            second_name: None,
        }
    }
}

impl One<'_> {
    fn digest(&self) -> blake3::Hash {
        let mut b = TreeBuilder::new(self.root, self.root_xattrs.clone());
        let node = b.add(self.meta, self.kind.clone(), self.xattrs.clone());
        b.link(TreeBuilder::ROOT, self.name, node);
        if let Some(second) = self.second_name {
            b.link(TreeBuilder::ROOT, second, node);
        }
        b.finish().0.digest()
    }
}

#[test]
fn every_field_enters_the_digest() {
    let mut digests = Vec::new();
    let mut changed = |change: &dyn Fn(&mut One<'static>)| {
        let mut one = One::default();
        change(&mut one);
        digests.push(one.digest());
    };
    changed(&|_| {});
    changed(&|o| o.root.mode = 0o755);
    changed(&|o| o.root_xattrs = vec![xattr("user.a", "b")]);
    changed(&|o| o.name = b"nama");
    changed(&|o| o.meta.mode = 0o4644);
    changed(&|o| o.meta.uid = 70_000);
    changed(&|o| o.meta.gid = 70_000);
    changed(&|o| o.meta.mtime.secs = -3);
    changed(&|o| o.meta.mtime.nanos = 5);
    changed(&|o| o.xattrs = Vec::new());
    changed(&|o| o.xattrs = vec![xattr("user.a", "c")]);
    changed(&|o| o.xattrs = vec![xattr("user.ab", "")]);
    changed(&|o| o.xattrs = vec![xattr("user.", "ab")]);
    changed(&|o| o.second_name = Some(b"other"));
    const RUN: DataRun = DataRun { start: 0, end: 1 };
    const LATER: DataRun = DataRun { start: 1, end: 2 };
    for data in [
        &[][..],
        &[RUN],
        &[LATER],
        &[RUN, DataRun { start: 2, end: 3 }],
    ] {
        changed(&|o| {
            o.kind = NewKind::File {
                size: 9000,
                data: Some(data),
            };
        });
    }
    let (major, minor) = (1, 2);
    for kind in [
        NewKind::File {
            size: 9001,
            data: None,
        },
        NewKind::Directory,
        NewKind::Symlink { target: b"t" },
        NewKind::Symlink { target: b"u" },
        NewKind::Symlink { target: b"" },
        NewKind::CharDevice { major, minor },
        NewKind::CharDevice { major, minor: 3 },
        NewKind::CharDevice { major: 3, minor },
        NewKind::BlockDevice { major, minor },
        NewKind::Fifo,
        NewKind::Socket,
    ] {
        changed(&|o| o.kind = kind.clone());
    }
    let all = digests.len();
    digests.sort_by_key(|d| *d.as_bytes());
    digests.dedup();
    assert_eq!(digests.len(), all);
}

#[test]
fn two_files_are_not_two_names_of_one() {
    let build = |linked: bool| {
        let mut b = TreeBuilder::new(meta(), Vec::new());
        let kind = NewKind::File {
            size: 0,
            data: None,
        };
        let first = b.add(meta(), kind.clone(), Vec::new());
        let second = b.add(meta(), kind, Vec::new());
        b.link(TreeBuilder::ROOT, b"a", first);
        b.link(TreeBuilder::ROOT, b"b", if linked { first } else { second });
        b.finish().0
    };
    let (two, one) = (build(false), build(true));
    assert_ne!(two.digest(), one.digest());
    // The node that has no name is not in the Tree.
    assert_eq!((two.len(), one.len()), (3, 2));
    assert_eq!(one.names(NodeId(1)), 2);
    assert_eq!(one.name(NodeId(1)), "a");
}

#[test]
fn numbers_do_not_depend_on_the_order_of_building() {
    let build = |order: &[usize]| {
        let mut b = TreeBuilder::new(meta(), Vec::new());
        let dir = b.add(meta(), NewKind::Directory, Vec::new());
        let names: [(&[u8], BuildId); 5] = [
            (b"z", TreeBuilder::ROOT),
            (b"a", TreeBuilder::ROOT),
            (b"\xff", TreeBuilder::ROOT),
            (b"x", dir),
            (b"y", dir),
        ];
        b.link(TreeBuilder::ROOT, b"dir", dir);
        for &i in order {
            let node = b.add(
                meta(),
                NewKind::Symlink { target: names[i].0 },
                vec![xattr("user.n", &i.to_string())],
            );
            b.link(names[i].1, names[i].0, node);
        }
        b.finish().0
    };
    let (one, two) = (build(&[0, 1, 2, 3, 4]), build(&[4, 2, 0, 3, 1]));
    assert_eq!(one.digest(), two.digest());
    let paths = |tree: &Tree| -> Vec<Vec<u8>> { tree.nodes().map(|n| tree.path(n)).collect() };
    // Breadth first, names bytewise.
    let expected: [&[u8]; 7] = [b"/", b"/a", b"/dir", b"/z", b"/\xff", b"/dir/x", b"/dir/y"];
    assert_eq!(paths(&one), expected);
    assert_eq!(paths(&two), expected);
    let sets = |tree: &Tree| -> Vec<u32> { tree.nodes().map(|n| tree.xattr_set(n)).collect() };
    assert_eq!(sets(&one), sets(&two));
    assert_eq!(one.parent(NodeId(5)), NodeId(2));
}

#[test]
fn lookup_finds_names_and_nothing_else() {
    let mut b = TreeBuilder::new(meta(), Vec::new());
    for name in [&b"b"[..], b"a", b"ab"] {
        let node = b.add(meta(), NewKind::Fifo, Vec::new());
        b.link(TreeBuilder::ROOT, name, node);
    }
    let (tree, order) = b.finish();
    assert_eq!(order, [BuildId(0), BuildId(2), BuildId(3), BuildId(1)]);
    let names: Vec<_> = tree.entries(NodeId::ROOT).map(|e| e.name).collect();
    assert_eq!(names, ["a", "ab", "b"]);
    assert_eq!(tree.lookup(NodeId::ROOT, b"ab"), Some(NodeId(2)));
    assert_eq!(tree.lookup(NodeId::ROOT, b"c"), None);
    assert_eq!(tree.lookup(NodeId(1), b"a"), None);
    assert_eq!(tree.entries(NodeId(1)).len(), 0);
}

#[test]
fn equal_sets_of_xattrs_are_one_whatever_their_order() {
    let mut b = TreeBuilder::new(meta(), Vec::new());
    let (x, y) = (xattr("user.x", "1"), xattr("user.y", "2"));
    for (name, set) in [
        (&b"a"[..], vec![x.clone(), y.clone()]),
        (b"b", vec![y.clone(), x.clone()]),
        (b"c", vec![x]),
        (b"d", Vec::new()),
    ] {
        let node = b.add(meta(), NewKind::Fifo, set);
        b.link(TreeBuilder::ROOT, name, node);
    }
    let tree = b.finish().0;
    let sets: Vec<_> = tree.nodes().map(|n| tree.xattr_set(n)).collect();
    assert_eq!(sets, [0, 1, 1, 2, 0]);
    assert_eq!(tree.xattrs(NodeId(2))[1], y);
}
