//! The chart for trace viewers: Chrome's trace event format, which Perfetto reads too.
//!
//! Format: "Trace Event Format" (Chromium project); `X` is a complete event, times are microseconds.

use serde_json::json;

use super::{Comparison, word};

/// The launch as a trace. Rows that overlap are in different lanes.
pub(crate) fn trace(launch: &Comparison<'_>) -> String {
    let mut rows: Vec<_> = launch.rows().iter().collect();
    rows.sort_by_key(|row| (row.start_us, std::cmp::Reverse(row.wall_us)));
    // For each lane, when it is free again.
    let mut lanes: Vec<u64> = Vec::new();
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 1, "tid": 0,
        "args": {"name": launch.title()},
    })];
    for row in rows {
        let end = row.start_us + row.wall_us;
        let free = lanes.iter().position(|&free| free <= row.start_us);
        let lane = free.unwrap_or_else(|| {
            lanes.push(0);
            lanes.len() - 1
        });
        lanes[lane] = end;
        events.push(json!({
            "name": row.id,
            "cat": word(row.outcome),
            "ph": "X",
            "ts": row.start_us,
            "dur": row.wall_us,
            "pid": 1,
            "tid": lane + 1,
            "args": {
                "outcome": row.outcome,
                "key": row.key,
                "files": row.files,
                "bytes_read": row.bytes_read,
                "bytes_written": row.bytes_written,
                "critical": launch.critical(row),
                "why": launch.why(row),
            },
        }));
    }
    format!(
        "{}\n",
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    )
}
