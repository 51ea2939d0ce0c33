//! `fcpipe cache`. `cache export SPEC` makes everything of a launch that is kept, without a machine, so most of this
//! needs neither root nor a kernel.

mod faults;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{Leftovers, World, assert_code, skip_without_machine};

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
