//! Times as other programs read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// A time since 1970 in the form of RFC 3339, in UTC, with nanoseconds.
pub fn rfc3339(time: Duration) -> String {
    let secs = time.as_secs();
    let (year, month, day) = fcpipe_launch::civil_date((secs / 86_400) as i64);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let nanos = time.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        let time = Duration::new(1_728_036_131, 7);
        assert_eq!(rfc3339(time), "2024-10-04T10:02:11.000000007Z");
    }
}
