//! What the outer machine boots from: a kernel, an initrd that only finds the disk, and the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;

use super::text;
use crate::Result;
use crate::setup;
use crate::shell::{check, command, find, output, root, target};

/// In the Debian root, besides the base system: what the tests call.
const PACKAGES: &str = "acl,attr,btrfs-progs,busybox-static,dmsetup,e2fsprogs,fuse2fs,iproute2,iputils-ping,kmod,\
                        libcap2-bin,nftables,procps,runc,strace,tcpdump,xfsprogs";

/// On the way to the root disk.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// Once the root is there; what a kernel lacks is no matter.
const MODULES: &str = "kvm_amd tun veth bridge sch_ingress cls_u32 cls_bpf cls_matchall cls_flower act_mirred act_gact \
                       act_police af_packet overlay loop fuse dm_mod dm_snapshot xfs btrfs nf_tables nft_chain_nat nft_masq";

/// KVM patches the scheduler's code when the first machine comes and when the last one goes. QEMU's threads may translate such code while it is
/// patched, keep the breakpoint that stands there for a moment, and run into it for ever, on both processors (seen in 7.2). So there is
/// always one machine: an empty one of nobody's (`KVM_CREATE_VM`).
const HOLD_A_MACHINE: &str =
    r#"perl -e 'open(KVM, "+<", "/dev/kvm") && ioctl(KVM, 0xae01, 0) && sleep' &"#;

/// The image's size: sparse, so room costs nothing.
const SIZE: &str = "16GiB";

pub(super) struct Made {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
}

pub(super) fn make(
    dir: &Path,
    firecracker: &Path,
    jailer: Option<&Path>,
    release: bool,
    script: &str,
) -> Result<Made> {
    let debian = debian(dir)?;
    let kernel = kernel(dir)?;
    println!("lab: building the program and its tests");
    let programs = Programs::build(release)?;
    let data = dir.join("data");
    check(
        command(text(&programs.fcpipe)?, &["kernel", "import"])
            .arg(setup::kernel_package()?)
            .env("FCPIPE_DATA_DIR", &data)
            .stdout(Stdio::null()),
    )?;
    let initrd = initrd(dir, &kernel)?;
    let init = dir.join("init");
    write(&init, &init_script(&programs, jailer.is_some(), script)?)?;

    let mount =
        |source: &Path, destination: &Path| json!({"source": source, "destination": destination});
    let same = |path: &Path| mount(path, path);
    let mut mounts = vec![
        same(&programs.fcpipe),
        same(&programs.e2e),
        same(&programs.transcript),
        same(&programs.fake),
        // Where its users look for it.
        same(&programs.fake.with_file_name("fake-jailer")),
        mount(&programs.probe, Path::new("/usr/local/bin/fcpipe-probe")),
        same(&root().join("fixtures")),
        mount(&programs.fcpipe, Path::new("/usr/local/bin/fcpipe")),
        mount(&programs.fake, Path::new("/usr/local/bin/fake-firecracker")),
        mount(firecracker, Path::new("/usr/local/bin/firecracker")),
        mount(&data, Path::new("/var/lib/lab/data")),
        // For the tests that boot a Debian.
        mount(&debian, Path::new("/var/lib/lab/debian")),
        mount(
            &kernel.modules.join(&kernel.release),
            &Path::new("/lib/modules").join(&kernel.release),
        ),
        mount(&init, Path::new("/lab-init")),
    ];
    // `lab-bench launch /usr/local/bin/fcpipe --no-qemu --firecracker /usr/local/bin/firecracker`
    mounts.extend(
        programs
            .bench
            .iter()
            .map(|bench| mount(bench, Path::new("/usr/local/bin/lab-bench"))),
    );
    mounts.extend(jailer.map(|jailer| mount(jailer, Path::new("/usr/local/bin/jailer"))));
    let spec = json!({
        "version": 1,
        "rootfs": debian,
        "process": {"args": ["/lab-init"]},
        "mounts": mounts,
        "disk": {"size": SIZE},
    });
    let spec_file = dir.join("spec.json");
    write(&spec_file, &spec.to_string())?;
    let disk = dir.join("disk.ext4");
    println!("lab: compiling the disk with {}", programs.fcpipe.display());
    check(
        command(text(&programs.fcpipe)?, &["--progress", "quiet", "build"])
            .arg(&spec_file)
            .arg("-o")
            .arg(&disk)
            .env("FCPIPE_CACHE_DIR", dir.join("cache"))
            .env("FCPIPE_STATE_DIR", dir.join("state"))
            // The imported kernel is one of the sources, and its own directory is none to fcpipe.
            .env("FCPIPE_DATA_DIR", dir.join("no-data")),
    )?;
    Ok(Made {
        kernel: kernel.image,
        initrd,
        disk,
    })
}

/// A Debian (or Ubuntu) root of the host's own release, so that programs built here run there. Made once.
fn debian(dir: &Path) -> Result<PathBuf> {
    let (root, done) = (dir.join("root"), dir.join("root.done"));
    let made = fs::read_to_string(&done).unwrap_or_default();
    if made == PACKAGES {
        return Ok(root);
    }
    println!("lab: making a root file system with {PACKAGES}");
    let release =
        fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or("/etc/os-release has no VERSION_CODENAME")?;
    // Half of one is no use.
    let _ = fs::remove_dir_all(&root);
    check(
        command(
            "debootstrap",
            &["--variant=minbase", &format!("--include={PACKAGES}"), suite],
        )
        .arg(&root)
        .stdout(Stdio::null()),
    )?;
    write(&done, PACKAGES)?;
    Ok(root)
}

struct Kernel {
    release: String,
    image: PathBuf,
    /// `lib/modules`, with the release's directory in it.
    modules: PathBuf,
}

/// The kernel package unpacked, with an order for its modules.
fn kernel(dir: &Path) -> Result<Kernel> {
    let package = setup::kernel_package()?;
    let unpacked = dir.join("kernel");
    let of = |names: &str| -> Option<String> {
        let names = fs::read_dir(unpacked.join(names)).ok()?.flatten();
        let mut names: Vec<_> = names.map(|name| name.file_name()).collect();
        names.sort();
        names.pop()?.into_string().ok()
    };
    if of("lib/modules").is_none() {
        check(command("dpkg-deb", &["-x"]).arg(&package).arg(&unpacked))?;
    }
    let release = of("lib/modules").ok_or("the kernel package has no modules")?;
    let image = unpacked.join("boot").join(format!("vmlinuz-{release}"));
    let modules = unpacked.join("lib/modules");
    if !modules.join(&release).join("modules.dep.bin").exists() {
        check(
            command(text(&program("depmod")?)?, &["-b"])
                .arg(&unpacked)
                .arg(&release),
        )?;
    }
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

/// busybox, the modules on the way to the disk, and a script.
fn initrd(dir: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let tree = dir.join("initrd.d");
    let _ = fs::remove_dir_all(&tree);
    for name in ["bin", "modules", "proc", "dev", "root"] {
        make_dir(&tree.join(name))?;
    }
    copy(&program("busybox")?, &tree.join("bin/busybox"))?;
    let mut order = Vec::new();
    for module in DISK_MODULES {
        // `insmod PATH`, a line each, dependencies first.
        let listed = output(
            command(text(&program("modprobe")?)?, &["--show-depends", "-d"])
                .arg(dir.join("kernel"))
                .args(["-S", &kernel.release, module]),
        )?;
        for path in listed
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
        {
            let path = Path::new(path.trim());
            let name = path.file_name().ok_or("a module without a name")?;
            if !order.contains(&name.to_owned()) {
                copy(path, &tree.join("modules").join(name))?;
                order.push(name.to_owned());
            }
        }
    }
    let mut script = String::from("#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n");
    for name in &order {
        script.push_str(&format!(
            "/bin/busybox insmod /modules/{}\n",
            text(Path::new(name))?
        ));
    }
    script.push_str(
        "/bin/busybox mount -t ext4 /dev/vda /root && exec /bin/busybox switch_root /root /lab-init\n",
    );
    write(&tree.join("init"), &script)?;
    let initrd = dir.join("initrd.cpio");
    let pack = format!(
        "find . -print0 | cpio -0 -o -H newc --quiet > '{}'",
        text(&initrd)?
    );
    check(command("sh", &["-c", &pack]).current_dir(&tree))?;
    Ok(initrd)
}

/// The first process of the outer machine. Its last line tells the exit code.
fn init_script(programs: &Programs, jailer: bool, script: &str) -> Result<String> {
    let tmp = target().join("tmp");
    let jailer = match jailer {
        true => "export LAB_JAILER=/usr/local/bin/jailer\n",
        false => "",
    };
    Ok(format!(
        r#"#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /var/run/netns /run/netns
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
export PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root LANG=C.UTF-8
for module in {MODULES}; do modprobe -q $module; done
{HOLD_A_MACHINE}
# An emulated clock ticks in whole milliseconds from a whole second on: now and then a file looks as if its times were kept in tenths of a second or less.
date -s "$(date '+%F %T').000123457" > /dev/null
# Its chatter about guests would stand in the midst of results.
dmesg -n 1
ip link set lo up
hostname lab
mkdir -p '{tmp}'
export FCPIPE_FIRECRACKER=/usr/local/bin/firecracker
# A guest takes ten times as long as on a processor.
export FCPIPE_BOOT_TIMEOUT=300 FCPIPE_TEST_EMULATED=1
{jailer}export FCPIPE_TEST_VMM=firecracker FCPIPE_TEST_DATA_DIR=/var/lib/lab/data FCPIPE_DATA_DIR=/var/lib/lab/data
export FCPIPE_TEST_FAKE_FIRECRACKER='{fake}' FCPIPE_TEST_PROBE=/usr/local/bin/fcpipe-probe
export FCPIPE_TEST_DEBIAN_ROOT=/var/lib/lab/debian
export FCPIPE_TEST_VMLINUX=$(ls /var/lib/lab/data/kernels/v1/*/vmlinux)
export LAB_E2E='{e2e}' LAB_TRANSCRIPT='{transcript}'
cd /root
( {script} ) 2>&1
code=$?
echo
echo "lab: exit $code"
sync
busybox reboot -f
"#,
        tmp = text(&tmp)?,
        fake = text(&programs.fake)?,
        e2e = text(&programs.e2e)?,
        transcript = text(&programs.transcript)?,
    ))
}

/// What is built here and runs there.
struct Programs {
    fcpipe: PathBuf,
    fake: PathBuf,
    probe: PathBuf,
    e2e: PathBuf,
    transcript: PathBuf,
    /// Only where it is built with optimization.
    bench: Option<PathBuf>,
}

impl Programs {
    fn build(release: bool) -> Result<Self> {
        let built = |words: &[&str]| -> Result<Vec<serde_json::Value>> {
            let mut cargo = command("cargo", words);
            if release {
                cargo.arg("--release");
            }
            cargo.args(["--locked", "--quiet", "--message-format=json"]);
            let lines = output(&mut cargo)?;
            Ok(lines
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect())
        };
        let executable =
            |messages: &[serde_json::Value], name: &str, test: bool| -> Result<PathBuf> {
                messages
                    .iter()
                    .filter(|message| message["target"]["name"] == name)
                    .filter(|message| message["profile"]["test"] == test)
                    .find_map(|message| message["executable"].as_str())
                    .map(PathBuf::from)
                    .ok_or_else(|| format!("cargo built no {name}"))
            };
        let programs = built(&["build", "--package", "fcpipe", "--bins"])?;
        let fixtures = built(&[
            "build",
            "--package",
            "fcpipe-fake-firecracker",
            "--package",
            "fcpipe-probe",
            "--bins",
            "--target",
            setup::MUSL,
        ])?;
        let e2e = built(&["test", "--no-run", "--package", "fcpipe", "--test", "e2e"])?;
        let transcript = built(&[
            "test",
            "--no-run",
            "--package",
            "fcpipe-fake-firecracker",
            "--test",
            "transcript",
        ])?;
        let bench = match release {
            true => {
                let built = built(&["build", "--package", "fcpipe-benches", "--bins"])?;
                Some(executable(&built, "bench-ext4", false)?)
            }
            false => None,
        };
        Ok(Self {
            bench,
            fcpipe: executable(&programs, "fcpipe", false)?,
            fake: executable(&fixtures, "fake-firecracker", false)?,
            probe: executable(&fixtures, "fcpipe-probe", false)?,
            e2e: executable(&e2e, "e2e", true)?,
            transcript: executable(&transcript, "transcript", true)?,
        })
    }
}

fn program(name: &str) -> Result<PathBuf> {
    find(name).ok_or_else(|| format!("{name} is not installed"))
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|e| format!("{}: {e}", from.display()))
}

/// Executable, as some of these are scripts.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| format!("{}: {e}", path.display()))
}
