//! What the tests said, read from their output: which ran, which skipped themselves and why, which failed.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, PartialEq, Eq)]
enum Result {
    Ran,
    Skipped(String),
    Failed,
}

/// Follows the output of test binaries that were told to `--show-output`, line by line.
#[derive(Default)]
pub(super) struct Results {
    /// What the script said it does from here on, such as running tests in jails.
    part: String,
    /// Whose own output the lines are.
    speaker: Option<String>,
    /// A test that has begun, and whose line something else got into.
    begun: Option<String>,
    /// By part and name.
    tests: BTreeMap<(String, String), Result>,
}

impl Results {
    pub(super) fn line(&mut self, line: &str) {
        if let Some(part) = line.strip_prefix("lab: in ") {
            part.clone_into(&mut self.part);
        } else if let Some(test) = line.strip_prefix("test ") {
            if let Some((name, result)) = test.split_once(" ... ") {
                self.begun = Some(name.to_owned());
                self.end(result);
            }
        } else if self.begun.is_some() {
            self.end(line);
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.speaker = Some(name.to_owned());
        } else if line.starts_with("test result: ") {
            self.speaker = None;
        } else if let (Some(why), Some(name)) = (line.strip_prefix("skipped: "), &self.speaker) {
            let key = self.key(name);
            // A test that did something else before it skipped a part has run.
            if self.tests.get(&key) == Some(&Result::Ran) {
                self.tests.insert(key, Result::Skipped(why.to_owned()));
            }
        }
    }

    fn end(&mut self, result: &str) {
        let result = match result {
            "ok" => Result::Ran,
            "FAILED" => Result::Failed,
            _ => return,
        };
        if let Some(name) = self.begun.take() {
            self.tests.insert(self.key(&name), result);
        }
    }

    fn key(&self, name: &str) -> (String, String) {
        (self.part.clone(), name.to_owned())
    }
}

/// A line for each that did not run well, and the numbers.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut ran, mut skipped, mut failed) = (0, 0, 0);
        for ((part, name), result) in &self.tests {
            let place = if part.is_empty() { "" } else { " in " };
            match result {
                Result::Ran => ran += 1,
                Result::Skipped(why) => {
                    skipped += 1;
                    writeln!(f, "lab: skipped {name}{place}{part}: {why}")?;
                }
                Result::Failed => {
                    failed += 1;
                    writeln!(f, "lab: failed {name}{place}{part}")?;
                }
            }
        }
        write!(f, "lab: {ran} ran, {skipped} skipped, {failed} failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_by_part_with_reasons() {
        let mut results = Results::default();
        let said = "
running 3 tests
test a::one ... ok
test a::two ... FAILED
test a::three ... somebody's words
more of them
ok

successes:

---- a::three stdout ----
skipped: there is no moon

failures:

---- a::two stdout ----
skipped: not believed, it failed

test result: FAILED. 2 passed; 1 failed
skipped: said by nobody
lab: in jails
test a::one ... ok
test a::two ... ok
test result: ok. 2 passed";
        said.lines().for_each(|line| results.line(line));
        assert_eq!(
            results.to_string(),
            "lab: skipped a::three: there is no moon\nlab: failed a::two\nlab: 3 ran, 1 skipped, 1 failed"
        );
    }
}
