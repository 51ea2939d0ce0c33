//! Launch files: the example of the design, layers over each other, paths.

use std::fs;
use std::path::Path;

use fcpipe_spec::{
    Antispoof, Backing, Group, LoadOptions, MountKind, NetworkMode, Policy, RateLimit, SpecError,
    Writes, load,
};
use serde_json::json;

use crate::{Bench, HOST, at, bind, config, options, set};

const FULL: &str = r#"
version: 1
rootfs: ./rootfs
process: {args: [/bin/sh, -c, "cat /mnt/code/hello.txt"], env: [], cwd: /}
mounts:
  - {source: ./code, destination: /mnt/code, policy: copy, exclude: [".git", "__pycache__"]}
  - {source: /models/7b, destination: /mnt/model, policy: lazy, immutable: true}
machine: {vcpus: 2, memory: 512MiB}
disk: {group: auto, writes: auto, backing: auto, size: 4GiB, journal: false}
network: {netns: /var/run/netns/c1, mode: redirect}
"#;

#[test]
fn the_documented_form() {
    let bench = Bench::new();
    let spec = bench.load("launch.yaml", FULL).unwrap();
    assert_eq!(spec.root.path, bench.path().join("rootfs"));
    assert_eq!(spec.process.args[2], "cat /mnt/code/hello.txt");
    assert_eq!(bind(&spec, 0).source, bench.path().join("code"));
    assert_eq!(bind(&spec, 0).content.exclude, [".git", "__pycache__"]);
    assert_eq!(bind(&spec, 1).source, Path::new("/models/7b"));
    assert_eq!(
        (bind(&spec, 1).policy, bind(&spec, 1).immutable),
        (Policy::Lazy, true)
    );
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (2, 512 << 20));
    assert_eq!(spec.disk.size, Some(4 << 30));
    assert_eq!(spec.network.mode, NetworkMode::Redirect);
    assert!(spec.warnings.is_empty());
}

#[test]
fn json_and_yaml_mean_the_same_whatever_the_file_is_called() {
    let bench = Bench::new();
    let json = json!({
        "version": 1, "rootfs": "./rootfs",
        "process": {"args": ["/bin/sh", "-c", "cat /mnt/code/hello.txt"], "env": [], "cwd": "/"},
        "mounts": [
            {"source": "./code", "destination": "/mnt/code", "policy": "copy", "exclude": [".git", "__pycache__"]},
            {"source": "/models/7b", "destination": "/mnt/model", "policy": "lazy", "immutable": true},
        ],
        "machine": {"vcpus": 2, "memory": 536870912},
        "disk": {"group": "auto", "writes": "auto", "backing": "auto", "size": "4GiB", "journal": false},
        "network": {"netns": "/var/run/netns/c1", "mode": "redirect"},
    });
    let yaml = bench.load("launch.yaml", FULL).unwrap();
    for name in ["launch.json", "launch", "launch.yml", "launch.spec"] {
        let mut spec = bench.load(name, json.to_string()).unwrap();
        spec.file.clone_from(&yaml.file);
        assert_eq!(spec, yaml, "{name}");
    }
    let mut spec = bench.load("launch", FULL).unwrap();
    spec.file.clone_from(&yaml.file);
    assert_eq!(spec, yaml);
}

#[test]
fn plain_yaml_scalars_mean_what_they_look_like() {
    let bench = Bench::new();
    let spec = bench
        .load(
            "l.yaml",
            "rootfs: {path: rootfs, owner: 0:0, idmap: 0:1000:1, readonly: true, exclude: &x [no, 1.10]}\n\
             process: {args: [sleep, 10, 1.10, yes, 012, \"null\"], user: {umask: 0o022}}\n\
             mounts: [{source: a, destination: /a, exclude: *x}]\n\
             hostname: 1234\nmachine: {vcpus: 0x2, smt: True}\n",
        )
        .unwrap();
    assert_eq!(
        spec.process.args,
        ["sleep", "10", "1.10", "yes", "012", "null"]
    );
    assert_eq!(spec.process.umask, Some(0o022));
    assert_eq!(spec.hostname.as_deref(), Some("1234"));
    assert_eq!((spec.machine.vcpus, spec.machine.smt), (2, true));
    assert_eq!(
        (spec.root.content.owner, spec.root.readonly),
        (Some((0, 0)), true)
    );
    assert_eq!(spec.root.content.exclude, ["no", "1.10"]);
    assert_eq!(bind(&spec, 0).content.exclude, ["no", "1.10"]);
    assert_eq!(spec.root.content.gid_map.len(), 1);
}

#[test]
fn a_launch_file_needs_a_root_and_a_process() {
    let bench = Bench::new();
    let file = bench.path().join("l.yaml");
    let error = bench.load("l.yaml", "version: 1\n").unwrap_err();
    at(&error, &file, 1, 1, "process.args");
    let error = bench.load("l.yaml", "process: {args: [a]}\n").unwrap_err();
    at(&error, &file, 1, 1, "rootfs");
    let error = bench.load("l.yaml", "version: 2\n").unwrap_err();
    at(&error, &file, 1, 10, "version");
    let error = bench
        .load(
            "l.yaml",
            "rootfs: rootfs\nprocess: {args: [a]}\nnetwork: {mode: bridge}\n",
        )
        .unwrap_err();
    at(&error, &file, 3, 17, "network.mode");
    let error = bench
        .load("l.yaml", "process: {args: [a]}\nrootfs:\n  path: nothing\n")
        .unwrap_err();
    at(&error, &file, 3, 9, "rootfs.path");
}

#[test]
fn a_network_has_lists_as_lists_or_as_texts() {
    let bench = Bench::new();
    let file = bench.path().join("l.yaml");
    let launch = |network: &str| format!("rootfs: .\nprocess: {{args: [a]}}\nnetwork: {network}\n");
    let spec = bench
        .load(
            "l.yaml",
            launch("{netns: /n, mode: bridge, addresses: [192.168.1.7/24, 'fd00::7/64'], gateways: '192.168.1.1, fd00::1', antispoof: off, tap_prefix: t_, dns: 10.0.0.2, search: a.example}"),
        )
        .unwrap();
    let network = &spec.network;
    assert_eq!(network.decided(), NetworkMode::Bridge);
    let addresses: Vec<String> = network.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.168.1.7/24", "fd00::7/64"]);
    assert_eq!(network.gateways.len(), 2);
    assert_eq!(network.antispoof, Antispoof::Off);
    assert_eq!(network.tap_prefix, "t_");
    assert_eq!(
        network.dns.as_deref(),
        Some(&["10.0.0.2".parse().unwrap()][..])
    );
    assert_eq!(network.search, ["a.example"]);

    let refused = |network: &str| bench.load("l.yaml", launch(network)).unwrap_err();
    let error = refused("{netns: /n, mode: bridge}");
    at(&error, &file, 3, 28, "network.mode");
    assert!(error.to_string().contains("needs an address"), "{error}");
    let error = refused("{netns: /n, addresses: 192.168.1.7/24}");
    assert!(
        error.to_string().contains("is for mode `bridge`"),
        "{error}"
    );
    for wrong in [
        "{addresses: [192.168.1.7]}",
        "{dns: [resolver.example]}",
        "{tap_prefix: sixteen_letters_}",
        "{pool: 10.0.0.1/24}",
        "{antispoof: false}",
        "{search: 'a\nb'}",
    ] {
        refused(wrong);
    }
}

/// A bundle in `bundle/`, with a mount and settings of its own.
fn bundle(bench: &Bench) {
    fs::create_dir_all(bench.path().join("bundle/rootfs")).unwrap();
    let mut config = config();
    for (pointer, value) in [
        ("/root/readonly", json!(true)),
        (
            "/process",
            json!({"args": ["sh"], "cwd": "/srv", "env": ["A=1", "B=2"], "user": {"uid": 1, "gid": 2}}),
        ),
        (
            "/mounts",
            json!([{"destination": "/a", "source": "a", "options": ["bind"]}]),
        ),
        ("/hostname", json!("theirs")),
        (
            "/linux/namespaces",
            json!([{"type": "network", "path": "/n"}]),
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": 256 << 20}, "cpu": {"quota": 200_000, "period": 100_000}}),
        ),
        (
            "/annotations",
            json!({"dev.fcpipe.disk.group": "single", "dev.fcpipe.disk.size": "1GiB", "dev.fcpipe.machine.memory": "300MiB"}),
        ),
    ] {
        set(&mut config, pointer, value);
    }
    bench.write("bundle/config.json", config.to_string());
}

#[test]
fn a_launch_file_adds_to_its_bundle_and_overrides_it() {
    let bench = Bench::new();
    bundle(&bench);
    let spec = bench.load("l.yaml", "bundle: bundle\n").unwrap();
    assert_eq!(spec.file, bench.path().join("l.yaml"));
    assert_eq!(spec.root.path, bench.path().join("bundle/rootfs"));
    // An annotation says it to fcpipe, linux.resources to everyone.
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (2, 300 << 20));
    assert_eq!(
        (spec.disk.group, spec.disk.size),
        (Group::Single, Some(1 << 30))
    );
    let spec = bench
        .load(
            "l.yaml",
            "bundle: ./bundle\n\
             rootfs: {owner: \"3:4\"}\n\
             process: {args: [id], env: [B=3, C=4], user: {gid: 9}}\n\
             mounts: [{source: b, destination: /b, readonly: true}, {destination: /t, type: tmpfs, options: [size=1m]}]\n\
             hostname: ours\n\
             machine: {vcpus: 3}\n\
             disk: {size: 2GiB, backing: lazy, rate_limit: {bandwidth: 100MiB}}\n\
             network: {mode: own}\n",
        )
        .unwrap();
    assert_eq!(spec.process.args, ["id"]);
    assert_eq!(spec.process.env, ["A=1", "B=3", "C=4"]);
    assert_eq!((spec.process.uid, spec.process.gid), (1, 9));
    assert_eq!(spec.process.cwd, Path::new("/srv"));
    assert_eq!(spec.root.content.owner, Some((3, 4)));
    assert!(spec.root.readonly);
    assert_eq!(spec.root.path, bench.path().join("bundle/rootfs"));
    assert_eq!(bind(&spec, 0).source, bench.path().join("bundle/a"));
    assert_eq!(bind(&spec, 1).source, bench.path().join("b"));
    assert!(bind(&spec, 1).readonly);
    assert!(matches!(&spec.mounts[2].kind, MountKind::Guest { fstype, .. } if fstype == "tmpfs"));
    assert_eq!(spec.hostname.as_deref(), Some("ours"));
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (3, 300 << 20));
    assert_eq!(
        (spec.disk.group, spec.disk.size, spec.disk.backing),
        (Group::Single, Some(2 << 30), Backing::Lazy)
    );
    let limit = RateLimit {
        bandwidth: Some(100 << 20),
        ops: None,
    };
    assert_eq!(spec.disk.rate_limit, limit);
    assert_eq!(spec.network.netns.as_deref(), Some(Path::new("/n")));
    assert_eq!(spec.network.mode, NetworkMode::Own);
}

#[test]
fn a_bundle_that_is_none_is_named() {
    let bench = Bench::new();
    let error = bench.load("l.yaml", "bundle: nothing\n").unwrap_err();
    at(&error, &bench.path().join("l.yaml"), 1, 9, "bundle");
    assert!(matches!(error, SpecError::Host { .. }));
    let error = bench.load("l.yaml", "bundle: l.yaml\n").unwrap_err();
    at(&error, &bench.path().join("l.yaml"), 1, 9, "bundle");
    // An error in the bundle has the bundle's place.
    fs::create_dir(bench.path().join("b")).unwrap();
    bench.write("b/config.json", "{}");
    let error = bench.load("l.yaml", "bundle: b\n").unwrap_err();
    at(
        &error,
        &bench.path().join("b/config.json"),
        1,
        1,
        "ociVersion",
    );
}

#[test]
fn overrides_come_last() {
    let bench = Bench::new();
    bundle(&bench);
    let file = bench.write("l.yaml", "bundle: bundle\nmachine: {vcpus: 3}\n");
    let overrides = [
        "machine.vcpus=1",
        "machine.vcpus=4",
        "machine.memory=1GiB",
        "disk.writes=copy",
        "process.args=[echo, \"a b\", 3]",
        "process.env=[D=5]",
        "hostname=x=y",
        "rootfs.owner=0:0",
    ];
    let options = LoadOptions {
        overrides: overrides.map(str::to_owned).to_vec(),
        host: Some(HOST),
        ..options()
    };
    let spec = load(&file, &options).unwrap();
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (4, 1 << 30));
    assert_eq!(spec.disk.writes, Writes::Copy);
    assert_eq!(spec.process.args, ["echo", "a b", "3"]);
    assert_eq!(spec.process.env, ["A=1", "B=2", "D=5"]);
    assert_eq!(spec.hostname.as_deref(), Some("x=y"));
    assert_eq!(spec.root.content.owner, Some((0, 0)));
}

#[test]
fn what_means_something_on_a_bind_only_is_refused_elsewhere() {
    let bench = Bench::new();
    for field in [
        "policy: copy",
        "immutable: true",
        "exclude: [a]",
        "owner: 0:0",
        "idmap: 0:0:1",
        "recursive: true",
    ] {
        let text = format!(
            "rootfs: rootfs\nprocess: {{args: [a]}}\nmounts: [{{destination: /t, type: tmpfs, {field}}}]\n"
        );
        let error = bench.load("l.yaml", text).unwrap_err();
        let name = field.split(':').next().unwrap();
        assert_eq!(error.field(), Some(&*format!("mounts[0].{name}")));
    }
}
