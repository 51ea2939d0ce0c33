//! YAML 1.2 to [`Node`]s, on the events of granit-parser (the parser below serde-saphyr, which itself
//! can't say where a field stands once a type is read).
//!
//! Plain scalars stay text until a type is wanted, so `args: [sleep, 10]` and `owner: 0:0` mean what
//! they look like. Aliases work and count as what they stand for. Tags, merge keys and a second document have
//! no meaning in a launch file and are errors.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle};

use super::{FieldPath, Key, MAX_DEPTH, MAX_NODES, Node, ParseError, Step, Value};

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((event, span)) => {
                let at = span.start.byte_offset().unwrap_or(0);
                builder.event(event, at)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) => {
                return Err(builder.too_deep(error.marker().byte_offset().unwrap_or(0)));
            }
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(text.len());
                return Err(builder.error(at, error.info()));
            }
        }
    }
    builder.root.take().map_or_else(
        || Err(builder.error(0, "the file is empty".to_owned())),
        |done| Ok(done.node),
    )
}

/// A finished value, with what a copy of it costs.
#[derive(Clone)]
struct Done {
    node: Node,
    /// Values in it, itself too, and one more for each 32 bytes of text.
    cost: usize,
    /// Lists and objects inside each other; 0 for a scalar.
    height: usize,
}

/// A list or an object that is not finished.
struct Open {
    at: usize,
    anchor: usize,
    cost: usize,
    height: usize,
    what: What,
}

enum What {
    List(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        names: std::collections::HashSet<String>,
        /// The key that waits for its value.
        key: Option<Key>,
    },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Done>,
    anchors: HashMap<usize, Done>,
    /// Of everything so far, with the copies that anchors keep and aliases make.
    cost: usize,
    documents: usize,
}

impl Builder {
    fn path(&self) -> FieldPath {
        let step = |open: &Open| match &open.what {
            What::List(items) => Some(Step::Index(items.len())),
            What::Map { key, .. } => key.as_ref().map(|key| Step::Key(key.name.clone())),
        };
        FieldPath(self.open.iter().filter_map(step).collect())
    }

    fn error(&self, at: usize, problem: String) -> ParseError {
        ParseError {
            at,
            path: self.path(),
            problem,
            limit: false,
        }
    }

    fn limit(&self, at: usize, problem: String) -> ParseError {
        ParseError {
            at,
            path: FieldPath::default(),
            problem,
            limit: true,
        }
    }

    fn too_deep(&self, at: usize) -> ParseError {
        self.limit(at, format!("is nested more than {MAX_DEPTH} deep"))
    }

    fn event(&mut self, event: Event<'_>, at: usize) -> Result<(), ParseError> {
        if event.tag().is_some() {
            return Err(self.error(at, "a tag (`!…`) means nothing here".to_owned()));
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.error(at, "a second document begins here".to_owned()));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, _) => {
                let done = Done {
                    node: Node {
                        at,
                        value: scalar(&text, style),
                    },
                    cost: 1 + text.len() / 32,
                    height: 0,
                };
                self.pay(at, done.cost)?;
                self.put(done, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.start(at, anchor, What::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                let what = What::Map {
                    entries: Vec::new(),
                    names: std::collections::HashSet::new(),
                    key: None,
                };
                self.start(at, anchor, what)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor) else {
                    return Err(self.error(at, "an alias inside of what it stands for".to_owned()));
                };
                let (cost, height) = (target.cost, target.height);
                // Before the copy is made: a bomb costs no more than its text.
                self.pay(at, cost)?;
                if self.open.len() + height > MAX_DEPTH {
                    return Err(self.limit(
                        at,
                        format!("with aliases it is nested more than {MAX_DEPTH} deep"),
                    ));
                }
                let mut done = self.anchors[&anchor].clone();
                done.node.at = at;
                self.put(done, 0)
            }
            _ => Ok(()),
        }
    }

    fn pay(&mut self, at: usize, cost: usize) -> Result<(), ParseError> {
        self.cost += cost;
        if self.cost > MAX_NODES {
            return Err(self.limit(
                at,
                "holds too much, with everything that aliases stand for".to_owned(),
            ));
        }
        Ok(())
    }

    fn start(&mut self, at: usize, anchor: usize, what: What) -> Result<(), ParseError> {
        if self.awaits_key() {
            return Err(self.error(at, "a name must be text".to_owned()));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.too_deep(at));
        }
        self.pay(at, 1)?;
        self.open.push(Open {
            at,
            anchor,
            cost: 1,
            height: 1,
            what,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), ParseError> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.what {
            What::List(items) => Value::List(items),
            What::Map { entries, .. } => Value::Map(entries),
        };
        let done = Done {
            node: Node { at: open.at, value },
            cost: open.cost,
            height: open.height,
        };
        self.put(done, open.anchor)
    }

    fn awaits_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                what: What::Map { key: None, .. },
                ..
            })
        )
    }

    /// Puts a value, which is paid for, where it belongs: as the root, an item, a name, or a name's
    /// value.
    fn put(&mut self, done: Done, anchor: usize) -> Result<(), ParseError> {
        if anchor != 0 {
            self.pay(done.node.at, done.cost)?;
            self.anchors.insert(anchor, done.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(done);
            return Ok(());
        };
        parent.cost += done.cost;
        parent.height = parent.height.max(done.height + 1);
        match &mut parent.what {
            What::List(items) => items.push(done.node),
            What::Map {
                entries,
                names,
                key,
            } => match key.take() {
                Some(name) => entries.push((name, done.node)),
                None => {
                    let at = done.node.at;
                    let name = match done.node.value {
                        Value::Text(name) | Value::Plain(name) => name,
                        _ => return Err(self.error(at, "a name must be text".to_owned())),
                    };
                    if !names.insert(name.clone()) {
                        *key = Some(Key { at, name });
                        return Err(self.error(at, "this name is in its object twice".to_owned()));
                    }
                    *key = Some(Key { at, name });
                }
            },
        }
        Ok(())
    }
}

/// YAML's core schema, as far as it does not depend on the type that is wanted.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => Value::Plain(text.to_owned()),
    }
}
