//! The OCI process inside a machine is what it is under runc: the same bundles, a probe inside that says what it finds, and
//! a comparison field by field. What differs is in a list, each with its reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::probe::probe;
use crate::world::{World, assert_code, not_root, skip, skip_without_machine};

/// A field that differs, and why that is right.
const ALLOWED: &[(&str, &str)] = &[
    (
        "cgroup",
        "runc's cgroup is of the host's version 1, the guest's is its unified one, at its own root",
    ),
    (
        "mounts › / › 0 › root",
        "runc binds a directory of the host; the guest's root is a disk's own",
    ),
    ("mounts › / › 0 › source", "as above"),
    (
        "mounts › / › 0 › super",
        "the options of the host's file system, and of the image's",
    ),
    (
        "mounts › /kept › 0 › root",
        "a mount of the root on itself: as the root",
    ),
    ("mounts › /kept › 0 › source", "as above"),
    ("mounts › /kept › 0 › super", "as above"),
    (
        "mounts › /bound › 0 › root",
        "under runc a directory of the host, here of the image",
    ),
    ("mounts › /bound › 0 › source", "as above"),
    ("mounts › /bound › 0 › super", "as above"),
    (
        "mounts › /sys › 0 › super",
        "the file system is one with the agent's, which can be written; the mount cannot, in both",
    ),
    (
        "fds › open › 0",
        "runc passes input on by a pipe; without `-i` the process here has /dev/null",
    ),
    (
        "status › SigIgn",
        "runc hands on what its caller ignores; here the probe's own runtime ignores one, and nobody else any",
    ),
    (
        "limits › RLIMIT_NOFILE",
        "not in the bundle: runc's are its caller's, the guest's are systemd's defaults",
    ),
    (
        "limits › RLIMIT_NPROC",
        "not in the bundle: both kernels' own, by their memory",
    ),
    ("limits › RLIMIT_SIGPENDING", "as above"),
    (
        "limits › RLIMIT_MEMLOCK",
        "not in the bundle: both kernels' own",
    ),
];

/// What a kernel need not have: the guest's has it, and where the host's has not, these fields differ.
const KERNEL_S: &[(&str, &[&str])] = &[
    (
        "/proc/kcore",
        &["mounts › /proc/kcore", "paths › /proc/kcore", "dev › core"],
    ),
    (
        "/proc/sysrq-trigger",
        &[
            "mounts › /proc/sysrq-trigger",
            "paths › /proc/sysrq-trigger",
        ],
    ),
];

fn no_runc() -> Option<String> {
    let found = Command::new("runc")
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    (!found).then(|| "runc is not installed".to_owned())
}

/// Those that container platforms give, and one more; a host that is a container itself may not have all there are.
const MANY: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYS_ADMIN",
];

/// What the probe is asked besides what it always says.
const QUESTIONS: &[&str] = &[
    "path=/",
    "path=/tmp",
    "path=/etc/passwd",
    "path=/dev/null",
    "path=/dev/full",
    "path=/dev/shm",
    "path=/proc/kcore",
    "path=/proc/keys",
    "path=/proc/sys",
    "path=/proc/sys/kernel/hostname",
    "path=/proc/sysrq-trigger",
    "path=/proc/irq",
    "path=/proc/scsi",
    "path=/proc/timer_list",
    "path=/sys/firmware",
    "path=/hidden",
    "path=/hidden-file",
    "path=/kept",
    "path=/copied",
    "path=/copied/file",
    "path=/scratch",
    "path=/opt/tun",
    "path=/opt/pipe",
    "sysctl=kernel.msgmax",
    "sysctl=fs.mqueue.msg_max",
    "sysctl=kernel.shmmni",
    "sysctl=net.ipv4.ip_default_ttl",
    "call=mkdir",
    "call=mknod",
    "call=chroot",
    "call=sethostname",
    "call=mount",
    "call=sync",
    "call=chown",
    "call=getpgid-1",
    "call=getpgid-0",
    "call=setuid",
];

/// A bundle with the probe, and in its config what `runc spec` writes, but for the control groups: their versions differ
/// by host. `change` makes it this test's.
fn bundle(world: &World, change: &dyn Fn(&mut Value)) -> PathBuf {
    let bundle = world.bundle(&["true"], &[]);
    let root = bundle.join("rootfs");
    fs::copy(probe(), root.join("probe")).unwrap();
    for dir in [
        "home/web",
        "hidden/below",
        "kept",
        "copied/deep",
        "dev",
        "proc",
        "sys",
        "opt",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["hidden-file", "copied/file", "copied/deep/er", "kept/file"] {
        fs::write(root.join(file), "text").unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/home/web:\n",
    )
    .unwrap();
    let mut args = vec!["/probe"];
    args.extend(QUESTIONS);
    let small = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": {"bounding": small, "effective": small, "permitted": small},
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "probed",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                            "/sys/firmware", "/hidden", "/hidden-file", "/not/there"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/kept"],
        },
    });
    change(&mut config);
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

fn under_runc(change: &dyn Fn(&mut Value)) -> Value {
    // A bundle of its own: runc makes mount points in it.
    let world = World::new();
    let bundle = bundle(&world, change);
    let id = format!("fcpipe-test-{}", std::process::id());
    let output = Command::new("runc")
        .arg("--root")
        .arg(world.path("runc"))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_code(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn under_fcpipe(change: &dyn Fn(&mut Value)) -> Value {
    let world = World::new();
    let bundle = bundle(&world, change);
    let output = world.with_kernel().arg("run").arg(bundle).output().unwrap();
    assert_code(&output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the fields that differ, the outermost that does. A list is one field.
fn differ(at: &str, runc: &Value, ours: &Value, found: &mut Vec<String>) {
    let below = |key: &str| {
        if at.is_empty() {
            key.to_owned()
        } else {
            format!("{at} › {key}")
        }
    };
    match (runc, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differ(&below(key), a, b, found),
                    (a, b) => found.push(format!("{}: {a:?} under runc, {b:?} here", below(key))),
                }
            }
        }
        // A mount point's mounts.
        (Value::Array(a), Value::Array(b))
            if a.len() == b.len() && a.iter().all(Value::is_object) =>
        {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&below(&index.to_string()), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: {a} under runc, {b} here")),
    }
}

#[track_caller]
fn compare(name: &str, change: &dyn Fn(&mut Value)) {
    if skip_without_machine() || skip(not_root()) || skip(no_runc()) {
        return;
    }
    expect_same(name, &under_runc(change), &under_fcpipe(change));
}

#[track_caller]
fn expect_same(name: &str, runc: &Value, ours: &Value) {
    let mut found = Vec::new();
    differ("", runc, ours, &mut found);
    found.retain(|line| {
        let field = line.split(": ").next().unwrap();
        let of_the_kernel = KERNEL_S
            .iter()
            .any(|(file, fields)| !Path::new(file).exists() && fields.contains(&field));
        !of_the_kernel && !ALLOWED.iter().any(|(allowed, _)| *allowed == field)
    });
    assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
}

#[test]
fn qemu_root_the_config_that_runc_writes_is_the_same_process() {
    compare("as runc spec writes it", &|_| {});
}

#[test]
fn qemu_root_a_user_with_limits_and_ambient_capabilities_is_the_same_process() {
    compare("a user", &|config| {
        let process = &mut config["process"];
        process["user"] =
            json!({"uid": 33, "gid": 44, "additionalGids": [5, 70000], "umask": 0o027});
        process["cwd"] = json!("/home/web");
        process["env"] = json!(["PATH=/bin", "A=1", "B=two words", "EMPTY="]);
        process["noNewPrivileges"] = json!(false);
        process["oomScoreAdj"] = json!(500);
        let some = ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"];
        process["capabilities"] = json!({
            "bounding": MANY, "permitted": MANY, "effective": some, "inheritable": some,
            "ambient": ["CAP_CHOWN"],
        });
        process["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX},
            {"type": "RLIMIT_NPROC", "soft": 50, "hard": 60},
            {"type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536},
        ]);
        config["root"]["readonly"] = json!(false);
    });
}

#[test]
fn qemu_root_a_filter_of_system_calls_gives_the_same_answers() {
    for no_new_privileges in [true, false] {
        compare("a filter", &|config| {
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            config["process"]["capabilities"] =
                json!({"bounding": MANY, "permitted": MANY, "effective": MANY});
            config["root"]["readonly"] = json!(false);
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["chroot", "nosuchcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
                    {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
                     "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["sync"], "action": "SCMP_ACT_LOG"},
                ],
            });
        });
    }
}

#[test]
fn qemu_root_no_capabilities_devices_parameters_and_other_mounts_are_the_same() {
    compare("the rest", &|config| {
        let process = config["process"].as_object_mut().unwrap();
        process.remove("capabilities");
        process.remove("noNewPrivileges");
        config["root"]["readonly"] = json!(false);
        config["linux"]["sysctl"] = json!({"kernel.msgmax": "12345", "fs.mqueue.msg_max": "77"});
        config["linux"]["rootfsPropagation"] = json!("slave");
        config["linux"]["devices"] = json!([
            {"path": "/opt/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 1, "gid": 2},
            {"path": "/opt/pipe", "type": "p", "fileMode": 0o600},
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0},
        ]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "nodev", "ro", "mode=700", "size=1m"]}),
        );
        mounts.push(
            json!({"destination": "/bound", "type": "bind", "source": "/etc/default",
            "options": ["rbind", "ro", "nosuid", "rshared"]}),
        );
        mounts.push(
            json!({"destination": "/copied", "type": "tmpfs", "source": "tmpfs",
            "options": ["tmpcopyup", "nosuid"]}),
        );
    });
}

/// What a command says on a terminal of 33 lines of 101 characters.
fn on_terminal(command: &Command) -> Value {
    let mut line = "stty rows 33 cols 101 && exec".to_owned();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        line.push_str(&format!(" '{}'", word.to_str().unwrap()));
    }
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]);
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap());
    }
    // Nobody types, and the terminal stays.
    let mut child = script
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_code(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    let json = said.find('{').map(|at| &said[at..]).unwrap_or(&said);
    serde_json::from_str(json.trim()).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn qemu_root_a_terminal_is_the_same() {
    if skip_without_machine() || skip(not_root()) || skip(no_runc()) {
        return;
    }
    let change = |config: &mut Value| config["process"]["terminal"] = json!(true);
    let world = World::new();
    let mut runc = Command::new("runc");
    runc.arg("--root")
        .arg(world.path("runc"))
        .args(["run", "--bundle"]);
    // runc takes over its terminal's size when the process runs already, which may have looked by then; this one it sets before.
    let sized = |config: &mut Value| {
        change(config);
        config["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    };
    runc.arg(bundle(&world, &sized))
        .arg(format!("fcpipe-test-tty-{}", std::process::id()));
    let runc = on_terminal(&runc);
    let world = World::new();
    let bundle = bundle(&world, &change);
    let mut ours = world.with_kernel();
    ours.args(["--progress", "quiet", "run", "-i", "-t"])
        .arg(bundle);
    expect_same("a terminal", &runc, &on_terminal(&ours));
}

/// Runs a script whose config `change` has changed.
fn scripted(world: &World, script: &str, change: impl FnOnce(&mut Value)) -> std::process::Output {
    let bundle = world.bundle(&["sh", "-c", script], &[]);
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
    world
        .with_kernel()
        .args(["run", "--id", "hooked"])
        .arg(bundle)
        .output()
        .unwrap()
}

#[test]
fn qemu_hooks_of_the_guest_run_in_the_container_and_read_its_state() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let hook = |file: &str| {
        let write = format!("read state; echo $state $NAME >> {file}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", write], "env": ["NAME=named"], "timeout": 60}])
    };
    // A root that cannot be written is one only when the first hook has been.
    let output = scripted(&world, "cat /created /scratch/started", |config| {
        config["hooks"] = json!({"createContainer": hook("/created"), "startContainer": hook("/scratch/started")});
        config["annotations"] = json!({"a": "b"});
        config["root"]["readonly"] = json!(true);
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}));
    });
    assert_code(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    for (line, status) in said.lines().zip(["creating", "created"]) {
        let state: Value = serde_json::from_str(line.strip_suffix(" named").unwrap()).unwrap();
        assert_eq!(state["status"], status);
        assert_eq!((&state["id"], &state["pid"]), (&json!("hooked"), &json!(1)));
        assert_eq!(state["annotations"]["a"], "b");
        assert_eq!(state["bundle"], json!(world.path("bundle")));
    }
    assert_eq!(said.lines().count(), 2);

    for (program, script, timeout, words) in [
        ("/bin/sh", "echo because >&2; exit 3", 60, "because"),
        ("/bin/sh", "sleep 100", 1, "timeout"),
        ("/not/there", "", 60, "/not/there"),
    ] {
        let world = World::new();
        let output = scripted(&world, "echo never", |config| {
            config["hooks"] = json!({"startContainer": [{"path": program, "args": ["sh", "-c", script],
                "env": ["PATH=/bin"], "timeout": timeout}]});
        });
        assert_code(&output, 125);
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn qemu_hooks_of_the_guest_begin_with_no_signal_blocked() {
    if skip_without_machine() {
        return;
    }
    // Without a shell, as some clear their mask themselves. A file that is not there makes it fail, so that its words are told.
    let args = ["grep", "-s", "SigBlk", "/proc/self/status", "/not-there"];
    for point in ["createContainer", "startContainer"] {
        let world = World::new();
        let output = scripted(&world, "echo never", |config| {
            config["hooks"] = json!({point: [{"path": "/bin/busybox", "args": args}]});
        });
        assert_code(&output, 125);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("SigBlk:\\t0000000000000000"),
            "{point}: {said}"
        );
    }
}

#[test]
fn row_54_qemu_limits_of_the_cgroup_are_inside_what_the_agent_keeps() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let script = "cd /sys/fs/cgroup; cat pids.max memory.high memory.max; busybox date +%s";
    let output = scripted(&world, script, |config| {
        config["linux"] = json!({"resources": {
            "pids": {"limit": 33},
            "unified": {"memory.high": "50003968", "memory.max": "999999999999"},
        }});
        config["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}),
        );
    });
    assert_code(&output, 0);
    let said = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[..2], [33, 50_003_968]);
    // 512 MiB of machine.
    assert!((256 << 20..512 << 20).contains(&numbers[2]), "{said}");
    // And the clock is the host's, as far as a slow boot lets it be seen.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(now.as_secs().abs_diff(numbers[3]) < 300, "{said}");
}
