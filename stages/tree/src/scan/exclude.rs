//! What a source's `exclude` patterns keep out, with the meaning that gitignore gives them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fcpipe_spec::Content;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::ScanError;
use super::route::Route;

#[derive(Debug)]
pub(super) struct Exclude {
    patterns: Gitignore,
}

impl Exclude {
    pub(super) fn new(content: &Content) -> Result<Self, ScanError> {
        let mut builder = GitignoreBuilder::new("");
        let refuse = |pattern: &str, error: ignore::Error| ScanError::Pattern {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        };
        for pattern in &content.exclude {
            builder
                .add_line(None, pattern)
                .map_err(|error| refuse(pattern, error))?;
        }
        let patterns = builder
            .build()
            .map_err(|error| refuse(&content.exclude.join(" "), error))?;
        Ok(Exclude { patterns })
    }

    /// What is excluded is not entered, so nothing below it can be taken in again: gitignore's rule.
    pub(super) fn excludes(&self, dir: &Route, name: &[u8], is_directory: bool) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let relative = dir.relative(name);
        self.patterns
            .matched(OsStr::from_bytes(&relative), is_directory)
            .is_ignore()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(patterns: &[&str], dir: &[&str], name: &str, is_directory: bool) -> bool {
        let content = Content {
            exclude: patterns.iter().map(|p| (*p).to_owned()).collect(),
            ..Content::default()
        };
        let mut route = Route::root();
        for part in dir {
            route = Route::below(&route, std::ffi::CString::new(*part).unwrap());
        }
        Exclude::new(&content)
            .unwrap()
            .excludes(&route, name.as_bytes(), is_directory)
    }

    #[test]
    fn patterns_are_those_of_gitignore() {
        assert!(excluded(&[".git"], &[], ".git", true));
        assert!(excluded(&[".git"], &["a", "b"], ".git", true));
        assert!(excluded(&["/build"], &[], "build", true));
        assert!(!excluded(&["/build"], &["a"], "build", true));
        assert!(!excluded(&["build/"], &[], "build", false));
        assert!(excluded(&["a/**/z"], &["a", "b", "c"], "z", false));
        assert!(!excluded(&["*.o", "!keep.o"], &[], "keep.o", false));
        assert!(!excluded(&[], &[], "anything", false));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let content = Content {
            exclude: vec!["a[z-a]".to_owned()],
            ..Content::default()
        };
        let error = Exclude::new(&content).unwrap_err();
        assert!(matches!(error, ScanError::Pattern { pattern, .. } if pattern == "a[z-a]"));
    }
}
