//! Processes with a terminal, as somebody who sits at one sees them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::firecracker;
use crate::world::{
    Leftovers, World, assert_code, ended, skip_without_kernel, skip_without_machine,
};

/// A terminal, and what was seen on it.
struct Screen {
    master: File,
    slave: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Screen {
    fn new() -> Screen {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let slave = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
        Screen::of(File::from(master), slave)
    }

    fn of(master: File, slave: OwnedFd) -> Screen {
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut buffer) {
                to.lock()
                    .unwrap()
                    .push_str(&buffer[..got].escape_ascii().to_string());
            }
        });
        Screen {
            master,
            slave,
            seen,
        }
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.slave.try_clone().unwrap());
        command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    fn typed(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(90);
        while !self.seen.lock().unwrap().contains(text) {
            assert!(
                Instant::now() < end,
                "no {text:?} in {:?}",
                self.seen.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the shell for its terminal's size until it is this one.
    #[track_caller]
    fn wait_for_size(&mut self, size: &str) {
        let end = Instant::now() + Duration::from_secs(90);
        while !self.seen.lock().unwrap().contains(size) {
            assert!(Instant::now() < end, "{:?}", self.seen.lock().unwrap());
            self.typed("stty size\n");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    #[track_caller]
    fn assert_settings(&self, before: &Termios) {
        let now = self.settings();
        let flags = |t: &Termios| {
            (
                t.input_modes,
                t.output_modes,
                t.control_modes,
                t.local_modes,
            )
        };
        assert_eq!(flags(&now), flags(before));
    }
}

/// Where a guest has its terminals.
fn terminals() -> serde_json::Value {
    let options = ["newinstance", "ptmxmode=0666", "mode=0620"];
    serde_json::json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options})
}

#[test]
fn row_57_qemu_a_terminal_is_the_process_s_and_is_put_back_however_the_session_ends() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh"], &[terminals()]);
    let mut screen = Screen::new();
    screen.resize(33, 77);
    let before = screen.settings();
    let run = |id: &str| {
        let mut command = world.with_kernel();
        command.args(["--progress", "quiet", "run", "-it", "--id", id]);
        command.arg(&bundle);
        command
    };
    // An orderly end.
    let mut child = screen.spawn(&mut run("one"));
    screen.wait_for("# ");
    screen.typed("stty size; test -t 0 && echo is$((1+1))a-tty\n");
    screen.wait_for("33 77");
    screen.wait_for("is2a-tty");
    screen.resize(44, 55);
    // As the kernel does where the terminal is the client's own.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    screen.wait_for_size("44 55");
    // ^C is the guest's: it ends what runs there, and not the launch.
    screen.typed("sh -c 'echo runs$((1+1))now; exec sleep 1000'\n");
    screen.wait_for("runs2now");
    screen.typed("\x03");
    screen.typed("echo still$((1+1))here\n");
    screen.wait_for("still2here");
    screen.typed("exit 5\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    screen.assert_settings(&before);

    // The supervisor is killed; then the client.
    for victim in ["supervisor", "client"] {
        let mut screen = Screen::new();
        let before = screen.settings();
        let mut child = screen.spawn(&mut run(victim));
        screen.wait_for("# ");
        screen.typed("echo up$((1+1))now\n");
        screen.wait_for("up2now");
        let supervisors: Vec<u32> = world
            .process_ids("fcpipe")
            .into_iter()
            .filter(|pid| *pid != child.id())
            .collect();
        let pid = match victim {
            "client" => child.id(),
            _ => supervisors[0],
        };
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !world.process_ids("fcpipe").is_empty() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(20));
        }
        screen.assert_settings(&before);
        assert_code(&world.with_kernel().arg("ps").output().unwrap(), 0);
    }
    Leftovers::of(&world).assert_none();
}

#[test]
fn qemu_exec_with_a_terminal_and_one_sent_to_a_console_socket() {
    if skip_without_machine() {
        return;
    }
    let world = World::new();
    let bundle = world.bundle(&["sh"], &[terminals()]);
    let config = bundle.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let with_terminal = text.replacen("\"process\":{", "\"process\":{\"terminal\":true,", 1);
    assert_ne!(text, with_terminal);
    std::fs::write(&config, with_terminal).unwrap();
    let create = |arguments: &[&str]| {
        let mut command = world.with_kernel();
        command.args(["--progress", "quiet", "create", "c1", "--bundle"]);
        command.arg(&bundle).args(arguments);
        command.output().unwrap()
    };
    assert_code(&create(&[]), 1);
    let socket = world.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let receiver = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        let mut parts = [std::io::IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(
            stream.as_fd(),
            &mut parts,
            &mut ancillary,
            RecvFlags::empty(),
        )
        .unwrap();
        let mut fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        fds.next().unwrap()
    });
    assert_code(&create(&["--console-socket", socket.to_str().unwrap()]), 0);
    let master = receiver.join().unwrap();
    let slave = master.try_clone().unwrap();
    let mut screen = Screen::of(File::from(master), slave);
    screen.resize(21, 43);
    assert_code(
        &world.with_kernel().args(["start", "c1"]).output().unwrap(),
        0,
    );
    screen.typed("echo a$((1+1))b\n");
    screen.wait_for("a2b");
    screen.resize(22, 44);
    screen.wait_for_size("22 44");

    let mut beside = Screen::new();
    let mut command = world.with_kernel();
    let mut child = beside.spawn(command.args(["exec", "-it", "c1", "sh"]));
    beside.typed("test -t 1 && echo t$((1+1))y; exit 3\n");
    beside.wait_for("t2y");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    screen.typed("exit 6\n");
    let waited = world.with_kernel().args(["wait", "c1"]).output().unwrap();
    assert_eq!(waited.stdout, b"6\n");
    assert_code(
        &world.with_kernel().args(["delete", "c1"]).output().unwrap(),
        0,
    );
}

/// A shell at such a terminal waits for ever, and says nothing of that itself. The machine is the fake one.
#[test]
fn a_terminal_at_which_nobody_types_is_told_to_who_sits_at_one() {
    if skip_without_kernel() {
        return;
    }
    const NOTE: &str = "at which nobody types";
    let world = firecracker::fake("");
    let run = |arguments: &[&str]| {
        let mut command = firecracker::run(&world, &["echo", "over"]);
        command.args(["--set", "process.terminal=true"]);
        command.args(arguments);
        command
    };
    for (arguments, told) in [(&[][..], true), (&["-i"], false), (&["-t"], false)] {
        let screen = Screen::new();
        assert!(ended(&mut screen.spawn(&mut run(arguments))).success());
        // Whatever is said before.
        screen.wait_for("over");
        let seen = screen.seen.lock().unwrap();
        assert_eq!(seen.contains(NOTE), told, "{arguments:?}: {seen}");
    }
    // In a script, it is what was asked for.
    let output = run(&[]).output().unwrap();
    assert_code(&output, 0);
    assert!(!output.stderr.escape_ascii().to_string().contains(NOTE));
    Leftovers::of(&world).assert_none();
}
