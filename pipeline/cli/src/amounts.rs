//! Sizes, ages and digests as people write them on a command line.

use std::str::FromStr;
use std::time::Duration;

use fcpipe_engine::Digest;

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    /// As in launch files: a number, and K, M, G or T, in powers of 1024, with or without `iB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = parts(text);
        let unit = unit.to_ascii_lowercase();
        let shift = match unit.trim_end_matches("ib") {
            "" | "b" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(format!("{text:?} is not a size such as 512MiB or 20GiB")),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| format!("{text:?} is not a size such as 512MiB or 20GiB"))
    }
}

/// How long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = parts(text);
        let seconds: Option<u64> = match unit {
            "s" => Some(1),
            "min" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            "w" => Some(7 * 86_400),
            _ => None,
        };
        // No unit is assumed, and `m` is none: it could be minutes or months.
        seconds
            .and_then(|seconds| number.parse::<u64>().ok()?.checked_mul(seconds))
            .map(|seconds| Age(Duration::from_secs(seconds)))
            .ok_or_else(|| format!("{text:?} is not an age such as 45min, 12h, 30d or 8w"))
    }
}

/// Where the digits end and the unit begins.
fn parts(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// A digest of a file, as fcpipe prints it: `blake3:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileDigest(pub(crate) Digest);

impl FromStr for FileDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix("blake3:")
            .and_then(|digits| digits.parse().ok())
            .map(FileDigest)
            .ok_or_else(|| format!("{text:?} is not blake3: and 64 hexadecimal digits"))
    }
}

/// A time that has passed, in the largest unit that fits.
pub(crate) fn ago(time: Duration) -> String {
    match time.as_secs() {
        0..60 => "just now".to_owned(),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        for (text, bytes) in [
            ("0", 0),
            ("17B", 17),
            ("4k", 4096),
            ("512MiB", 512 << 20),
            ("20 GiB", 20 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "4GB", "99999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for (text, seconds) in [
            ("0s", 0),
            ("45min", 2700),
            ("12h", 43_200),
            ("30d", 2_592_000),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Age(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for text in ["", "30", "30m", "-1d", "9999999999999999999w"] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }

    #[test]
    fn digests() {
        let digits = "0123456789abcdef".repeat(4);
        let parsed: FileDigest = format!("blake3:{digits}").parse().unwrap();
        assert_eq!(parsed.0.to_string(), digits);
        assert!(digits.parse::<FileDigest>().is_err());
        assert!("blake3:0123".parse::<FileDigest>().is_err());
    }
}
