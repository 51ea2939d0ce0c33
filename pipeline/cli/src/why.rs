//! Why a step would run again, in words: what `plan` and `explain` share.

use fcpipe_engine::{Change, Explained, Outcome, Sort};
use serde::Serialize;

/// What a launch would do with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Would {
    /// A record answers, or a source is as it was.
    Hit,
    /// What it looks at is not known from an earlier launch.
    New,
    /// What it looks at is not as it was.
    Changed,
    /// It would run.
    Run,
    /// It makes something of this launch alone, and is done each time.
    Always,
}

impl Would {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Would::Hit => "hit",
            Would::New => "new",
            Would::Changed => "changed",
            Would::Run => "will run",
            Would::Always => "each launch",
        }
    }
}

/// A step of a plan and the reason for what would become of it.
#[derive(Debug)]
pub(crate) struct Verdict<'a> {
    pub(crate) step: &'a Explained,
    pub(crate) would: Would,
    pub(crate) why: Vec<Reason<'a>>,
}

/// Why something would run.
#[derive(Debug)]
pub(crate) enum Reason<'a> {
    /// Nothing is known of an earlier launch of this spec.
    First,
    /// An input is not as it was.
    Changed(&'a Change),
    /// An input's step would run, so that what comes of it is not known yet.
    After(&'a str),
    /// The same inputs as the last time, but what was kept is gone or no longer trusted.
    Gone,
    /// A source that was seen otherwise the last time, with nothing kept to tell in what.
    Unlike,
}

/// What would become of each step of a plan.
pub(crate) fn verdicts(steps: &[Explained]) -> Vec<Verdict<'_>> {
    steps
        .iter()
        .map(|step| {
            let would = match (step.sort, step.outcome) {
                (Sort::Effect, _) => Would::Always,
                (_, Outcome::Hit) => Would::Hit,
                (_, Outcome::Ran) if step.changed.is_none() => Would::New,
                (_, Outcome::Ran) => Would::Changed,
                (_, Outcome::Skipped | Outcome::Failed) => Would::Run,
            };
            let why = reasons(steps, step);
            Verdict { step, would, why }
        })
        .collect()
}

/// Why a step ran, or would; nothing for a hit, and for an effect, which needs no reason.
pub(crate) fn reasons<'a>(steps: &'a [Explained], step: &'a Explained) -> Vec<Reason<'a>> {
    if step.outcome == Outcome::Hit || step.sort == Sort::Effect {
        return Vec::new();
    }
    if step.key.is_none() {
        let would_run = |id: &&String| {
            let dep = steps.iter().find(|other| other.id == **id);
            dep.is_some_and(|dep| matches!(dep.outcome, Outcome::Skipped | Outcome::Failed))
        };
        return step
            .deps
            .iter()
            .filter(would_run)
            .map(|id| Reason::After(id))
            .collect();
    }
    match &step.changed {
        None => vec![Reason::First],
        Some(changes) if !changes.is_empty() => changes.iter().map(Reason::Changed).collect(),
        Some(_) if step.sort == Sort::Probe => vec![Reason::Unlike],
        Some(_) => vec![Reason::Gone],
    }
}

impl Reason<'_> {
    pub(crate) fn words(&self) -> String {
        match self {
            Reason::First => "nothing is kept of an earlier launch of this spec".to_owned(),
            Reason::After(id) => format!("{id} will run"),
            Reason::Gone => "its inputs are as they were, but what was kept of it is gone or no longer \
                             trusted (`cache gc`, a damaged file, or an unsynced one of before a reboot)"
                .to_owned(),
            Reason::Unlike => "it is not as the last launch of this spec saw it".to_owned(),
            Reason::Changed(change) => words(change),
        }
    }
}

/// `label: was → is`, with digests shortened: nobody reads 64 digits.
fn words(change: &Change) -> String {
    let show = |value: &Option<String>| value.as_deref().map(brief);
    match (show(&change.was), show(&change.is)) {
        (Some(was), Some(is)) => format!("{}: {was} → {is}", change.label),
        (None, Some(is)) => format!("{}: new: {is}", change.label),
        (Some(was), None) => format!("{}: gone, was {was}", change.label),
        (None, None) => change.label.clone(),
    }
}

fn brief(value: &str) -> String {
    let digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    if digest {
        format!("{}…", &value[..8])
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shortened_and_values_are_not() {
        let change = |was: Option<&str>, is: Option<&str>| Change {
            label: "x".to_owned(),
            was: was.map(str::to_owned),
            is: is.map(str::to_owned),
        };
        let digest = "ab".repeat(32);
        assert_eq!(words(&change(Some(&digest), Some("1"))), "x: abababab… → 1");
        assert_eq!(words(&change(None, Some("1"))), "x: new: 1");
        assert_eq!(words(&change(Some("1"), None)), "x: gone, was 1");
    }
}
