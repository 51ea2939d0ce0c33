//! What a launch costs before its machine starts, when everything, something or nothing was built before.
//!
//! A launch is `fcpipe run` of a busybox root with a tree of 100,000 files mounted in it; its receipt says
//! when the disk was ready. Beside it, in the same minutes: a parallel stat walk of the same tree, and the way
//! without a cache (mkfs.ext4, loop mount, cp -a), which every launch pays.
//!
//! `cold`: nothing is kept. `dirty`: nothing is kept, and the sources were written a moment ago and are not
//! on the disk yet. `warm`: nothing has changed. `second`: the same while another machine runs on the same
//! image. `new` and `old` are the private disk's own part in milliseconds: right after the image was written,
//! and later.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bed::{Bed, Launch, VMM, copy};
use crate::drivers::Needs;
use crate::figures::{median, timed};
use crate::goals::goal;
use crate::options::Options;
use crate::ways::{Job, Way};
use crate::{Result, mounts, run, trees, walk};

pub(crate) const USAGE: &str = "bench-ext4 cache FCPIPE [--runs N] [--tree b] [--places here,xfs] \
     [--writes clone,snapshot,overlay,copy] [--vmm fake|qemu] [--dir target/bench]";

struct Asked {
    options: Options,
    runs: usize,
    writes: Vec<String>,
}

/// Measures on the file system of `--dir`, then on XFS with reflink where the host can have one.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let values = ["--runs", "--tree", "--places", "--writes", VMM.0];
    let options = Options::from(args, USAGE, &values, &[])?;
    let (name, dir) = (options.value::<String>("--tree", "b")?, options.dir.clone());
    let places: Vec<String> = options.list("--places", "here,xfs")?;
    let asked = Asked {
        runs: options.value("--runs", "5")?,
        writes: options.list("--writes", "clone,snapshot,overlay,copy")?,
        options,
    };
    mounts::sweep(&dir)?;
    let home = dir.join("trees");
    trees::make(&home, std::slice::from_ref(&name))?;
    let tree = home.join(&name);
    let mut report = json!({"tree": name, "runs": asked.runs});
    let mut goals = Vec::new();
    for at in &places {
        report[at] = match at.as_str() {
            "here" => place("this file system", &asked, &tree, &dir, &mut goals)?,
            "xfs" => {
                let Some(xfs) = mounts::Xfs::new(&dir)? else {
                    println!("skipped: XFS with reflink needs root and mkfs.xfs");
                    continue;
                };
                let source = xfs.path().join("tree");
                copy(&tree, &source)?;
                let title = "XFS with reflink, in a loop file";
                place(title, &asked, &source, xfs.path(), &mut goals)?
            }
            other => return Err(format!("no such place: {other}\n{USAGE}").into()),
        };
    }
    for goal in &goals {
        println!("{goal}");
    }
    report["goals"] = goals.into();
    let path = dir.join("cache.json");
    fs::write(&path, format!("{report:#}\n"))?;
    println!("figures: {}", path.display());
    Ok(())
}

/// All ways to give a machine its disk, with tree and store on one file system.
fn place(
    title: &str,
    asked: &Asked,
    tree: &Path,
    dir: &Path,
    goals: &mut Vec<String>,
) -> Result<Value> {
    println!(
        "\n{title}\n{:10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "writes",
        "cold s",
        "dirty s",
        "warm s",
        "x walk",
        "second s",
        "new ms",
        "old ms",
        "extents"
    );
    let mut out = json!({});
    let walks = (0..asked.runs).map(|_| timed(|| walk::stat(tree).map(drop)));
    let walked = median(walks.collect::<Result<_>>()?);
    for writes in &asked.writes {
        let Some(figures) = way(asked, tree, dir, writes)? else {
            continue;
        };
        println!(
            "{writes:10} {:8.3} {:8.3} {:8.3} {:8.2} {:8.3} {:8.2} {:8.2} {:>8}",
            figures.cold,
            figures.dirty,
            figures.warm,
            figures.warm / walked,
            figures.second,
            figures.disk_new,
            figures.disk_old,
            figures.extents.map_or("?".into(), |n| n.to_string()),
        );
        let times = figures.warm / walked;
        let what = format!("{title}, {writes}: unchanged, {times:.2} times the walk (goal 1.3)");
        goals.push(goal(times <= 1.3, &what));
        out[writes] = json!({
            "cold_s": figures.cold,
            "cold_dirty_s": figures.dirty,
            "warm_s": figures.warm,
            "warm_per_walk": figures.warm / walked,
            "second_s": figures.second,
            "disk_new_ms": figures.disk_new,
            "disk_old_ms": figures.disk_old,
            "extents": figures.extents,
        });
    }
    println!(
        "{:10} {:>8} {:>8} {walked:8.3}  a parallel stat walk of the same tree",
        "walk", "", ""
    );
    out["walk_s"] = json!(walked);
    match Way::Loop.missing() {
        Some(why) => println!("skipped: {}: {why}", Way::Loop.name()),
        None => {
            let scratch = mounts::Scratch::new(dir)?;
            run::warm(tree)?;
            let job = Job {
                fcpipe: &asked.options.fcpipe,
                tree,
                needs: Needs::of(tree)?,
                out: scratch.path(),
            };
            let taken = run::timed(&mut Way::Loop.commands(&job)?, scratch.path())?;
            let seconds = taken.wall.as_secs_f64();
            println!(
                "{:10} {seconds:8.3} {seconds:8.3} {seconds:8.3}  {}",
                Way::Loop.name(),
                Way::Loop.about()
            );
            out["loop_cp_s"] = json!(seconds);
        }
    }
    Ok(out)
}

/// What one way takes; seconds but for the disk's milliseconds.
struct Figures {
    cold: f64,
    dirty: f64,
    warm: f64,
    second: f64,
    disk_new: f64,
    disk_old: f64,
    extents: Option<u64>,
}

/// `None` where the host can't do it.
fn way(asked: &Asked, tree: &Path, dir: &Path, writes: &str) -> Result<Option<Figures>> {
    let scratch = mounts::Scratch::new(dir)?;
    let bed = bed(asked, tree, scratch.path(), writes)?;
    run::warm(tree)?;
    let cold = match bed.launch(&[]) {
        Ok(cold) => cold,
        Err(why) => {
            println!("{writes:10} not here: {}", first_line(&why.to_string()));
            return Ok(None);
        }
    };
    let launches = || -> Result<Vec<Launch>> { (0..asked.runs).map(|_| bed.launch(&[])).collect() };
    let warm = launches()?;
    let first = bed.first_machine()?;
    let second = launches()?;
    drop(first);
    let extents = bed.extents();
    drop(scratch);
    let ready = |launches: &[Launch]| median(launches.iter().map(|l| l.ready).collect());
    Ok(Some(Figures {
        cold: cold.ready,
        dirty: dirty(asked, tree, dir, writes)?,
        warm: ready(&warm),
        second: ready(&second),
        disk_new: cold.disk * 1e3,
        disk_old: median(warm.iter().map(|l| l.disk * 1e3).collect()),
        extents,
    }))
}

/// A cold launch of a tree that was copied just before.
fn dirty(asked: &Asked, tree: &Path, dir: &Path, writes: &str) -> Result<f64> {
    let scratch = mounts::Scratch::new(dir)?;
    let copied = scratch.path().join("tree");
    copy(tree, &copied)?;
    Ok(bed(asked, &copied, scratch.path(), writes)?
        .launch(&[])?
        .ready)
}

fn bed(asked: &Asked, tree: &Path, dir: &Path, writes: &str) -> Result<Bed> {
    let mounted = [("/mnt/tree", tree)];
    Bed::new(
        &asked.options,
        dir,
        &mounted,
        format!("disk.writes={writes}"),
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}
