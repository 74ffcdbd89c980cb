//! `cargo xtask guest`: pgmap inside real kernels, on memory devices that this machine does not
//! have.
//!
//! Debian's kernels boot under QEMU's software emulation with NVDIMMs. The initial file system
//! holds pgmap's static binary, static test programs and the scripts of `xtask/guest`. Nothing is
//! installed: what is fetched and made lies in `target/guest`. What is missing is named, and the
//! run is skipped.

mod archive;
mod image;
mod kernel;
mod machine;
mod persistence;
mod programs;
mod qemu;
mod report;
mod scenarios;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use self::kernel::Line;
use self::machine::{Devices, End, Next, Wanted};
use self::programs::Linking;
use self::qemu::Qemu;
use self::report::Report;
use self::scenarios::Scenario;
use crate::steps::Outcome;

const HELP: &str = "\
Runs pgmap inside real kernels under QEMU, on NVDIMMs, DAX file systems and huge pages.

Usage: cargo xtask guest [options]

Options:
  --kernel 6.12|7     this kernel alone; may be given more than once (default: both)
  --only SCENARIO     this scenario alone, or all whose names begin so (`demo`, `demo/xfs-dax`);
                      may be given more than once
  --all               every scenario, not only those that the test run includes; longer soaks
  --static            build static programs, for x86_64-unknown-linux-musl, and run those
  --list              print the scenarios and stop
  --kills N           kill the guest N times in scenarios of persistence (5)
  --keep              keep the guest's console and memory files although all went well
  --shell             boot the first kernel and give a shell in it; `poweroff -f` ends it

Needs: x86-64, qemu-system-x86, ndctl, daxctl, busybox-static, e2fsprogs, xfsprogs, dosfstools, kmod,
xz-utils, dpkg, apt with a Debian archive among its sources; for --static Rust's target x86_64-unknown-linux-musl.
What is missing is printed, and the run is skipped. No root. Emulation is slow: figures from inside mean nothing.

Files, all under target/guest:
  kernel-6.12, kernel-7     what was unpacked of Debian's packages; remove them to fetch newer ones
  qemu                      the same of QEMU, where the machine's own is older than 8 (for CXL)
  run-6.12, run-7           a run's console (console.log), what scenarios printed (output.log) and the
                            files that are the guest's devices; kept where a scenario failed

Each scenario prints one line: ok, FAILED with a reason, or skipped with a reason.
Exit codes: 0 none failed, 1 one failed, 2 the command line is wrong.
";

/// Where everything is kept, below the target folder.
const FOLDER: &str = "guest";
/// How often scenarios are begun again after the emulation failed under them.
const MOST_BOOTS: u32 = 3;
/// How often a guest is killed unless the command line says otherwise.
const USUAL_KILLS: u32 = 5;
/// How long each soak goes on in a guest, and with every scenario.
const USUAL_SOAK_SECONDS: u32 = 5;
const LONG_SOAK_SECONDS: u32 = 20;

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    kernels: Vec<Line>,
    only: Vec<String>,
    extent: Extent,
    linking: Linking,
    leftovers: Leftovers,
    action: Action,
    /// How often a guest is killed in a scenario that kills it.
    nr_kills: u32,
}

/// Which scenarios run where none is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Extent {
    #[default]
    Usual,
    All,
}

/// How often guests are killed, and how long soaks go on.
#[derive(Clone, Copy, Debug)]
struct Effort {
    nr_kills: u32,
    soak_seconds: u32,
}

/// What becomes of the files of a run that went well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leftovers {
    #[default]
    Removed,
    Kept,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Action {
    #[default]
    Run,
    Help,
    List,
    Shell,
}

impl Options {
    /// What the test run includes.
    pub fn usual() -> Options {
        Options { kernels: Line::ALL.to_vec(), nr_kills: USUAL_KILLS, ..Options::default() }
    }

    /// Understands what follows `guest` on the command line.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(args: &[&str]) -> Result<Options, String> {
        let mut options = Options { nr_kills: USUAL_KILLS, ..Options::default() };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--kernel" => {
                    let name = args.next().ok_or("--kernel needs 6.12 or 7")?;
                    let line = Line::named(name);
                    options.kernels.push(line.ok_or_else(|| {
                        format!("guest: `{name}` is no kernel; there are 6.12 and 7")
                    })?);
                }
                "--only" => {
                    let name = args.next().ok_or("--only needs the name of a scenario")?;
                    if scenarios::begin_with(name).next().is_none() {
                        return Err(format!("guest: no scenario begins with `{name}`; see --list"));
                    }
                    options.only.push((*name).to_owned());
                }
                "--kills" => {
                    let number = args.next().and_then(|number| number.parse().ok());
                    options.nr_kills = number.ok_or("--kills needs a number")?;
                }
                "--all" => options.extent = Extent::All,
                "--static" => options.linking = Linking::Static,
                "--keep" => options.leftovers = Leftovers::Kept,
                "--list" => options.action = Action::List,
                "--shell" => options.action = Action::Shell,
                "--help" | "-h" => options.action = Action::Help,
                _ => return Err(format!("guest: `{arg}` is not an option")),
            }
        }
        if options.kernels.is_empty() {
            options.kernels = Line::ALL.to_vec();
        }
        Ok(options)
    }

    /// How much of a scenario that could go on for ever.
    const fn effort(&self) -> Effort {
        let soak_seconds = match self.extent {
            Extent::Usual => USUAL_SOAK_SECONDS,
            Extent::All => LONG_SOAK_SECONDS,
        };
        Effort { nr_kills: self.nr_kills, soak_seconds }
    }

    /// The scenarios of a run of `line`, in the table's order.
    fn scenarios(&self, line: Line) -> Vec<&'static Scenario> {
        let is_named = |scenario: &Scenario| {
            self.only.iter().any(|name| scenarios::begins_with(scenario, name))
        };
        let is_wanted = |scenario: &&Scenario| match (self.only.is_empty(), self.extent) {
            (false, _) => is_named(scenario),
            (true, Extent::All) => true,
            (true, Extent::Usual) => scenario.usual.contains(&line),
        };
        scenarios::ALL.iter().filter(is_wanted).collect()
    }
}

/// Does what `options` ask for; see [`HELP`].
///
/// # Errors
/// A folder that could not be written, a program that could not be started.
pub fn run(root: &Path, options: &Options) -> io::Result<Outcome> {
    match options.action {
        Action::Help => print!("{HELP}"),
        Action::List => scenarios::print(),
        Action::Run | Action::Shell => return boot_all(root, options),
    }
    Ok(Outcome::Passed)
}

fn boot_all(root: &Path, options: &Options) -> io::Result<Outcome> {
    if let Some(why) = missing() {
        println!("skipped: guest: {why}");
        return Ok(Outcome::Skipped);
    }
    let target = crate::steps::target_dir(root);
    let folder = target.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let mut kernels = Vec::new();
    for &line in &options.kernels {
        match kernel::fetch(&folder, line)? {
            Ok(kernel) => kernels.push(kernel),
            Err(why) => println!("skipped: guest: kernel {line}: {why}"),
        }
    }
    if kernels.is_empty() {
        return Ok(Outcome::Skipped);
    }
    let programs = match programs::build(root, options.linking)? {
        Ok(programs) => programs,
        Err(programs::Trouble::NoTarget(why)) => {
            println!("skipped: guest: {why}");
            return Ok(Outcome::Skipped);
        }
        Err(programs::Trouble::DoesNotBuild) => return Ok(Outcome::Failed),
    };
    let mut images = Vec::new();
    for kernel in &kernels {
        let place = folder.join(format!("run-{}", kernel.line));
        let image = image::build(&place, root, kernel, &programs)?;
        if options.action == Action::Shell {
            return machine::shell(&place, kernel, &image).map(|()| Outcome::Passed);
        }
        images.push((kernel, place, image));
    }
    run_all(options, &images)
}

/// Runs each kernel's scenarios. All kernels at once: a guest's scripts keep one processor busy.
fn run_all(
    options: &Options,
    images: &[(&kernel::Kernel, PathBuf, PathBuf)],
) -> io::Result<Outcome> {
    let run = |kernel: &kernel::Kernel, place: &Path, image: &Path| -> io::Result<Vec<String>> {
        let scenarios = options.scenarios(kernel.line);
        let report = run_in(place, kernel, image, &scenarios, options.effort())?;
        if report.has_failed() {
            println!("the guest's console and what it printed are in {}", place.display());
        } else if options.leftovers == Leftovers::Removed {
            fs::remove_dir_all(place)?;
        }
        Ok(report.failures().to_vec())
    };
    let ended: Vec<io::Result<Vec<String>>> = thread::scope(|scope| {
        let runs: Vec<_> = images
            .iter()
            .map(|(kernel, place, image)| scope.spawn(move || run(kernel, place, image)))
            .collect();
        let died = |_| Err(io::Error::other("the thread of a guest died"));
        runs.into_iter().map(|run| run.join().unwrap_or_else(died)).collect()
    });
    let mut failures = Vec::new();
    for end in ended {
        failures.extend(end?);
    }
    // Once more, together: the lines of one kernel lie among those of the others.
    failures.iter().for_each(|failure| println!("FAILED   {failure}"));
    Ok(if failures.is_empty() { Outcome::Passed } else { Outcome::Failed })
}

/// Held while a QEMU is fetched, which all kernels share.
static FETCHING: Mutex<()> = Mutex::new(());

/// Runs `scenarios` in one boot of `kernel`.
fn run_in(
    place: &Path,
    kernel: &kernel::Kernel,
    image: &Path,
    scenarios: &[&'static Scenario],
    effort: Effort,
) -> io::Result<Report> {
    let started = Instant::now();
    println!("--- kernel {}: {} scenarios", kernel.version, scenarios.len());
    let mut report = Report::new(kernel.line, scenarios);
    let (killed, whole): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        scenarios.iter().partition(|scenario| scenario.is_killed());
    let (shared, whole): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        whole.into_iter().partition(|scenario| scenario.is_shared());
    let (on_cxl, plain): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        whole.into_iter().partition(|scenario| scenario.is_on_cxl());
    let (alone, plain): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        plain.into_iter().partition(|scenario| !scenario.boots_with().0.is_empty());
    let (large, plain): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        plain.into_iter().partition(|scenario| scenario.is_large());
    let nvdimms = Devices::Nvdimms;
    boot_for((place, kernel, image), &plain, (&nvdimms, effort), &mut report)?;
    for scenario in alone {
        boot_for((place, kernel, image), &[scenario], (&nvdimms, effort), &mut report)?;
    }
    boot_for((place, kernel, image), &large, (&Devices::LargeNvdimm, effort), &mut report)?;
    if !on_cxl.is_empty() {
        let fetched = {
            let _one_by_one = FETCHING.lock();
            Qemu::for_cxl(place.parent().unwrap_or(place))?
        };
        match fetched {
            Ok(qemu) => {
                let cxl = Devices::Cxl(qemu);
                boot_for((place, kernel, image), &on_cxl, (&cxl, effort), &mut report)?;
            }
            Err(why) => on_cxl
                .iter()
                .for_each(|scenario| report.hear(&format!("skipped {} {why}", scenario.name))),
        }
    }
    for scenario in shared {
        shared::run(place, kernel, image, scenario, &mut report)?;
    }
    for scenario in killed {
        persistence::run(place, kernel, image, scenario, effort.nr_kills, &mut report)?;
    }
    for name in report.unheard() {
        report.fail(&format!("{name}: no word of it from the guest"));
    }
    println!("--- kernel {}: {:.1} s", kernel.version, started.elapsed().as_secs_f64());
    Ok(report)
}

/// One boot with `devices` for all of `scenarios`, if there are any.
fn boot_for(
    (place, kernel, image): (&Path, &kernel::Kernel, &Path),
    scenarios: &[&'static Scenario],
    (devices, effort): (&Devices, Effort),
    report: &mut Report,
) -> io::Result<()> {
    let mut left = scenarios.to_vec();
    for attempt in 1..=MOST_BOOTS {
        if left.is_empty() {
            break;
        }
        let limit: Duration = left.iter().map(|scenario| scenario.limit).sum();
        let names: Vec<&str> = left.iter().map(|scenario| scenario.name).collect();
        // Those that need a kernel of their own come one by one.
        let (words, memory) = left[0].boots_with();
        let words = &format!("{words} pgmap.soak={}", effort.soak_seconds);
        let limit = limit + machine::BOOT;
        let wanted = Wanted { names: &names, words, memory, devices, limit };
        let end = machine::run(place, kernel, image, &wanted, |line| {
            report.hear(line);
            Next::GoOn
        })?;
        if end != End::EmulationFailed || attempt == MOST_BOOTS {
            report.close(&end);
            break;
        }
        report.say("", &format!("{end} in the kernel's own code: once more from there on"));
        report.forget_begun();
        left.retain(|scenario| report.is_unheard(scenario.name));
    }
    Ok(())
}

/// Why this machine cannot boot a guest, if it cannot.
fn missing() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!("the guests are x86-64, this machine is {}", std::env::consts::ARCH));
    }
    let needed = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("ndctl", "ndctl"),
        ("daxctl", "daxctl"),
        ("mkfs.ext4", "e2fsprogs"),
        ("mkfs.xfs", "xfsprogs"),
        ("mkfs.vfat", "dosfstools"),
        ("depmod", "kmod"),
        ("xz", "xz-utils"),
        ("dpkg-deb", "dpkg"),
        ("apt-get", "apt"),
        ("ldd", "libc-bin"),
    ];
    let packages: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .chain((image::busybox().is_none()).then_some("busybox-static"))
        .collect();
    (!packages.is_empty()).then(|| format!("these packages are missing: {}", packages.join(" ")))
}

/// A program of this machine, also of the administrator's folders, which are not in everybody's
/// path.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood() {
        let usual = Options::parse(&[]).unwrap();
        assert_eq!(usual.kernels, Line::ALL);
        let narrow = Options::parse(&["--kernel", "7", "--only", "demo/tmpfs", "--keep"]).unwrap();
        assert_eq!(narrow.kernels, [Line::Seven]);
        assert_eq!(narrow.leftovers, Leftovers::Kept);
        let names: Vec<_> =
            narrow.scenarios(Line::Seven).iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, ["demo/tmpfs"]);
    }

    #[test]
    fn a_name_that_is_cut_short_stands_for_all_that_begin_so() {
        let options = Options::parse(&["--only", "demo"]).unwrap();
        let scenarios = options.scenarios(Line::SixTwelve);
        assert!(scenarios.len() > 1);
        assert!(scenarios.iter().all(|scenario| scenario.name.starts_with("demo/")));
    }

    #[test]
    fn wrong_options_are_named() {
        for wrong in [&["--kernel", "5"][..], &["--only", "dem"], &["--fast"], &["--only"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
