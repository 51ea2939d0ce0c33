//! Specs that are wrong, and commands that need no machine.

use std::fs;

use crate::world::{World, assert_code};

#[test]
fn row_1_a_broken_spec_is_refused_with_line_and_column() {
    let world = World::new();
    let spec = world.path("spec.json");
    fs::write(&spec, "{\n  \"version\": 1,\n  \"rootfs\": }\n").unwrap();
    let output = world.fcpipe().arg("validate").arg(&spec).output().unwrap();
    assert_code(&output, 2);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("spec.json:3:"), "{said}");
    assert_code(&world.fcpipe().arg("run").arg(&spec).output().unwrap(), 125);
}

#[test]
fn row_3_an_unknown_field_is_an_error_with_the_nearest_name() {
    let world = World::new();
    let spec = world.path("spec.yaml");
    fs::create_dir(world.path("root")).unwrap();
    fs::write(
        &spec,
        "version: 1\nrootfs: ./root\nprocess: {args: [x]}\nmount: []\n",
    )
    .unwrap();
    let output = world.fcpipe().arg("validate").arg(&spec).output().unwrap();
    assert_code(&output, 2);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("did you mean `mounts`"), "{said}");
}

#[test]
fn a_valid_bundle_is_validated_as_it_is() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let output = world.fcpipe().arg("validate").arg(bundle).output().unwrap();
    assert_code(&output, 0);
    assert!(String::from_utf8(output.stdout).unwrap().contains("valid"));
}

#[test]
fn row_42_bad_ids_are_refused() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    for id in ["../x", "", &"x".repeat(300)] {
        let output = world
            .fcpipe()
            .args(["run", "--id", id])
            .arg(&bundle)
            .output()
            .unwrap();
        assert_code(&output, 125);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("--id"), "{said}");
    }
}

#[test]
fn a_missing_kernel_is_125_with_a_hint() {
    let world = World::new();
    let bundle = world.bundle(&["true"], &[]);
    let output = world.fcpipe().arg("run").arg(&bundle).output().unwrap();
    assert_code(&output, 125);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("kernel import") || said.contains("is not installed"),
        "{said}"
    );
}

#[test]
fn wrong_usage_is_2_and_125_for_run() {
    let world = World::new();
    assert_code(
        &world
            .fcpipe()
            .args(["build", "--no-such-option"])
            .output()
            .unwrap(),
        2,
    );
    assert_code(
        &world
            .fcpipe()
            .args(["run", "--no-such-option"])
            .output()
            .unwrap(),
        125,
    );
    assert_code(&world.fcpipe().arg("--help").output().unwrap(), 0);
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = world
            .fcpipe()
            .args(["completions", shell])
            .output()
            .unwrap();
        assert_code(&output, 0);
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("validate")
        );
    }
    let dir = world.path("man");
    assert_code(&world.fcpipe().arg("man").arg(&dir).output().unwrap(), 0);
    let help = world.fcpipe().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:").unwrap();
    let lines = commands.lines().skip(1).take_while(|line| !line.is_empty());
    // Deeper ones go on with what a line above says.
    let lines = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in lines.filter_map(|line| line.split_whitespace().next()) {
        let page = dir.join(format!("fcpipe-{name}.1"));
        assert!(name == "help" || page.is_file(), "no page for {name}");
    }
}
