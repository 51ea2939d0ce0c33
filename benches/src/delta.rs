//! What a launch costs before its machine starts when some files of 100,000 have changed.
//!
//! As in [`cache`](crate::cache), a launch is `fcpipe run` of a busybox root with the tree mounted in it, and its receipt
//! says when the disk was ready. Before each, so many files are written anew, and the tree is walked (a parallel
//! stat walk): what a launch takes beyond that walk is what counts. Beside it: a launch without a cache (`--cache off`, a full
//! rebuild) and `rsync -a --delete` into an ext4 that is mounted already, with a sync behind it.
//!
//! Last, a mount of 3 GiB that does not change beside one of 1 MiB that does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, Launch, VMM, copy, succeeds};
use crate::figures::{median, timed};
use crate::goals::goal;
use crate::options::Options;
use crate::ways::find;
use crate::{Result, mounts, run, trees, walk};

pub(crate) const USAGE: &str = "bench-ext4 delta FCPIPE [--runs N] [--edits 1,100,10000] \
     [--places here,xfs] [--groups single,per-source] [--no-large] [--vmm fake|qemu] [--dir target/bench]";

struct Asked {
    options: Options,
    runs: usize,
    edits: Vec<usize>,
    groups: Vec<String>,
}

pub(crate) fn bench(args: &[String]) -> Result<()> {
    let values = ["--runs", "--edits", "--places", "--groups", VMM.0];
    let options = Options::from(args, USAGE, &values, &["--no-large"])?;
    let dir = options.dir.clone();
    let places: Vec<String> = options.list("--places", "here,xfs")?;
    let asked = Asked {
        runs: options.value("--runs", "3")?,
        edits: options.list("--edits", "1,100,10000")?,
        groups: options.list("--groups", "single,per-source")?,
        options,
    };
    mounts::sweep(&dir)?;
    let home = dir.join("trees");
    trees::make(&home, &["b".to_owned()])?;
    let mut report = json!({"runs": asked.runs});
    let mut goals = Vec::new();
    for place in &places {
        report[place] = match place.as_str() {
            "here" => measure("this file system", &asked, &home, &dir, &mut goals)?,
            "xfs" => {
                let Some(xfs) = mounts::Xfs::new(&dir)? else {
                    println!("skipped: XFS with reflink needs root and mkfs.xfs");
                    continue;
                };
                let title = "XFS with reflink, in a loop file";
                measure(title, &asked, &home, xfs.path(), &mut goals)?
            }
            other => return Err(format!("no such place: {other}\n{USAGE}").into()),
        };
    }
    for goal in &goals {
        println!("{goal}");
    }
    report["goals"] = goals.into();
    let path = dir.join("delta.json");
    fs::write(&path, format!("{report:#}\n"))?;
    println!("figures: {}", path.display());
    Ok(())
}

/// Everything with tree and store on one file system.
fn measure(
    title: &str,
    asked: &Asked,
    home: &Path,
    dir: &Path,
    goals: &mut Vec<String>,
) -> Result<Value> {
    println!(
        "\n{title}\n{:18} {:>7} {:>8} {:>9} {:>9} {:>10} {:>8}",
        "group", "edits", "walk ms", "ready ms", "over ms", "written KiB", "copy ms"
    );
    let mut out = json!({});
    let scratch = mounts::Scratch::new(dir)?;
    let tree = scratch.path().join("tree");
    copy(&home.join("b"), &tree)?;
    let files = files(&tree)?;
    let mut round = 0;
    for group in &asked.groups {
        let home = scratch.path().join(group);
        let bed = bed(asked, &home, &[("/mnt/tree", &tree)], group)?;
        run::warm(&tree)?;
        bed.launch(&[])?;
        // Right after the image was made: the host has to find memory first, which shows only here.
        let after = format!("{group}, first");
        let taken = launches(asked, &bed, &tree, &files, 1, &mut round)?;
        out[group]["first"] = row(&after, 1, &taken);
        for &edits in &asked.edits {
            let taken = launches(asked, &bed, &tree, &files, edits, &mut round)?;
            let row = row(group, edits, &taken);
            if edits == 1 {
                let of = format!("{title}, {group}: one file of {}", files.len());
                goals.push(over_walk(&of, &row, 50.0));
            }
            out[group][edits.to_string()] = row;
        }
        let mut taken = Vec::new();
        for _ in 0..asked.runs {
            let walked = timed(|| walk::stat(&tree).map(drop))?;
            taken.push((walked, bed.launch(&["--cache", "off"])?));
        }
        out[group]["rebuild"] = row(&format!("{group}, full"), files.len(), &taken);
    }
    out["rsync"] = rsync(asked, &tree, &files, scratch.path(), &mut round)?;
    drop(scratch);
    if !asked.options.has("--no-large") {
        let row = large(asked, home, dir)?;
        let of = format!("{title}: one file beside 3 GiB");
        goals.push(over_walk(&of, &row, 20.0));
        out["large"] = row;
    }
    Ok(out)
}

/// Edits so many files, walks and launches, again and again.
fn launches(
    asked: &Asked,
    bed: &Bed,
    tree: &Path,
    files: &[PathBuf],
    edits: usize,
    round: &mut usize,
) -> Result<Vec<(f64, Launch)>> {
    let mut taken = Vec::new();
    for _ in 0..asked.runs {
        *round += 1;
        edit(files, edits, *round)?;
        let walked = timed(|| walk::stat(tree).map(drop))?;
        taken.push((walked, bed.launch(&[])?));
    }
    Ok(taken)
}

fn row(name: &str, edits: usize, taken: &[(f64, Launch)]) -> Value {
    let ms = |of: &dyn Fn(&(f64, Launch)) -> f64| median(taken.iter().map(of).collect());
    let walked = ms(&|(walked, _)| walked * 1e3);
    let ready = ms(&|(_, launch)| launch.ready * 1e3);
    let over = ms(&|(walked, launch)| (launch.ready - walked) * 1e3);
    let written = ms(&|(_, launch)| launch.written / 1024.0);
    let copied = ms(&|(_, launch)| launch.copied * 1e3);
    println!(
        "{name:18} {edits:>7} {walked:8.1} {ready:9.1} {over:9.1} {written:10.0} {copied:8.1}"
    );
    json!({"walk_ms": walked, "ready_ms": ready, "over_walk_ms": over, "written_kib": written})
}

/// Whether a launch took not more milliseconds than these beyond the walk.
fn over_walk(of: &str, row: &Value, most: f64) -> String {
    let over = row["over_walk_ms"].as_f64().unwrap_or(f64::NAN);
    let what = format!("{of}, the walk and {over:.1} ms (goal {most})");
    goal(over <= most, &what)
}

/// 3 GiB that do not change beside 1 MiB that does, an image each.
fn large(asked: &Asked, home: &Path, dir: &Path) -> Result<Value> {
    trees::make(home, &["c".to_owned()])?;
    let scratch = mounts::Scratch::new(dir)?;
    let code = scratch.path().join("code");
    fs::create_dir(&code)?;
    for number in 0..256 {
        fs::write(code.join(number.to_string()), vec![b'c'; 4096])?;
    }
    let files = files(&code)?;
    let model = home.join("c");
    let mounted = [("/mnt/model", model.as_path()), ("/mnt/code", &code)];
    let bed = bed(asked, &scratch.path().join("bed"), &mounted, "auto")?;
    bed.launch(&[])?;
    let mut taken = Vec::new();
    for round in 0..asked.runs {
        edit(&files, 1, round)?;
        let walked = timed(|| {
            walk::stat(&model)?;
            walk::stat(&code).map(drop)
        })?;
        taken.push((walked, bed.launch(&[])?));
    }
    Ok(row("3 GiB beside", 1, &taken))
}

/// The same edits by rsync into a mounted ext4, which somebody would still have to keep from being written to by two machines.
fn rsync(
    asked: &Asked,
    tree: &Path,
    files: &[PathBuf],
    dir: &Path,
    round: &mut usize,
) -> Result<Value> {
    let root = rustix::process::geteuid().is_root();
    if !root || find("rsync").is_none() {
        println!("skipped: rsync into a mounted image needs root and rsync");
        return Ok(Value::Null);
    }
    let (image, mount) = (dir.join("rsync.ext4"), dir.join("mount"));
    fs::create_dir(&mount)?;
    fs::File::create(&image)?.set_len(2 << 30)?;
    succeeds(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-N", "200000"])
            .arg(&image),
    )?;
    succeeds(
        Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &mount]),
    )?;
    let sync = || -> Result<()> {
        let mut from = tree.as_os_str().to_owned();
        from.push("/");
        succeeds(
            Command::new("rsync")
                .args(["-aHAX", "--delete"])
                .arg(from)
                .arg(&mount),
        )?;
        rustix::fs::syncfs(&fs::File::open(&mount)?)?;
        Ok(())
    };
    sync()?;
    let mut out = json!({});
    for &edits in &asked.edits {
        let mut taken = Vec::new();
        for _ in 0..asked.runs {
            *round += 1;
            edit(files, edits, *round)?;
            taken.push(timed(sync)? * 1e3);
        }
        let ms = median(taken);
        println!("{:18} {edits:>7} {:8} {ms:9.1}", "rsync", "");
        out[edits.to_string()] = json!({"ms": ms});
    }
    // Scratch takes it away too, where this does not come.
    succeeds(Command::new("umount").arg(&mount))?;
    Ok(out)
}

/// All regular files of a tree, in an order that scatters them.
fn files(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![tree.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => dirs.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    let count = files.len();
    // A step that has no factor in common with the count visits all.
    let step = (count / 3..)
        .find(|step| gcd(*step, count) == 1)
        .unwrap_or(1);
    Ok((0..count)
        .map(|at| files[at * step % count].clone())
        .collect())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Writes so many files anew, other ones each round; returns when their times can be trusted.
fn edit(files: &[PathBuf], edits: usize, round: usize) -> Result<()> {
    for number in 0..edits {
        let file = &files[(round * edits + number) % files.len()];
        fs::write(file, format!("round {round}, number {number}\n").repeat(5))?;
    }
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn bed(asked: &Asked, dir: &Path, mounted: &[(&str, &Path)], group: &str) -> Result<Bed> {
    Bed::new(&asked.options, dir, mounted, format!("disk.group={group}"))
}
