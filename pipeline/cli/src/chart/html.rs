//! The chart as a page: the picture, and a table of every stage.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::{Comparison, difference, escape, svg, time, word};

const STYLE: &str = "\
body{font:14px/1.5 system-ui,sans-serif;color:#1f2733;max-width:940px;margin:2em auto;padding:0 1em}\
h1{font-size:1.25em;overflow-wrap:anywhere}svg{max-width:100%;height:auto;border:1px solid #e2e5ea}\
table{border-collapse:collapse;width:100%;margin-top:1em}th,td{padding:.25em .6em;text-align:left;\
border-bottom:1px solid #e2e5ea;vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap}\
td.k{font-family:ui-monospace,monospace;font-size:12px}.ran{color:#2a5db0}.hit{color:#24794d}\
.failed{color:#b02a2a}.skipped{color:#5b6472}tr.critical td:first-child{font-weight:600}\
small{color:#5b6472}";

/// A page that needs nothing else: no script, no font, no request.
pub(crate) fn html(launch: &Comparison<'_>) -> String {
    let title = escape(&launch.title());
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
    );
    if let Some(before) = launch.before {
        let change = launch.past.receipt.total_us as i64 - before.receipt.total_us as i64;
        let _ = writeln!(
            out,
            "<p>The launch before, {}: {} in {} ({}).</p>",
            escape(&before.receipt.id),
            escape(&before.result),
            time(before.receipt.total_us),
            difference(change)
        );
    }
    out.push_str(&svg(launch));
    out.push_str(
        "<table><tr><th>stage</th><th>outcome</th><th class=\"n\">start</th><th class=\"n\">time</th>\
         <th class=\"n\">against before</th><th class=\"n\">files</th><th class=\"n\">read</th>\
         <th class=\"n\">written</th><th>key</th></tr>\n",
    );
    for row in launch.rows() {
        let critical = if launch.critical(row) {
            " class=\"critical\""
        } else {
            ""
        };
        let why = launch
            .why(row)
            .map(|why| format!("<br><small>{}</small>", escape(why)))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr{critical}><td>{}{why}</td><td class=\"{word}\">{word}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"k\">{}</td></tr>",
            escape(&row.id),
            time(row.start_us),
            time(row.wall_us),
            launch.change(row).map(difference).unwrap_or_default(),
            row.files,
            HumanBytes(row.bytes_read),
            HumanBytes(row.bytes_written),
            escape(row.key.get(..12).unwrap_or(&row.key)),
            word = word(row.outcome),
        );
    }
    out.push_str(
        "</table>\n<p><small>Bold: what the end had to wait for.</small></p></body></html>\n",
    );
    out
}
