//! The Firecracker driver against the fake one (`fixtures/fake-firecracker`), which keeps the API's rules and breaks them
//! where it is told to.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fcpipe_vmm::{
    Balloon, Cage, CpuTemplate, Drive, Firecracker, Machine, MachineConfig, Nic, RateLimit,
    ShimProgram, Tuning, Vmm, VmmError, VmmKind, kill_by_mark,
};
use tempfile::{TempDir, tempdir};

use crate::bench::{
    LONG, NEVER, assert_gone, assert_says, config as bare, connect_fails_at_once, eventually,
    is_root, soon,
};

/// What the fake's agent listens on.
const PORT: u32 = 52;

/// Every request of a machine with everything, in their order.
const REQUESTS: [&str; 12] = [
    "GET /version",
    "PUT /metrics",
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /serial",
    "PUT /balloon",
    "PUT /network-interfaces/net0",
    "PUT /drives/drive0",
    "PUT /drives/drive1",
    "PUT /actions",
];

const FAULTS: [&str; 9] = [
    "refuse",
    "fail",
    "hang",
    "half",
    "cut",
    "garbage",
    "flood",
    "die",
    "die-after",
];

/// A directory with a fake, files for it, and a launch's directory.
struct World {
    root: TempDir,
    /// With a shim each machine is in a jail.
    cage: Cage,
}

/// Jails are root's.
fn jails() -> &'static [bool] {
    if is_root() { &[false, true] } else { &[false] }
}

impl World {
    fn new(control: &str) -> Self {
        let root = tempdir().unwrap();
        fcpipe_fake_firecracker::install(root.path(), control).unwrap();
        fs::create_dir(root.path().join("launch")).unwrap();
        fs::write(root.path().join("vmlinux"), b"\x7fELF and no more").unwrap();
        fs::write(root.path().join("initrd"), "").unwrap();
        fs::write(root.path().join("disk"), [0; 4096]).unwrap();
        Self {
            root,
            cage: Cage::default(),
        }
    }

    fn jailed(control: &str, jailed: bool) -> Self {
        let mut world = Self::new(control);
        if jailed {
            // It ends when its input does, as the product's own.
            let shim = ShimProgram {
                path: "/bin/cat".into(),
                args: Vec::new(),
            };
            let dir = world.path("launch");
            world.cage = Cage::new(Default::default(), Some(&shim), &dir).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn firecracker(&self) -> Firecracker {
        Firecracker {
            jailer: self.cage.shim().map(|_| fcpipe_fake_firecracker::jailer()),
            ..Firecracker::new(self.path("firecracker"))
        }
    }

    fn config(&self) -> MachineConfig {
        let mut config = bare(&self.path("launch"));
        config.kernel.vmlinux = self.path("vmlinux");
        config.initrd = self.path("initrd");
        config.cage = self.cage.clone();
        config
    }

    /// With every device that there is.
    fn full(&self) -> MachineConfig {
        let mut config = self.config();
        config.nics.push(Nic {
            tap: "fake0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
        });
        let limit = RateLimit {
            bandwidth: Some(1 << 20),
            ops: Some(100),
        };
        config.tuning = Tuning {
            cpu_template: Some(CpuTemplate::T2),
            smt: true,
            huge_pages: true,
            balloon: Some(Balloon {
                mib: 64,
                deflate_on_oom: true,
            }),
            drive_limit: limit,
            net_limit: limit,
        };
        config
    }

    fn drives(&self) -> Vec<Drive> {
        let drive = |read_only| Drive {
            path: self.path("disk"),
            read_only,
        };
        vec![drive(true), drive(false)]
    }

    fn start(&self, firecracker: &Firecracker) -> Result<Box<dyn Machine>, VmmError> {
        firecracker.start(&self.full(), &self.drives(), NEVER)
    }

    fn assert_nothing_runs(&self) {
        let Some(shim) = self.cage.shim() else {
            assert_eq!(kill_by_mark(&self.path("launch")).unwrap(), 0);
            return;
        };
        // Jailers drop the mark; but what they start stays in the namespace.
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(shim.pid).unwrap();
        eventually("the jail is empty", || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let inside = pids.filter(|&pid| namespace(pid).as_ref() == Some(&own));
            inside.collect::<Vec<u32>>() == [shim.pid]
        });
    }
}

/// Little patience with what a program was told not to answer (`start`: to come up), and the usual one with everything else: a
/// busy host makes anything late.
fn impatient(world: &World, request: &str) -> Firecracker {
    let mut firecracker = world.firecracker();
    let timeout = match request {
        "start" => &mut firecracker.api_timeout,
        "PUT /actions" => &mut firecracker.start_timeout,
        // Those before it have the same.
        _ => &mut firecracker.request_timeout,
    };
    *timeout = Duration::from_secs(3);
    firecracker
}

#[test]
fn a_machine_with_everything_starts_answers_pauses_and_ends() {
    let world = World::new("");
    let machine = world.start(&world.firecracker()).unwrap();
    assert_eq!(machine.kind(), VmmKind::Firecracker);
    drop(machine.connect(PORT, Instant::now() + LONG, NEVER).unwrap());
    machine.pause().unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.wait_exit(Duration::ZERO), None);
    let marks = machine.processes();
    assert_eq!(marks.len(), 1);
    machine.ctrl_alt_del().unwrap();
    let exit = machine.wait_exit(LONG).unwrap();
    assert!(exit.is_clean(), "{exit}");
    assert!(
        machine
            .console_tail()
            .ends_with(b"reboot: Restarting system\n")
    );
    assert_gone(&marks);
    world.assert_nothing_runs();
}

#[test]
fn dropping_at_any_point_ends_the_process() {
    let world = World::new("");
    let prepared = world.firecracker().prepare(&world.config(), NEVER).unwrap();
    let marks = prepared.processes();
    drop(prepared);
    assert_gone(&marks);
    let machine = world.start(&world.firecracker()).unwrap();
    let marks = machine.processes();
    drop(machine);
    assert_gone(&marks);
}

#[test]
fn row_15_52_paths_of_any_bytes_and_any_length() {
    let world = World::new("");
    let mut dir = world.path("launch");
    for _ in 0..10 {
        dir.push("d".repeat(100));
    }
    let odd = OsStr::from_bytes(b"not\xffutf-8 \"and\n quoted");
    fs::create_dir_all(dir.join(odd)).unwrap();
    let mut config = world.config();
    config.dir = dir.join(odd);
    config.initrd = world.root.path().join(odd);
    fs::write(&config.initrd, "").unwrap();
    let drive = Drive {
        path: config.dir.join(odd),
        read_only: true,
    };
    fs::write(&drive.path, [0; 512]).unwrap();
    let machine = world.firecracker().start(&config, &[drive], NEVER).unwrap();
    drop(machine.connect(PORT, Instant::now() + LONG, NEVER).unwrap());
}

/// Each way of going wrong at each request, in a jail and not: one error that names what went wrong, soon, and nothing that
/// runs on.
#[test]
fn row_44_45_every_failure_at_every_request() {
    for &jailed in jails() {
        std::thread::scope(|scope| {
            for request in REQUESTS {
                scope.spawn(move || {
                    for fault in FAULTS {
                        fails_well(request, fault, jailed);
                    }
                });
            }
        });
    }
}

/// That list has every request there is: each of them and no other reaches the process.
#[test]
fn the_requests_of_a_machine_with_everything() {
    for &jailed in jails() {
        let world = World::jailed("", jailed);
        drop(world.start(&world.firecracker()).unwrap());
        let log = fs::read_to_string(world.path("launch/firecracker.log")).unwrap();
        let sent = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once("The API server received a ")?;
            let (method, rest) = rest.split_once(" request on \"")?;
            let (path, _) = rest.split_once('"')?;
            Some(format!("{} {path}", method.to_uppercase()))
        });
        assert_eq!(sent.collect::<Vec<_>>(), REQUESTS, "jailed: {jailed}");
    }
}

fn fails_well(request: &str, fault: &str, jailed: bool) {
    let world = World::jailed(&format!("{request} {fault}"), jailed);
    let firecracker = match fault {
        "hang" | "half" => impatient(&world, request),
        _ => world.firecracker(),
    };
    let begun = Instant::now();
    let started = world.start(&firecracker);
    let last = request == REQUESTS[REQUESTS.len() - 1];
    let error = match (started, last && fault == "die-after") {
        // The guest has been started by then: it shows at the first connection.
        (Ok(machine), true) => machine
            .connect(PORT, Instant::now() + LONG, NEVER)
            .unwrap_err(),
        (Ok(_), false) => panic!("{request} {fault}: it started"),
        (Err(error), _) => error,
    };
    let case = format!("{request} {fault}, jailed {jailed}: {error}");
    assert!(begun.elapsed() < LONG, "{case}");
    let text = error.to_string();
    match (fault, &error) {
        ("refuse", VmmError::Refused { status: 400, .. }) => {
            assert!(text.contains(request), "{case}");
            assert!(text.contains("told to refuse"), "{case}");
        }
        ("fail", VmmError::Refused { status: 500, .. }) => {}
        ("die" | "die-after", VmmError::Exited { status, .. }) => {
            assert_eq!(status, "status 1", "{case}");
            assert!(text.contains("told to end"), "{case}");
        }
        ("hang" | "half" | "cut" | "garbage" | "flood", VmmError::Api { call, .. }) => {
            assert_eq!(call, request, "{case}");
        }
        _ => panic!("{case}"),
    }
    let logs = error.logs().unwrap().to_string();
    assert!(logs.contains("Running Firecracker v"), "{case}\n{logs}");
    world.assert_nothing_runs();
}

#[test]
fn row_44_a_process_that_does_not_come_up() {
    let world = World::new("start exit");
    let error = world.start(&world.firecracker()).err().unwrap();
    assert!(
        matches!(
            error,
            VmmError::Exited {
                program: "firecracker",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("told to exit"), "{error}");

    let world = World::new("start silent");
    let error = world.start(&impatient(&world, "start")).err().unwrap();
    assert!(matches!(error, VmmError::NotReady { .. }), "{error:?}");
    world.assert_nothing_runs();

    let world = World::new("start deaf");
    let impatient = impatient(&world, "GET /version");
    let error = world.start(&impatient).err().unwrap();
    assert!(
        matches!(&error, VmmError::Api { call, .. } if call == "GET /version"),
        "{error:?}"
    );
    world.assert_nothing_runs();

    let world = World::new("");
    let gone = Firecracker::new(world.path("no-such-firecracker"));
    let error = world.start(&gone).err().unwrap();
    assert!(matches!(error, VmmError::Spawn { .. }), "{error:?}");
}

#[test]
fn row_44_a_version_that_this_driver_does_not_know() {
    for (version, why) in [
        ("1.7.0", "the first whose devices"),
        ("2.0.0", "knows the API of 1.x"),
        ("0.24.1", "knows the API of 1.x"),
        ("nonsense", "names no version"),
    ] {
        let world = World::new(&format!("version {version}"));
        let error = world.start(&world.firecracker()).err().unwrap();
        assert!(error.to_string().contains(why), "{version}: {error}");
        world.assert_nothing_runs();
    }
    // One that is old but known is not asked for what it has not.
    let world = World::new("version 1.8.0\nPUT /serial refuse");
    let machine = world.start(&world.firecracker()).unwrap();
    let error = machine.ctrl_alt_del().unwrap_err();
    assert!(error.to_string().contains("1.8.0"), "{error}");
}

#[test]
fn row_45_a_guest_that_panics_stays_mute_or_dies() {
    let world = World::new("guest panic");
    let machine = world.start(&world.firecracker()).unwrap();
    let error = connect_fails_at_once(&*machine);
    assert!(
        matches!(&error, VmmError::Panic { line, .. } if line.ends_with("told to panic")),
        "{error:?}"
    );

    let world = World::new("guest dies");
    let machine = world.start(&world.firecracker()).unwrap();
    let error = connect_fails_at_once(&*machine);
    assert!(
        matches!(&error, VmmError::Exited { status, .. } if status == "status 0"),
        "{error:?}"
    );

    let world = World::new("guest mute");
    let machine = world.start(&world.firecracker()).unwrap();
    assert_says(&*machine, "booting without an agent");
    let error = machine.connect(PORT, soon(300), NEVER).unwrap_err();
    assert!(matches!(error, VmmError::NoAnswer { .. }), "{error:?}");
    let logs = error.logs().unwrap().to_string();
    assert!(logs.contains("booting without an agent"), "{logs}");
    drop(machine);
    world.assert_nothing_runs();
}

#[test]
fn row_49_cancelling_ends_a_request_that_hangs() {
    let world = World::new("PUT /vsock hang");
    let begun = Instant::now();
    let after = Duration::from_millis(300);
    let firecracker = world.firecracker();
    let cancelled = firecracker.start(&world.full(), &[], &|| begun.elapsed() > after);
    assert!(matches!(cancelled, Err(VmmError::Cancelled)));
    world.assert_nothing_runs();
}

#[test]
fn row_53_a_kernel_in_another_form() {
    let world = World::new("");
    fs::write(world.path("vmlinux"), "MZ and so on").unwrap();
    let error = world.start(&world.firecracker()).err().unwrap();
    assert!(
        matches!(&error, VmmError::Kernel { path, kind: VmmKind::Firecracker, .. } if *path == world.path("vmlinux")),
        "{error:?}"
    );
    assert!(nothing_was_started(&world));
}

#[test]
fn row_54_what_cannot_be_is_refused_before_anything_is_started() {
    let world = World::new("");
    let firecracker = world.firecracker();
    let refused = |change: &dyn Fn(&mut MachineConfig)| {
        let mut config = world.config();
        change(&mut config);
        let error = firecracker.prepare(&config, NEVER).err().unwrap();
        assert!(matches!(error, VmmError::Config { .. }), "{error:?}");
        assert!(nothing_was_started(&world));
    };
    refused(&|config| config.vcpus = 33);
    refused(&|config| config.memory_mib = 0);
    refused(&|config| {
        let nic = |number| Nic {
            tap: format!("tap{number}"),
            mac: [2, 0, 0, 0, 0, number],
            mtu: 1500,
        };
        config.nics = (0..15).map(nic).collect();
    });
}

#[test]
fn row_54_kernel_arguments_that_are_too_long_and_drives_that_are_too_many() {
    let world = World::new("");
    let firecracker = world.firecracker();
    let mut config = world.config();
    config.cmdline_extra = "x".repeat(2048);
    let error = firecracker.prepare(&config, NEVER).err().unwrap();
    assert!(error.to_string().contains("kernel arguments"), "{error}");
    world.assert_nothing_runs();

    let config = world.config();
    let slots = firecracker.drive_slots(0, &config.tuning);
    let drive = world.drives().remove(0);
    let machine = firecracker.start(&config, &vec![drive.clone(); slots], NEVER);
    // The fake, as a real one does, refuses one device more than these.
    drop(machine.unwrap());
    let prepared = firecracker.prepare(&config, NEVER).unwrap();
    let error = prepared.boot(&vec![drive; slots + 1], NEVER).err().unwrap();
    assert!(
        error.to_string().contains("there is room for 15"),
        "{error}"
    );
    world.assert_nothing_runs();
}

/// No file of a launch has been made.
fn nothing_was_started(world: &World) -> bool {
    let is_empty = |dir: &Path| fs::read_dir(dir).unwrap().next().is_none();
    is_empty(&world.path("launch"))
}
