//! Few descriptors, much memory asked for.

use std::fs;

use crate::common::*;

#[test]
fn row_32_sixty_four_open_files_are_enough() {
    if !is_child() {
        again_under(
            &["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""],
            "limits::row_32_sixty_four_open_files_are_enough",
        );
        return;
    }
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(allowed.current, Some(64));
    let place = Place::new();
    for a in 0..30 {
        for b in 0..30 {
            let dir = place.directory(&format!("{a}/{b}/c/d"));
            for f in 0..5 {
                fs::write(dir.join(f.to_string()), b"x").unwrap();
            }
        }
    }
    for f in 0..5000 {
        place.file(&format!("flat/{f}"), b"");
    }
    let options = fcpipe_tree::ScanOptions {
        threads: std::num::NonZeroUsize::new(64),
        ..Default::default()
    };
    let scan = fcpipe_tree::scan(&place.top(), &Default::default(), &options).unwrap();
    assert_eq!(scan.entries, 30 + 30 * 30 * 8 + 5001);
    let all = composed(vec![layer("/", scan)]);
    let mut openers: Vec<_> = (0..8).map(|_| all.opener()).collect();
    for node in all.tree().nodes() {
        if matches!(all.tree().kind(node), fcpipe_tree::Kind::File { .. }) {
            openers[node.index() % 8]
                .open(node)
                .unwrap()
                .check()
                .unwrap();
        }
    }
}
