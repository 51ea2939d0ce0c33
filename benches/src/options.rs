//! The words after a bench's name: the program, then options with values and switches.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Result;

/// Options as they were given.
pub(crate) struct Options {
    /// The program to measure.
    pub(crate) fcpipe: PathBuf,
    /// Where everything is made.
    pub(crate) dir: PathBuf,
    given: BTreeMap<String, String>,
}

impl Options {
    /// `values`: the options that take one, beside `--dir`; `switches`: those that take none.
    pub(crate) fn from(
        args: &[String],
        usage: &str,
        values: &[&str],
        switches: &[&str],
    ) -> Result<Options> {
        let mut fcpipe = None;
        let mut given = BTreeMap::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let value = match arg.as_str() {
                name if switches.contains(&name) => String::new(),
                name if name == "--dir" || values.contains(&name) => {
                    let value = args.next().ok_or_else(|| format!("{arg} what?\n{usage}"))?;
                    value.clone()
                }
                word if word.starts_with('-') || fcpipe.is_some() => {
                    return Err(format!("{word}?\n{usage}").into());
                }
                path => {
                    fcpipe = Some(path);
                    continue;
                }
            };
            given.insert(arg.clone(), value);
        }
        let fcpipe = fcpipe.ok_or_else(|| usage.to_owned())?;
        let dir = given.get("--dir").map_or("target/bench", String::as_str);
        fs::create_dir_all(dir)?;
        Ok(Options {
            fcpipe: fs::canonicalize(fcpipe).map_err(|e| format!("{fcpipe}: {e}\n{usage}"))?,
            dir: fs::canonicalize(dir)?,
            given,
        })
    }

    pub(crate) fn has(&self, switch: &str) -> bool {
        self.given.contains_key(switch)
    }

    pub(crate) fn value<T: FromStr>(&self, name: &str, default: &str) -> Result<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.given.get(name).map_or(default, String::as_str);
        text.parse()
            .map_err(|e| format!("{name} {text}: {e}").into())
    }

    /// Values with commas between them.
    pub(crate) fn list<T: FromStr>(&self, name: &str, default: &str) -> Result<Vec<T>>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.given.get(name).map_or(default, String::as_str);
        let parse = |word: &str| word.parse().map_err(|e| format!("{name} {word}: {e}"));
        let all: std::result::Result<_, _> = text.split(',').map(parse).collect();
        Ok(all?)
    }
}
