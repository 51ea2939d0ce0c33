//! What happened to a launch, for other programs: `STATE/ID/events`, a JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

/// The file in a launch's directory.
pub(crate) const FILE: &str = "events";
/// A guest causes some of them, so there is an end.
const LIMIT: u64 = 1 << 20;

/// Writes events of one launch.
#[derive(Debug)]
pub(crate) struct Events {
    file: File,
    id: String,
    written: u64,
}

impl Events {
    pub(crate) fn open(dir: &Path, id: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.join(FILE))?;
        let written = file.metadata()?.len();
        Ok(Events {
            file,
            id: id.to_owned(),
            written,
        })
    }

    /// Adds one: `data` is an object, whose fields go beside `type`, `id` and `time`. Where there is no room for it, it is lost;
    /// the launch goes on.
    pub(crate) fn add(&mut self, kind: &str, data: Value) {
        let mut event = json!({
            "type": kind,
            "id": self.id,
            "time": crate::clock::rfc3339(crate::clock::now()),
        });
        if let (Some(event), Value::Object(data)) = (event.as_object_mut(), data) {
            event.extend(data);
        }
        let line = format!("{event}\n");
        if self.written + line.len() as u64 <= LIMIT && self.file.write_all(line.as_bytes()).is_ok()
        {
            self.written += line.len() as u64;
        }
    }
}
