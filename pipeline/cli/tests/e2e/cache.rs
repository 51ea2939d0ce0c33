//! `fcpipe cache`, and what is kept under faults: kills, full disks, damage, many at once.
//!
//! `cache export SPEC` makes everything of a launch that is kept, without a machine, so most of this needs neither root
//! nor a kernel. Counts are a tenth of `cargo xtask soak cache`'s; seeds are printed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::world::{Leftovers, World, assert_code, not_root, skip, skip_without_machine};

fn count(name: &str, usual: u32) -> u32 {
    let count = std::env::var(name).ok();
    count.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

struct Random(u64);

impl Random {
    fn new() -> Random {
        let clock = || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64
        };
        let seed = std::env::var("FCPIPE_SEED").ok();
        let seed = seed
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(clock);
        println!("seed {seed} (FCPIPE_SEED repeats it)");
        Random(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// A bundle with some megabytes and some hundred files in it.
fn bundle(world: &World) -> PathBuf {
    let bundle = world.bundle(&["true"], &[]);
    let many = bundle.join("rootfs/many");
    fs::create_dir_all(&many).unwrap();
    for number in 0..300u32 {
        fs::write(
            many.join(format!("{number}")),
            number.to_le_bytes().repeat(700),
        )
        .unwrap();
    }
    let noise: Vec<u8> = (0..6_000_000u32)
        .map(|n| (n.wrapping_mul(2654435761) >> 24) as u8)
        .collect();
    fs::write(bundle.join("rootfs/noise"), noise).unwrap();
    bundle
}

fn cache(world: &World, arguments: &[&str]) -> Output {
    let mut command = world.fcpipe();
    command.args(["--format", "json", "cache"]).args(arguments);
    command.output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert_code(output, 0);
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn one(output: &Output) -> Value {
    lines(output).remove(0)
}

/// Makes everything of a launch of `bundle` that is kept, in the cache directory `cache`.
fn export_command(world: &World, cache: &Path, bundle: &Path, output: &Path) -> Command {
    let mut command = world.fcpipe();
    command
        .args(["--format", "json", "--progress", "plain", "--cache-dir"])
        .arg(cache)
        .args(["cache", "export"])
        .arg(bundle)
        .arg("-o")
        .arg(output)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn export(world: &World, bundle: &Path) -> Output {
    let (cache, output) = (world.path("cache"), world.path("out.tar"));
    export_command(world, &cache, bundle, &output)
        .output()
        .unwrap()
}

/// How a step ended, by what was said on stderr.
fn outcome(output: &Output, step: &str) -> String {
    let said = std::str::from_utf8(&output.stderr).unwrap();
    let line = said
        .lines()
        .find(|line| line.ends_with(&format!("  {step}")));
    let line = line.unwrap_or_else(|| panic!("nothing of {step} in {said}"));
    line.split_whitespace().next().unwrap().to_owned()
}

/// What the image that is kept for a node holds.
fn content(world: &World) -> String {
    let listed = lines(&cache(world, &["ls"]));
    let images: Vec<_> = listed
        .iter()
        .filter(|line| line["node"] == "image")
        .collect();
    // The one used last comes first.
    images[0]["objects"][0]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

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

/// `verify` finds nothing damaged, and after `gc` there is nothing but records and what they name.
fn assert_clean(world: &World, why: &str) {
    let verified = cache(world, &["verify"]);
    assert_code(&verified, 0);
    assert_eq!(one(&verified)["damaged"], 0, "{why}");
    assert_code(&cache(world, &["gc"]), 0);
    let used = one(&cache(world, &["du"]));
    for part in ["orphans", "temporary"] {
        assert_eq!(used[part]["files"], 0, "{part}: {why}");
    }
    let locks = fs::read_dir(world.path("cache/v1/locks")).unwrap().count();
    assert_eq!(locks, 0, "{why}");
    Leftovers::of(world).assert_none();
}

#[test]
fn what_is_kept_can_be_listed_measured_checked_and_removed() {
    let world = World::new();
    let bundle = bundle(&world);
    assert_eq!(lines(&cache(&world, &["ls"])), Vec::<Value>::new());
    let first = export(&world, &bundle);
    assert_eq!(outcome(&first, "copy"), "ran");
    let listed = lines(&cache(&world, &["ls"]));
    let mut nodes: Vec<_> = listed
        .iter()
        .map(|line| line["node"].as_str().unwrap())
        .collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["image", "layout"]);
    assert!(
        listed
            .iter()
            .all(|line| line["synced"] == true && line["usable"] == true)
    );
    let used = one(&cache(&world, &["du"]));
    assert_eq!(
        (&used["objects"]["files"], &used["records"]["files"]),
        (&1.into(), &2.into())
    );
    assert!(used["objects"]["disk"].as_u64() < used["objects"]["size"].as_u64());
    assert_clean(&world, "after an export");
    assert_eq!(outcome(&export(&world, &bundle), "copy"), "hit");

    let young = one(&cache(
        &world,
        &["gc", "--max-age", "1d", "--max-size", "1GiB"],
    ));
    assert_eq!((&young["records"], &young["freed"]), (&0.into(), &0.into()));
    let small = one(&cache(&world, &["gc", "--max-size", "1MiB"]));
    assert!(small["left"].as_u64().unwrap() <= 1 << 20, "{small}");
    assert_eq!(outcome(&export(&world, &bundle), "copy"), "ran");
    let all = one(&cache(&world, &["gc", "--max-age", "0s"]));
    assert_eq!(all["left"], 0, "{all}");

    // For people: every command says something, on stdout.
    assert_code(&export(&world, &bundle), 0);
    for command in ["ls", "du", "verify", "gc"] {
        let output = world.fcpipe().args(["cache", command]).output().unwrap();
        assert_code(&output, 0);
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{command}"
        );
    }
    assert_code(&cache(&world, &["gc", "--max-size", "many"]), 2);
    assert_code(&cache(&world, &["gc", "--max-age", "30"]), 2);
}

#[test]
fn an_export_makes_the_same_launch_a_hit_in_another_cache() {
    let world = World::new();
    let bundle = bundle(&world);
    let exported = one(&export(&world, &bundle));
    let digest = exported["digest"].as_str().unwrap();
    let archive = world.path("out.tar");
    let elsewhere = world.path("elsewhere");
    let import = |digest: &str, input: &[u8]| {
        let mut command = world.fcpipe();
        command
            .args(["--format", "json", "--cache-dir"])
            .arg(&elsewhere);
        command.args(["cache", "import", "-", "--digest", digest]);
        crate::world::with_input(&mut command, input)
    };
    let bytes = fs::read(&archive).unwrap();
    let other = format!("blake3:{}", "0".repeat(64));
    assert_code(&import(&other, &bytes), 1);
    assert_code(&import(digest, &bytes[..bytes.len() / 2]), 1);
    let again = |name: &str| {
        export_command(&world, &elsewhere, &bundle, &world.path(name))
            .output()
            .unwrap()
    };
    let mut ls = world.fcpipe();
    ls.args(["--format", "json", "cache", "ls", "--cache-dir"])
        .arg(&elsewhere);
    assert_eq!(lines(&ls.output().unwrap()), Vec::<Value>::new());
    let imported = one(&import(digest, &bytes));
    assert_eq!(imported["records"].as_array().unwrap().len(), 2);
    assert_eq!(imported["digest"], digest);
    let hit = again("again.tar");
    assert_eq!(
        (outcome(&hit, "layout"), outcome(&hit, "copy")),
        ("hit".to_owned(), "hit".to_owned())
    );
    assert_eq!(one(&import(digest, &bytes))["present"], 2);

    // One record by the first digits of its key, too.
    let listed = lines(&ls.output().unwrap());
    let image = listed.iter().find(|line| line["node"] == "image").unwrap();
    let digits = &image["key"].as_str().unwrap()[..12];
    let mut one_key = export_command(
        &world,
        &elsewhere,
        Path::new(digits),
        &world.path("one.tar"),
    );
    assert_eq!(one(&one_key.output().unwrap())["records"], 1);
    let mut no_key = export_command(
        &world,
        &elsewhere,
        Path::new("0123456789ab"),
        &world.path("no.tar"),
    );
    assert_code(&no_key.output().unwrap(), 1);
    assert!(!world.path("no.tar").exists());
}

#[test]
fn row_13_an_archive_inside_a_source_does_not_go_into_itself() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let output = bundle.join("rootfs/out.tar");
    let make = || {
        export_command(&world, &world.path("cache"), &bundle, &output)
            .output()
            .unwrap()
    };
    let first = make();
    let second = make();
    assert!(second.stderr.windows(8).any(|words| words == b"left out"));
    // The directory's time has changed with the new name in it, and nothing else.
    assert_eq!(one(&second)["size"], one(&first)["size"]);
}

#[test]
fn row_33_sigkill_at_random_moments_of_a_build() {
    let world = World::new();
    let bundle = bundle(&world);
    let mut random = Random::new();
    assert_code(&export(&world, &bundle), 0);
    let attempt = |round: u32| {
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
    let mut random = Random::new();
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
    let mut random = Random::new();
    assert_code(&export(&world, &bundle), 0);
    let right = content(&world);
    let mut seen = Vec::new();
    for part in ["records", "notes", "objects"] {
        for _ in 0..count("FCPIPE_SOAK_FLIPS", 4) {
            let mut files = Vec::new();
            below(&world.path("cache/v1").join(part), &mut files);
            files.sort();
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
}

fn below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => below(&entry.path(), files),
            false => files.push(entry.path()),
        }
    }
}

fn flip(file: &Path, random: &mut Random) {
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

/// A file system of its own in memory, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(world: &World, mib: u32) -> SmallDisk {
        let dir = world.path("small");
        fs::create_dir(&dir).unwrap();
        let options = format!("size={mib}m,mode=700");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&dir)
            .status();
        assert!(mount.unwrap().success());
        SmallDisk(dir)
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves this many bytes free.
    fn leave(&self, bytes: u64) {
        let ballast = self.0.join("ballast");
        let _ = fs::remove_file(&ballast);
        let file = fs::File::create(&ballast).unwrap();
        let take = self.free().saturating_sub(bytes);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn root_row_31_wherever_the_disk_becomes_full_it_is_said_and_nothing_is_left() {
    if skip(not_root()) {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let disk = SmallDisk::new(&world, 64);
    let (cache_dir, state) = (disk.0.join("cache"), disk.0.join("state"));
    let output = disk.0.join("out.tar");
    let run = || {
        let mut export = export_command(&world, &cache_dir, &bundle, &output);
        export.arg("--state-dir").arg(&state).output().unwrap()
    };
    let free = disk.free();
    assert_code(&run(), 0);
    let needed = free - disk.free();
    let rounds = u64::from(count("FCPIPE_SOAK_FULL", 40));
    let (mut failed, mut fine) = (0, 0);
    for round in 0..=rounds {
        let _ = fs::remove_dir_all(&cache_dir);
        let _ = fs::remove_dir_all(&state);
        fs::write(&output, "the old one").unwrap();
        // Page by page at the small end, where directories and records are written; then ever further.
        let pages = if round < rounds / 2 {
            round
        } else {
            (needed / 4096 + 8) * round / rounds
        };
        disk.leave(pages * 4096);
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
        fs::remove_file(disk.0.join("ballast")).unwrap();
        assert_code(&run(), 0);
    }
    println!("{failed} of {} found the disk full", failed + fine);
    assert!(
        failed > rounds / 4 && fine > 0,
        "{failed} failed, {fine} did not"
    );
}

#[test]
fn qemu_a_running_machine_keeps_no_collector_out_and_loses_nothing() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh", "-c", "echo up; cat; cat /etc/passwd"], &[]);
    let mut command = world.with_kernel();
    let mut child = command
        .args(["run", "-i"])
        .arg(&bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    assert_eq!(&up, b"up\n");
    // What it made has been looked at and brought to the disk behind it.
    let begun = Instant::now();
    loop {
        let listed = lines(&cache(&world, &["ls"]));
        let image = listed.iter().find(|line| line["node"] == "image").unwrap();
        if image["synced"] == true && image["objects"][0]["content"].is_string() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{image}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let verified = one(&cache(&world, &["verify"]));
    assert_eq!(
        verified["findings"].as_array().unwrap().len(),
        0,
        "{verified}"
    );
    let gone = one(&cache(&world, &["gc", "--max-size", "0"]));
    assert_eq!(
        gone["in_use"].as_u64().unwrap() + gone["records"].as_u64().unwrap(),
        3,
        "{gone}"
    );
    drop(child.stdin.take());
    let ended = child.wait_with_output().unwrap();
    assert_code(&ended, 0);
    assert_eq!(ended.stdout, b"root:x:0:0:root:/root:/bin/sh\n");
    assert_clean(&world, "after the machine");
}
