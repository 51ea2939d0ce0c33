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
/// Room that is kept for the others: how a launch ended is told however often its guest ran out of memory before.
const RESERVE: u64 = 256 << 10;

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
        let limit = match kind {
            "oom" | "warning" => LIMIT - RESERVE,
            _ => LIMIT,
        };
        let line = format!("{event}\n");
        if self.written + line.len() as u64 <= limit && self.file.write_all(line.as_bytes()).is_ok()
        {
            self.written += line.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_61_a_guest_that_causes_events_without_end_leaves_room_for_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::open(dir.path(), "one").unwrap();
        for kills in 0..20_000 {
            events.add("oom", json!({"where": "guest", "kills": kills}));
            events.add("warning", json!({"node": "tap", "message": "again"}));
        }
        // Opened again by whoever finds it dead.
        let mut events = Events::open(dir.path(), "one").unwrap();
        events.add("error", json!({"message": "x".repeat(10_000)}));
        events.add("exit", json!({"code": null}));
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.len() as u64 <= LIMIT, "{}", text.len());
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["type"], "exit");
    }
}
