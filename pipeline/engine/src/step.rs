//! The three sorts of steps that a graph is made of.

use std::error::Error;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cx::Cx;
use crate::failure::Failure;
use crate::key::KeyWriter;
use crate::value::Output;

/// A step that looks at the world. It always runs; its output's identity is its own, and is reported as a hit
/// if it is what the same probe with the same inputs saw last time.
pub trait Probe: Send + Sync + 'static {
    /// Which probe this is. Enters the key under which the last identity is noted.
    const NAME: &'static str;
    /// Goes up when the meaning of the output changes.
    const VERSION: u32;
    /// What it sees.
    type Output: Output;

    /// Declares what the probe is asked to look at.
    fn inputs(&self, k: &mut KeyWriter<'_>);

    /// Looks.
    fn run(&self, cx: &Cx) -> Result<Self::Output, Failure>;
}

/// A pure step with a key: same key, same output. Its output is recorded and not made twice.
pub trait Stage: Send + Sync + 'static {
    /// Which stage this is. Enters the key.
    const NAME: &'static str;
    /// Goes up whenever the same inputs would give another output. Enters the key.
    const VERSION: u32;
    /// Parts of the work with rows of their own in receipts, in order; see [`Cx::phase`].
    const PHASES: &'static [&'static str] = &[];
    /// What it makes.
    type Output: Output;

    /// Declares everything the output depends on. What is not declared here can't be asked for in `run`.
    fn inputs(&self, k: &mut KeyWriter<'_>);

    /// Makes the output.
    fn run(&self, cx: &Cx) -> Result<Self::Output, Failure>;
}

/// What an undo may fail with.
pub type UndoError = Box<dyn Error + Send + Sync>;

/// A step that makes something on the host. Never cached; journalled before it is done, undone at the end.
pub trait Effect: Send + Sync + 'static {
    /// Which effect this is; the journal names it, and [`UndoTable`](crate::journal::UndoTable) finds its undo by it. A name and
    /// the meaning of its entry live for ever: a newer program must still undo what an older one left.
    const NAME: &'static str;
    /// True for an effect that mostly waits (a boot): it gets a thread of its own, and holds no worker. That thread
    /// ends with the effect, so a process that is to die with its parent (PDEATHSIG) must not be spawned from it; workers
    /// live until everything is undone.
    const WAITS: bool = false;
    /// What the undo needs to know, and all it will know.
    type Entry: Serialize + DeserializeOwned + Send;
    /// What the rest of the launch is given.
    type Output: Send + Sync + 'static;

    /// Declares what must be done before. Effects have no identity: depend on one with [`KeyWriter::after`].
    fn inputs(&self, k: &mut KeyWriter<'_>);

    /// Decides what will be made, without making anything. The entry is in the journal before `make` starts.
    fn intend(&self, cx: &Cx) -> Result<Self::Entry, Failure>;

    /// Makes it. When this fails halfway, `undo` is called all the same.
    fn make(&self, entry: &Self::Entry, cx: &Cx) -> Result<Self::Output, Failure>;

    /// Takes it away. Must succeed when there is nothing (or no longer anything) to take away; may run in another
    /// process, of a newer version.
    fn undo(entry: &Self::Entry) -> Result<(), UndoError>;
}
