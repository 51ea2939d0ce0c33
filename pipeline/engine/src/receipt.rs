//! The JSON account of one run: `fcpipe.receipt/1`. Its form is a promise to other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Outcome;

/// The value of [`Receipt::schema`].
pub const RECEIPT_SCHEMA: &str = "fcpipe.receipt/1";

/// What one run did, and when. Times are microseconds; starts count from the run's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    /// `fcpipe.receipt/1`.
    #[schemars(extend("const" = RECEIPT_SCHEMA))]
    pub schema: String,
    /// The launch's id.
    pub id: String,
    /// From start to finish, undoing included.
    pub total_us: u64,
    /// The chain of rows that the end had to wait for, first to last.
    pub critical_path: Vec<String>,
    /// One row per node, or per phase of a stage that has phases, in the order in which they were added.
    pub stages: Vec<Row>,
    /// What came out, by name.
    pub outputs: BTreeMap<String, OutputFile>,
}

/// One row of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// `stage` or `stage:subject`.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Its key; empty if it never came to have one.
    pub key: String,
    /// When it started; for a row that was skipped, when that was decided.
    pub start_us: u64,
    /// How long it took.
    pub wall_us: u64,
    /// Files, directories and other entries handled.
    pub files: u64,
    /// Bytes read from sources.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Rows that had to end before.
    pub deps: Vec<String>,
    /// For a hit whose value a consumer needed all the same: how long making it again took. Left out when zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again_us: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A file that came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// `blake3:` and 64 hexadecimal digits, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// The schema of a receipt (JSON Schema, draft 2020-12).
#[must_use]
pub fn receipt_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Receipt);
    schema.insert("title".to_owned(), "fcpipe receipt".into());
    schema.to_value()
}

/// From the row that ended last, back through whichever dependency ended last, turned round.
pub(crate) fn critical_path(rows: &[Row]) -> Vec<String> {
    let end = |row: &Row| row.start_us + row.wall_us;
    let took_part = |row: &&Row| row.outcome != Outcome::Skipped;
    let by_id: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    // On a tie the later row wins: it is the one nearer to the end.
    let mut at = rows.iter().filter(took_part).max_by_key(|row| end(row));
    let mut path = Vec::new();
    while let Some(row) = at {
        path.push(row.id.clone());
        let deps = row
            .deps
            .iter()
            .filter_map(|id| by_id.get(id.as_str()).copied());
        at = deps.filter(took_part).max_by_key(|row| end(row));
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, start_us: u64, wall_us: u64, deps: &[&str]) -> Row {
        Row {
            id: id.to_owned(),
            outcome: Outcome::Ran,
            key: String::new(),
            start_us,
            wall_us,
            files: 0,
            bytes_read: 0,
            bytes_written: 0,
            deps: deps.iter().map(|d| (*d).to_owned()).collect(),
            again_us: 0,
        }
    }

    #[test]
    fn a_receipt_is_what_its_schema_says() {
        let mut receipt = Receipt {
            schema: RECEIPT_SCHEMA.to_owned(),
            id: "a".to_owned(),
            total_us: 1,
            critical_path: vec!["layout".to_owned()],
            stages: vec![row("layout", 0, 1, &[])],
            outputs: BTreeMap::new(),
        };
        let file = OutputFile {
            path: "/image".into(),
            size: 1,
            digest: None,
        };
        receipt.outputs.insert("image".to_owned(), file);
        let validator = jsonschema::validator_for(&receipt_schema()).unwrap();
        let mut json = serde_json::to_value(&receipt).unwrap();
        assert!(validator.is_valid(&json));
        json["stages"][0]["outcome"] = "perhaps".into();
        assert!(!validator.is_valid(&json));
        json["stages"][0]["outcome"] = "ran".into();
        assert!(validator.is_valid(&json));
        json["schema"] = "fcpipe.receipt/2".into();
        assert!(!validator.is_valid(&json));
    }

    #[test]
    fn critical_path_follows_what_ended_last() {
        let mut rows = vec![
            row("scan:a", 0, 10, &[]),
            row("scan:b", 0, 30, &[]),
            row("layout", 30, 5, &["scan:a", "scan:b"]),
            row("tap", 0, 20, &[]),
            row("boot", 35, 100, &["layout", "tap"]),
        ];
        assert_eq!(critical_path(&rows), ["scan:b", "layout", "boot"]);
        rows.push(Row {
            outcome: Outcome::Skipped,
            ..row("never", 500, 0, &["boot"])
        });
        assert_eq!(critical_path(&rows), ["scan:b", "layout", "boot"]);
        assert!(critical_path(&[]).is_empty());
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let receipt = Receipt {
            schema: RECEIPT_SCHEMA.to_owned(),
            id: "x".to_owned(),
            total_us: 1,
            critical_path: vec!["scan:rootfs".to_owned()],
            stages: vec![row("scan:rootfs", 0, 1, &[])],
            outputs: [(
                "image".to_owned(),
                OutputFile {
                    path: "/i".into(),
                    size: 2,
                    digest: None,
                },
            )]
            .into(),
        };
        let text = serde_json::to_string(&receipt).unwrap();
        assert_eq!(
            text,
            r#"{"schema":"fcpipe.receipt/1","id":"x","total_us":1,"critical_path":["scan:rootfs"],"stages":[{"id":"scan:rootfs","outcome":"ran","key":"","start_us":0,"wall_us":1,"files":0,"bytes_read":0,"bytes_written":0,"deps":[]}],"outputs":{"image":{"path":"/i","size":2}}}"#
        );
        assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), receipt);
    }
}
