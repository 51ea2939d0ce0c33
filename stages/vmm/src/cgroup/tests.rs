//! Groups of both versions: of this host's trees, and of version 2 in a tree that is made up, where the host has none with controllers.

use super::*;

use crate::confine::Confined;
use crate::spawn::Spawn;

/// Whether a test that needs root runs. With `CI=true` it is a failure not to be.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"));
        println!("skipped: not root");
    }
    root
}

#[test]
fn root_groups_are_made_with_their_limits_entered_emptied_and_taken_away() {
    if !is_root() {
        return;
    }
    let name = format!("test-{}", std::process::id());
    let plan = CgroupPlan::at(Path::new(&name)).unwrap();
    if plan.groups.is_empty() {
        println!("skipped: no control groups are mounted");
        return;
    }
    let limits = CgroupLimits {
        memory: Some(64 << 20),
        cpu: Some((20_000, 100_000)),
    };
    let cgroup = plan.make(&limits).unwrap();
    assert_eq!(cgroup.usage().memory_limit, Some(64 << 20));
    let null = fs::File::open("/dev/null").unwrap();
    let child = Spawn {
        path: Path::new("/bin/sleep"),
        args: &["1000".as_ref()],
        env: &[],
        dir: Path::new("/"),
        streams: [null.as_fd(); 3],
        cgroups: &cgroup.entrances().unwrap(),
        confined: Confined::default(),
    };
    let child = child.spawn().unwrap();
    for group in &plan.groups {
        let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(
            procs.trim(),
            child.mark.pid.to_string(),
            "{}",
            group.display()
        );
    }
    // Whoever comes later is refused, and leaves it as it is.
    let later = CgroupPlan::at(Path::new(&name)).unwrap();
    assert!(matches!(
        later.make(&limits),
        Err(CgroupError::InUse { .. })
    ));
    later.remove().unwrap();
    assert!(child.mark.is_alive());
    // It dies with the thread that started it, so that is this one; another waits for it.
    std::thread::scope(|scope| {
        let waited = scope.spawn(|| child.wait().unwrap());
        kill_in_groups(&plan.groups).unwrap();
        assert!(!waited.join().unwrap().success());
        plan.remove().unwrap();
    });
    assert!(plan.groups.iter().all(|group| !group.exists()));
    plan.remove().unwrap();
}

/// `cgroupsPath` of two launches below one directory that neither has found there.
#[test]
fn root_a_group_that_another_launch_has_made_one_in_stays() {
    if !is_root() {
        return;
    }
    let top = format!("/fcpipe-test-{}", std::process::id());
    let at = |name: &str| CgroupPlan::at(Path::new(&format!("{top}/{name}"))).unwrap();
    // Both before either is made.
    let (first, second) = (at("a"), at("b"));
    if first.groups.is_empty() {
        println!("skipped: no control groups are mounted");
        return;
    }
    assert_eq!(first.made.len(), 2 * first.groups.len());
    first.make(&CgroupLimits::default()).unwrap();
    second.make(&CgroupLimits::default()).unwrap();
    first.remove().unwrap();
    assert!(first.groups.iter().all(|group| !group.exists()));
    assert!(second.groups.iter().all(|group| group.exists()));
    first.remove().unwrap();
    // Whoever is the last takes the directory away.
    second.remove().unwrap();
    assert!(second.made.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_group_of_the_spec_s_own_leaves_what_was_there() {
    let plan = CgroupPlan::at(Path::new("/fcpipe-none/a")).unwrap();
    assert!(plan.shared.is_empty());
    // Two directories in each tree.
    assert_eq!(plan.made.len(), 2 * plan.groups.len());
    plan.remove().unwrap();
}

/// What the kernel puts into a group's directory.
fn populate(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for name in ["cgroup.procs", "cgroup.subtree_control"] {
        fs::write(dir.join(name), "").unwrap();
    }
}

/// A tree of version 2 with controllers, and what `/proc/self/mountinfo` says of it.
fn tree_of_two(controllers: &str) -> (tempfile::TempDir, Vec<Hierarchy>) {
    let dir = tempfile::tempdir().unwrap();
    populate(dir.path());
    fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
    let line = format!(
        "31 23 0:27 / {} rw - cgroup2 cgroup2 rw",
        dir.path().display()
    );
    let trees = hierarchies::of(&line);
    assert_eq!(trees.len(), 1);
    (dir, trees)
}

#[test]
fn version_2_has_its_controllers_passed_on_its_limits_set_and_its_figures_read() {
    let (dir, trees) = tree_of_two("cpuset cpu io memory pids\n");
    let plan = CgroupPlan::among(&trees, Path::new("one"));
    let (own, group) = (dir.path().join("fcpipe"), dir.path().join("fcpipe/one"));
    assert_eq!(plan.groups, std::slice::from_ref(&group));
    assert_eq!(
        (plan.made.clone(), plan.shared.clone()),
        (vec![group.clone()], vec![own.clone()])
    );
    populate(&own);
    populate(&group);
    fs::write(dir.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
    let limits = CgroupLimits {
        memory: Some(64 << 20),
        cpu: Some((20_000, 100_000)),
    };
    let cgroup = plan.make_among(&trees, &limits).unwrap();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    // Only what is not passed on yet, and never by the group itself.
    assert_eq!(read(dir.path().join("cgroup.subtree_control")), "+memory");
    assert_eq!(read(own.join("cgroup.subtree_control")), "+memory +cpu");
    assert_eq!(read(group.join("cgroup.subtree_control")), "");
    assert_eq!(read(group.join("memory.max")), (64 << 20).to_string());
    assert_eq!(read(group.join("cpu.max")), "20000 100000");

    for (file, text) in [
        (
            "cpu.stat",
            "usage_usec 700\nuser_usec 1\nthrottled_usec 30\n",
        ),
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.events", "low 0\noom 5\noom_kill 3\n"),
    ] {
        fs::write(group.join(file), text).unwrap();
    }
    let expected = CgroupUsage {
        cpu_us: Some(700),
        throttled_us: Some(30),
        memory: Some(4096),
        memory_peak: Some(8192),
        memory_limit: Some(64 << 20),
        oom_kills: Some(3),
    };
    assert_eq!(cgroup.usage(), expected);
    let entrances = cgroup.entrances().unwrap();
    assert!(entrances.of_one.is_empty() && entrances.of_two.is_some());
    assert_eq!(cgroup.paths(), std::slice::from_ref(&group));
    fs::write(group.join("cgroup.procs"), "1\n").unwrap();
    let again = plan.make_among(&trees, &limits);
    assert!(matches!(again, Err(CgroupError::InUse { .. })));
}

/// Another machine that ends takes a shared parent away when nothing is in it.
#[test]
fn row_51_version_2_has_the_group_in_its_parents_before_controllers_are_passed_on() {
    let (dir, trees) = tree_of_two("memory\n");
    let plan = CgroupPlan::among(&trees, Path::new("one"));
    // In a directory that is no group nothing can be passed on.
    let made = plan.make_among(&trees, &CgroupLimits::default());
    assert!(matches!(made, Err(CgroupError::Io { .. })), "{made:?}");
    assert!(dir.path().join("fcpipe/one").exists());
}

#[test]
fn version_2_without_the_controller_cannot_limit() {
    let (dir, trees) = tree_of_two("cpu pids\n");
    let plan = CgroupPlan::among(&trees, Path::new("/one"));
    populate(&dir.path().join("one"));
    let limits = CgroupLimits {
        memory: Some(1 << 20),
        cpu: None,
    };
    let made = plan.make_among(&trees, &limits);
    assert!(
        matches!(made, Err(CgroupError::NoController { what: "memory", .. })),
        "{made:?}"
    );
}

#[test]
#[allow(
    unsafe_code,
    reason = "a child in its parent's memory has no safe form"
)]
fn root_a_process_is_born_in_its_group_of_version_2() {
    if !is_root() {
        return;
    }
    let name = format!("test-born-{}", std::process::id());
    let plan = CgroupPlan::at(Path::new(&name)).unwrap();
    let cgroup = plan.make(&CgroupLimits::default()).unwrap();
    match cgroup.entrances().unwrap().of_two {
        None => println!("skipped: no control groups of version 2 are mounted"),
        Some(two) => {
            // SAFETY: it does nothing.
            let pid = unsafe { crate::vfork::child(Some(two.dir.as_fd()), &|| {}) }.unwrap();
            let pid = pid.expect("born in the group");
            // It has ended, and is there until it is waited for.
            let groups = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
            let groups = fs::read_to_string(groups).unwrap();
            let of_two = groups.lines().find_map(|line| line.strip_prefix("0::"));
            assert!(of_two.unwrap().ends_with(&name), "{groups}");
            let flags = rustix::process::WaitOptions::empty();
            rustix::process::waitpid(Some(pid), flags).unwrap();
        }
    }
    plan.remove().unwrap();
}

#[test]
fn a_process_that_cannot_be_born_in_its_group_enters_it_and_a_program_that_is_missing_is_told() {
    let (dir, trees) = tree_of_two("memory cpu\n");
    let plan = CgroupPlan::among(&trees, Path::new("/one"));
    populate(&dir.path().join("one"));
    let cgroup = plan.make_among(&trees, &CgroupLimits::default()).unwrap();
    let entrances = cgroup.entrances().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    let spawn = |path| Spawn {
        path: Path::new(path),
        args: &[],
        env: &[],
        dir: Path::new("/"),
        streams: [null.as_fd(); 3],
        cgroups: &entrances,
        confined: Confined::default(),
    };
    // No group of the kernel's: the child is forked, and writes itself into the file.
    let child = spawn("/bin/true").spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let procs = fs::read_to_string(dir.path().join("one/cgroup.procs")).unwrap();
    assert_eq!(procs, "0");
    let missing = spawn("/no/such/program").spawn().err().unwrap();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
}
