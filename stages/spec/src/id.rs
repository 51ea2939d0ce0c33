//! Names of launches. A launch's name becomes part of paths and of cgroup and device names, so it is
//! checked once, here, and is a type from then on.

use std::fmt;
use std::str::FromStr;

use crate::error::quoted;

/// The name of a launch: letters, digits and `_ + . -`, as runc allows, and never `.` or `..`.
///
/// At most [`LaunchId::MAX`] bytes, so that with a prefix and a suffix it is still a file name. (runc
/// itself sets no length and fails at the file system's.)
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaunchId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    #[error("a launch's id must not be empty")]
    Empty,
    #[error(
        "the id {} has {length} bytes; {} are allowed",
        quoted(id),
        LaunchId::MAX
    )]
    TooLong { id: String, length: usize },
    #[error(
        "the id {} holds {character:?}; only A-Z, a-z, 0-9 and `_+.-` are allowed",
        quoted(id)
    )]
    Character { id: String, character: char },
    #[error("the id {} is the name of a directory, not of a launch", quoted(id))]
    Dots { id: String },
}

impl LaunchId {
    /// Bytes.
    pub const MAX: usize = 128;

    /// # Errors
    /// [`IdError`] says which rule `id` breaks.
    pub fn parse(id: &str) -> Result<LaunchId, IdError> {
        if id.is_empty() {
            return Err(IdError::Empty);
        }
        if id.len() > LaunchId::MAX {
            return Err(IdError::TooLong {
                id: id.to_owned(),
                length: id.len(),
            });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '.' | '-');
        if let Some(character) = id.chars().find(|c| !allowed(*c)) {
            return Err(IdError::Character {
                id: id.to_owned(),
                character,
            });
        }
        if id == "." || id == ".." {
            return Err(IdError::Dots { id: id.to_owned() });
        }
        Ok(LaunchId(id.to_owned()))
    }

    /// A new one: 12 random hexadecimal digits. Whoever claims it still finds out whether it is taken.
    ///
    /// # Errors
    /// The kernel has no random bytes to give (getrandom(2)).
    pub fn random() -> std::io::Result<LaunchId> {
        let mut bytes = [0u8; 6];
        let filled =
            rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        // getrandom(2) never gives less than asked for up to 256 bytes.
        if filled != bytes.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(LaunchId(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LaunchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for LaunchId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for LaunchId {
    type Err = IdError;

    fn from_str(id: &str) -> Result<LaunchId, IdError> {
        LaunchId::parse(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_42_ids_that_are_no_names_are_refused() {
        for id in ["../x", "a/b", "/", "a b", "a\n", "a\0", "é", "x:y", "*"] {
            assert!(
                matches!(LaunchId::parse(id), Err(IdError::Character { .. })),
                "{id:?}"
            );
        }
        assert_eq!(LaunchId::parse(""), Err(IdError::Empty));
        for id in [".", ".."] {
            assert!(matches!(LaunchId::parse(id), Err(IdError::Dots { .. })));
        }
        assert!(LaunchId::parse(&"a".repeat(128)).is_ok());
        assert!(matches!(
            LaunchId::parse(&"a".repeat(129)),
            Err(IdError::TooLong { length: 129, .. })
        ));
    }

    #[test]
    fn row_42_what_runc_allows_is_allowed() {
        for id in ["c1", "a.b", "...", "A_b+c-9", "sandbox-7d9f"] {
            assert_eq!(LaunchId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn random_ids_are_valid_and_differ() {
        let (a, b) = (LaunchId::random().unwrap(), LaunchId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(LaunchId::parse(a.as_str()), Ok(a));
    }
}
