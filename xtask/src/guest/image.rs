//! The guest's initial file system: busybox, the tools of the memory devices, the kernel modules
//! that are needed, pgmap's programs and the scripts of `xtask/guest`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use super::archive::Archive;
use super::find_program;
use super::kernel::Kernel;
use super::programs::Program;

/// Programs of this machine that the guest uses, with the libraries that they name.
const TOOLS: &[&str] = &["ndctl", "daxctl", "mkfs.ext4", "mkfs.xfs", "mkfs.vfat"];
/// Tools that do without where they are missing.
const MORE_TOOLS: &[&str] = &["cxl"];
/// The modules that scenarios need, beside those that these need. A kernel may have some built in.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "libnvdimm",
    "nfit",
    "nd_pmem",
    "nd_e820",
    "dax_pmem",
    "device_dax",
    "dax_hmem",
    "ext4",
    "xfs",
    "crc32c_generic",
    "crc32c_intel",
    "hwpoison_inject",
    "cxl_acpi",
    "cxl_pci",
    "cxl_port",
    "cxl_mem",
    "cxl_pmem",
    "dax_cxl",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "nfsd",
    "nfsv4",
];
const FOLDERS: &[&str] = &["proc", "sys", "dev", "tmp", "run", "mnt", "etc", "lib64"];

/// Where the machine keeps a busybox that needs no library.
pub fn busybox() -> Option<PathBuf> {
    let is_static = |path: &PathBuf| {
        let ldd = Command::new("ldd").arg(path).stderr(Stdio::null()).output();
        ldd.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains("=>"))
    };
    find_program("busybox").filter(is_static)
}

/// Makes the file system for `kernel` in the folder `place`, which is emptied; its path.
///
/// # Errors
/// Something that could not be read, written or started.
pub fn build(
    place: &Path,
    root: &Path,
    kernel: &Kernel,
    programs: &[Program],
) -> io::Result<PathBuf> {
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place)?;
    let path = place.join("initramfs");
    let mut archive = Archive::create(&path)?;
    for folder in FOLDERS {
        archive.directory(folder)?;
    }
    let busybox = busybox().ok_or_else(|| io::Error::other("busybox-static is gone"))?;
    archive.file("bin/busybox", &fs::read(busybox)?)?;
    let mut libraries = Libraries::default();
    add_tools(&mut archive, &mut libraries)?;
    for program in programs {
        archive.file(&format!("bin/{}", program.name), &stripped(place, &program.path)?)?;
        libraries.add_for(&mut archive, &program.path)?;
    }
    for entry in fs::read_dir(root.join("xtask/guest"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = if name == "init.sh" { "init".to_owned() } else { format!("guest/{name}") };
        archive.file(&target, &fs::read(entry.path())?)?;
    }
    add_modules(&mut archive, kernel)?;
    archive.finish()?;
    Ok(path)
}

/// A program without its symbols, which take ten times its own room; as it is where that cannot be
/// done.
fn stripped(place: &Path, program: &Path) -> io::Result<Vec<u8>> {
    let to = place.join("stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&to).arg(program).stderr(Stdio::null());
    if strip.status().is_ok_and(|status| status.success()) {
        let bytes = fs::read(&to);
        fs::remove_file(&to)?;
        return bytes;
    }
    fs::read(program)
}

/// The libraries that are in the file system already.
#[derive(Debug, Default)]
struct Libraries(BTreeSet<String>);

impl Libraries {
    /// Adds what `program` needs and is not there yet.
    fn add_for(&mut self, archive: &mut Archive, program: &Path) -> io::Result<()> {
        let ldd = Command::new("ldd").arg(program).stderr(Stdio::null()).output()?;
        for library in libraries(&String::from_utf8_lossy(&ldd.stdout)) {
            if self.0.insert(library.clone()) {
                archive.file(library.trim_start_matches('/'), &fs::read(&library)?)?;
            }
        }
        Ok(())
    }
}

fn add_tools(archive: &mut Archive, libraries: &mut Libraries) -> io::Result<()> {
    for tool in TOOLS.iter().chain(MORE_TOOLS) {
        let Some(path) = find_program(tool) else { continue };
        archive.file(&format!("bin/{tool}"), &fs::read(&path)?)?;
        libraries.add_for(archive, &path)?;
    }
    for settings in ["/etc/mke2fs.conf", "/etc/ndctl.conf", "/etc/ndctl/monitor.conf"] {
        if let Ok(bytes) = fs::read(settings) {
            archive.file(settings.trim_start_matches('/'), &bytes)?;
        }
    }
    Ok(())
}

/// The paths in what `ldd` prints.
fn libraries(printed: &str) -> Vec<String> {
    let path_in = |line: &str| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(path.to_owned())
    };
    printed.lines().filter_map(path_in).collect()
}

fn add_modules(archive: &mut Archive, kernel: &Kernel) -> io::Result<()> {
    let needs = Needs::parse(&fs::read_to_string(kernel.modules.join("modules.dep"))?);
    let home = format!("lib/modules/{}", kernel.version);
    let wanted = needs.closure(MODULES);
    let mut listing = String::new();
    for path in &wanted {
        let plain = plain_path(path);
        archive.file(&format!("{home}/{plain}"), &unpacked(&kernel.modules.join(path))?)?;
        let before: Vec<&str> = needs.of(path).iter().map(|path| plain_path(path)).collect();
        listing.push_str(&format!("{plain}: {}\n", before.join(" ")));
    }
    archive.file(&format!("{home}/modules.dep"), listing.as_bytes())?;
    let aliases = fs::read_to_string(kernel.modules.join("modules.alias")).unwrap_or_default();
    let names: BTreeSet<String> = wanted.iter().map(|path| module_name(path)).collect();
    let is_known = |line: &&str| line.rsplit(' ').next().is_some_and(|name| names.contains(name));
    let aliases: Vec<&str> = aliases.lines().filter(is_known).collect();
    archive.file(&format!("{home}/modules.alias"), (aliases.join("\n") + "\n").as_bytes())
}

/// Which modules each module needs, as `modules.dep` says.
struct Needs {
    by_path: BTreeMap<String, Vec<String>>,
}

impl Needs {
    fn parse(text: &str) -> Needs {
        let of_line = |line: &str| {
            let (path, needs) = line.split_once(':')?;
            Some((path.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
        };
        Needs { by_path: text.lines().filter_map(of_line).collect() }
    }

    fn of(&self, path: &str) -> &[String] {
        self.by_path.get(path).map_or(&[], Vec::as_slice)
    }

    /// The paths of the modules called `names` and of all that they need.
    fn closure(&self, names: &[&str]) -> BTreeSet<String> {
        let is_named = |path: &&String| names.contains(&&*module_name(path));
        let named: Vec<&String> = self.by_path.keys().filter(is_named).collect();
        let needed = named.iter().flat_map(|path| self.of(path));
        named.iter().copied().chain(needed).cloned().collect()
    }
}

/// `kernel/fs/xfs/xfs.ko.xz` without what says how it is packed.
fn plain_path(path: &str) -> &str {
    path.find(".ko").map_or(path, |at| &path[..at + 3])
}

/// The name of the module in the file `path`. Hyphens and underscores mean the same there.
fn module_name(path: &str) -> String {
    let file = plain_path(path).rsplit('/').next().unwrap_or_default();
    file.trim_end_matches(".ko").replace('-', "_")
}

/// A module's bytes, unpacked.
fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let unpack = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path),
    };
    let output = Command::new(unpack).args(["-q", "-d", "-c"]).arg(path).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(format!("{unpack} cannot unpack {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_with_all_that_it_needs() {
        let needs = Needs::parse(
            "kernel/a/nd-pmem.ko.xz: kernel/a/btt.ko.xz kernel/a/lib.ko.xz\n\
             kernel/a/btt.ko.xz: kernel/a/lib.ko.xz\nkernel/a/lib.ko.xz:\nkernel/a/other.ko.xz:\n",
        );
        let closure: Vec<_> = needs.closure(&["nd_pmem"]).into_iter().collect();
        assert_eq!(closure, ["a/btt", "a/lib", "a/nd-pmem"].map(|n| format!("kernel/{n}.ko.xz")));
    }

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let printed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t\
                       /lib64/ld-linux.so.2 (0x3)\n";
        assert_eq!(libraries(printed), ["/lib/libc.so.6", "/lib64/ld-linux.so.2"]);
    }

    #[test]
    fn module_names_are_told_from_their_files() {
        assert_eq!(module_name("kernel/x/crc32c-intel.ko.xz"), "crc32c_intel");
        assert_eq!(plain_path("kernel/x/xfs.ko"), "kernel/x/xfs.ko");
    }
}
