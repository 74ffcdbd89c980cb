//! The emulated machine: its devices, its start, its lines, its end.
//!
//! The first serial port is the kernel's console and goes to a file, the second carries the
//! scenarios' lines and is QEMU's standard output. QEMU dies with this tool, however this tool
//! ends.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use super::kernel::Kernel;
use super::qemu::Qemu;

/// How long a guest may take to boot and to stop, beside its scenarios.
pub const BOOT: Duration = Duration::from_secs(180);

/// The NVDIMM for device-dax. It comes first: pages of 1 GiB need a region that starts at such an
/// address.
const DEVICE_BYTES: u64 = 4 << 30;
/// The same where it is to be large.
const LARGE_BYTES: u64 = 1 << 40;
/// The NVDIMM for file systems with dax.
const DAX_BYTES: u64 = 1 << 30;
/// The memory of a guest that needs no more.
pub const USUAL_MEMORY: &str = "2G";
/// The files that are the NVDIMMs.
pub const MEMORIES: [&str; 2] = ["nvdimm0", "nvdimm1"];
/// Each CXL memory device, and the labels of the persistent one.
const CXL_BYTES: u64 = 512 << 20;
const LABEL_BYTES: u64 = 1 << 20;
/// The disk.
const DISK_BYTES: u64 = 1 << 30;

/// What a guest is booted for.
#[derive(Debug)]
pub struct Wanted<'w> {
    /// The scenarios, in order.
    pub names: &'w [&'w str],
    /// More words for kernel and scripts, on the kernel's command line.
    pub words: &'w str,
    /// How much memory it has beside its devices.
    pub memory: &'w str,
    /// Which memory devices it has.
    pub devices: &'w Devices,
    /// When it is stopped at the latest.
    pub limit: Duration,
}

/// The memory devices of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Two NVDIMMs.
    Nvdimms,
    /// One of 1 TiB, whose file takes no room.
    LargeNvdimm,
    /// A volatile and a persistent CXL memory device, by a QEMU that has them.
    Cxl(Qemu),
}

/// What is to become of the guest after a line of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on as before.
    GoOn,
    /// It is killed after so long, as by a power failure that loses no store.
    KillAfter(Duration),
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    PoweredOff,
    /// It was stopped at its limit.
    OutOfTime,
    /// It was killed, as was asked for.
    Killed,
    /// The kernel met a breakpoint of its own while it patched its code: the emulation's fault, and
    /// nobody else's.
    EmulationFailed,
}

/// What the console says then.
const EMULATION_FAILED: &str = "Oops: int3";

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::PoweredOff => "the guest stopped",
            End::OutOfTime => "the guest's time was up",
            End::Killed => "the guest was killed",
            End::EmulationFailed => "the emulation failed",
        })
    }
}

/// How often a guest is booted that ends before its first process says a word.
const BOOTS: u32 = 3;

/// Boots `kernel` for `wanted` with its files in `place`, hands each of its lines to `hear`, and
/// returns when it has stopped or has been stopped. Emulated kernels now and then fail before their
/// first process: the next try is printed, and nothing of pgmap has run until then.
///
/// # Errors
/// A file that could not be made, a QEMU that could not be started.
pub fn run(
    place: &Path,
    kernel: &Kernel,
    image: &Path,
    wanted: &Wanted<'_>,
    mut hear: impl FnMut(&str) -> Next,
) -> io::Result<End> {
    for attempt in 1.. {
        let mut is_silent = true;
        let end = boot(place, kernel, image, wanted, |line| {
            is_silent = false;
            hear(line)
        })?;
        let is_failure = matches!(end, End::PoweredOff | End::EmulationFailed);
        if !is_silent || !is_failure || attempt == BOOTS {
            return Ok(end);
        }
        let console = place.join(format!("console-failed-{attempt}.log"));
        std::fs::rename(place.join("console.log"), &console)?;
        println!("         the kernel did not boot ({}): once more", console.display());
    }
    Ok(End::PoweredOff)
}

/// One boot; see [`run`].
fn boot(
    place: &Path,
    kernel: &Kernel,
    image: &Path,
    wanted: &Wanted<'_>,
    mut hear: impl FnMut(&str) -> Next,
) -> io::Result<End> {
    let mut command = qemu(place, kernel, image, wanted)?;
    command.arg("-serial").arg(file_option("file:", &place.join("console.log"), ""));
    command.args(["-serial", "stdio", "-monitor", "none"]).stdin(Stdio::null());
    let mut output = File::options().create(true).append(true).open(place.join("output.log"))?;
    let mut child = Guard(command.stdout(Stdio::piped()).spawn()?);
    let mut end = Instant::now() + wanted.limit;
    let mut is_killed = false;
    let (sender, lines) = mpsc::channel();
    let reader = child.0.stdout.take().map(BufReader::new);
    let reading = thread::spawn(move || {
        for line in reader.into_iter().flat_map(|reader| reader.split(b'\n')).map_while(Result::ok)
        {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let how = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(output, "{line}")?;
                if let Next::KillAfter(delay) = hear(&line) {
                    end = end.min(Instant::now() + delay);
                    is_killed = true;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                break if is_killed { End::Killed } else { End::OutOfTime };
            }
            Err(RecvTimeoutError::Disconnected) => break End::PoweredOff,
        }
    };
    drop(child);
    // QEMU is gone, so its output has ended.
    let _ = reading.join();
    let console = std::fs::read(place.join("console.log")).unwrap_or_default();
    if how == End::PoweredOff && String::from_utf8_lossy(&console).contains(EMULATION_FAILED) {
        return Ok(End::EmulationFailed);
    }
    Ok(how)
}

/// Boots `kernel` with a shell on this terminal.
///
/// # Errors
/// As [`run`].
pub fn shell(place: &Path, kernel: &Kernel, image: &Path) -> io::Result<()> {
    let limit = Duration::MAX;
    let (devices, memory) = (&Devices::Nvdimms, USUAL_MEMORY);
    let wanted = Wanted { names: &["shell"], words: "", memory, devices, limit };
    let mut command = qemu(place, kernel, image, &wanted)?;
    command.args(["-serial", "mon:stdio", "-serial", "null"]);
    Guard(command.spawn()?).0.wait()?;
    Ok(())
}

/// A QEMU that ends with its guard.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command that boots a machine, but for its serial ports.
fn qemu(place: &Path, kernel: &Kernel, image: &Path, wanted: &Wanted<'_>) -> io::Result<Command> {
    let own = Qemu::own();
    let (qemu, cpu) = match wanted.devices {
        // QEMU 7.2 emulates cmpxchg16b in a way that Linux 6.12 did not survive.
        Devices::Nvdimms => (&own, "max,-cx16"),
        // More than the 40 bits of address that an emulated processor has otherwise.
        Devices::LargeNvdimm => (&own, "max,-cx16,phys-bits=46"),
        // With the bit of a hypervisor the kernel does not flush caches, and so makes no CXL
        // region.
        Devices::Cxl(qemu) => (qemu, "max,-cx16,-hypervisor"),
    };
    // setpriv has the kernel end QEMU when the thread that started it ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nice", "-n", "5"]).arg(&qemu.program);
    command.args(qemu.data.iter().flat_map(|folder| [OsStr::new("-L"), folder.as_os_str()]));
    command.args(["-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2"]);
    let most = if *wanted.devices == Devices::LargeNvdimm { "4T" } else { "16G" };
    command.args(["-m", &format!("{},slots=4,maxmem={most}", wanted.memory)]);
    match wanted.devices {
        Devices::Nvdimms => {
            let sizes = [DEVICE_BYTES, DAX_BYTES];
            add_nvdimms(&mut command, place, MEMORIES.into_iter().zip(sizes))?;
        }
        Devices::LargeNvdimm => {
            add_nvdimms(&mut command, place, [("nvdimm-large", LARGE_BYTES)].into_iter())?;
        }
        Devices::Cxl(_) => add_cxl(&mut command, place)?,
    }
    let disk = place.join("disk");
    make_sparse(&disk, DISK_BYTES)?;
    command.arg("-drive");
    command.arg(file_option("if=none,id=disk,format=raw,cache=unsafe,file=", &disk, ""));
    command.args(["-device", "virtio-blk-pci,drive=disk,bus=pcie.0"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
    let names = wanted.names.join(",");
    // On a busy host the emulated timer is late, and the kernel would take it for broken.
    let fixed = "console=ttyS0 panic=-1 loglevel=4 no_timer_check";
    let words = format!("{fixed} pgmap.scenarios={names} {}", wanted.words);
    command.arg("-append").arg(words);
    command.args(["-display", "none", "-nodefaults", "-no-reboot"]);
    Ok(command)
}

fn add_nvdimms(
    command: &mut Command,
    place: &Path,
    memories: impl Iterator<Item = (&'static str, u64)>,
) -> io::Result<()> {
    command.args(["-machine", "q35,nvdimm=on,nvdimm-persistence=mem-ctrl"]);
    for (name, bytes) in memories {
        add_memory(command, place, name, bytes)?;
        let device = format!("nvdimm,id=dimm-{name},memdev={name}");
        command.args(["-device", &device]);
    }
    Ok(())
}

/// One host bridge with two root ports, and a window of addresses that both devices can be in.
fn add_cxl(command: &mut Command, place: &Path) -> io::Result<()> {
    command.args(["-machine", "q35,cxl=on"]);
    for (name, bytes) in [("cxl0", CXL_BYTES), ("cxl1", CXL_BYTES), ("labels", LABEL_BYTES)] {
        add_memory(command, place, name, bytes)?;
    }
    for device in [
        "pxb-cxl,bus_nr=12,bus=pcie.0,id=bridge",
        "cxl-rp,port=0,bus=bridge,id=port0,chassis=0,slot=2",
        "cxl-rp,port=1,bus=bridge,id=port1,chassis=0,slot=3",
        "cxl-type3,bus=port0,volatile-memdev=cxl0,id=volatile",
        "cxl-type3,bus=port1,persistent-memdev=cxl1,lsa=labels,id=persistent,sn=1",
    ] {
        command.args(["-device", device]);
    }
    command.args(["-machine", "cxl-fmw.0.targets.0=bridge,cxl-fmw.0.size=4G"]);
    Ok(())
}

/// Memory of `bytes` in a file that outlives the guest.
fn add_memory(command: &mut Command, place: &Path, name: &str, bytes: u64) -> io::Result<()> {
    let file = place.join(name);
    make_sparse(&file, bytes)?;
    let backend = format!("memory-backend-file,id={name},share=on,size={bytes},mem-path=");
    command.arg("-object").arg(file_option(&backend, &file, ""));
    Ok(())
}

/// `path` inside one of QEMU's options, where a comma is written twice.
fn file_option(before: &str, path: &Path, after: &str) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("{before}{path}{after}").into()
}

/// A file of `bytes` that takes no room; what is in it stays.
fn make_sparse(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.set_len(bytes)
}
