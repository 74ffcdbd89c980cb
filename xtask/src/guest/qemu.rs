//! Which QEMU boots the guests. CXL needs version 8; where the machine's own is older, one of its
//! suite's backports is unpacked below `target/guest` and run from there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use super::kernel::{Apt, archive_source, output_of, unpack_packages};

/// The first version that emulates CXL memory devices well enough for the kernel's drivers.
const CXL_VERSION: u32 = 8;
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Where it looks for its firmware, if not where it would anyhow.
    pub data: Vec<PathBuf>,
}

impl Qemu {
    /// The machine's own.
    pub fn own() -> Qemu {
        Qemu { program: PROGRAM.into(), data: Vec::new() }
    }

    /// One that emulates CXL, from the machine, the cache in `folder` or the archive; or why there
    /// is none.
    ///
    /// # Errors
    /// A folder that could not be written, a program that could not be started.
    pub fn for_cxl(folder: &Path) -> io::Result<Result<Qemu, String>> {
        if version(Path::new(PROGRAM))?.is_some_and(|version| version >= CXL_VERSION) {
            return Ok(Ok(Qemu::own()));
        }
        let home = folder.join("qemu");
        let tree = home.join("tree/usr");
        let qemu = Qemu {
            program: tree.join("bin").join(PROGRAM),
            data: ["qemu", "seabios"].map(|name| tree.join("share").join(name)).to_vec(),
        };
        if !qemu.program.is_file()
            && let Err(why) = fetch(&home)?
        {
            return Ok(Err(why));
        }
        Ok(match version(&qemu.program)? {
            Some(version) if version >= CXL_VERSION => Ok(qemu),
            Some(version) => Err(format!("QEMU {version} has no CXL, {CXL_VERSION} has")),
            None => Err("QEMU of the backports does not run with this machine's libraries".into()),
        })
    }
}

/// The first number of the version that `program` prints; `None` if it does not run.
fn version(program: &Path) -> io::Result<Option<u32>> {
    let Ok(printed) = output_of(Command::new(program).arg("--version"))? else { return Ok(None) };
    Ok(first_number(&printed))
}

fn first_number(printed: &str) -> Option<u32> {
    printed.split(|letter: char| !letter.is_ascii_digit()).find_map(|digits| digits.parse().ok())
}

/// Unpacks QEMU from the backports of the suite that this machine is of.
fn fetch(home: &Path) -> io::Result<Result<(), String>> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let (Some(source), Some(suite)) = (archive_source(), suite) else {
        return Ok(Err(
            "QEMU here is older than 8, and apt's sources name no Debian archive".into()
        ));
    };
    let suite = format!("{}-backports", suite.trim_matches('"'));
    let _ = fs::remove_dir_all(home);
    fs::create_dir_all(home)?;
    println!("fetching QEMU from {suite}");
    let apt = Apt::set_up(home, &source, &suite)?;
    if let Err(why) = apt.run("apt-get", &["update"])? {
        return Ok(Err(format!("apt could not read {suite}: {why}")));
    }
    let known = match apt.run("apt-cache", &["pkgnames", ""])? {
        Ok(known) => known,
        Err(why) => return Ok(Err(why)),
    };
    let is_known = |package: &&&str| known.lines().any(|line| line == **package);
    let mut words = vec!["download"];
    words.extend(PACKAGES.iter().filter(is_known));
    if let Err(why) = apt.run("apt-get", &words)? {
        return Ok(Err(format!("QEMU could not be fetched from {suite}: {why}")));
    }
    unpack_packages(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_first_number() {
        assert_eq!(first_number("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"), Some(10));
        assert_eq!(first_number("nothing"), None);
    }
}
