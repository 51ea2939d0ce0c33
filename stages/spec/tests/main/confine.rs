//! What confines a process: from an OCI config's fields to the model, and what is refused.

use fcpipe_spec::{
    Capabilities, DeviceKind, Personality, Propagation, SeccompAction, SeccompArch, SeccompFlag,
    SeccompOp,
};
use serde_json::{Value, json};

use crate::{Bench, config, set, with};

/// The error names the field, and says these words.
#[track_caller]
fn refused(pointer: &str, value: Value, field: &str, words: &str) {
    let bench = Bench::new();
    let error = bench.oci(&with(pointer, value)).unwrap_err();
    assert_eq!(error.field().unwrap_or_default(), field, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// It is read, with one warning that names the field.
#[track_caller]
fn warned(pointer: &str, value: Value, field: &str) {
    let bench = Bench::new();
    let spec = bench.oci(&with(pointer, value)).unwrap();
    assert_eq!(spec.warnings.len(), 1, "{:?}", spec.warnings);
    assert!(
        spec.warnings[0].contains(&format!(": {field}: ")),
        "{:?}",
        spec.warnings
    );
}

#[test]
fn a_config_gives_the_capabilities_that_it_names_and_a_launch_file_all() {
    let bench = Bench::new();
    let spec = bench.oci(&config()).unwrap();
    assert_eq!(spec.process.capabilities, Some(Capabilities::default()));
    let sets =
        json!({"bounding": ["CAP_CHOWN", "CAP_BPF"], "effective": ["CAP_CHOWN"], "ambient": null});
    let spec = bench.oci(&with("/process/capabilities", sets)).unwrap();
    let sets = spec.process.capabilities.unwrap();
    assert_eq!(
        (sets.bounding, sets.effective, sets.ambient),
        (1 | 1 << 39, 1, 0)
    );
    let spec = bench
        .load("launch.yaml", "rootfs: ./rootfs\nprocess: {args: [x]}\n")
        .unwrap();
    assert_eq!(spec.process.capabilities, None);
    warned(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHOWN", "CAP_TELEPORT"]}),
        "process.capabilities.bounding[1]",
    );
}

#[test]
fn limits_scores_and_sizes() {
    let bench = Bench::new();
    let mut config = config();
    set(
        &mut config,
        "/process/rlimits",
        json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX}, {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]),
    );
    set(&mut config, "/process/oomScoreAdj", json!(-1000));
    set(
        &mut config,
        "/process/consoleSize",
        json!({"height": 25, "width": 80}),
    );
    let process = bench.oci(&config).unwrap().process;
    assert_eq!(
        (&*process.rlimits[0].kind, process.rlimits[0].hard),
        ("RLIMIT_CORE", u64::MAX)
    );
    assert_eq!(
        (process.rlimits.len(), process.oom_score_adj),
        (2, Some(-1000))
    );
    let size = process.console_size.unwrap();
    assert_eq!((size.rows, size.columns), (25, 80));

    let limit = |kind: &str, soft: u64| json!({"type": kind, "soft": soft, "hard": 5});
    let list = "/process/rlimits";
    refused(
        list,
        json!([limit("RLIMIT_FUN", 1)]),
        "process.rlimits[0].type",
        "no limit",
    );
    refused(
        list,
        json!([limit("RLIMIT_AS", 1), limit("RLIMIT_AS", 2)]),
        "process.rlimits[1].type",
        "twice",
    );
    refused(
        list,
        json!([limit("RLIMIT_AS", 6)]),
        "process.rlimits[0].soft",
        "hard limit, 5",
    );
    refused(
        list,
        json!([{"type": "RLIMIT_AS", "soft": 1}]),
        "process.rlimits[0].hard",
        "missing",
    );
    refused(
        "/process/oomScoreAdj",
        json!(1001),
        "process.oomScoreAdj",
        "-1000",
    );
    refused(
        "/process/consoleSize",
        json!({"height": 65536}),
        "process.consoleSize.height",
        "65535",
    );
}

#[test]
fn linux_fields_for_the_guest() {
    let bench = Bench::new();
    let spec = bench
        .oci(&with(
            "/linux",
            json!({
                "maskedPaths": ["/proc/../proc//keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys"],
                "sysctl": {"kernel.msgmax": "1", "net.ipv4.ip_forward": "1"},
                "rootfsPropagation": "rslave",
                "personality": {"domain": "LINUX32"},
                "devices": [
                    {"path": "/dev/x", "type": "u", "major": 10, "minor": 200, "fileMode": 0o100640, "uid": 1, "gid": 2},
                    {"path": "/opt/p", "type": "p"},
                ],
                "resources": {"pids": {"limit": 7}, "unified": {"memory.high": "1"}, "devices": [{"allow": false}]},
            }),
        ))
        .unwrap();
    assert!(spec.warnings.is_empty(), "{:?}", spec.warnings);
    let linux = spec.linux;
    assert_eq!(linux.masked_paths, ["/proc/keys", "/sys/firmware"]);
    assert_eq!(linux.readonly_paths, ["/proc/sys"]);
    assert_eq!(linux.sysctl["kernel.msgmax"], "1");
    assert_eq!(linux.root_propagation, Some(Propagation::Slave));
    assert_eq!(spec.process.personality, Some(Personality::Linux32));
    assert_eq!(
        (linux.devices[0].kind, linux.devices[0].mode),
        (DeviceKind::Character, 0o640)
    );
    assert_eq!(
        (linux.devices[1].kind, linux.devices[1].mode),
        (DeviceKind::Fifo, 0o666)
    );
    assert_eq!(
        (linux.pids_limit, &*linux.unified["memory.high"]),
        (Some(7), "1")
    );
    for no_limit in [0, -1] {
        let spec = bench
            .oci(&with(
                "/linux",
                json!({"resources": {"pids": {"limit": no_limit}}}),
            ))
            .unwrap();
        assert_eq!(spec.linux.pids_limit, None);
    }

    refused(
        "/linux",
        json!({"maskedPaths": ["proc"]}),
        "linux.maskedPaths[0]",
        "absolute",
    );
    refused(
        "/linux",
        json!({"rootfsPropagation": "open"}),
        "linux.rootfsPropagation",
        "none of",
    );
    let device = |value: Value| json!({"devices": [value]});
    refused(
        "/linux",
        device(json!({"path": "/x", "type": "q", "major": 1, "minor": 1})),
        "linux.devices[0].type",
        "none of c, u, b and p",
    );
    refused(
        "/linux",
        device(json!({"path": "/x", "type": "c", "major": 4096, "minor": 1})),
        "linux.devices[0].major",
        "no number",
    );
    refused(
        "/linux",
        device(json!({"path": "/x", "type": "c"})),
        "linux.devices[0].major",
        "missing",
    );
}

#[test]
fn what_a_machine_does_not_have_is_said() {
    warned(
        "/process/apparmorProfile",
        json!("docker-default"),
        "process.apparmorProfile",
    );
    warned("/process/selinuxLabel", json!("x"), "process.selinuxLabel");
    warned(
        "/process/scheduler",
        json!({"policy": "SCHED_FIFO"}),
        "process.scheduler",
    );
    warned("/linux", json!({"mountLabel": "x"}), "linux.mountLabel");
    warned("/linux", json!({"intelRdt": {}}), "linux.intelRdt");
    let joined = json!({"namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]});
    warned("/linux", joined, "linux.namespaces[0].path");
}

#[test]
fn filters_of_system_calls() {
    let bench = Bench::new();
    let spec = bench
        .oci(&with(
            "/linux",
            json!({"seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
                     "args": [{"index": 1, "value": 255, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]},
                    {"names": ["ptrace"], "action": "SCMP_ACT_KILL"},
                ],
            }}),
        ))
        .unwrap();
    let filter = spec.process.seccomp.unwrap();
    assert_eq!(filter.default, SeccompAction::Errno(38));
    assert_eq!(
        filter.architectures,
        [SeccompArch::X86_64, SeccompArch::X86]
    );
    assert_eq!(filter.flags, [SeccompFlag::Log]);
    assert_eq!(filter.rules[0].names, ["read", "write"]);
    // EPERM, where nothing is said.
    assert_eq!(filter.rules[1].action, SeccompAction::Errno(1));
    let arg = filter.rules[1].args[0];
    assert_eq!(
        (arg.index, arg.value, arg.value_two, arg.op),
        (1, 255, 3, SeccompOp::MaskedEq)
    );
    assert_eq!(filter.rules[2].action, SeccompAction::KillThread);

    let filter = |value: Value| json!({"seccomp": value});
    refused(
        "/linux",
        filter(json!({})),
        "linux.seccomp.defaultAction",
        "missing",
    );
    refused(
        "/linux",
        filter(json!({"defaultAction": "ALLOW"})),
        "linux.seccomp.defaultAction",
        "none of",
    );
    refused(
        "/linux",
        filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096})),
        "linux.seccomp.defaultErrnoRet",
        "4095",
    );
    let rule =
        |value: Value| filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [value]}));
    refused(
        "/linux",
        rule(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"})),
        "linux.seccomp.syscalls[0].action",
        "in the guest",
    );
    refused(
        "/linux",
        rule(
            json!({"names": ["mount"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}),
        ),
        "linux.seccomp.syscalls[0].args[0].index",
        "six arguments",
    );
}

#[test]
fn hooks_are_programs_by_absolute_paths() {
    let bench = Bench::new();
    let one = json!([{"path": "/bin/hook", "args": ["hook", "x"], "env": ["A=1"], "timeout": 5}]);
    let hooks =
        json!({"prestart": one, "createContainer": one, "poststop": [{"path": "/bin/other"}]});
    let spec = bench.oci(&with("/hooks", hooks)).unwrap();
    let hook = &spec.hooks.create_container[0];
    assert_eq!(
        (&*hook.path, hook.args.len(), hook.timeout),
        ("/bin/hook", 2, Some(5))
    );
    assert_eq!(
        (spec.hooks.prestart.len(), spec.hooks.poststop[0].timeout),
        (1, None)
    );
    refused(
        "/hooks",
        json!({"poststart": [{"path": "hook"}]}),
        "hooks.poststart[0].path",
        "absolute",
    );
    refused(
        "/hooks",
        json!({"poststart": [{}]}),
        "hooks.poststart[0].path",
        "missing",
    );
    refused(
        "/hooks",
        json!({"startContainer": [{"path": "/x", "timeout": 0}]}),
        "hooks.startContainer[0].timeout",
        "seconds",
    );
}
