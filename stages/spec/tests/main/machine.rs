//! Row 54: how large the guest is.

use fcpipe_spec::{Balloon, CpuQuota, Host, HugePages, LaunchSpec, LoadOptions, load};
use serde_json::{Value, json};

use crate::{Bench, HOST, options, with};

fn resources(value: Value) -> LaunchSpec {
    Bench::new().oci(&with("/linux/resources", value)).unwrap()
}

fn on(host: Host, value: Value) -> LaunchSpec {
    let bench = Bench::new();
    let file = bench.write("config.json", with("/linux/resources", value).to_string());
    let options = LoadOptions {
        host: Some(host),
        ..options()
    };
    load(&file, &options).unwrap()
}

#[track_caller]
fn warned(spec: &LaunchSpec, field: &str, text: &str) {
    let [warning] = &spec.warnings[..] else {
        panic!("{:?}", spec.warnings);
    };
    assert!(
        warning.contains(field) && warning.contains(text),
        "{warning}"
    );
}

#[test]
fn row_54_cpus_are_quota_by_period_rounded_up() {
    for (quota, period, vcpus) in [
        (1, 100_000, 1),
        (100_000, 100_000, 1),
        (100_001, 100_000, 2),
        (50_000, 25_000, 2),
        (350_000, 100_000, 4),
        (3_200_000, 100_000, 32),
    ] {
        let spec = resources(json!({"cpu": {"quota": quota, "period": period}}));
        assert_eq!(spec.machine.vcpus, vcpus, "{quota}/{period}");
        let kept = CpuQuota {
            quota_us: quota,
            period_us: period,
        };
        assert_eq!(spec.machine.cpu_quota, Some(kept));
        assert!(spec.warnings.is_empty());
    }
}

#[test]
fn row_54_a_quota_without_a_period_has_the_default_and_it_is_said() {
    for period in [Value::Null, json!(0)] {
        let spec = resources(json!({"cpu": {"quota": 250_000, "period": period}}));
        assert_eq!(spec.machine.vcpus, 3);
        assert_eq!(spec.machine.cpu_quota.unwrap().period_us, 100_000);
        warned(&spec, "linux.resources.cpu.", "100000 µs");
    }
}

#[test]
fn row_54_no_limit_is_the_default() {
    let spec = resources(json!({"cpu": {"quota": -1, "period": 100_000}, "memory": {"limit": -1}}));
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (1, 512 << 20));
    assert_eq!(spec.machine.cpu_quota, None);
    assert!(spec.warnings.is_empty());
    // cgroup v1's way to say so.
    let spec = resources(
        json!({"cpu": {"period": 100_000}, "memory": {"limit": 9_223_372_036_854_771_712i64}}),
    );
    assert_eq!((spec.machine.vcpus, spec.machine.memory), (1, 512 << 20));
    assert!(spec.warnings.is_empty());
}

#[test]
fn row_54_zero_is_said() {
    let spec = resources(json!({"cpu": {"quota": 0, "period": 100_000}}));
    assert_eq!((spec.machine.vcpus, spec.machine.cpu_quota), (1, None));
    warned(&spec, "linux.resources.cpu.quota", "1 CPU");
    let spec = resources(json!({"memory": {"limit": 0}}));
    assert_eq!(spec.machine.memory, 512 << 20);
    warned(&spec, "linux.resources.memory.limit", "512 MiB");
    let bench = Bench::new();
    let spec = bench
        .load(
            "l.yaml",
            "rootfs: rootfs\nprocess: {args: [a]}\nmachine: {vcpus: 0}\n",
        )
        .unwrap();
    assert_eq!(spec.machine.vcpus, 1);
    warned(&spec, "l.yaml:3:18: machine.vcpus", "1");
    let spec = bench
        .load(
            "l.yaml",
            "rootfs: rootfs\nprocess: {args: [a]}\nmachine: {memory: 0}\n",
        )
        .unwrap();
    assert_eq!(spec.machine.memory, 128 << 20);
    warned(&spec, "l.yaml:3:19: machine.memory", "128 MiB");
}

#[test]
fn row_54_too_little_memory_becomes_the_least() {
    let spec = resources(json!({"memory": {"limit": (128 << 20) - 1}}));
    assert_eq!(spec.machine.memory, 128 << 20);
    warned(&spec, "linux.resources.memory.limit", "128 MiB");
    let spec = resources(json!({"memory": {"limit": 128 << 20}}));
    assert!(spec.warnings.is_empty());
    // Whole MiB, upwards, which is not worth a word.
    let spec = resources(json!({"memory": {"limit": (200 << 20) + 1}}));
    assert_eq!(spec.machine.memory, 201 << 20);
    assert!(spec.warnings.is_empty());
}

#[test]
fn row_54_more_than_the_host_has_becomes_what_it_has() {
    let host = Host {
        cpus: 2,
        memory: (4 << 30) + 4096,
    };
    let spec = on(host, json!({"cpu": {"quota": 400_000, "period": 100_000}}));
    assert_eq!(spec.machine.vcpus, 2);
    warned(
        &spec,
        "linux.resources.cpu.quota",
        "4 CPUs are more than the host has; the guest has 2",
    );
    let spec = on(host, json!({"memory": {"limit": 5u64 << 30}}));
    assert_eq!(spec.machine.memory, 4 << 30);
    warned(
        &spec,
        "linux.resources.memory.limit",
        "the guest has 4096 MiB",
    );
    let spec = on(
        HOST,
        json!({"cpu": {"quota": 4_000_000, "period": 100_000}}),
    );
    assert_eq!(spec.machine.vcpus, 32);
    warned(
        &spec,
        "linux.resources.cpu.quota",
        "than a VM can have; the guest has 32",
    );
    let spec = on(HOST, json!({"cpu": {"quota": i64::MAX, "period": 1}}));
    assert_eq!(spec.machine.vcpus, 32);
}

#[test]
fn the_rest_of_the_machine() {
    let bench = Bench::new();
    let launch = |machine: &str| {
        let text = format!("rootfs: rootfs\nprocess: {{args: [a]}}\nmachine: {machine}\n");
        bench.load("l.yaml", text)
    };
    let machine = launch("{memory: 301MiB, huge_pages: 2MiB, smt: true, cpu_template: T2S}")
        .unwrap()
        .machine;
    assert_eq!(
        (machine.memory, machine.huge_pages),
        (302 << 20, HugePages::TwoMiB)
    );
    assert!(machine.smt && machine.cpu_template.unwrap().to_string() == "T2S");
    let machine = launch("{balloon: {size: 64MiB, deflate_on_oom: true}}")
        .unwrap()
        .machine;
    let balloon = Balloon {
        size: 64 << 20,
        deflate_on_oom: true,
    };
    assert_eq!(machine.balloon, Some(balloon));
    let error = launch("{balloon: {size: 512MiB}}").unwrap_err();
    assert_eq!(error.field(), Some("machine.balloon.size"));
}
