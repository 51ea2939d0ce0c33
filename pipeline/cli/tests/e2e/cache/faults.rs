//! What is kept, under faults: kills, full disks, damage, many at once. Counts are a tenth of `cargo xtask soak
//! cache`'s; seeds are printed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fcpipe_treegen::{Rng, count, seed};
use serde_json::Value;

use super::{assert_clean, bundle, cache, content, export, export_command, lines, one, outcome};
use crate::mounts::MountPoint;
use crate::world::{World, assert_code, not_root, skip, skip_even_in_ci};

/// What the image must hold: made in a cache of its own, with nobody in the way.
fn reference(world: &World, bundle: &Path) -> String {
    let dir = world.path("reference");
    let output = export_command(world, &dir, bundle, &world.path("reference.tar"));
    assert_code(&{ output }.output().unwrap(), 0);
    let mut ls = world.fcpipe();
    ls.args(["--format", "json", "cache", "ls", "--cache-dir"])
        .arg(&dir);
    let listed = lines(&ls.output().unwrap());
    let image = listed.iter().find(|line| line["node"] == "image").unwrap();
    let content = image["objects"][0]["content"].as_str().unwrap().to_owned();
    fs::remove_dir_all(dir).unwrap();
    content
}

#[test]
fn row_33_sigkill_at_random_moments_of_a_build() {
    let world = World::new();
    let bundle = bundle(&world);
    let mut random = Rng::new(seed());
    assert_code(&export(&world, &bundle), 0);
    let attempt = |round: u64| {
        fs::write(bundle.join("rootfs/changed"), round.to_string()).unwrap();
        let mut command = if round.is_multiple_of(2) {
            let (cache, output) = (world.path("cache"), world.path("killed.tar"));
            export_command(&world, &cache, &bundle, &output)
        } else {
            let mut build = world.fcpipe();
            build
                .arg("build")
                .arg(&bundle)
                .arg("-o")
                .arg(world.path("killed.img"));
            build
        };
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // How long an export and a build take when nobody kills them.
    let usual = [1000, 1001].map(|round| {
        let begun = Instant::now();
        assert!(attempt(round).wait().unwrap().success());
        begun.elapsed()
    });
    let (mut before, mut late) = (0, 0);
    for round in 0..count("FCPIPE_SOAK_KILLS", 20) {
        let after = usual[round as usize % 2].mul_f64(random.below(1000) as f64 / 1000.0);
        let mut child = attempt(round);
        std::thread::sleep(after);
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        if ended.success() {
            late += 1
        } else {
            before += 1
        }
        let why = format!("round {round}, killed after {after:?}");
        if random.below(2) == 0 {
            assert_clean(&world, &why);
        }
        assert_code(&export(&world, &bundle), 0);
        assert_eq!(content(&world), reference(&world, &bundle), "{why}");
        let build = |cache: &str, name: &str| {
            let mut build = world.fcpipe();
            build.args(["--format", "json", "build", "--digest", "--cache", cache]);
            build.arg(&bundle).arg("-o").arg(world.path(name));
            one(&build.output().unwrap())["digest"].clone()
        };
        assert_eq!(
            build("auto", "killed.img"),
            build("off", "right.img"),
            "{why}"
        );
        assert_clean(&world, &why);
        // Old images would only make this slow.
        assert_code(&cache(&world, &["gc", "--max-size", "100MiB"]), 0);
    }
    println!("{before} killed at work, {late} had ended");
    assert!(before > 0);
    // Nothing but the outputs beside the world's own directories.
    let left: Vec<_> = fs::read_dir(world.dir.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_str().unwrap().starts_with('.')),
        "{left:?}"
    );
}

#[test]
fn row_33_a_collector_that_is_killed_leaves_a_store_that_works() {
    let world = World::new();
    let bundle = bundle(&world);
    let mut random = Rng::new(seed());
    for round in 0..count("FCPIPE_SOAK_KILLS", 20) / 4 {
        assert_code(&export(&world, &bundle), 0);
        let mut gc = world.fcpipe();
        let mut gc = gc
            .args(["cache", "gc", "--max-size", "0"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random.below(8000)));
        gc.kill().unwrap();
        gc.wait().unwrap();
        assert_clean(&world, &format!("round {round}"));
    }
    assert_code(&export(&world, &bundle), 0);
    assert_eq!(content(&world), reference(&world, &bundle));
}

#[test]
fn row_33_an_import_that_is_killed_leaves_nothing_or_all() {
    let world = World::new();
    let bundle = bundle(&world);
    assert_code(&export(&world, &bundle), 0);
    let archive = world.path("out.tar");
    let right = content(&world);
    let mut random = Rng::new(seed());
    let import = || {
        let mut import = world.fcpipe();
        import.args(["cache", "import"]).arg(&archive);
        import.stdout(Stdio::null()).spawn().unwrap()
    };
    let begun = Instant::now();
    assert!(import().wait().unwrap().success());
    let usual = begun.elapsed();
    for round in 0..count("FCPIPE_SOAK_KILLS", 20) / 4 {
        fs::remove_dir_all(world.path("cache")).unwrap();
        let after = usual.mul_f64(random.below(2000) as f64 / 1000.0);
        let mut child = import();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_clean(&world, &format!("round {round}, killed after {after:?}"));
        assert!(import().wait().unwrap().success());
        assert_eq!(content(&world), right);
        assert_eq!(outcome(&export(&world, &bundle), "copy"), "hit");
    }
}

#[test]
fn row_35_of_twenty_processes_one_builds() {
    let world = World::new();
    let bundle = bundle(&world);
    let (cache_dir, image) = (world.path("cache"), world.path("a.img"));
    let children: Vec<Child> = (0..20)
        .map(|number| {
            let output = world.path(&format!("{number}.tar"));
            export_command(&world, &cache_dir, &bundle, &output)
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<Output> = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let ran = |step| {
        outputs
            .iter()
            .filter(|output| outcome(output, step) == "ran")
            .count()
    };
    assert_eq!((ran("layout"), ran("copy")), (1, 1));
    // Twenty archives of one image.
    let first = one(&outputs[0])["digest"].clone();
    assert!(outputs.iter().all(|output| one(output)["digest"] == first));
    assert_clean(&world, "after twenty exports");

    let children: Vec<Child> = (0..20)
        .map(|_| {
            let mut build = world.fcpipe();
            build
                .args(["--format", "json", "build"])
                .arg(&bundle)
                .arg("-o")
                .arg(&image);
            build
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outcomes = children
        .into_iter()
        .map(|child| one(&child.wait_with_output().unwrap())["outcome"].clone());
    assert_eq!(outcomes.filter(|outcome| outcome == "ran").count(), 1);
    assert_clean(&world, "after twenty builds");
}

#[test]
fn row_36_a_flipped_bit_in_each_kind_of_store_file() {
    let world = World::new();
    let bundle = bundle(&world);
    let mut random = Rng::new(seed());
    assert_code(&export(&world, &bundle), 0);
    let right = content(&world);
    let mut seen = Vec::new();
    for part in ["records", "notes", "objects"] {
        for _ in 0..count("FCPIPE_SOAK_FLIPS", 4) {
            let files = files_below(&world.path("cache/v1").join(part));
            let file = &files[random.below(files.len() as u64) as usize];
            flip(file, &mut random);
            let listed = lines(&cache(&world, &["ls"]));
            let unusable = listed.iter().filter(|line| line["usable"] == false).count();
            // A record is refused by whoever reads it; an object is found by whoever reads all of it.
            assert_eq!(
                unusable,
                usize::from(part == "records"),
                "{}",
                file.display()
            );
            if random.below(2) == 0 && part != "objects" {
                assert_code(&export(&world, &bundle), 0);
            } else {
                let found = cache(&world, &["verify"]);
                assert_code(&found, 1);
                let found: Value = serde_json::from_slice(&found.stdout).unwrap();
                assert_eq!(found["damaged"], 1, "{found}");
                let subject = found["findings"][0]["subject"].as_str().unwrap().to_owned();
                assert!(file.ends_with(&subject), "{subject} {}", file.display());
                seen.push(part);
            }
            assert_code(&export(&world, &bundle), 0);
            assert_eq!(content(&world), right);
            // A note that no launch needs again (another spec's) stays damaged until somebody looks.
            assert!(matches!(
                cache(&world, &["verify"]).status.code(),
                Some(0 | 1)
            ));
            assert_clean(&world, part);
        }
    }
    assert!(seen.contains(&"objects"));
    // What scans remember proves itself to the next scan, whatever has become of it.
    for _ in 0..count("FCPIPE_SOAK_FLIPS", 4) {
        let scans = files_below(&world.path("cache/v1/scans"));
        assert!(!scans.is_empty());
        for file in scans {
            flip(&file, &mut random);
        }
        let changed = bundle.join("rootfs/changed");
        fs::write(&changed, random.below(1 << 30).to_string()).unwrap();
        assert_code(&export(&world, &bundle), 0);
        assert_eq!(content(&world), reference(&world, &bundle));
    }
}

/// The files below a directory, in order.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files.sort();
    files
}

fn flip(file: &Path, random: &mut Rng) {
    let mode = fs::metadata(file).unwrap().permissions();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(file).unwrap();
    let at = random.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1 << random.below(8);
    fs::File::options()
        .write(true)
        .open(file)
        .unwrap()
        .write_all(&bytes)
        .unwrap();
    fs::set_permissions(file, mode).unwrap();
}

/// Bytes that there is room for.
fn free(disk: &MountPoint) -> u64 {
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// Leaves so many bytes free.
fn leave(disk: &MountPoint, bytes: u64) {
    let ballast = disk.path().join("ballast");
    let _ = fs::remove_file(&ballast);
    let file = fs::File::create(&ballast).unwrap();
    let take = free(disk).saturating_sub(bytes);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
}

#[test]
fn root_row_31_wherever_the_disk_becomes_full_it_is_said_and_nothing_is_left() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let disk = MountPoint::tmpfs(world.path("small"), "size=64m,mode=700");
    let (cache_dir, state) = (disk.path().join("cache"), disk.path().join("state"));
    let output = disk.path().join("out.tar");
    let run = || {
        let mut export = export_command(&world, &cache_dir, &bundle, &output);
        export.arg("--state-dir").arg(&state).output().unwrap()
    };
    let before = free(&disk);
    assert_code(&run(), 0);
    let needed = before - free(&disk);
    let image = files_below(&cache_dir.join("v1/objects"));
    let image: u64 = image
        .iter()
        .map(|file| fs::metadata(file).unwrap().blocks() * 512)
        .sum();
    let rounds = count("FCPIPE_SOAK_FULL", 40);
    let (mut failed, mut fine) = (0, 0);
    for round in 0..=rounds {
        let _ = fs::remove_dir_all(&cache_dir);
        let _ = fs::remove_dir_all(&state);
        fs::write(&output, "the old one").unwrap();
        // Page by page where directories and the first records are written, then where the image has just been
        // written and its record has not; then ever further.
        let pages = match round % 3 {
            _ if round == rounds => needed / 4096 + 8,
            0 => round / 3,
            1 => image / 4096 + round / 3,
            _ => (needed / 4096 + 8) * round / rounds,
        };
        leave(&disk, pages * 4096);
        let ended = run();
        let why = format!("{pages} pages free: {}", ended.stderr.escape_ascii());
        if ended.status.success() {
            fine += 1;
            continue;
        }
        failed += 1;
        assert_eq!(ended.status.code(), Some(1), "{why}");
        let said = std::str::from_utf8(&ended.stderr).unwrap().to_lowercase();
        assert!(
            said.contains("no space") || said.contains(" left and "),
            "{why}"
        );
        assert_eq!(fs::read(&output).unwrap(), b"the old one", "{why}");
        for part in ["tmp", "locks"] {
            let left = fs::read_dir(cache_dir.join("v1").join(part)).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{part}: {why}");
        }
        let names = |part| -> Vec<_> {
            let dir = fs::read_dir(cache_dir.join("v1").join(part))
                .into_iter()
                .flatten();
            dir.flatten().map(|entry| entry.file_name()).collect()
        };
        let records = names("records");
        assert!(
            names("objects").iter().all(|key| records.contains(key)),
            "{why}"
        );
        let beside = fs::read_dir(&disk.0)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name());
        let known = ["cache", "state", "out.tar", "ballast"];
        assert!(
            beside
                .into_iter()
                .all(|name| known.contains(&name.to_str().unwrap())),
            "{why}"
        );
        // With room again it goes on from there.
        fs::remove_file(disk.path().join("ballast")).unwrap();
        assert_code(&run(), 0);
    }
    println!("{failed} of {} found the disk full", failed + fine);
    assert!(
        failed > rounds / 4 && fine > 0,
        "{failed} failed, {fine} did not"
    );
}

#[test]
fn root_row_39_a_store_on_overlayfs() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = bundle(&world);
    // Overlayfs wants an upper directory on another kind of file system than itself; tmpfs always serves.
    let disk = MountPoint::tmpfs(world.path("small"), "size=256m,mode=700");
    for name in ["lower", "upper", "work"] {
        fs::create_dir(disk.path().join(name)).unwrap();
    }
    let merged = world.path("merged");
    fs::create_dir(&merged).unwrap();
    let dir = |name| disk.path().join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir("lower"),
        dir("upper"),
        dir("work")
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "overlay"])
        .arg(&merged)
        .status();
    if !mounted.unwrap().success() {
        skip_even_in_ci(Some("overlayfs can't be mounted here".to_owned()));
        return;
    }
    let merged = MountPoint(merged);
    let make = || {
        let output = world.path("out.tar");
        export_command(&world, &merged.path().join("cache"), &bundle, &output)
            .output()
            .unwrap()
    };
    assert_eq!(outcome(&make(), "copy"), "ran");
    assert_eq!(outcome(&make(), "copy"), "hit");
    for command in ["verify", "gc"] {
        let mut run = world.fcpipe();
        run.args(["cache", command, "--cache-dir"])
            .arg(merged.path().join("cache"));
        assert_code(&run.output().unwrap(), 0);
    }
    assert_eq!(outcome(&make(), "copy"), "hit");
    drop(merged);
}
