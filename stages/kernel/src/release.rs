//! A kernel's release, as `uname -r` prints it. It becomes a directory name, so it is checked once.

use std::fmt;

use bstr::ByteSlice;

/// `6.1.0-56-cloud-amd64`: letters, digits and `._+~-`, at most 64 bytes (`__NEW_UTS_LEN`), begins
/// with a digit. Safe as a file name and on a terminal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Release(String);

impl Release {
    /// Takes a release as it stands; `None` if no kernel would call itself that.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Release> {
        let good = |b: &u8| b.is_ascii_alphanumeric() || b"._+~-".contains(b);
        if bytes.len() > 64
            || !bytes.first().is_some_and(u8::is_ascii_digit)
            || !bytes.iter().all(good)
        {
            return None;
        }
        Some(Release(bytes.to_str().ok()?.to_owned()))
    }

    /// The release at the head of a longer string (`version_string`, `vermagic`).
    pub(crate) fn first_word(bytes: &[u8]) -> Option<Release> {
        Release::parse(bytes.split(|&b| b == b' ' || b == b'\n').next()?)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
