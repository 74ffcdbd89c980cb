//! Debian's kernels, fetched and unpacked, never installed.
//!
//! A private apt folder below `target/guest` takes the archive from the machine's own sources and
//! asks it for the suites that have the kernels wanted here. The machine's lists and packages stay
//! as they are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

/// A kernel that guests run, by the beginning of its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// 6.12, the oldest with all that pgmap uses.
    SixTwelve,
    /// The newest 7.x.
    Seven,
}

impl Line {
    /// Every line, the older first.
    pub const ALL: &[Line] = &[Line::SixTwelve, Line::Seven];

    /// The line that people call `name`.
    pub fn named(name: &str) -> Option<Line> {
        Line::ALL.iter().copied().find(|line| line.to_string() == name)
    }

    /// The suite of Debian's archive that has it.
    fn suite(self) -> &'static str {
        match self {
            Line::SixTwelve => "bookworm-backports",
            Line::Seven => "trixie-backports",
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Line::SixTwelve => "6.12",
            Line::Seven => "7",
        })
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Which it is.
    pub line: Line,
    /// Its version, as `uname -r` has it.
    pub version: String,
    /// Its bootable image.
    pub image: PathBuf,
    /// The folder with its `modules.dep`.
    pub modules: PathBuf,
}

/// The kernel of `line`, from the cache in `folder` or from the archive; or why there is none.
///
/// # Errors
/// A folder that could not be written, a program that could not be started.
pub fn fetch(folder: &Path, line: Line) -> io::Result<Result<Kernel, String>> {
    let home = folder.join(format!("kernel-{line}"));
    if let Some(kernel) = find(&home, line) {
        return Ok(Ok(kernel));
    }
    let fresh = folder.join(format!("kernel-{line}.new"));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    if let Err(why) = unpack(&fresh, line)? {
        return Ok(Err(why));
    }
    let _ = fs::remove_dir_all(&home);
    fs::rename(&fresh, &home)?;
    Ok(find(&home, line).ok_or_else(|| "its packages hold no kernel with modules".to_owned()))
}

/// The kernel that lies unpacked in `home`.
fn find(home: &Path, line: Line) -> Option<Kernel> {
    let places = ["usr/lib/modules", "lib/modules"].map(|place| home.join("tree").join(place));
    let folders = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let modules =
        folders.map(|entry| entry.path()).find(|path| path.join("modules.dep").is_file())?;
    let version = modules.file_name()?.to_str()?.to_owned();
    let images =
        [modules.join("vmlinuz"), home.join("tree/boot").join(format!("vmlinuz-{version}"))];
    let image = images.into_iter().find(|image| image.is_file())?;
    Some(Kernel { line, version, image, modules })
}

/// Fetches and unpacks into `home`.
fn unpack(home: &Path, line: Line) -> io::Result<Result<(), String>> {
    let Some(source) = archive_source() else {
        return Ok(Err("apt's sources name no Debian archive".to_owned()));
    };
    let apt = Apt::set_up(home, &source, line.suite())?;
    println!("fetching kernel {line} from {}", line.suite());
    if let Err(why) = apt.run("apt-get", &["update"])? {
        return Ok(Err(format!("apt could not read {}: {why}", line.suite())));
    }
    let names = match apt.run("apt-cache", &["pkgnames", "linux-"])? {
        Ok(names) => names,
        Err(why) => return Ok(Err(why)),
    };
    let Some(version) = newest(&names, line) else {
        return Ok(Err(format!("{} has no such kernel", line.suite())));
    };
    let packages: Vec<String> = ["image", "binary", "modules"]
        .map(|part| format!("linux-{part}-{version}"))
        .into_iter()
        .filter(|name| names.lines().any(|line| line == name))
        .collect();
    let mut words = vec!["download"];
    words.extend(packages.iter().map(String::as_str));
    if let Err(why) = apt.run("apt-get", &words)? {
        return Ok(Err(format!("{} could not be fetched: {why}", packages.join(" "))));
    }
    if let Err(why) = unpack_packages(home)? {
        return Ok(Err(why));
    }
    let mut depmod = Command::new(super::find_program("depmod").unwrap_or_else(|| "depmod".into()));
    // Older packages have `lib/modules`; depmod looks below the one that it was built for.
    if !home.join("tree/lib").exists() {
        std::os::unix::fs::symlink("usr/lib", home.join("tree/lib"))?;
    }
    depmod.arg("-b").arg(home.join("tree")).arg(&version);
    Ok(output_of(&mut depmod)?.map(|_| ()))
}

/// Unpacks the packages in `home` into its folder `tree`.
pub(super) fn unpack_packages(home: &Path) -> io::Result<Result<(), String>> {
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(&path).arg(home.join("tree"));
            if let Err(why) = output_of(&mut unpack)? {
                return Ok(Err(why));
            }
            fs::remove_file(&path)?;
        }
    }
    Ok(Ok(()))
}

/// The newest version of `line` among package names.
fn newest(names: &str, line: Line) -> Option<String> {
    let of_line = format!("{line}.");
    names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|version| version.starts_with(&of_line) && version.ends_with("-cloud-amd64"))
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

/// The numbers in a version, in order, so that 6.12.9 comes before 6.12.10.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|letter: char| !letter.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

/// A Debian archive that this machine's apt knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    uri: String,
    /// The key that signs it, as the machine's sources say.
    signed_by: Option<String>,
}

/// The first archive of apt's sources whose suites are Debian's.
pub(super) fn archive_source() -> Option<Source> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.path()).collect();
    files.sort();
    files.insert(0, "/etc/apt/sources.list".into());
    files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension().is_some_and(|extension| extension == "sources") {
            true => stanzas(&text).find_map(source_of_stanza),
            false => text.lines().find_map(source_of_line),
        }
    })
}

/// Paragraphs of a `.sources` file without their comments.
fn stanzas(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let paragraphs = lines.split(|line| line.trim().is_empty()).map(<[&str]>::to_vec);
    paragraphs.collect::<Vec<_>>().into_iter()
}

fn source_of_stanza(lines: Vec<&str>) -> Option<Source> {
    let fields: Vec<(&str, &str)> = lines.iter().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| {
        let field = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.trim())
    };
    let is_debian = field("Suites")?.split_whitespace().any(is_debian_suite);
    let uri = field("URIs")?.split_whitespace().next()?.to_owned();
    is_debian.then(|| Source { uri, signed_by: field("Signed-By").map(str::to_owned) })
}

fn source_of_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    is_debian_suite(suite)
        .then(|| Source { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
}

/// Whether an archive that has `suite` is Debian's main archive.
fn is_debian_suite(suite: &str) -> bool {
    ["bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable"].contains(&suite)
}

/// An apt that keeps to one folder.
pub(super) struct Apt {
    home: PathBuf,
    options: Vec<String>,
}

impl Apt {
    pub(super) fn set_up(home: &Path, source: &Source, suite: &str) -> io::Result<Apt> {
        let apt = home.join("apt");
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(folder))?;
        }
        let signed_by = source.signed_by.as_ref().map(|key| format!("[signed-by={key}] "));
        let signed_by = signed_by.unwrap_or_default();
        let line = format!("deb {signed_by}{} {suite} main\n", source.uri);
        fs::write(apt.join("sources.list"), line)?;
        let option = |name: &str, path: &str| format!("{name}={}", apt.join(path).display());
        let options = vec![
            option("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            option("Dir::State::lists", "lists"),
            option("Dir::Cache", "cache"),
            "Dir::State::status=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
        ];
        Ok(Apt { home: home.to_owned(), options })
    }

    pub(super) fn run(&self, program: &str, words: &[&str]) -> io::Result<Result<String, String>> {
        let mut command = Command::new(program);
        command.current_dir(&self.home);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        output_of(command.arg("-q").args(words))
    }
}

/// What `command` prints, or its complaint.
pub(super) fn output_of(command: &mut Command) -> io::Result<Result<String, String>> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last =
        errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Ok(Err(last.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number() {
        let names = "linux-image-6.12.9+deb12-cloud-amd64\nlinux-image-6.12.10+deb12-cloud-amd64\n\
                     linux-image-6.12.99+deb12-amd64\nlinux-image-7.0.1+deb13-cloud-amd64\n";
        assert_eq!(newest(names, Line::SixTwelve).unwrap(), "6.12.10+deb12-cloud-amd64");
        assert_eq!(newest(names, Line::Seven).unwrap(), "7.0.1+deb13-cloud-amd64");
        assert_eq!(newest("linux-image-amd64\n", Line::Seven), None);
    }

    #[test]
    fn an_archive_is_found_in_both_forms_of_sources() {
        let stanza = "Types: deb\n# a comment\nURIs: http://archive.invalid/debian\n\
                      Suites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
        let expected = Source {
            uri: "http://archive.invalid/debian".into(),
            signed_by: Some("/k.gpg".into()),
        };
        assert_eq!(stanzas(stanza).find_map(source_of_stanza), Some(expected));
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://archive.invalid/debian trixie main";
        assert_eq!(source_of_line(line).unwrap().signed_by.unwrap(), "/k.gpg");
        assert_eq!(
            source_of_line("deb http://archive.invalid/debian sid main").unwrap().signed_by,
            None
        );
    }

    #[test]
    fn other_archives_are_passed_over() {
        let security = "URIs: http://archive.invalid/debian-security\nSuites: bookworm-security\n";
        assert_eq!(stanzas(security).find_map(source_of_stanza), None);
        assert_eq!(source_of_line("deb http://archive.invalid/tool tool-bookworm main"), None);
        assert_eq!(source_of_line("# deb http://archive.invalid/debian trixie main"), None);
    }
}
