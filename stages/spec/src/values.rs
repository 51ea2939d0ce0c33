//! Values with a syntax of their own: sizes, owners, id ranges, names of choices, paths. Each is
//! checked while it is read, so that its error has the place of the value.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::error::quoted;
use crate::model::{Choice, IdRange};

/// A string that the kernel will take: no NUL in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl FromStr for Text {
    type Err = String;

    fn from_str(text: &str) -> Result<Text, String> {
        match text.find('\0') {
            Some(at) => Err(format!("{} holds a NUL at byte {at}", quoted(text))),
            None => Ok(Text(text.to_owned())),
        }
    }
}

/// A path on the host, not empty; relative to the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPath(String);

impl HostPath {
    /// The absolute path, without `.`; `..` stays, for what it means depends on symlinks.
    pub(crate) fn below(&self, base: &Path) -> PathBuf {
        base.join(&self.0).components().collect()
    }
}

impl FromStr for HostPath {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPath, String> {
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        Text::from_str(text).map(|text| HostPath(text.0))
    }
}

/// Bytes: a whole number, alone or with B, K, M, G or T, the last four also as KiB and so on. Powers
/// of 1024 all; `MB` is refused because people mean either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            _ => 64,
        };
        if number.is_empty() || shift == 64 {
            return Err(format!(
                "{} is no size; write a whole number with KiB, MiB, GiB or TiB, as in 512MiB",
                quoted(text)
            ));
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(ByteSize)
            .ok_or_else(|| format!("{} does not fit in 64 bits", quoted(text)))
    }
}

/// `UID:GID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) u32, pub(crate) u32);

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Owner, String> {
        text.split_once(':')
            .and_then(|(uid, gid)| Some(Owner(id(uid)?, id(gid)?)))
            .ok_or_else(|| {
                format!(
                    "{} is no owner; write UID:GID, as in 1000:1000",
                    quoted(text)
                )
            })
    }
}

/// 4294967295 is "no id" to the kernel (chown(2)).
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// `[u:|g:]INSIDE:HOST:SIZE`, or a list of these; without a letter for users and groups alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct IdMaps {
    pub(crate) uid: Vec<IdRange>,
    pub(crate) gid: Vec<IdRange>,
}

impl IdMaps {
    /// Adds what the text says.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let (users, groups, rest) = match text.split_once(':') {
            Some(("u", rest)) => (true, false, rest),
            Some(("g", rest)) => (false, true, rest),
            _ => (true, true, text),
        };
        let numbers: Option<Vec<u32>> = rest
            .split(':')
            .map(|text| text.parse().ok().filter(|_| !text.starts_with('+')))
            .collect();
        let Some([inside, host, size]) = numbers.as_deref() else {
            return Err(format!(
                "{} is no id range; write INSIDE:HOST:SIZE, as in 0:100000:65536",
                quoted(text)
            ));
        };
        let range = IdRange {
            inside: *inside,
            host: *host,
            size: *size,
        };
        if users {
            add_range(&mut self.uid, range)?;
        }
        if groups {
            add_range(&mut self.gid, range)?;
        }
        Ok(())
    }
}

/// The kernel's own limit (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// Adds a range to a map, by the kernel's rules for one (user_namespaces(7)).
pub(crate) fn add_range(map: &mut Vec<IdRange>, range: IdRange) -> Result<(), String> {
    if range.size == 0 {
        return Err("an id range must not be empty".to_owned());
    }
    if map.len() == MAX_RANGES {
        return Err(format!("there are more than {MAX_RANGES} id ranges"));
    }
    let fits = |first: u32| first.checked_add(range.size).is_some();
    if !fits(range.inside) || !fits(range.host) {
        return Err("an id range goes past 4294967294".to_owned());
    }
    let meet = |a: u32, a_size: u32, b: u32, b_size: u32| a < b + b_size && b < a + a_size;
    if map.iter().any(|other| {
        meet(range.inside, range.size, other.inside, other.size)
            || meet(range.host, range.size, other.host, other.size)
    }) {
        return Err("two id ranges overlap".to_owned());
    }
    map.push(range);
    Ok(())
}

/// One of the names of a model's enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named<T>(pub(crate) T);

impl<'de, T: Choice> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name<T>(PhantomData<T>);

        impl<T: Choice> Visitor<'_> for Name<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "one of {}",
                    crate::suggest::listed(T::NAMES.iter().copied())
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Named<T>, E> {
                T::named(text)
                    .map(Named)
                    .ok_or_else(|| E::unknown_variant(text, T::NAMES))
            }
        }

        deserializer.deserialize_str(Name(PhantomData))
    }
}

/// Reads a value by its [`FromStr`].
macro_rules! from_text {
    ($($type:ident: $expecting:literal;)*) => {
        $(impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Characters;

                impl Visitor<'_> for Characters {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Characters)
            }
        })*
    };
}

pub(crate) use from_text;

from_text! {
    Text: "a string";
    HostPath: "a path";
    Owner: "an owner such as \"1000:1000\"";
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;

        impl Visitor<'_> for Size {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512MiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Size)
    }
}

impl<'de> Deserialize<'de> for IdMaps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ranges;

        impl<'de> Visitor<'de> for Ranges {
            type Value = IdMaps;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("id ranges such as \"0:100000:65536\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<IdMaps, E> {
                let mut maps = IdMaps::default();
                maps.add(text).map_err(E::custom)?;
                Ok(maps)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<IdMaps, A::Error> {
                let mut maps = IdMaps::default();
                while let Some(text) = items.next_element::<Text>()? {
                    maps.add(&text.0).map_err(de::Error::custom)?;
                }
                Ok(maps)
            }
        }

        deserializer.deserialize_any(Ranges)
    }
}

/// A path inside the image, made normal by its text alone: absolute, no `.`, no `..`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImagePath {
    pub(crate) path: PathBuf,
    /// It did not begin with `/`.
    pub(crate) relative: bool,
    /// It held a `..`.
    pub(crate) climbs: bool,
}

impl ImagePath {
    /// `..` of the root is the root, so nothing that this gives lies outside of it.
    pub(crate) fn normal(text: &str) -> ImagePath {
        let mut path = PathBuf::from("/");
        let mut climbs = false;
        for component in Path::new(text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => {
                    climbs = true;
                    path.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        ImagePath {
            path,
            relative: !text.starts_with('/'),
            climbs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("4 GiB", 4 << 30),
            ("4g", 4 << 30),
            ("1T", 1 << 40),
            ("17B", 17),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "4GB", "1MiBB", "0x10", "٤MiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert!("16777216TiB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn owners() {
        assert_eq!("0:4294967294".parse(), Ok(Owner(0, 4_294_967_294)));
        for text in [
            "",
            "0",
            ":",
            "0:",
            "a:b",
            "1:2:3",
            "-1:0",
            "+1:0",
            "0:4294967295",
        ] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }

    #[test]
    fn id_ranges() {
        let mut maps = IdMaps::default();
        maps.add("0:100000:65536").unwrap();
        maps.add("u:65536:1000:1").unwrap();
        assert_eq!((maps.uid.len(), maps.gid.len()), (2, 1));
        for text in [
            "",
            "0:1",
            "x:0:1:2",
            "0:1:2:3",
            "70000:300000:0",
            "70000:4294967295:1",
            "0:500000:1",
            "80000:100001:5",
        ] {
            assert!(maps.clone().add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn row_06_no_text_leads_out_of_the_root() {
        let normal = |text| ImagePath::normal(text).path;
        assert_eq!(normal("/a//b/./c/"), Path::new("/a/b/c"));
        assert_eq!(normal("../../etc"), Path::new("/etc"));
        assert_eq!(normal("/a/../../.."), Path::new("/"));
        assert!(ImagePath::normal("a/..").relative);
        assert!(ImagePath::normal("/a/../b").climbs);
        // A name of dots is a name.
        assert!(!ImagePath::normal("/a/...").climbs);
    }
}
