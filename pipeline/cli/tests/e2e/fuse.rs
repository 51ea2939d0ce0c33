//! Sources on FUSE, as object stores are mounted: copied like any other, and known again after a remount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::mounts::MountPoint;
use crate::world::{World, assert_code, not_root, skip};

/// An image mounted by a program, not by the kernel.
struct Fuse(PathBuf);

impl Fuse {
    fn mount(image: &Path, at: &Path) -> Fuse {
        fs::create_dir_all(at).unwrap();
        let status = Command::new("fuse2fs").arg(image).arg(at).status().unwrap();
        assert!(status.success());
        let patience = Instant::now() + Duration::from_secs(60);
        while !is_mounted(at) {
            assert!(Instant::now() < patience, "fuse2fs does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        Fuse(at.to_owned())
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        // The program writes back and goes.
        let patience = Instant::now() + Duration::from_secs(60);
        while is_mounted(&self.0) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_mounted(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == at.to_str())
}

fn missing() -> Option<String> {
    let found = ["/usr/bin/fuse2fs", "/usr/sbin/fuse2fs", "/sbin/fuse2fs"];
    if !found.iter().any(|path| Path::new(path).exists()) {
        return Some("fuse2fs is not installed".to_owned());
    }
    (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".to_owned())
}

#[test]
fn root_row_29_a_source_on_fuse_is_copied_and_known_again_after_a_remount() {
    if skip(not_root()) {
        return;
    }
    // Not every host that can run the rest has FUSE, so this is a skip everywhere.
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    let world = World::new();
    let stored = world.path("stored");
    fs::create_dir(&stored).unwrap();
    fs::write(stored.join("object"), "one\n").unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    for path in [stored.join("object"), stored.clone()] {
        fs::File::open(path).unwrap().set_modified(old).unwrap();
    }
    let build = |root: &Path, mounts: &[Value], image: &str| {
        let spec = world.path(&format!("{image}.json"));
        let content = json!({
            "version": 1,
            "rootfs": root,
            "process": {"args": ["true"], "cwd": "/"},
            "mounts": mounts,
        });
        fs::write(&spec, content.to_string()).unwrap();
        let output = world
            .fcpipe()
            .args(["--format", "json", "build", "-o"])
            .arg(world.path(image))
            .arg(&spec)
            .output()
            .unwrap();
        assert_code(&output, 0);
        let built: Value = serde_json::from_slice(&output.stdout).unwrap();
        built["outcome"].as_str().unwrap().to_owned()
    };
    // An image of ours is what the program serves: its times of change are as old as its files.
    build(&stored, &[], "store.img");
    let bucket = world.path("bucket");
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let mount = [json!({"source": bucket, "destination": "/mnt/bucket"})];
    let built = || build(&root, &mount, "image");
    let content = || {
        let output = Command::new("/sbin/debugfs")
            .args(["-R", "cat /mnt/bucket/object"])
            .arg(world.path("image"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let first = Fuse::mount(&world.path("store.img"), &bucket);
    assert_eq!(built(), "ran");
    assert_eq!(content(), "one\n");
    assert_eq!(built(), "hit");
    drop(first);
    // Takes the device number that has just become free.
    // Any other file system without a disk.
    let other = MountPoint::tmpfs(world.path("other"), "mode=755");
    let second = Fuse::mount(&world.path("store.img"), &bucket);
    assert_eq!(built(), "hit", "after a remount");
    fs::write(bucket.join("object"), "two\n").unwrap();
    assert_eq!(built(), "ran", "after a change");
    assert_eq!(content(), "two\n");
    drop(second);
    drop(other);
}
