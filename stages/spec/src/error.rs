//! What is wrong with a spec, and where.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Where in a spec something stands. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub(crate) origin: Origin,
    /// As in `mounts[2].source`; empty for the document as a whole.
    pub(crate) field: String,
}

/// What a value was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    File {
        file: PathBuf,
        line: usize,
        column: usize,
    },
    /// A `--set KEY=VALUE`.
    Override,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { file, line, column } => {
                write!(f, "{}:{line}:{column}", shown(file))?;
            }
            Origin::Override => f.write_str("--set")?,
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        Ok(())
    }
}

/// Why a spec was refused.
///
/// `Display` is one sentence that begins `file:line:column: field: `; what to do about it is apart,
/// in [`SpecError::hint`]. Names and values from the spec are shown with control characters escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    #[error("{}: cannot be read: {source}", shown(file))]
    Read { file: PathBuf, source: io::Error },

    /// Nothing of a larger file is parsed.
    #[error("{}: is larger than a spec may be ({} MiB)", shown(file), limit >> 20)]
    TooLarge {
        file: PathBuf,
        /// Bytes.
        limit: u64,
    },

    /// Not JSON, or not YAML.
    #[error("{place}: {problem}")]
    Syntax {
        place: Box<Place>,
        problem: String,
        hint: Option<String>,
    },

    /// Nested too deep, or too many values once aliases are followed.
    #[error("{place}: {problem}")]
    Limit { place: Box<Place>, problem: String },

    #[error("{place}: there is no such {what}")]
    Unknown {
        place: Box<Place>,
        /// "field", "annotation", "mount option".
        what: &'static str,
        /// The known name that is most like it.
        nearest: Option<String>,
    },

    /// A value of a wrong type, or one that breaks a rule.
    #[error("{place}: {problem}")]
    Invalid {
        place: Box<Place>,
        problem: String,
        hint: Option<String>,
    },

    /// The root or a bundle that cannot be used.
    #[error("{place}: {}: {problem}", shown(path))]
    Host {
        place: Box<Place>,
        path: PathBuf,
        problem: String,
    },

    /// A warning, where the load was asked to be strict.
    #[error("{place}: {warning}")]
    Strict { place: Box<Place>, warning: String },

    /// A `--set` that is not `KEY=VALUE`.
    #[error("--set {}: {problem}", quoted(text))]
    Override { text: String, problem: String },
}

impl SpecError {
    fn place(&self) -> Option<&Place> {
        match self {
            SpecError::Read { .. } | SpecError::TooLarge { .. } | SpecError::Override { .. } => {
                None
            }
            SpecError::Syntax { place, .. }
            | SpecError::Limit { place, .. }
            | SpecError::Unknown { place, .. }
            | SpecError::Invalid { place, .. }
            | SpecError::Host { place, .. }
            | SpecError::Strict { place, .. } => Some(place),
        }
    }

    /// The file at fault; none where a `--set` is.
    pub fn file(&self) -> Option<&Path> {
        match self {
            SpecError::Read { file, .. } | SpecError::TooLarge { file, .. } => Some(file),
            _ => match &self.place()?.origin {
                Origin::File { file, .. } => Some(file),
                Origin::Override => None,
            },
        }
    }

    /// Counted from 1.
    pub fn line(&self) -> Option<usize> {
        match self.place()?.origin {
            Origin::File { line, .. } => Some(line),
            Origin::Override => None,
        }
    }

    /// Counted from 1, in characters.
    pub fn column(&self) -> Option<usize> {
        match self.place()?.origin {
            Origin::File { column, .. } => Some(column),
            Origin::Override => None,
        }
    }

    /// The field at fault, as in `mounts[2].source`.
    pub fn field(&self) -> Option<&str> {
        let field = &self.place()?.field;
        (!field.is_empty()).then_some(field)
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SpecError::Unknown { nearest, .. } => nearest
                .as_ref()
                .map(|name| format!("did you mean `{}`?", escaped(name))),
            SpecError::Syntax { hint, .. } | SpecError::Invalid { hint, .. } => hint.clone(),
            SpecError::Strict { .. } => Some("without --strict this is a warning".to_owned()),
            SpecError::Override { .. } => {
                Some("write it as in `--set machine.memory=1GiB`".to_owned())
            }
            SpecError::Read { .. }
            | SpecError::TooLarge { .. }
            | SpecError::Limit { .. }
            | SpecError::Host { .. } => None,
        }
    }
}

/// Text from a spec, made harmless for a terminal: control characters, and those that turn or hide
/// text, become `\u{…}`.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hides = matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hides {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The longest piece of a value that a message repeats, in characters.
const SHOWN: usize = 80;

/// A value from a spec as a message shows it: in backquotes, escaped, cut where it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}…`", escaped(&text[..end])),
        None => format!("`{}`", escaped(text)),
    }
}

/// A path on the host as a message shows it.
pub(crate) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str()
        .as_bytes()
        .utf8_chunks()
        .map(|chunk| {
            let bad: String = chunk
                .invalid()
                .iter()
                .map(|byte| format!("\\x{byte:02x}"))
                .collect();
            escaped(chunk.valid()) + &bad
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_15_what_could_drive_a_terminal_is_escaped() {
        assert_eq!(escaped("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(escaped("\u{202e}äß"), "\\u{202e}äß");
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/a\xff\x07b"));
        assert_eq!(shown(path), "/a\\xff\\u{7}b");
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let long = "é".repeat(1000);
        assert_eq!(quoted(&long).chars().count(), SHOWN + 3);
    }
}
