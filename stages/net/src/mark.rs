//! How things in the kernel are known to be a launch's, by a later command too.
//!
//! A link carries the mark as its alias (`ip link` shows it), an action of tc as its cookie, which has 16 bytes.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Whose something is: a launch of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The launch's id.
    pub launch: String,
    /// The state directory, as digits: another fcpipe's launches are not ours to judge.
    pub state: String,
}

const WORD: &str = "fcpipe";

impl Mark {
    pub fn new(launch: &str, state: &Path) -> Self {
        let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        let hash = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
        Mark {
            launch: launch.to_owned(),
            state: hash[..16].to_owned(),
        }
    }

    /// As a link's alias.
    pub fn alias(&self) -> String {
        format!("{WORD}:{}:{}", self.launch, self.state)
    }

    /// Whose a link with this alias is, if it is a launch's.
    pub fn of_alias(alias: &str) -> Option<Mark> {
        let (launch, state) = alias
            .strip_prefix(WORD)?
            .strip_prefix(':')?
            .split_once(':')?;
        (!launch.is_empty() && !state.is_empty()).then(|| Mark {
            launch: launch.to_owned(),
            state: state.to_owned(),
        })
    }

    /// As an action's cookie.
    pub(crate) fn cookie(&self) -> [u8; 16] {
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&blake3::hash(self.alias().as_bytes()).as_bytes()[..16]);
        cookie
    }

    /// Digits that nobody else has: for names that last for the moment between making a thing and marking it, and for addresses.
    pub(crate) fn digits(&self, purpose: &str, number: usize) -> String {
        let text = format!("{} {purpose} {number}", self.alias());
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_from_its_alias() {
        let mark = Mark::new("web-1", Path::new("/run/fcpipe"));
        assert_eq!(Mark::of_alias(&mark.alias()), Some(mark.clone()));
        assert_ne!(mark, Mark::new("web-1", Path::new("/run/other")));
        for strange in [
            "",
            "eth0",
            "fcpipe",
            "fcpipe:",
            "fcpipe:a",
            "fcpipe::b",
            "fcpipe:a:",
        ] {
            assert_eq!(Mark::of_alias(strange), None, "{strange}");
        }
    }
}
