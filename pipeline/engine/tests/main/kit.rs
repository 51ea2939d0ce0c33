//! Steps for tests: a number that is seen, sums of numbers, and things made in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use fcpipe_engine::{
    CacheMode, Cx, Digest, Effect, Failure, FailureKind, Finished, Identity, Kept, KeyWriter,
    LaunchDir, Node, Object, Outcome, Output, Probe, Run, Settings, Stage, Store, UndoError,
};
use serde::{Deserialize, Serialize};

/// A number whose record keeps it; `parity` is a facet.
#[derive(Debug, PartialEq)]
pub(crate) struct Number(pub(crate) u64);

pub(crate) fn digest_of(n: u64) -> Digest {
    Digest::of("test number", &[&n.to_le_bytes()])
}

impl Output for Number {
    fn identity(&self) -> Identity {
        Identity::new(digest_of(self.0)).with_facet("parity", digest_of(self.0 % 2))
    }
    fn keep(&self) -> Option<Kept> {
        Some(Kept {
            body: self.0.into(),
            objects: vec![],
        })
    }
    fn recall(kept: Kept) -> Option<Self> {
        kept.body.as_u64().map(Self)
    }
}

/// A number that is made again.
#[derive(Debug)]
pub(crate) struct Big(pub(crate) u64);

impl Output for Big {
    fn identity(&self) -> Identity {
        Identity::new(digest_of(self.0))
    }
}

/// A file in the store.
#[derive(Debug)]
pub(crate) struct Text(pub(crate) Object);

impl Output for Text {
    fn identity(&self) -> Identity {
        Identity::new(Digest::of("test text", &[&fs::read(&self.0.path).unwrap()]))
    }
    fn keep(&self) -> Option<Kept> {
        Some(Kept {
            body: serde_json::Value::Null,
            objects: vec![self.0.clone()],
        })
    }
    fn recall(kept: Kept) -> Option<Self> {
        kept.objects.into_iter().next().map(Self)
    }
}

/// Sees the number it was made with.
pub(crate) struct See(pub(crate) u64);

impl Probe for See {
    const NAME: &'static str = "see";
    const VERSION: u32 = 1;
    type Output = Number;
    fn inputs(&self, _: &mut KeyWriter<'_>) {}
    fn run(&self, _: &Cx) -> Result<Number, Failure> {
        Ok(Number(self.0))
    }
}

/// How often something ran.
pub(crate) type Count = Arc<AtomicUsize>;

pub(crate) fn bump(count: &Count) {
    count.fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn count(count: &Count) -> usize {
    count.load(Ordering::SeqCst)
}

/// Sum of numbers and a constant, modulo 10 so that outputs often come out equal.
pub(crate) struct Sum {
    pub(crate) of: Vec<Node<Number>>,
    pub(crate) plus: u64,
    pub(crate) ran: Count,
}

impl Stage for Sum {
    const NAME: &'static str = "sum";
    const VERSION: u32 = 1;
    type Output = Number;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.nodes("of", &self.of);
        k.field("plus", &self.plus);
    }
    fn run(&self, cx: &Cx) -> Result<Number, Failure> {
        bump(&self.ran);
        let mut sum = self.plus;
        for node in &self.of {
            sum += cx.get(node)?.0;
        }
        Ok(Number(sum % 10))
    }
}

/// A [`Big`] from a number.
pub(crate) struct Grow {
    pub(crate) of: Node<Number>,
    pub(crate) ran: Count,
}

impl Stage for Grow {
    const NAME: &'static str = "grow";
    const VERSION: u32 = 1;
    type Output = Big;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.facet("parity of", &self.of, "parity");
    }
    fn run(&self, cx: &Cx) -> Result<Big, Failure> {
        bump(&self.ran);
        Ok(Big(1000 + cx.get(&self.of)?.0 % 2))
    }
}

/// A file with a [`Big`] in it, made in three phases.
pub(crate) struct Print {
    pub(crate) big: Node<Big>,
    pub(crate) salt: u64,
    pub(crate) ran: Count,
}

impl Stage for Print {
    const NAME: &'static str = "print";
    const VERSION: u32 = 1;
    const PHASES: &'static [&'static str] = &["allocate", "copy", "seal"];
    type Output = Text;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.node("big", &self.big);
        k.field("salt", &self.salt);
    }
    fn run(&self, cx: &Cx) -> Result<Text, Failure> {
        bump(&self.ran);
        let big = cx.phase("allocate", || cx.get(&self.big))?;
        let writer = cx.phase("copy", || {
            let writer = cx.object("text")?;
            writer
                .file()
                .write_all(big.0.to_string().as_bytes())
                .map_err(|e| cx.fail(FailureKind::Store, "text", e))?;
            Ok::<_, Failure>(writer)
        })?;
        Ok(Text(cx.phase("seal", || cx.publish(writer))?))
    }
}

/// Fails after the given time, unless something else fails before.
pub(crate) struct Fail {
    pub(crate) after: Duration,
}

impl Stage for Fail {
    const NAME: &'static str = "fail";
    const VERSION: u32 = 1;
    type Output = Number;
    fn inputs(&self, _: &mut KeyWriter<'_>) {}
    fn run(&self, cx: &Cx) -> Result<Number, Failure> {
        cx.sleep(self.after)?;
        Err(cx
            .fail(FailureKind::Source, "/some/file", "it was read")
            .hint("don't"))
    }
}

/// Makes a file; undoing removes it and writes its name to a log beside it.
pub(crate) struct Touch {
    pub(crate) path: PathBuf,
    pub(crate) after: Option<Node<Touched>>,
}

pub(crate) struct Touched;

#[derive(Serialize, Deserialize)]
pub(crate) struct TouchEntry {
    pub(crate) path: PathBuf,
}

pub(crate) fn log_of(path: &Path) -> PathBuf {
    path.with_file_name("log")
}

impl Touch {
    /// After nothing.
    pub(crate) fn at(path: &Path) -> Touch {
        Touch {
            path: path.to_owned(),
            after: None,
        }
    }
}

impl Effect for Touch {
    const NAME: &'static str = "touch";
    type Entry = TouchEntry;
    type Output = Touched;
    fn inputs(&self, k: &mut KeyWriter<'_>) {
        k.field("path", &self.path);
        if let Some(after) = &self.after {
            k.after(after);
        }
    }
    fn intend(&self, _: &Cx) -> Result<TouchEntry, Failure> {
        Ok(TouchEntry {
            path: self.path.clone(),
        })
    }
    fn make(&self, entry: &TouchEntry, cx: &Cx) -> Result<Touched, Failure> {
        fs::write(&entry.path, "")
            .map_err(|e| cx.fail(FailureKind::Host, entry.path.display(), e))?;
        Ok(Touched)
    }
    fn undo(entry: &TouchEntry) -> Result<(), UndoError> {
        if entry.path.with_extension("stuck").exists() {
            return Err("stuck".into());
        }
        if entry.path.exists() {
            fs::remove_file(&entry.path)?;
        }
        let mut log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log_of(&entry.path))?;
        writeln!(log, "{}", entry.path.file_name().unwrap().to_str().unwrap())?;
        Ok(())
    }
}

/// An effect that waits for the end of the run, or until told to go on.
pub(crate) struct Hang {
    pub(crate) go: Arc<Mutex<bool>>,
    pub(crate) threads: Arc<Mutex<Vec<String>>>,
}

impl Effect for Hang {
    const NAME: &'static str = "hang";
    const WAITS: bool = true;
    type Entry = ();
    type Output = ();
    fn inputs(&self, _: &mut KeyWriter<'_>) {}
    fn intend(&self, _: &Cx) -> Result<(), Failure> {
        Ok(())
    }
    fn make(&self, (): &(), cx: &Cx) -> Result<(), Failure> {
        self.threads
            .lock()
            .unwrap()
            .push(std::thread::current().name().unwrap_or_default().to_owned());
        while !*self.go.lock().unwrap() {
            cx.sleep(Duration::from_millis(5))?;
        }
        Ok(())
    }
    fn undo((): &()) -> Result<(), UndoError> {
        Ok(())
    }
}

/// Whether this is root; says so if not, and fails in CI.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
        println!("skipped: needs root");
    }
    root
}

/// A store and a state directory that go at the end.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    launches: AtomicU64,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            launches: AtomicU64::new(0),
        }
    }
    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.cache()).unwrap())
    }
    pub(crate) fn settings(&self) -> Settings {
        let id = format!("l{}", self.launches.fetch_add(1, Ordering::SeqCst));
        let mut settings = Settings::new(id.clone(), self.store()).unwrap();
        settings.threads = 2;
        settings.launch = Some(LaunchDir::claim(&self.state(), &id).unwrap());
        settings
    }
    pub(crate) fn run(&self) -> Run {
        Run::start(self.settings()).unwrap()
    }
    pub(crate) fn run_with(&self, cache: CacheMode) -> Run {
        let mut settings = self.settings();
        settings.cache = cache;
        Run::start(settings).unwrap()
    }
    pub(crate) fn count(&self, part: &str) -> usize {
        fs::read_dir(self.cache().join("v1").join(part))
            .unwrap()
            .count()
    }
}

/// Held while a child begins: until its exec it shares this process's locks, also those that their owner lets go meanwhile.
static BEGINNING: RwLock<()> = RwLock::new(());

/// Above all descriptors that tests have.
const LAST_FD: i32 = 1000;

/// Starts a child. All of this binary begin here.
pub(crate) fn begin(command: &mut Command) -> Child {
    let _beginning = BEGINNING.write().unwrap_or_else(PoisonError::into_inner);
    let (mut closed, end) = std::io::pipe().unwrap();
    let last = rustix::io::fcntl_dupfd_cloexec(end, LAST_FD).unwrap();
    let child = command.spawn().unwrap();
    drop(last);
    // The kernel wakes whoever spawns before it closes an exec's descriptors, and it closes them in their order.
    assert_eq!(closed.read(&mut [0]).unwrap(), 0);
    child
}

/// While this is held no child begins, so a lock is free once its owner has let it go.
pub(crate) fn nobody_begins() -> RwLockReadGuard<'static, ()> {
    BEGINNING.read().unwrap_or_else(PoisonError::into_inner)
}

/// The seed of a property test: a new one every time, or the one in `FCPIPE_TEST_SEED` (hexadecimal).
pub(crate) fn seed() -> [u8; 32] {
    let seed = std::env::var("FCPIPE_TEST_SEED").unwrap_or_else(|_| {
        let random = std::hash::RandomState::new();
        format!("{:016x}", std::hash::BuildHasher::hash_one(&random, ()))
    });
    println!("FCPIPE_TEST_SEED={seed}");
    *Digest::of("test seed", &[seed.as_bytes()]).as_bytes()
}

/// What became of each node.
pub(crate) fn outcomes(finished: &Finished) -> BTreeMap<&str, Outcome> {
    finished
        .receipt
        .stages
        .iter()
        .map(|row| (row.id.as_str(), row.outcome))
        .collect()
}
