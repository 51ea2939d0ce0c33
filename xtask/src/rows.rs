//! The rows of docs/guarantees.md and the tests that have their numbers in their names.

use std::collections::BTreeMap;
use std::fs;

use crate::Result;
use crate::shell::root;
use crate::tidy;

const DOCUMENT: &str = "docs/guarantees.md";

/// What a row is given, by its number.
fn rows() -> Result<BTreeMap<u32, String>> {
    let text = fs::read_to_string(root().join(DOCUMENT)).map_err(|e| format!("{DOCUMENT}: {e}"))?;
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let mut cells = line.trim_start_matches('|').split(" | ");
        let number = cells.next().and_then(|cell| cell.trim().parse().ok());
        if let (Some(number), Some(given)) = (number, cells.next()) {
            rows.insert(number, given.to_owned());
        }
    }
    Ok(rows)
}

/// Test names by row: `row_33_50_sigkill` is a test of 33 and of 50.
fn tests(files: &[String]) -> Result<BTreeMap<u32, Vec<String>>> {
    let mut tests: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let text = fs::read_to_string(root().join(file)).map_err(|e| format!("{file}: {e}"))?;
        for name in text.lines().filter_map(function) {
            for row in numbers(name) {
                tests
                    .entry(row)
                    .or_default()
                    .push(format!("{file}: {name}"));
            }
        }
    }
    Ok(tests)
}

/// The name of the function that a line declares.
fn function(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("fn ")?;
    rest.split(['(', '<']).next()
}

fn numbers(name: &str) -> impl Iterator<Item = u32> {
    let rows = name.find("row_").map(|at| &name[at + 4..]);
    rows.unwrap_or_default()
        .split('_')
        .map_while(|part| part.parse().ok())
}

/// Faults: a test of a row that there is not.
pub(crate) fn check(files: &[String], faults: &mut Vec<String>) -> Result<()> {
    let rows = rows()?;
    for (row, names) in tests(files)? {
        if !rows.contains_key(&row) {
            faults.push(format!("{}: {DOCUMENT} has no row {row}", names.join(", ")));
        }
    }
    Ok(())
}

/// Each row with its tests; rows without any at the end.
pub(crate) fn print() -> Result<()> {
    let rows = rows()?;
    let mut tests = tests(&tidy::files()?)?;
    let mut bare = Vec::new();
    for (row, given) in &rows {
        let Some(names) = tests.remove(row) else {
            bare.push((row, given));
            continue;
        };
        println!("{row:3}  {given}");
        for name in names {
            println!("       {name}");
        }
    }
    println!("\nrows without a test: {}", bare.len());
    for (row, given) in bare {
        println!("{row:3}  {given}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_rows() {
        let of = |name| numbers(name).collect::<Vec<_>>();
        assert_eq!(of("row_33_50_sigkill_leaves_nothing"), [33, 50]);
        assert_eq!(of("root_row_09_x"), [9]);
        assert_eq!(of("a_row_of_nothing"), [] as [u32; 0]);
        assert_eq!(function("    pub fn row_1_a<T>(x: T) {"), Some("row_1_a"));
    }

    #[test]
    fn the_document_has_sixty_four_rows() {
        assert!(rows().unwrap().keys().copied().eq(1..=64));
    }
}
