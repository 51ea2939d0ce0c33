//! serde's view of a [`Node`] tree, with errors that know their place.
//!
//! Which fields there are is said by the structs alone: a struct hands its field names to
//! `deserialize_struct`, and [`Unknown::Refuse`] checks them there, so one set of structs serves the
//! OCI config (unknown fields ignored) and the launch file (unknown fields refused).

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Visitor};

use super::{Key, Node, Step, Value};
use crate::error::quoted;
use crate::suggest;

/// What to do about fields that a struct does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Ignore,
    Refuse,
}

pub(crate) fn read<'n, T: Deserialize<'n>>(node: &'n Node, unknown: Unknown) -> Result<T, DeError> {
    T::deserialize(Reader { node, unknown })
}

#[derive(Debug)]
pub(crate) struct DeError {
    /// Offset in the text, once a node on the way out has said it.
    pub(super) at: Option<usize>,
    /// The innermost first.
    pub(super) steps: Vec<Step>,
    pub(super) problem: Problem,
}

#[derive(Debug)]
pub(super) enum Problem {
    Unknown {
        nearest: Option<String>,
    },
    Said {
        problem: String,
        hint: Option<String>,
    },
}

impl DeError {
    fn said(problem: String) -> DeError {
        DeError {
            at: None,
            steps: Vec::new(),
            problem: Problem::Said {
                problem,
                hint: None,
            },
        }
    }

    fn located(mut self, at: usize) -> DeError {
        self.at.get_or_insert(at);
        self
    }

    fn within(mut self, step: Step) -> DeError {
        self.steps.push(step);
        self
    }
}

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Problem::Unknown { .. } => f.write_str("there is no such field"),
            Problem::Said { problem, .. } => f.write_str(problem),
        }
    }
}

impl std::error::Error for DeError {}

impl de::Error for DeError {
    fn custom<T: fmt::Display>(message: T) -> DeError {
        DeError::said(message.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> DeError {
        DeError::said(format!(
            "expected {}, found {}",
            plain_words(&wanted.to_string()),
            named(found)
        ))
    }

    fn invalid_value(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> DeError {
        DeError::said(format!(
            "expected {}, found {}",
            plain_words(&wanted.to_string()),
            named(found)
        ))
    }

    fn missing_field(field: &'static str) -> DeError {
        DeError::said("is missing".to_owned()).within(Step::Key(field.to_owned()))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> DeError {
        DeError {
            at: None,
            steps: Vec::new(),
            problem: Problem::Said {
                problem: format!(
                    "{} is none of {}",
                    quoted(variant),
                    suggest::listed(known.iter().copied())
                ),
                hint: suggest::nearest(variant, known.iter().copied())
                    .map(|name| format!("did you mean `{name}`?")),
            },
        }
    }
}

/// What serde calls a wanted type, for people who don't write Rust.
fn plain_words(wanted: &str) -> String {
    let range = |max: u64| format!("a whole number from 0 to {max}");
    match wanted {
        "u16" => range(u16::MAX.into()),
        "u32" => range(u32::MAX.into()),
        "u64" => range(u64::MAX),
        "i64" => "a whole number of at most 63 bits".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        other => other.to_owned(),
    }
}

/// serde's own words for a value may hold all of it, unescaped.
fn named(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => quoted(text),
        de::Unexpected::Signed(number) => number.to_string(),
        de::Unexpected::Unsigned(number) => number.to_string(),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Float(number) => number.to_string(),
        de::Unexpected::Unit => "nothing".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "an object".to_owned(),
        other => other.to_string(),
    }
}

#[derive(Clone, Copy)]
struct Reader<'n> {
    node: &'n Node,
    unknown: Unknown,
}

impl<'n> Reader<'n> {
    /// Calls the visitor with the value as it stands.
    fn visit<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(text) => match integer(text) {
                Some(Integer::Unsigned(number)) => visitor.visit_u64(number),
                Some(Integer::Signed(number)) => visitor.visit_i64(number),
                // A fraction, or too large: no field takes it, and the visitor says what it wants.
                None => visitor.visit_f64(text.parse().unwrap_or(f64::NAN)),
            },
            Value::Text(text) | Value::Plain(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                items,
                next: 0,
                unknown: self.unknown,
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
                unknown: self.unknown,
            }),
        }
    }

    fn number<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        if let Value::Plain(text) = &self.node.value {
            return match integer(text) {
                Some(Integer::Unsigned(number)) => visitor.visit_u64(number),
                Some(Integer::Signed(number)) => visitor.visit_i64(number),
                None => visitor.visit_str(text),
            };
        }
        self.visit(visitor)
    }
}

enum Integer {
    Unsigned(u64),
    Signed(i64),
}

/// Integers of JSON, and those of YAML 1.2's core schema (`0o17`, `0x1f`).
fn integer(text: &str) -> Option<Integer> {
    let radix = |prefix, radix| {
        let digits = text.strip_prefix(prefix)?;
        // from_str_radix would take a sign here.
        digits
            .chars()
            .all(|c| c.is_digit(radix))
            .then(|| u64::from_str_radix(digits, radix).ok())?
    };
    if let Some(number) = radix("0o", 8).or_else(|| radix("0x", 16)) {
        return Some(Integer::Unsigned(number));
    }
    if let Ok(number) = text.parse() {
        return Some(Integer::Unsigned(number));
    }
    text.parse().ok().map(Integer::Signed)
}

/// Forwards to `$how`, and gives the error this node's offset where it has none yet.
macro_rules! reads {
    ($how:ident: $($method:ident)*) => {
        $(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
            self.$how(visitor).map_err(|error| error.located(self.node.at))
        })*
    };
}

impl<'n> de::Deserializer<'n> for Reader<'n> {
    type Error = DeError;

    reads!(visit: deserialize_any deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_seq
        deserialize_map deserialize_identifier);

    reads!(number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64);

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.node.value {
            Value::Plain(text) => match text.as_str() {
                "true" | "True" | "TRUE" => visitor.visit_bool(true),
                "false" | "False" | "FALSE" => visitor.visit_bool(false),
                other => Err(DeError::said(format!(
                    "expected true or false, found {}",
                    quoted(other)
                ))),
            },
            _ => self.visit(visitor),
        }
        .map_err(|error: DeError| error.located(self.node.at))
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        if let (Unknown::Refuse, Value::Map(entries)) = (self.unknown, &self.node.value) {
            for (key, _) in entries {
                if !fields.contains(&key.name.as_str()) {
                    return Err(DeError {
                        at: Some(key.at),
                        steps: vec![Step::Key(key.name.clone())],
                        problem: Problem::Unknown {
                            nearest: suggest::nearest(&key.name, fields.iter().copied())
                                .map(str::to_owned),
                        },
                    });
                }
            }
        }
        match &self.node.value {
            // A derived visitor would take a list for a struct's fields in order.
            Value::List(_) => Err(DeError::said("expected an object, found a list".to_owned())),
            _ => self.visit(visitor),
        }
        .map_err(|error| error.located(self.node.at))
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| error.located(self.node.at))
    }

    /// Enums here are names alone.
    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        match &self.node.value {
            Value::Text(text) | Value::Plain(text) => {
                visitor.visit_enum(de::value::StrDeserializer::<DeError>::new(text))
            }
            _ => Err(DeError::said(format!(
                "expected one of {}",
                suggest::listed(variants.iter().copied())
            ))),
        }
        .map_err(|error| error.located(self.node.at))
    }

    serde::forward_to_deserialize_any! { <W: Visitor<'n>> i128 u128 unit_struct tuple tuple_struct }
}

struct Items<'n> {
    items: &'n [Node],
    next: usize,
    unknown: Unknown,
}

impl<'n> de::SeqAccess<'n> for Items<'n> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'n>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DeError> {
        let Some(node) = self.items.get(self.next) else {
            return Ok(None);
        };
        let index = self.next;
        self.next += 1;
        seed.deserialize(Reader {
            node,
            unknown: self.unknown,
        })
        .map(Some)
        .map_err(|error| error.located(node.at).within(Step::Index(index)))
    }
}

struct Entries<'n> {
    entries: std::slice::Iter<'n, (Key, Node)>,
    value: Option<&'n (Key, Node)>,
    unknown: Unknown,
}

impl<'n> de::MapAccess<'n> for Entries<'n> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'n>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DeError> {
        let Some(entry) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(entry);
        let (key, _) = entry;
        seed.deserialize(de::value::BorrowedStrDeserializer::new(&key.name))
            .map(Some)
            .map_err(|error: DeError| error.located(key.at))
    }

    fn next_value_seed<V: DeserializeSeed<'n>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        let Some((key, node)) = self.value.take() else {
            return Err(DeError::said(
                "a value was asked for before its name".to_owned(),
            ));
        };
        seed.deserialize(Reader {
            node,
            unknown: self.unknown,
        })
        .map_err(|error| error.located(node.at).within(Step::Key(key.name.clone())))
    }
}
