//! docs/launch-file.md says what is so: its example loads, and its tables name every setting.

use std::fs;
use std::path::Path;

use fcpipe_spec::{LoadOptions, load};

use crate::{Bench, config, options};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/launch-file.md");
    fs::read_to_string(path).unwrap()
}

#[test]
fn its_example_loads() {
    let document = document();
    let (_, rest) = document.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let bench = Bench::new();
    fs::create_dir_all(bench.path().join("bundle/rootfs")).unwrap();
    bench.write("bundle/config.json", config().to_string());
    let spec = bench.load("launch.yaml", example).unwrap();
    assert_eq!(spec.mounts.len(), 3);
    assert!(spec.warnings.is_empty());
}

#[test]
fn every_setting_of_its_table_exists() {
    let document = document();
    let bench = Bench::new();
    let file = bench.write("config.json", config().to_string());
    let mut found = 0;
    for line in document.lines() {
        let Some(row) = line.strip_prefix("| `") else {
            continue;
        };
        let (name, _) = row.split_once('`').unwrap();
        if !["machine.", "disk.", "network."]
            .iter()
            .any(|s| name.starts_with(s))
        {
            continue;
        }
        found += 1;
        // Not a value of any of them: the error is about the value, and has no other reason.
        let options = LoadOptions {
            overrides: vec![format!("{name}=[[]]")],
            ..options()
        };
        let error = load(&file, &options).unwrap_err();
        assert!(error.to_string().contains(": expected "), "{name}: {error}");
    }
    assert_eq!(found, 23);
}
