//! From bytes to values that know where they stand.
//!
//! JSON and YAML become one [`Node`] tree; `serde` reads the typed structs out of it ([`de`]). Errors
//! of all three kinds (syntax, type, meaning) then name file, line, column and field in one way: a
//! node holds its offset, and a [`FieldPath`] leads to a node.
//!
//! Architecture invariant: no input makes this recurse deeper than [`MAX_DEPTH`] or hold more than
//! [`MAX_NODES`] nodes, whatever aliases say.

pub(crate) mod de;
mod json;
mod yaml;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{Origin, Place, SpecError, escaped};
use de::{DeError, Unknown};

/// Objects and lists inside each other. A config.json of today nests about eight deep.
pub(crate) const MAX_DEPTH: usize = 64;

/// Values of one document; a YAML alias counts as everything it stands for.
pub(crate) const MAX_NODES: usize = 1_000_000;

/// A value and the byte offset it begins at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// A JSON number, as it is written.
    Number(String),
    /// Text that is surely text.
    Text(String),
    /// Text whose meaning the wanted type decides: a plain YAML scalar, an annotation, a `--set`.
    Plain(String),
    List(Vec<Node>),
    /// In the order of the file; no key twice.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) at: usize,
    pub(crate) name: String,
}

impl Node {
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(key, _)| key.name == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The offset of what `path` leads to, or of the last step there is on the way.
    fn locate(&self, path: &FieldPath) -> usize {
        let mut node = self;
        for step in &path.0 {
            let next = match (step, &node.value) {
                (Step::Key(name), _) => node.get(name),
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.at
    }
}

/// The way from a document's root to a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl FieldPath {
    /// A path of keys, as in `process.args`.
    pub(crate) fn new(dotted: &str) -> FieldPath {
        FieldPath(dotted.split('.').map(|k| Step::Key(k.to_owned())).collect())
    }

    pub(crate) fn key(&self, name: &str) -> FieldPath {
        let mut path = self.clone();
        path.0.push(Step::Key(name.to_owned()));
        path
    }

    pub(crate) fn index(&self, index: usize) -> FieldPath {
        let mut path = self.clone();
        path.0.push(Step::Index(index));
        path
    }

    fn from_innermost(mut steps: Vec<Step>) -> FieldPath {
        steps.reverse();
        FieldPath(steps)
    }

    /// The keys alone, joined as in an annotation's name.
    pub(crate) fn dotted(&self) -> String {
        let keys: Vec<&str> = self
            .0
            .iter()
            .filter_map(|step| match step {
                Step::Key(name) => Some(name.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        keys.join(".")
    }

    fn shown(&self) -> String {
        let mut out = String::new();
        for step in &self.0 {
            match step {
                Step::Index(index) => {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "[{index}]");
                }
                Step::Key(name) if plain_key(name) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
                Step::Key(name) => {
                    let _ = write!(out, "[\"{}\"]", escaped(name));
                }
            }
        }
        out
    }
}

/// Whether a key needs no quotes in a field path.
fn plain_key(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Json,
    Yaml,
}

/// A parsed document: what its errors need to say where they are.
#[derive(Debug)]
pub(crate) struct Doc {
    /// `None`: made of `--set` options.
    file: Option<PathBuf>,
    text: String,
    pub(crate) root: Node,
}

/// Why a text is no document.
struct ParseError {
    at: usize,
    path: FieldPath,
    problem: String,
    limit: bool,
}

impl Doc {
    /// # Errors
    /// [`SpecError::Syntax`] and [`SpecError::Limit`].
    pub(crate) fn parse(file: &Path, bytes: Vec<u8>, syntax: Syntax) -> Result<Doc, SpecError> {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let bytes = error.into_bytes();
                let text = std::str::from_utf8(&bytes[..good]).unwrap_or_default();
                return Err(SpecError::Syntax {
                    place: Box::new(place(Some(file), text, good, String::new())),
                    problem: format!("byte 0x{:02x} is not UTF-8 here", bytes[good]),
                    hint: None,
                });
            }
        };
        let parsed = match syntax {
            Syntax::Json => json::parse(&text),
            Syntax::Yaml => yaml::parse(&text),
        };
        match parsed {
            Ok(root) => Ok(Doc {
                file: Some(file.to_owned()),
                text,
                root,
            }),
            Err(error) => {
                let place = Box::new(place(Some(file), &text, error.at, error.path.shown()));
                Err(if error.limit {
                    SpecError::Limit {
                        place,
                        problem: error.problem,
                    }
                } else {
                    SpecError::Syntax {
                        place,
                        problem: error.problem,
                        hint: None,
                    }
                })
            }
        }
    }

    /// The same, as if it stood under `name` in a larger one. Places stay as they are.
    pub(crate) fn within(mut self, name: &str) -> Doc {
        let at = self.root.at;
        let key = Key {
            at,
            name: name.to_owned(),
        };
        let root = std::mem::replace(
            &mut self.root,
            Node {
                at,
                value: Value::Null,
            },
        );
        self.root.value = Value::Map(vec![(key, root)]);
        self
    }

    /// A document made of `--set` options.
    pub(crate) fn of_overrides(root: Node) -> Doc {
        Doc {
            file: None,
            text: String::new(),
            root,
        }
    }

    /// One value of a `--set`, which may be a list or an object in YAML's flow form.
    pub(crate) fn override_value(text: &str) -> Result<Node, String> {
        if text.starts_with(['[', '{']) {
            return yaml::parse(text).map_err(|error| error.problem);
        }
        Ok(Node {
            at: 0,
            value: Value::Plain(text.to_owned()),
        })
    }

    pub(crate) fn place(&self, path: &FieldPath) -> Place {
        self.place_at(self.root.locate(path), path)
    }

    fn place_at(&self, at: usize, path: &FieldPath) -> Place {
        place(self.file.as_deref(), &self.text, at, path.shown())
    }

    pub(crate) fn invalid(&self, path: &FieldPath, problem: impl Into<String>) -> SpecError {
        SpecError::Invalid {
            place: Box::new(self.place(path)),
            problem: problem.into(),
            hint: None,
        }
    }

    pub(crate) fn invalid_with_hint(
        &self,
        path: &FieldPath,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> SpecError {
        SpecError::Invalid {
            place: Box::new(self.place(path)),
            problem: problem.into(),
            hint: Some(hint.into()),
        }
    }

    /// Reads the whole document as a `T`.
    pub(crate) fn read<T: DeserializeOwned>(&self, unknown: Unknown) -> Result<T, SpecError> {
        de::read(&self.root, unknown).map_err(|error| self.type_error(error, |path| path, "field"))
    }

    /// Turns an error of the typed reading into one with a place. `rename` says where the path it
    /// has leads in this document.
    pub(crate) fn type_error(
        &self,
        error: DeError,
        rename: impl Fn(FieldPath) -> FieldPath,
        what: &'static str,
    ) -> SpecError {
        let at = error.at.unwrap_or(self.root.at);
        let path = rename(FieldPath::from_innermost(error.steps));
        let place = Box::new(self.place_at(at, &path));
        match error.problem {
            de::Problem::Unknown { nearest } => SpecError::Unknown {
                place,
                what,
                // The nearest name is the last step's; an annotation's is longer than that.
                nearest: nearest.map(|name| match what {
                    "annotation" => {
                        let mut path = path;
                        match path.0.last_mut() {
                            Some(Step::Key(whole)) => match whole.rfind('.') {
                                Some(dot) => format!("{}.{name}", &whole[..dot]),
                                None => name,
                            },
                            _ => name,
                        }
                    }
                    _ => name,
                }),
            },
            de::Problem::Said { problem, hint } => SpecError::Invalid {
                place,
                problem,
                hint,
            },
        }
    }
}

fn place(file: Option<&Path>, text: &str, at: usize, field: String) -> Place {
    let origin = match file {
        None => Origin::Override,
        Some(file) => {
            let before = &text[..text.floor_char_boundary(at)];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            Origin::File {
                file: file.to_owned(),
                line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
            }
        }
    };
    Place { origin, field }
}
