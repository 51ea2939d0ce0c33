//! The container as it is set up, and what is said when it can't be.

use std::fs;
use std::os::unix::fs::symlink;

use fcpipe_proto::{FailureKind, GuestConfig, GuestMount, Process, ProtoError, Writes};

use crate::agent::{Guest, config, sh, soon};

fn mount(fstype: &str, destination: &str, options: &[&str]) -> GuestMount {
    GuestMount {
        fstype: fstype.to_owned(),
        source: fstype.to_owned(),
        destination: destination.to_owned(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        stand_in: false,
    }
}

/// A guest configured with what `change` made of the usual configuration.
fn with(guest: Guest, change: impl FnOnce(&mut GuestConfig)) -> Guest {
    let mut guest = guest;
    let mut config = config();
    change(&mut config);
    let session = guest.connect().unwrap();
    session.configure(&config, soon()).unwrap();
    guest.session = Some(session);
    guest
}

fn setup_failure(guest: &Guest, process: &Process) -> String {
    match guest.start(process, None) {
        Err(ProtoError::Failed(failure)) => {
            assert_eq!(failure.kind, FailureKind::Setup, "{failure}");
            failure.to_string()
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn the_usual_mounts_and_devices_are_there_as_root() {
    let Some(guest) = Guest::new().map(Guest::configured) else {
        return;
    };
    let ended = guest.sh(
        "for d in null zero full random urandom tty ptmx fd stdin stdout stderr shm mqueue pts; do \
           [ -e /dev/$d ] || echo no $d; done; \
         cat /proc/mounts; echo x > /dev/null; head -c 2 /dev/zero | wc -c; stat -c %a /dev/null /dev/shm; exit 0",
    );
    assert!(!ended.out.contains("no "), "{}", ended.out);
    for mount in [
        " /proc proc ",
        " /dev tmpfs ",
        " /dev/pts devpts ",
        " /sys sysfs ",
    ] {
        assert!(ended.out.contains(mount), "{mount}: {}", ended.out);
    }
    assert!(ended.out.ends_with("2\n666\n1777\n"), "{}", ended.out);
}

#[test]
fn row_08_mounts_through_links_of_the_root_stay_inside_it_as_root() {
    let outside = tempfile::tempdir().unwrap();
    let guest = Guest::with_root(|root| {
        symlink("/real", root.join("abs")).unwrap();
        symlink("../../../../../..", root.join("up")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink(outside.path(), root.join("away")).unwrap();
    });
    let Some(guest) = guest else { return };
    let guest = with(guest, |c| {
        c.mounts.push(mount("tmpfs", "/abs/a", &[]));
        c.mounts.push(mount("tmpfs", "/up/b/../c", &[]));
    });
    let ended = guest.sh("cat /proc/mounts");
    assert!(ended.out.contains(" /real/a tmpfs "), "{}", ended.out);
    assert!(ended.out.contains(" /c tmpfs "), "{}", ended.out);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn row_08_a_mount_through_a_link_that_leads_nowhere_is_an_error_as_root() {
    let guest = Guest::with_root(|root| symlink("/nowhere", root.join("away")).unwrap());
    let Some(guest) = guest else { return };
    let guest = with(guest, |c| c.mounts.push(mount("tmpfs", "/away/x", &[])));
    let why = setup_failure(&guest, &sh("true"));
    assert!(why.contains("/away/x"), "{why}");
}

#[test]
fn unknown_file_systems_and_options_are_named_as_root() {
    for (bad, words) in [
        (mount("nosuchfs", "/x", &[]), ["/x", "nosuchfs"]),
        (mount("tmpfs", "/y", &["nosuch=1"]), ["/y", "tmpfs"]),
    ] {
        let Some(guest) = Guest::new() else { return };
        let guest = with(guest, |c| c.mounts.push(bad));
        let why = setup_failure(&guest, &sh("true"));
        assert!(words.iter().all(|w| why.contains(w)), "{why}");
    }
}

#[test]
fn a_read_only_root_still_gets_its_mount_points_as_root() {
    let Some(guest) = Guest::new() else { return };
    let guest = with(guest, |c| {
        c.root.readonly = true;
        c.mounts.push(mount("tmpfs", "/new/place", &[]));
        c.mounts.push(mount("tmpfs", "/dev", &["ro", "nosuid"]));
    });
    let ended =
        guest.sh("touch /f; touch /new/place/f; touch /dev/f; echo x > /dev/null && echo null");
    assert_eq!(ended.out, "null\n");
    assert_eq!(
        ended.err.matches("Read-only file system").count(),
        2,
        "{}",
        ended.err
    );
}

#[test]
fn an_overlay_keeps_writes_from_the_disk_as_root() {
    let guest = Guest::with_root(|root| {
        fs::write(root.join("linked"), "text\n").unwrap();
        fs::hard_link(root.join("linked"), root.join("link")).unwrap();
    });
    let Some(guest) = guest else { return };
    if !fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("overlay")
    {
        println!("skipped: no overlayfs");
        return;
    }
    let mut guest = with(guest, |c| {
        c.root.writes = Writes::Overlay { scratch: 1 };
        c.root.disk_readonly = true;
    });
    let before = fs::read(guest.image()).unwrap();
    let ended = guest.sh(
        "echo hello > /written; cat /written; mv /home /house && ls /house; \
         echo more >> /linked; cat /link; stat -c %h /link",
    );
    assert_eq!(ended.out, "hello\nweb\ntext\nmore\n2\n", "{}", ended.err);
    assert!(guest.shutdown());
    assert!(fs::read(guest.image()).unwrap() == before);
}

#[test]
fn bad_orders_are_refused_with_what_is_wrong_as_root() {
    type Change = fn(&mut Process);
    let changes: [(Change, &str); 6] = [
        (|p| p.uid = u32::MAX, "4294967295"),
        (|p| p.env.push("NOEQUALS".to_owned()), "NOEQUALS"),
        (|p| p.args.push("a\0b".to_owned()), "zero byte"),
        (|p| p.cwd = "/bin/sh".to_owned(), "/bin/sh"),
        (
            |p| {
                p.rlimits.push(fcpipe_proto::Rlimit {
                    kind: "RLIMIT_SMELL".to_owned(),
                    soft: 1,
                    hard: 1,
                });
            },
            "RLIMIT_SMELL",
        ),
        (|p| p.cwd = "/bin/sh/below".to_owned(), "/bin/sh/below"),
    ];
    for (change, words) in changes {
        let Some(guest) = Guest::new().map(Guest::configured) else {
            return;
        };
        let mut process = sh("true");
        change(&mut process);
        let why = setup_failure(&guest, &process);
        assert!(why.contains(words), "{why:?} without {words:?}");
    }
}

#[test]
fn a_disk_that_is_not_there_or_not_what_was_said_is_an_error_as_root() {
    let Some(guest) = Guest::new() else { return };
    let session = guest.connect().unwrap();
    let mut other = config();
    other.root.disk = 3;
    let Err(ProtoError::Failed(failure)) = session.configure(&other, soon()) else {
        panic!("there is no disk 3");
    };
    assert!(failure.to_string().contains("disk 3"), "{failure}");
    drop(session);
    let session = guest.reconnect();
    let mut other = config();
    other.root.fstype = "nosuchfs".to_owned();
    let Err(ProtoError::Failed(failure)) = session.configure(&other, soon()) else {
        panic!("there is no such file system");
    };
    assert!(failure.to_string().contains("nosuchfs"), "{failure}");
}

fn bind(destination: &str, options: &[&str]) -> GuestMount {
    GuestMount::bind(
        destination.to_owned(),
        options.iter().map(|o| (*o).to_owned()).collect(),
    )
}

#[test]
fn a_bind_mount_has_its_options_as_root() {
    let guest = Guest::with_root(|root| {
        for dir in ["ro", "rw", "noexec", "nested/inner"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("file"), "text").unwrap();
        fs::copy("/bin/busybox", root.join("noexec/true")).unwrap();
    });
    let Some(guest) = guest else { return };
    let guest = with(guest, |c| {
        c.root.readonly = true;
        c.mounts.push(bind("/ro", &["ro", "nosuid", "nodev"]));
        c.mounts.push(bind("/rw", &[]));
        c.mounts.push(bind("/noexec", &["noexec"]));
        c.mounts.push(bind("/file", &["ro", "rw"]));
        c.mounts.push(bind("/nested", &["ro"]));
        c.mounts.push(bind("/nested/inner", &[]));
        c.mounts.push(bind("/covered/by/a/later/one", &["ro"]));
    });
    let ended = guest.sh(
        "for f in /ro/f /rw/f /file /nested/f /nested/inner/f /f; do (echo x >> $f) 2>/dev/null && echo $f; done; \
         /noexec/true 2>/dev/null || echo noexec; grep ' /ro ' /proc/self/mounts; [ -e /covered ] || echo covered",
    );
    let lines: Vec<&str> = ended.out.lines().collect();
    let [writable @ .., noexec, mount, covered] = &lines[..] else {
        panic!("{ended:?}", ended = ended.out)
    };
    // A mount is writable or not by its own word, whatever the root is.
    assert_eq!(writable, ["/rw/f", "/file", "/nested/inner/f"]);
    assert_eq!((*noexec, *covered), ("noexec", "covered"));
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(mount.split([' ', ',']).any(|word| word == flag), "{mount}");
    }
}

#[test]
fn row_07_a_bind_mount_is_seen_in_front_of_an_earlier_mount_as_root() {
    let guest = Guest::with_root(|root| {
        for dir in ["run/secrets", "run/hidden", "etc/app"] {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join("name"), dir).unwrap();
        }
        fs::write(root.join("run/file"), "a file").unwrap();
    });
    let Some(guest) = guest else { return };
    let guest = with(guest, |c| {
        c.mounts.push(bind("/run/hidden", &[]));
        c.mounts.push(mount("tmpfs", "/run", &[]));
        c.mounts.push(bind("/run/secrets", &["ro"]));
        c.mounts.push(bind("/run/file", &[]));
    });
    let ended = guest.sh(
        "cat /run/secrets/name; echo; cat /run/file; echo; ls /run; echo x > /run/secrets/name",
    );
    assert_eq!(
        ended.out, "run/secrets\na file\nfile\nsecrets\n",
        "{}",
        ended.err
    );
    assert!(ended.err.contains("Read-only file system"), "{}", ended.err);
}
