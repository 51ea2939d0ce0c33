//! The comparison: every way on every tree, in turn, several times.
//!
//! The time of a run ends when its bytes are on the disk (`syncfs`), for every way alike. Before each
//! run the tree is read once, so all find a warm cache, and what the run before left is written back
//! and removed. Ways alternate, so that a change of the host's speed meets all of them. The figures are
//! medians; processor time stands beside them because other work on the host disturbs it less.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::drivers::Needs;
use crate::figures::median;
use crate::goals::goal;
use crate::options::Options;
use crate::run::{self, Taken};
use crate::ways::{Job, Way};
use crate::{Result, mounts, trees};

/// A run that takes longer is not repeated, seconds. mke2fs needs minutes for tree d.
const ONCE: f64 = 20.0;

pub(crate) struct Asked {
    fcpipe: PathBuf,
    runs: usize,
    trees: Vec<String>,
    ways: Vec<Way>,
    dir: PathBuf,
    memory: bool,
    reflink: bool,
}

pub(crate) const USAGE: &str = "\
bench-ext4 FCPIPE [--runs N] [--trees a,b,c,d] [--ways fcpipe,floor,…] [--dir target/bench]
                  [--reflink] [--memory]
  --reflink  also on XFS in a loop file: what sharing blocks with the sources is worth (root)
  --memory   also the peak memory for 1,000,000 files, for 100,000 and for 3 GiB";

impl Asked {
    pub(crate) fn from(args: &[String]) -> Result<Asked> {
        let values = ["--runs", "--trees", "--ways"];
        let options = Options::from(args, USAGE, &values, &["--memory", "--reflink"])?;
        Ok(Asked {
            runs: options.value("--runs", "5")?,
            trees: options.list("--trees", &trees::NAMES.join(","))?,
            ways: options.list("--ways", &Way::ALL.map(Way::name).join(","))?,
            memory: options.has("--memory"),
            reflink: options.has("--reflink"),
            fcpipe: options.fcpipe,
            dir: options.dir,
        })
    }
}

/// All runs of one way on one tree.
struct Row {
    way: Way,
    taken: Vec<Taken>,
}

impl Row {
    fn seconds(&self) -> Vec<f64> {
        self.taken.iter().map(|t| t.wall.as_secs_f64()).collect()
    }

    fn median(&self) -> f64 {
        median(self.seconds())
    }

    fn cpu(&self) -> f64 {
        median(self.taken.iter().map(|t| t.cpu.as_secs_f64()).collect())
    }

    fn memory(&self) -> u64 {
        self.taken.iter().map(|t| t.memory).max().unwrap_or(0)
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds(),
            "median": self.median(),
            "cpu_median": self.cpu(),
            "peak_rss": self.memory(),
        })
    }
}

/// Measures, prints the tables, and leaves the figures in `DIR/ext4.json`.
pub(crate) fn run(asked: &Asked) -> Result<()> {
    mounts::sweep(&asked.dir)?;
    let home = asked.dir.join("trees");
    trees::make(&home, &asked.trees)?;
    let mut ways = Vec::new();
    for &way in &asked.ways {
        match way.missing() {
            Some(why) => println!("skipped: {}: {why}", way.name()),
            None => ways.push(way),
        }
    }
    let mut report = json!({
        "caches": "warm",
        "write_back": "included (syncfs)",
        "runs": asked.runs,
        "processors": crate::walk::threads(),
        "host": host(),
        "trees": {},
    });
    let mut verdicts = Vec::new();
    for name in &asked.trees {
        let rows = tree(asked, &home.join(name), &ways, &asked.dir)?;
        print(&format!("tree {name}"), &rows);
        let by_way = rows.iter().map(|row| (row.way.name().into(), row.json()));
        report["trees"][name] = Value::Object(by_way.collect());
        verdicts.extend(goals(name, &rows));
        // A run takes long: what was measured stays if it is interrupted.
        save(asked, &report)?;
    }
    if asked.reflink {
        verdicts.extend(reflink(asked, &home, &mut report)?);
    }
    if asked.memory {
        verdicts.extend(memory(asked, &home, &mut report)?);
    }
    println!();
    for way in ways {
        println!("{:12} {}", way.name(), way.about());
    }
    println!(
        "\nmedians of {} runs in turn, caches warm, write-back included; {}",
        asked.runs,
        host()
    );
    for verdict in &verdicts {
        println!("{verdict}");
    }
    report["goals"] = verdicts.into();
    println!("figures: {}", save(asked, &report)?.display());
    Ok(())
}

fn save(asked: &Asked, report: &Value) -> Result<PathBuf> {
    let out = asked.dir.join("ext4.json");
    fs::write(&out, format!("{report:#}\n"))?;
    Ok(out)
}

/// What the figures were measured on.
pub(crate) fn host() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("processor unknown", |rest| {
            rest.trim_start_matches(['\t', ' ', ':'])
        });
    let kernel = rustix::system::uname();
    let count = crate::walk::threads();
    format!(
        "{count} × {model}, Linux {}",
        kernel.release().to_string_lossy()
    )
}

/// Every way on one tree, in turn. Images are made on the file system of `dir`.
fn tree(asked: &Asked, tree: &Path, ways: &[Way], dir: &Path) -> Result<Vec<Row>> {
    let needs = Needs::of(tree)?;
    let mut rows: Vec<Row> = ways
        .iter()
        .map(|&way| Row {
            way,
            taken: Vec::new(),
        })
        .collect();
    for _ in 0..asked.runs {
        for row in &mut rows {
            if row.taken.iter().any(|t| t.wall.as_secs_f64() > ONCE) {
                continue;
            }
            let out = mounts::Scratch::new(dir)?;
            run::warm(tree)?;
            let job = Job {
                fcpipe: &asked.fcpipe,
                tree,
                needs,
                out: out.path(),
            };
            let mut commands = row.way.commands(&job)?;
            row.taken.push(run::timed(&mut commands, out.path())?);
        }
    }
    Ok(rows)
}

fn print(title: &str, rows: &[Row]) {
    let ours = rows.iter().find(|row| row.way == Way::Fcpipe);
    println!("\n{title:12}  median s     least  cpu s   peak MiB   times fcpipe's");
    for row in rows {
        let least = row.seconds().into_iter().fold(f64::INFINITY, f64::min);
        let ratio = ours.map_or(f64::NAN, |ours| row.median() / ours.median());
        println!(
            "{:12} {:9.3} {:9.3} {:6.2} {:10.1} {:10.2}",
            row.way.name(),
            row.median(),
            least,
            row.cpu(),
            row.memory() as f64 / f64::from(1 << 20),
            ratio,
        );
    }
}

/// The ratios to reach, of those ways that were measured.
fn goals(tree: &str, rows: &[Row]) -> Vec<String> {
    let of = |way| rows.iter().find(|row| row.way == way).map(Row::median);
    let Some(ours) = of(Way::Fcpipe) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    let mut say = |good: bool, what: String| said.push(goal(good, &format!("{tree}: {what}")));
    let mut faster = |way: Way, least: f64| {
        if let Some(theirs) = of(way) {
            let times = theirs / ours;
            let what = format!("{times:.2} times as fast as {} (goal {least})", way.name());
            say(times >= least, what);
        }
    };
    match tree {
        "a" | "b" => faster(Way::Mke2fs, 3.0),
        "c" => faster(Way::Loop, 3.0),
        "d" => faster(Way::Mke2fs, 200.0),
        _ => {}
    }
    if let Some(floor) = of(Way::Floor) {
        let over = ours / floor;
        if tree != "d" {
            say(over <= 1.3, format!("{over:.2} times the floor (goal 1.3)"));
        }
        if let Some(theirs) = of(Way::Mkext4) {
            let times = theirs / ours;
            say(
                times >= 1.5 || over <= 1.15,
                format!("{times:.2} times as fast as mkext4 (goal 1.5, or 1.15 times the floor)"),
            );
        }
    }
    if let Some(blocks) = of(Way::FloorBlocks) {
        let over = ours / blocks;
        said.push(format!(
            "{:8} {tree}: {over:.2} times the floor by blocks",
            "also"
        ));
    }
    if let Some(write) = of(Way::Write) {
        let over = ours / write;
        said.push(format!(
            "{:8} {tree}: {over:.2} times writing as many bytes alone",
            "also"
        ));
    }
    said
}

/// Sources and image on one XFS: cloned, against the floor's copy.
fn reflink(asked: &Asked, home: &Path, report: &mut Value) -> Result<Vec<String>> {
    let Some(xfs) = mounts::Xfs::new(&asked.dir)? else {
        println!("skipped: --reflink needs root and mkfs.xfs");
        return Ok(Vec::new());
    };
    trees::make(home, &["c".into()])?;
    let source = xfs.path().join("c");
    let mut copy = with_paths("cp", &["-a"], &[&home.join("c"), &source]);
    run::timed(std::slice::from_mut(&mut copy), xfs.path())?;
    let rows = tree(asked, &source, &[Way::Fcpipe, Way::Floor], xfs.path())?;
    print("c, reflink", &rows);
    let by_way = rows.iter().map(|row| (row.way.name().into(), row.json()));
    report["reflink"] = Value::Object(by_way.collect());
    // The loop device makes the copy's times vary: its best is what counts.
    let copy = rows[1].seconds().into_iter().fold(f64::INFINITY, f64::min);
    let share = rows[0].median() / copy;
    let word = if share <= 0.05 { "reached" } else { "MISSED" };
    Ok(vec![format!(
        "{word:8} c, reflink: {share:.4} of the floor's copy, its best run (goal 0.05)"
    )])
}

fn with_paths(program: &str, words: &[&str], paths: &[&Path]) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(words).args(paths);
    command
}

/// Peak memory of whole builds.
fn memory(asked: &Asked, home: &Path, report: &mut Value) -> Result<Vec<String>> {
    const LIMITS: [(&str, &str, u64); 3] = [
        ("million", "1,000,000 files", 1024),
        ("b", "100,000 files", 150),
        ("c", "3 GiB", 100),
    ];
    trees::make(home, &LIMITS.map(|(name, ..)| name.to_string()))?;
    let mut said = Vec::new();
    for (name, what, limit) in LIMITS {
        let source = home.join(name);
        let out = mounts::Scratch::new(&asked.dir)?;
        let job = Job {
            fcpipe: &asked.fcpipe,
            tree: &source,
            needs: Needs::default(),
            out: out.path(),
        };
        let taken = run::timed(&mut Way::Fcpipe.commands(&job)?, out.path())?;
        let mib = taken.memory as f64 / f64::from(1 << 20);
        report["memory"][name] = json!({"peak_rss": taken.memory});
        let word = if mib <= limit as f64 {
            "reached"
        } else {
            "MISSED"
        };
        said.push(format!(
            "{word:8} memory for {what}: {mib:.1} MiB (limit {limit})"
        ));
    }
    Ok(said)
}
