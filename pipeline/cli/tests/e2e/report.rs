//! `plan`, `explain` and `report`: what a launch would do, why, and what past ones spent their time on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::world::{World, assert_code, skip_without_machine};

fn bundle_with_code(world: &World) -> std::path::PathBuf {
    let code = world.path("code");
    fs::create_dir_all(&code).unwrap();
    fs::write(code.join("app.py"), "one").unwrap();
    let motd = world.path("motd");
    fs::write(&motd, "hello").unwrap();
    fs::set_permissions(&motd, fs::Permissions::from_mode(0o644)).unwrap();
    let bind = |to: &str, source: &Path| json!({"destination": to, "type": "bind", "source": source, "options": ["bind"]});
    let mounts = [bind("/mnt/code", &code), bind("/etc/motd", &motd)];
    world.bundle(&["true"], &mounts)
}

/// Stage → what a launch would do with it.
fn plan(world: &World, bundle: &Path) -> Vec<(String, String)> {
    let output = world
        .with_kernel()
        .args(["--format", "json", "plan"])
        .arg(bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["schema"], "fcpipe.plan/1");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let stages = plan["stages"].as_array().unwrap();
    stages
        .iter()
        .map(|stage| (text(&stage["id"]), text(&stage["would"])))
        .collect()
}

fn would(plan: &[(String, String)], stage: &str) -> String {
    let found = plan.iter().find(|(id, _)| id == stage);
    found.unwrap_or_else(|| panic!("no {stage}")).1.clone()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn qemu_a_plan_makes_nothing_and_a_changed_file_is_named() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = bundle_with_code(&world);
    let first = plan(&world, &bundle);
    assert_eq!(would(&first, "scan:/mnt/code"), "new");
    assert_eq!(would(&first, "image"), "run");
    assert_eq!(plan(&world, &bundle), first, "a plan changed something");

    let run = || {
        let output = world
            .with_kernel()
            .arg("run")
            .arg(&bundle)
            .output()
            .unwrap();
        assert_code(&output, 0);
    };
    run();
    let built = plan(&world, &bundle);
    for stage in ["scan:/", "scan:/mnt/code", "layout", "image", "initrd"] {
        assert_eq!(would(&built, stage), "hit", "{stage}");
    }
    for effect in ["disk", "machine", "boot", "process"] {
        assert_eq!(would(&built, effect), "always", "{effect}");
    }

    fs::write(world.path("code/app.py"), "four").unwrap();
    fs::set_permissions(world.path("motd"), fs::Permissions::from_mode(0o600)).unwrap();
    let changed = plan(&world, &bundle);
    assert_eq!(would(&changed, "scan:/"), "hit");
    assert_eq!(would(&changed, "scan:/mnt/code"), "changed");
    assert_eq!(would(&changed, "initrd"), "hit");
    assert_eq!(would(&changed, "image"), "run");
    let output = world
        .with_kernel()
        .arg("explain")
        .arg(&bundle)
        .output()
        .unwrap();
    assert_code(&output, 0);
    let said = stdout(&output);
    let line = |words: &str| {
        assert!(
            said.lines().any(|line| line.starts_with(words)),
            "{words}: {said}"
        )
    };
    line("scan:/mnt/code: /mnt/code/app.py: size 3 → 4");
    line("scan:/etc/motd: /etc/motd: mode 0644 → 0600");
    line("group: tree of /etc/motd: /etc/motd: mode 0644 → 0600");
}

#[test]
fn qemu_explain_of_a_stage_that_is_not_there_names_those_that_are() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let output = world
        .with_kernel()
        .args(["explain", bundle.to_str().unwrap(), "imag"])
        .output()
        .unwrap();
    assert_code(&output, 1);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("layout, image"), "{said}");
}

#[test]
fn a_report_shows_a_build_beside_the_one_before() {
    let world = World::new();
    let bundle = bundle_with_code(&world);
    let build = || {
        let output = world
            .fcpipe()
            .arg("build")
            .arg(&bundle)
            .arg("-o")
            .arg(world.path("image"))
            .output()
            .unwrap();
        assert_code(&output, 0);
    };
    let report = |more: &[&str]| world.fcpipe().arg("report").args(more).output().unwrap();
    let none = report(&[]);
    assert_code(&none, 1);

    build();
    build();
    let output = report(&[]);
    assert_code(&output, 0);
    let said = stdout(&output);
    assert!(
        said.contains("the launch before") && said.contains("seal"),
        "{said}"
    );

    let listed = stdout(&report(&["--of", bundle.to_str().unwrap()]));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let id = listed.split_whitespace().next().unwrap();
    let first = stdout(&report(&[id]));
    assert!(!first.contains("the launch before"), "{first}");

    let trace = world.path("trace.json");
    let html = world.path("report.html");
    let files = [
        "--trace",
        trace.to_str().unwrap(),
        "--html",
        html.to_str().unwrap(),
    ];
    assert_code(&report(&files), 0);
    let trace: Value = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 5);
    assert!(fs::read_to_string(html).unwrap().contains("<svg"));
}
