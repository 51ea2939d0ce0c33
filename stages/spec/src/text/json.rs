//! Strict JSON (RFC 8259) that remembers where each value stands.
//!
//! serde_json checks every scalar; what is here is objects, lists and the space between, because no
//! serde data format can say where a value was. Two things are stricter than serde_json: a key may
//! stand once only (readers differ about which of two counts), and depth and number are limited.

use super::{FieldPath, Key, MAX_DEPTH, MAX_NODES, Node, ParseError, Step, Value};

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let mut parser = Parser {
        text,
        at: 0,
        steps: Vec::new(),
        nodes: 0,
    };
    parser.space();
    let node = parser.value()?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.expected("the end of the file"));
    }
    Ok(node)
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Where in the document it is.
    steps: Vec<Step>,
    nodes: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn error(&self, at: usize, problem: String) -> ParseError {
        ParseError {
            at,
            path: FieldPath(self.steps.clone()),
            problem,
            limit: false,
        }
    }

    fn expected(&self, what: &str) -> ParseError {
        let problem = match self.text[self.at..].chars().next() {
            None => format!("the file ends where {what} should be"),
            Some(found) => format!("expected {what}, found {found:?}"),
        };
        self.error(self.at, problem)
    }

    fn limit(&self, problem: String) -> ParseError {
        ParseError {
            limit: true,
            ..self.error(self.at, problem)
        }
    }

    /// A value that begins here.
    fn value(&mut self) -> Result<Node, ParseError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.limit(format!("there are more than {MAX_NODES} values")));
        }
        let at = self.at;
        let value = match self.peek() {
            Some(b'{') => self.object()?,
            Some(b'[') => self.list()?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return Err(self.expected("a value")),
        };
        Ok(Node { at, value })
    }

    fn deeper(&self) -> Result<(), ParseError> {
        if self.steps.len() >= MAX_DEPTH {
            return Err(ParseError {
                // A path of that length helps nobody.
                path: FieldPath::default(),
                ..self.limit(format!("is nested more than {MAX_DEPTH} deep"))
            });
        }
        Ok(())
    }

    fn object(&mut self) -> Result<Value, ParseError> {
        self.deeper()?;
        self.at += 1;
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Map(entries));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.expected("a name in double quotes"));
            }
            let at = self.at;
            let name = self.string()?;
            self.steps.push(Step::Key(name.clone()));
            if !names.insert(name.clone()) {
                return Err(self.error(at, "this name is in its object twice".to_owned()));
            }
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            self.space();
            let node = self.value()?;
            self.steps.pop();
            entries.push((Key { at, name }, node));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Map(entries));
                }
                _ => return Err(self.expected("`,` or `}`")),
            }
        }
    }

    fn list(&mut self) -> Result<Value, ParseError> {
        self.deeper()?;
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::List(items));
        }
        loop {
            self.space();
            self.steps.push(Step::Index(items.len()));
            let item = self.value()?;
            self.steps.pop();
            items.push(item);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(items));
                }
                _ => return Err(self.expected("`,` or `]`")),
            }
        }
    }

    /// The text of the string that begins here; serde_json reads its escapes.
    fn string(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        let mut escape = false;
        let length = self.text.as_bytes()[start + 1..].iter().position(|byte| {
            let ends = *byte == b'"' && !escape;
            escape = *byte == b'\\' && !escape;
            ends
        });
        let Some(length) = length else {
            return Err(self.error(start, "the file ends inside this string".to_owned()));
        };
        self.at = start + length + 2;
        self.scalar(start)
    }

    fn number(&mut self) -> Result<Value, ParseError> {
        let start = self.at;
        while let Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        // serde_json keeps to the grammar but refuses what no f64 holds (1e999); so does this.
        self.scalar::<serde_json::Number>(start)?;
        Ok(Value::Number(self.text[start..self.at].to_owned()))
    }

    /// Has serde_json read what lies between `start` and here.
    fn scalar<T: serde::de::DeserializeOwned>(&self, start: usize) -> Result<T, ParseError> {
        serde_json::from_str(&self.text[start..self.at]).map_err(|error| {
            let message = error.to_string();
            let problem = message.split(" at line ").next().unwrap_or(&message);
            // Its columns count bytes of this one line, from 1; 0 where it knows none.
            let at = (start + error.column().saturating_sub(1)).min(self.at);
            self.error(at, problem.to_owned())
        })
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, ParseError> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What serde_json makes of the same text.
    fn same(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap(),
            Value::Text(text) => text.as_str().into(),
            Value::Plain(_) => panic!("JSON has no plain scalars"),
            Value::List(items) => items.iter().map(same).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.name.clone(), same(node)))
                .collect(),
        }
    }

    fn compare(text: &str) -> Result<(), TestCaseError> {
        match (parse(text), serde_json::from_str::<serde_json::Value>(text)) {
            (Ok(node), Ok(value)) => prop_assert_eq!(same(&node), value),
            (Err(_), Err(_)) => {}
            (Err(error), Ok(_)) => {
                prop_assert!(error.problem.contains("twice"), "{}", error.problem)
            }
            (Ok(_), Err(error)) => prop_assert!(false, "{error}"),
        }
        Ok(())
    }

    const WORDS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"a\"",
        "\"b\"",
        "\"\\u00e9\\n\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\x\"",
        "\"\t\"",
        "\"\\\\\"",
        "\"\\\"",
        "\"é",
        "0",
        "-0",
        "-",
        "01",
        "1.5",
        "1.",
        ".5",
        "1e5",
        "1e+",
        "1e999",
        "true",
        "tru",
        "false",
        "null",
        "nullx",
        " ",
        "\n",
        "\r",
        "\u{b}",
        "\u{a0}",
        "\u{feff}",
        "/**/",
        "'",
    ];

    proptest! {
        #[test]
        fn takes_what_serde_json_takes(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..12)) {
            compare(&words.concat())?;
        }

        #[test]
        fn reads_what_serde_json_writes(
            words in proptest::collection::vec(any::<String>(), 0..4), number in any::<i64>(), float in any::<f64>(),
        ) {
            let value = serde_json::json!({"a": words.clone(), "b": {"c": [number, float, {}, []]}, words.concat(): null});
            compare(&value.to_string())?;
            compare(&serde_json::to_string_pretty(&value).unwrap())?;
        }
    }
}
