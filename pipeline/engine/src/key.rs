//! How a step declares its inputs, once. The same calls give the step's dependency edges, its key and
//! the words that `explain` prints, so the three can't disagree.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Key};
use crate::graph::{Node, NodeId};
use crate::value::{Identity, Output};

/// The inputs of one step in words: (label, value), in the order of their declaration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest {
    /// One line per input.
    pub lines: Vec<(String, String)>,
    /// Line → the id of the node whose output it is. Not kept: only the graph at hand has that node's own changes.
    #[serde(skip)]
    of: BTreeMap<usize, String>,
}

/// One input that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The input's label.
    pub label: String,
    /// What it was; `None` for an input that is new.
    pub was: Option<String>,
    /// What it is; `None` for one that is gone.
    pub is: Option<String>,
    /// The id of the node whose output it is: what its digests stand for is told by that node's own changes.
    pub of: Option<String>,
}

impl Manifest {
    /// What differs from `earlier`, label by label (the n-th use of a label is compared with the n-th).
    pub fn changes_since(&self, earlier: &Self) -> Vec<Change> {
        type Numbered<'a> = BTreeMap<(&'a str, usize), (usize, &'a str)>;
        fn numbered(lines: &[(String, String)]) -> Numbered<'_> {
            let mut uses = BTreeMap::new();
            lines
                .iter()
                .enumerate()
                .map(|(line, (label, value))| {
                    let use_no = uses.entry(label.as_str()).or_insert(0);
                    *use_no += 1;
                    ((label.as_str(), *use_no), (line, value.as_str()))
                })
                .collect()
        }
        let (now, then) = (numbered(&self.lines), numbered(&earlier.lines));
        let labels: BTreeSet<_> = now.keys().chain(then.keys()).collect();
        let value = |found: Option<&(usize, &str)>| found.map(|(_, value)| (*value).to_owned());
        labels
            .into_iter()
            .map(|label| (label.0, then.get(label), now.get(label)))
            .map(|(label, was, is)| Change {
                label: label.to_owned(),
                was: value(was),
                is: value(is),
                of: is.and_then(|(line, _)| self.of.get(line).cloned()),
            })
            .filter(|change| change.was != change.is)
            .collect()
    }
}

/// Takes one input value, as bytes for the key and as words for people.
#[derive(Debug, Default)]
pub struct ValueWriter {
    bytes: Vec<u8>,
    words: String,
}

impl ValueWriter {
    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.bytes.push(tag);
        self.bytes
            .extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// A string of bytes, a name or a path. In the words, what could disturb a terminal is escaped.
    pub fn bytes(&mut self, value: &[u8]) {
        self.tagged(b's', value);
        let _ = write!(self.words, "{}", value.escape_ascii());
    }

    /// A text.
    pub fn text(&mut self, value: &str) {
        self.tagged(b's', value.as_bytes());
        for c in value.chars() {
            if c.is_control() {
                self.words.extend(c.escape_default());
            } else {
                self.words.push(c);
            }
        }
    }

    /// A number. Its width doesn't matter: 1u8 and 1u64 are the same input.
    pub fn number(&mut self, value: i128) {
        self.tagged(b'n', &value.to_le_bytes());
        let _ = write!(self.words, "{value}");
    }

    /// A yes or no.
    pub fn flag(&mut self, value: bool) {
        self.tagged(b'b', &[u8::from(value)]);
        self.words.push_str(if value { "yes" } else { "no" });
    }

    /// A digest.
    pub fn digest(&mut self, value: &Digest) {
        self.tagged(b'd', value.as_bytes());
        let _ = write!(self.words, "{value}");
    }

    /// Something that is absent.
    pub fn none(&mut self) {
        self.tagged(b'0', &[]);
        self.words.push_str("none");
    }

    /// What was written, in words.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// What the next part is called, for people alone: it is no part of the value.
    pub fn label(&mut self, words: &str) {
        if !self.words.is_empty() {
            self.words.push_str(", ");
        }
        self.words.push_str(words);
        self.words.push(' ');
    }

    /// A list, whose order matters.
    pub fn list<'v, T: KeyValue + ?Sized + 'v>(
        &mut self,
        items: impl ExactSizeIterator<Item = &'v T>,
    ) {
        self.tagged(b'l', &(items.len() as u64).to_le_bytes());
        self.words.push('[');
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.words.push_str(", ");
            }
            item.write(self);
        }
        self.words.push(']');
    }
}

/// A value that can be an input of a step.
pub trait KeyValue {
    /// Writes the value. Different values must write differently; the same value always the same.
    fn write(&self, out: &mut ValueWriter);
}

macro_rules! key_value {
    ($($type:ty: |$value:ident, $out:ident| $body:expr;)*) => {$(
        impl KeyValue for $type {
            fn write(&self, $out: &mut ValueWriter) {
                let $value = self;
                $body;
            }
        }
    )*};
}

key_value! {
    str: |v, out| out.text(v);
    String: |v, out| out.text(v);
    OsStr: |v, out| out.bytes(v.as_bytes());
    OsString: |v, out| out.bytes(v.as_bytes());
    Path: |v, out| out.bytes(v.as_os_str().as_bytes());
    PathBuf: |v, out| out.bytes(v.as_os_str().as_bytes());
    bool: |v, out| out.flag(*v);
    u8: |v, out| out.number(i128::from(*v));
    u16: |v, out| out.number(i128::from(*v));
    u32: |v, out| out.number(i128::from(*v));
    u64: |v, out| out.number(i128::from(*v));
    usize: |v, out| out.number(*v as i128);
    i32: |v, out| out.number(i128::from(*v));
    i64: |v, out| out.number(i128::from(*v));
    Digest: |v, out| out.digest(v);
    Key: |v, out| out.digest(&v.digest());
}

impl<T: KeyValue + ?Sized> KeyValue for &T {
    fn write(&self, out: &mut ValueWriter) {
        (**self).write(out);
    }
}

impl<T: KeyValue + ToOwned + ?Sized> KeyValue for Cow<'_, T> {
    fn write(&self, out: &mut ValueWriter) {
        (**self).write(out);
    }
}

impl<T: KeyValue> KeyValue for Option<T> {
    fn write(&self, out: &mut ValueWriter) {
        match self {
            Some(value) => {
                out.bytes.push(b'1');
                value.write(out);
            }
            None => out.none(),
        }
    }
}

impl<T: KeyValue> KeyValue for [T] {
    fn write(&self, out: &mut ValueWriter) {
        out.list(self.iter());
    }
}

impl<T: KeyValue> KeyValue for Vec<T> {
    fn write(&self, out: &mut ValueWriter) {
        out.list(self.iter());
    }
}

/// The three sorts of steps. They never share keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Looks at the world, each time.
    Probe,
    /// Pure, and kept.
    Stage,
    /// Makes something of the launch's own, each time.
    Effect,
}

impl Sort {
    const fn domain(self) -> &'static str {
        match self {
            Self::Probe => "fcpipe engine 1: key of a probe",
            Self::Stage => "fcpipe engine 1: key of a stage",
            Self::Effect => "fcpipe engine 1: key of an effect",
        }
    }
}

/// What the declaration of inputs came to.
pub(crate) struct Keyed {
    pub(crate) key: Key,
    pub(crate) manifest: Manifest,
}

/// Takes the declaration of a step's inputs.
///
/// It is called twice: when the node is added, to learn what it depends on, and when those nodes are done, with
/// their identities, to make the key. Both calls must declare the same nodes.
pub struct KeyWriter<'a> {
    /// Identities of the inputs; `None` while edges are collected.
    known: Option<&'a BTreeMap<NodeId, Option<Identity>>>,
    names: &'a dyn Fn(NodeId) -> String,
    deps: Vec<NodeId>,
    hasher: blake3::Hasher,
    manifest: Manifest,
    wrong: Option<String>,
}

impl<'a> KeyWriter<'a> {
    fn new(
        sort: Sort,
        name: &str,
        version: u32,
        known: Option<&'a BTreeMap<NodeId, Option<Identity>>>,
        names: &'a dyn Fn(NodeId) -> String,
    ) -> Self {
        let mut writer = Self {
            known,
            names,
            deps: Vec::new(),
            hasher: blake3::Hasher::new_derive_key(sort.domain()),
            manifest: Manifest::default(),
            wrong: None,
        };
        writer.hash(name.as_bytes());
        writer.hash(&version.to_le_bytes());
        writer
            .manifest
            .lines
            .push(("version".to_owned(), version.to_string()));
        writer
    }

    /// The nodes that `declare` names, without repetitions.
    pub(crate) fn edges(sort: Sort, declare: impl FnOnce(&mut KeyWriter<'_>)) -> Vec<NodeId> {
        let mut writer = KeyWriter::new(sort, "", 0, None, &|_| String::new());
        declare(&mut writer);
        let mut seen = BTreeSet::new();
        writer.deps.retain(|id| seen.insert(*id));
        writer.deps
    }

    /// The key that `declare` comes to when the inputs are `known`. An error is a mistake in the step's code.
    pub(crate) fn key(
        sort: Sort,
        name: &str,
        version: u32,
        known: &BTreeMap<NodeId, Option<Identity>>,
        names: &dyn Fn(NodeId) -> String,
        declare: impl FnOnce(&mut KeyWriter<'_>),
    ) -> Result<Keyed, String> {
        let mut writer = KeyWriter::new(sort, name, version, Some(known), names);
        declare(&mut writer);
        if let Some(wrong) = writer.wrong {
            return Err(wrong);
        }
        let key = Key::new(writer.hasher.finalize().into());
        Ok(Keyed {
            key,
            manifest: writer.manifest,
        })
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    fn line(&mut self, label: &str, value: ValueWriter) {
        self.hash(label.as_bytes());
        self.hash(&value.bytes);
        self.manifest.lines.push((label.to_owned(), value.words));
    }

    /// An input that is known when the step is added: an option, a path, a format's constant.
    pub fn field(&mut self, label: &str, value: &(impl KeyValue + ?Sized)) {
        let mut out = ValueWriter::default();
        value.write(&mut out);
        self.line(label, out);
    }

    /// An input as its JSON text. The value must write the same text every time (no `HashMap` in it).
    pub fn json(&mut self, label: &str, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.field(label, &text),
            Err(error) => self.wrong = Some(format!("input {label} has no JSON form: {error}")),
        }
    }

    /// The output of an earlier probe or stage: its digest enters the key.
    pub fn node<T: Output>(&mut self, label: &str, node: &Node<T>) {
        self.depend(node.id());
        if self.known.is_some() {
            match self.identity(node.id()) {
                Some(identity) => self.output_of(label, node.id(), &identity.digest),
                None => self.lacking(label, node.id(), "an identity"),
            }
        }
    }

    /// The outputs of several nodes, in order.
    pub fn nodes<T: Output>(&mut self, label: &str, nodes: &[Node<T>]) {
        self.field(label, &nodes.len());
        for node in nodes {
            self.node(label, node);
        }
    }

    /// One facet of an earlier output: the key doesn't change when only other facets do.
    pub fn facet<T: Output>(&mut self, label: &str, node: &Node<T>, facet: &str) {
        self.depend(node.id());
        if self.known.is_some() {
            match self
                .identity(node.id())
                .and_then(|identity| identity.facet(facet))
            {
                Some(digest) => self.output_of(label, node.id(), &digest),
                None => self.lacking(label, node.id(), &format!("a facet {facet:?}")),
            }
        }
    }

    /// One facet of several earlier outputs, in order.
    pub fn facets<T: Output>(&mut self, label: &str, nodes: &[Node<T>], facet: &str) {
        self.field(label, &nodes.len());
        for node in nodes {
            self.facet(label, node, facet);
        }
    }

    /// Order alone: the node is done before this step starts, and `Cx::get` gives its value, but it doesn't
    /// enter the key. An effect's output has no identity, so this is how to depend on one.
    pub fn after<T>(&mut self, node: &Node<T>) {
        self.depend(node.id());
    }

    fn depend(&mut self, id: NodeId) {
        match self.known {
            None => self.deps.push(id),
            Some(known) if known.contains_key(&id) => {}
            Some(_) => {
                self.wrong = Some(format!(
                    "{} was not declared when the node was added",
                    (self.names)(id)
                ));
            }
        }
    }

    fn identity(&self, id: NodeId) -> Option<Identity> {
        self.known?.get(&id)?.clone()
    }

    fn output_of(&mut self, label: &str, id: NodeId, digest: &Digest) {
        let line = self.manifest.lines.len();
        self.manifest.of.insert(line, (self.names)(id));
        self.field(label, digest);
    }

    fn lacking(&mut self, label: &str, id: NodeId, what: &str) {
        let node = (self.names)(id);
        self.wrong.get_or_insert(format!(
            "input {label}: the output of {node} has not {what}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(declare: impl FnOnce(&mut KeyWriter<'_>)) -> Key {
        KeyWriter::key(
            Sort::Stage,
            "s",
            1,
            &BTreeMap::new(),
            &|_| String::new(),
            declare,
        )
        .unwrap()
        .key
    }

    #[test]
    fn every_part_of_a_declaration_is_in_the_key() {
        let base = key(|k| k.field("a", "x"));
        assert_eq!(base, key(|k| k.field("a", &String::from("x"))));
        let others = [
            key(|k| k.field("b", "x")),
            key(|k| k.field("a", "y")),
            key(|k| k.field("a", &Some("x"))),
            key(|k| k.field("a", &vec!["x"])),
            key(|k| {
                k.field("a", "x");
                k.field("a", "x");
            }),
            key(|_| ()),
        ];
        assert!(others.iter().all(|other| *other != base));
        let name = |sort, name, version| {
            let declare = |k: &mut KeyWriter<'_>| k.field("a", "x");
            KeyWriter::key(
                sort,
                name,
                version,
                &BTreeMap::new(),
                &|_| String::new(),
                declare,
            )
            .unwrap()
            .key
        };
        assert_eq!(base, name(Sort::Stage, "s", 1));
        assert_ne!(base, name(Sort::Stage, "t", 1));
        assert_ne!(base, name(Sort::Stage, "s", 2));
        assert_ne!(base, name(Sort::Probe, "s", 1));
    }

    #[test]
    fn name_version_and_label_do_not_run_together() {
        let key = |name, version, label: &str| {
            let declare = |k: &mut KeyWriter<'_>| k.field(label, "x");
            let names = |_| String::new();
            KeyWriter::key(
                Sort::Stage,
                name,
                version,
                &BTreeMap::new(),
                &names,
                declare,
            )
            .unwrap()
            .key
        };
        // Without the lengths, the same bytes.
        let version = u32::from_le_bytes([b'b', 1, 0, 0]);
        assert_ne!(key("ab", 1, "x"), key("a", version, "\0x"));
    }

    #[test]
    fn nested_lists_do_not_run_together() {
        let one = key(|k| k.field("a", &vec![vec!["x", "y"], vec![]]));
        let two = key(|k| k.field("a", &vec![vec!["x"], vec!["y"]]));
        assert_ne!(one, two);
        assert_ne!(
            key(|k| k.field("a", &vec![1u8, 12])),
            key(|k| k.field("a", &vec![11u8, 2]))
        );
    }

    #[test]
    fn words_do_not_carry_escape_codes() {
        let mut out = ValueWriter::default();
        out.text("a\u{1b}[31m é");
        assert_eq!(out.words, "a\\u{1b}[31m é");
    }

    #[test]
    fn changes_name_the_label_and_both_values() {
        let manifest = |lines: &[(&str, &str)]| Manifest {
            lines: lines
                .iter()
                .map(|(l, v)| ((*l).to_owned(), (*v).to_owned()))
                .collect(),
            // The third line is a node's output.
            of: BTreeMap::from([(2, "scan".to_owned())]),
        };
        let was = manifest(&[("same", "1"), ("size", "2"), ("tree", "a"), ("tree", "b")]);
        let now = manifest(&[("same", "1"), ("tree", "a"), ("tree", "c"), ("new", "d")]);
        let changes: Vec<_> = now
            .changes_since(&was)
            .into_iter()
            .map(|c| (c.label, c.was, c.is, c.of))
            .collect();
        let s = |t: &str| Some(t.to_owned());
        assert_eq!(
            changes,
            [
                ("new".to_owned(), None, s("d"), None),
                ("size".to_owned(), s("2"), None, None),
                ("tree".to_owned(), s("b"), s("c"), s("scan")),
            ]
        );
    }
}
