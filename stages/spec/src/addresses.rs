//! Values of a network: addresses, names, and lists of them, which an annotation holds as one text.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::error::quoted;
use crate::values::{Text, from_text};

/// Longest prefix of a TAP's name: a name has 15 bytes, and some of them must tell one launch from another.
const PREFIX_MAX: usize = 10;

/// Resolvers and domains beyond these are not asked by anybody.
pub(crate) const LIST_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip(pub(crate) IpAddr);

impl FromStr for Ip {
    type Err = String;

    fn from_str(text: &str) -> Result<Ip, String> {
        let wrong = || format!("{} is no IP address", quoted(text));
        text.parse().map(Ip).map_err(|_| wrong())
    }
}

/// An address with its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Net(pub(crate) IpNet);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let wrong = || {
            format!(
                "{} is no address with a prefix, such as 192.168.1.7/24",
                quoted(text)
            )
        };
        text.parse().map(Net).map_err(|_| wrong())
    }
}

/// A network of IPv4 that addresses are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool(pub(crate) Ipv4Net);

impl FromStr for Pool {
    type Err = String;

    fn from_str(text: &str) -> Result<Pool, String> {
        let net = text.parse::<Ipv4Net>().ok();
        // One address is the network's, one the bridge's, one is for broadcasts.
        net.filter(|net| net.addr() == net.network() && net.prefix_len() <= 30)
            .map(Pool)
            .ok_or_else(|| {
                format!(
                    "{} is no IPv4 network with room for guests, such as 10.213.0.0/16",
                    quoted(text)
                )
            })
    }
}

/// A domain that names are looked up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain(pub(crate) String);

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Domain, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
            return Err(format!("{} is no domain", quoted(text)));
        }
        Ok(Domain(text.to_owned()))
    }
}

/// What the name of a network interface may begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TapPrefix(pub(crate) String);

impl FromStr for TapPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<TapPrefix, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let length = (1..=PREFIX_MAX).contains(&text.len());
        if !length || !text.bytes().all(fits) || text.starts_with('-') {
            return Err(format!(
                "{} cannot begin the name of a TAP: 1 to {PREFIX_MAX} letters, digits, `-` and `_`",
                quoted(text)
            ));
        }
        Ok(TapPrefix(text.to_owned()))
    }
}

/// A list, or its items in one text with commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed<T>(pub(crate) Vec<T>);

impl<'de, T> Deserialize<'de> for Listed<T>
where
    T: FromStr<Err = String>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T: FromStr<Err = String>> Visitor<'de> for Items<T> {
            type Value = Listed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, or a text with commas")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Listed<T>, E> {
                let items = text.split(',').map(str::trim);
                let items = items.filter(|item| !item.is_empty());
                let items: Result<Vec<T>, String> = items.map(str::parse).collect();
                bounded(items.map_err(E::custom)?)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Listed<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(Text(text)) = seq.next_element()? {
                    items.push(text.parse().map_err(de::Error::custom)?);
                }
                bounded(items)
            }
        }

        deserializer.deserialize_any(Items(PhantomData))
    }
}

fn bounded<T, E: de::Error>(items: Vec<T>) -> Result<Listed<T>, E> {
    if items.len() > LIST_MAX {
        return Err(E::custom(format_args!(
            "has {} items; {LIST_MAX} are taken",
            items.len()
        )));
    }
    Ok(Listed(items))
}

from_text! {
    Pool: "an IPv4 network such as \"10.213.0.0/16\"";
    TapPrefix: "the beginning of a name";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_network() {
        assert!("10.213.0.0/16".parse::<Pool>().is_ok());
        for text in ["10.213.0.1/16", "10.0.0.0/31", "fd00::/64", "10.0.0.0", ""] {
            assert!(text.parse::<Pool>().is_err(), "{text}");
        }
        for text in ["b9fc_", "x"] {
            assert!(text.parse::<TapPrefix>().is_ok(), "{text}");
        }
        for text in ["", "-x", "eleven_char", "a b", "a/b", "é"] {
            assert!(text.parse::<TapPrefix>().is_err(), "{text}");
        }
        for text in ["", "a\nnameserver 6.6.6.6", "a b"] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
    }
}
