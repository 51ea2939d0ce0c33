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
    /// An input is not as it was; where it is what came of another step, with the first reason for that.
    Changed(&'a Change, Option<Box<Reason<'a>>>),
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
        Some(changes) if !changes.is_empty() => {
            let because = |change: &Change| {
                let of = change.of.as_deref()?;
                let other = steps.iter().find(|other| other.id == of)?;
                reasons(steps, other).into_iter().next().map(Box::new)
            };
            changes
                .iter()
                .map(|change| Reason::Changed(change, because(change)))
                .collect()
        }
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
            Reason::Changed(change, Some(because)) if is_another(change) => {
                format!("{}: {}", change.label, because.words())
            }
            Reason::Changed(change, None) if is_another(change) => {
                format!("{}: not as it was", change.label)
            }
            Reason::Changed(change, _) => words(change),
        }
    }
}

/// Whether it is another output of a step, of which both digests say nothing to people.
fn is_another(change: &Change) -> bool {
    change.of.is_some() && change.was.is_some()
}

/// `label: was → is`, with digests shortened: nobody reads 64 digits. One alone says nothing.
fn words(change: &Change) -> String {
    let (label, was, is) = (&change.label, change.was.as_deref(), change.is.as_deref());
    let alone = |value: &str| match is_digest(value) {
        true => String::new(),
        false => format!("{}{value}", if was.is_some() { ", was " } else { ": " }),
    };
    match (was, is) {
        (Some(was), Some(is)) => format!("{label}: {} → {}", brief(was), brief(is)),
        (None, Some(is)) => format!("{label}: new{}", alone(is)),
        (Some(was), None) => format!("{label}: gone{}", alone(was)),
        (None, None) => label.clone(),
    }
}

fn is_digest(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit())
}

fn brief(value: &str) -> String {
    if is_digest(value) {
        format!("{}…", &value[..8])
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(label: &str, was: Option<&str>, is: Option<&str>) -> Change {
        Change {
            label: label.to_owned(),
            was: was.map(str::to_owned),
            is: is.map(str::to_owned),
            of: None,
        }
    }

    #[test]
    fn digests_are_shortened_and_values_are_not() {
        let said = |was, is| words(&change("x", was, is));
        let digest = "ab".repeat(32);
        assert_eq!(said(Some(&digest), Some("1")), "x: abababab… → 1");
        assert_eq!(said(None, Some("1")), "x: new: 1");
        assert_eq!(said(Some("1"), None), "x: gone, was 1");
        assert_eq!(said(None, Some(&digest)), "x: new");
        assert_eq!(said(Some(&digest), None), "x: gone");
    }

    #[test]
    fn what_comes_of_another_step_is_told_by_that_step_s_first_change() {
        let step = |id: &str, changes: Vec<Change>| Explained {
            id: id.to_owned(),
            rows: Vec::new(),
            step: "step",
            outcome: Outcome::Ran,
            key: Some(fcpipe_engine::Key::new(fcpipe_engine::Digest::of("x", &[]))),
            inputs: fcpipe_engine::Manifest::default(),
            sort: Sort::Probe,
            deps: Vec::new(),
            changed: Some(changes),
        };
        let (was, is) = ("ab".repeat(32), "cd".repeat(32));
        let of = |label: &str, node: &str| Change {
            of: Some(node.to_owned()),
            ..change(label, Some(&was), Some(&is))
        };
        let steps = [
            step("scan:/a", vec![change("/a/f: size 3 → 4", None, None)]),
            step("scan:/b", Vec::new()),
            step(
                "group",
                vec![of("tree of /a", "scan:/a"), of("tree of /b", "scan:/b")],
            ),
            step("layout", vec![of("group", "group")]),
        ];
        let said = |at: usize| -> Vec<String> {
            reasons(&steps, &steps[at])
                .iter()
                .map(Reason::words)
                .collect()
        };
        assert_eq!(
            said(2),
            [
                "tree of /a: /a/f: size 3 → 4",
                "tree of /b: it is not as the last launch of this spec saw it"
            ]
        );
        assert_eq!(said(3), ["group: tree of /a: /a/f: size 3 → 4"]);
    }
}
