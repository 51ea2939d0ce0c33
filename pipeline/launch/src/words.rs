//! What a scan found changed, in the words that `explain` prints.

use std::path::Path;

use fcpipe_engine::Change;
use fcpipe_tree::{Difference, FieldValue, ScanChange, Timestamp};

/// `/mnt/code/app.py: size 312 → 330, mtime 10:02:11 → 10:05:40`.
pub(crate) fn notice(destination: &Path, change: &ScanChange) -> Change {
    let path = if change.path.as_os_str().is_empty() {
        destination.to_path_buf()
    } else {
        destination.join(&change.path)
    };
    let label = shown(&path);
    let said = |was: Option<&str>, is: Option<&str>| Change {
        label: label.clone(),
        was: was.map(str::to_owned),
        is: is.map(str::to_owned),
        of: None,
    };
    match &change.what {
        Difference::New => said(None, Some("a name that was not there")),
        Difference::Gone => said(Some("there"), None),
        Difference::Changed(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| {
                    let (was, is) = values(&field.was, &field.is);
                    format!("{} {was} → {is}", field.name)
                })
                .collect();
            Change {
                label: format!("{label}: {}", fields.join(", ")),
                was: None,
                is: None,
                of: None,
            }
        }
    }
}

/// A path as it is, unless it holds what a terminal would obey or what is no text: then in quotes, escaped.
fn shown(path: &Path) -> String {
    let (plain, escaped) = (path.display().to_string(), format!("{path:?}"));
    if escaped[1..escaped.len() - 1] == plain {
        plain
    } else {
        escaped
    }
}

fn values(was: &FieldValue, is: &FieldValue) -> (String, String) {
    if let (FieldValue::Time(was), FieldValue::Time(is)) = (was, is) {
        return times(*was, *is);
    }
    let one = |value: &FieldValue| match value {
        FieldValue::Number(number) => number.to_string(),
        FieldValue::Mode(mode) => format!("{mode:04o}"),
        FieldValue::Time(time) => times(*time, *time).0,
        FieldValue::Kind(kind) => (*kind).to_owned(),
    };
    (one(was), one(is))
}

/// Two times (UTC), with the date where it is not the same and with the fraction where all else is.
fn times(was: Timestamp, is: Timestamp) -> (String, String) {
    const DAY: i64 = 86_400;
    let day = |time: Timestamp| time.secs.div_euclid(DAY);
    let one = |time: Timestamp| {
        let mut text = String::new();
        if day(was) != day(is) {
            let (year, month, day) = civil_date(day(time));
            text = format!("{year:04}-{month:02}-{day:02} ");
        }
        let secs = time.secs.rem_euclid(DAY);
        text += &format!("{:02}:{:02}:{:02}", secs / 3600, secs / 60 % 60, secs % 60);
        if was.secs == is.secs {
            text += &format!(".{:09}", time.nanos);
        }
        text
    };
    (one(was), one(is))
}

/// The date of a day counted from 1970-01-01: Howard Hinnant's `civil_from_days`.
pub fn civil_date(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use fcpipe_tree::FieldChange;

    use super::*;

    #[test]
    fn changes_are_told_in_words() {
        let time = |secs| FieldValue::Time(Timestamp { secs, nanos: 7 });
        let field = |name, was, is| FieldChange { name, was, is };
        let told = |fields| {
            let change = ScanChange {
                path: "app.py".into(),
                what: Difference::Changed(fields),
            };
            notice(Path::new("/mnt/code"), &change).label
        };
        let size = field("size", FieldValue::Number(312), FieldValue::Number(330));
        let at = 20_000 * 86_400 + 36_131;
        assert_eq!(
            told(vec![size, field("mtime", time(at), time(at + 209))]),
            "/mnt/code/app.py: size 312 → 330, mtime 10:02:11 → 10:05:40"
        );
        assert_eq!(
            told(vec![field("mtime", time(at), time(-1))]),
            "/mnt/code/app.py: mtime 2024-10-04 10:02:11 → 1969-12-31 23:59:59"
        );
        let later = FieldValue::Time(Timestamp { secs: at, nanos: 8 });
        assert_eq!(
            told(vec![field("ctime", time(at), later)]),
            "/mnt/code/app.py: ctime 10:02:11.000000007 → 10:02:11.000000008"
        );
        let mode = field("mode", FieldValue::Mode(0o644), FieldValue::Mode(0o4755));
        assert_eq!(told(vec![mode]), "/mnt/code/app.py: mode 0644 → 4755");
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(11_016), (2000, 2, 29));
    }

    #[test]
    fn row_15_names_with_escape_codes_are_harmless() {
        assert_eq!(shown(Path::new("/é ü")), "/é ü");
        assert_eq!(shown(Path::new("/\x1b[31m")), "\"/\\u{1b}[31m\"");
    }

    #[test]
    fn names_that_come_and_go() {
        let change = |what| ScanChange {
            path: "".into(),
            what,
        };
        let new = notice(Path::new("/"), &change(Difference::New));
        assert_eq!((new.label.as_str(), new.was), ("/", None));
        let gone = notice(Path::new("/"), &change(Difference::Gone));
        assert_eq!((gone.label.as_str(), gone.is), ("/", None));
    }
}
