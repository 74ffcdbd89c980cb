//! Damage to the files of a closed pool, aimed and by chance: a clear error, or nothing is lost.
//!
//! What files hold is theirs: no file system without checksums of data sees that it changed. So of
//! the data only what is the pool's own is damaged byte by byte.

use std::ffi::CString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use super::*;

const NR_TRIALS: u64 = 2000;
const DEVICE_BYTES: u64 = 16 << 20;
/// Trials take milliseconds.
const MOST_TIME: Duration = Duration::from_secs(20);
const SECTOR_BYTES: u64 = 512;
/// The first parts of a file are where its parts are listed.
const HEAD_BYTES: u64 = 24 << 10;

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len() as u64) as usize]
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..1 + self.below(most)).map(|_| self.below(256) as u8).collect()
    }
}

/// A closed pool and what must be in it.
struct Victim {
    path: PathBuf,
    /// The same pool, closed earlier.
    old: PathBuf,
    /// A pool of the same kind.
    foreign: PathBuf,
    expected: BTreeMap<String, Vec<u8>>,
    size_bytes: u64,
    /// Bytes of the data that are the pool's own, at its head.
    head_bytes: u64,
    /// Frames that are nobody's and those of files, in bytes.
    accounted_bytes: u64,
    /// Files of the pool by their names in its directory.
    files: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// A device of a dead client may still write to some of a file, so its ledger was kept.
    WithOrphans,
    OnDevice,
}

impl Victim {
    fn new(place: &Path, kind: Kind) -> Self {
        let size_bytes = if kind == Kind::OnDevice { DEVICE_BYTES } else { POOL_BYTES };
        let [path, old, foreign] = ["pool", "old", "foreign"].map(|name| place.join(name));
        let create = |path: &Path| {
            let options = PoolOptions::in_directory(path, size_bytes);
            let options =
                if kind == Kind::OnDevice { options.metadata_on_device() } else { options };
            Owner::start(Pool::create(&options).unwrap()).unwrap()
        };
        let head_bytes = match kind {
            Kind::OnDevice => {
                drop(create(&old));
                let head = Pool::open(&old).unwrap().head.unwrap();
                fs::remove_dir_all(&old).unwrap();
                head.head_bytes
            }
            Kind::Plain | Kind::WithOrphans => 0,
        };
        let owner = create(&foreign);
        fill(&owner, kind, 100);
        drop(owner);
        let owner = create(&path);
        fill(&owner, kind, 0);
        drop(owner);
        copy_all(&path, &old);
        // Since the old copy, frames went from one file to another.
        let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
        let client = owner.client().unwrap();
        client.punch("file-7", 8192..16384, Duration::ZERO).unwrap();
        client.truncate("file-9", 50_000, Duration::ZERO).unwrap();
        for name in ["file-3", "file-4"] {
            client.unlink(name).unwrap();
        }
        put(&client, "file-12", 77, 150_000);
        client.rename("file-1", "renamed", crate::Replace::No).unwrap();
        let expected = contents(&client);
        drop(client);
        let info = owner.info();
        drop(owner);
        let files = files_of(&path);
        let accounted_bytes = info.free_bytes + info.live_bytes;
        Self { path, old, foreign, expected, size_bytes, head_bytes, accounted_bytes, files }
    }

    /// Bytes of `name`, a file of `len` bytes, that are the pool's own and not a file's.
    fn own_bytes(&self, name: &str, len: u64) -> [Range<u64>; 2] {
        match name {
            directory::DATA => [0..self.head_bytes, self.size_bytes..len],
            _ => [0..len, 0..0],
        }
    }

    /// The pool in `damaged` is refused by an error that names one of `names`, or whole.
    fn judge(&self, damaged: &Path, names: &[&str], what: &str, is_used: bool) -> bool {
        let started = Instant::now();
        // What is found sound is opened, unless the damage is in what is made again or in ledgers.
        let found =
            crate::check::check(damaged, crate::check::CheckOptions::default(), &mut |_, _| {});
        let opened = Pool::open(damaged).and_then(Owner::start);
        if let (Ok(report), Err(error)) = (&found, &opened) {
            let is_the_pool = names.contains(&"catalog") || names.contains(&"data");
            let is_seen = !report.findings.is_empty() || !is_the_pool || names.len() > 1;
            assert!(is_seen, "{what}: found sound, and not opened: {error}");
        }
        let is_whole = match opened {
            Ok(owner) => {
                self.check(&owner, what);
                if is_used {
                    put(&owner.client().unwrap(), "after", 9, 20_000);
                    drop(owner);
                    let owner = Owner::start(Pool::open(damaged).unwrap()).unwrap();
                    let client = owner.client().unwrap();
                    assert_eq!(client.get("after").unwrap().to_vec().unwrap(), [9; 20_000]);
                    client.unlink("after").unwrap();
                    self.check(&owner, what);
                }
                true
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(damaged.to_str().unwrap()), "{what}: {said}");
                let rest = said.replace(damaged.to_str().unwrap(), "");
                assert!(names.iter().any(|name| rest.contains(name)), "{what}: {said}");
                false
            }
        };
        assert!(started.elapsed() < MOST_TIME, "{what} took {:?}", started.elapsed());
        is_whole
    }

    fn check(&self, owner: &Owner, what: &str) {
        let found = contents(&owner.client().unwrap());
        assert!(found == self.expected, "wrong bytes after {what}");
        let info = owner.info();
        assert_eq!(info.free_bytes + info.live_bytes, self.accounted_bytes, "{what}: {info:?}");
    }
}

fn fill(owner: &Owner, kind: Kind, first_byte: u8) {
    let client = owner.client().unwrap();
    for number in 0..12 {
        let len = 3000 + 20_000 * usize::from(number);
        put(&client, &format!("file-{number}"), first_byte + 1 + number, len);
    }
    if kind == Kind::WithOrphans {
        let other = owner.client().unwrap();
        let file = other.open("file-8").unwrap();
        let pin = file.pin_for_device(0..64 << 10).unwrap();
        std::mem::forget(pin);
        drop(file);
        drop(other);
        assert!(owner.info().orphaned_bytes > 0);
    }
}

/// The files below `path`, as their names from there.
fn files_of(path: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for folder in [path.to_owned(), path.join(directory::LEDGERS)] {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_file() {
                files.push(entry.path().strip_prefix(path).unwrap().display().to_string());
            }
        }
    }
    files.sort();
    files
}

/// Copies a pool and keeps its holes.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to.join(directory::LEDGERS)).unwrap();
    for name in files_of(from) {
        copy_file(&from.join(&name), &to.join(name));
    }
}

fn copy_file(from: &Path, to: &Path) {
    use rustix::fs::{SeekFrom, seek};
    let (from, to) = (fs::File::open(from).unwrap(), fs::File::create(to).unwrap());
    to.set_len(from.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    while let Ok(start) = seek(&from, SeekFrom::Data(at)) {
        at = seek(&from, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        from.read_exact_at(&mut bytes, start).unwrap();
        to.write_all_at(&bytes, start).unwrap();
    }
}

fn raw(path: &Path) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

/// What is done to one file as a whole.
const FILE_DAMAGES: [&str; 12] = [
    "removed",
    "emptied",
    "foreign",
    "old",
    "doubled",
    "doubled as catalog",
    "directory",
    "link",
    "pipe",
    "longer by zeros",
    "longer by bytes",
    "shorter by a page",
];

/// Damages a file as a whole. Says whether it did.
fn damage_file(victim: &Victim, damaged: &Path, name: &str, how: &str) -> bool {
    let file = damaged.join(name);
    let len = fs::metadata(&file).unwrap().len();
    match how {
        "removed" => fs::remove_file(&file).unwrap(),
        "emptied" => raw(&file).set_len(0).unwrap(),
        "foreign" | "old" => {
            let other = if how == "old" { &victim.old } else { &victim.foreign }.join(name);
            // On the device the data is all of the pool: an old copy of it is the pool of then.
            let is_all = how == "old" && name == directory::DATA && victim.head_bytes > 0;
            if !other.exists() || is_all {
                return false;
            }
            copy_file(&other, &file);
        }
        "doubled" => copy_file(&file, &damaged.join(format!("{name}7"))),
        "doubled as catalog" if damaged.join(directory::CATALOG).exists() => {
            copy_file(&file, &damaged.join(directory::CATALOG_NEW));
        }
        "doubled as catalog" => copy_file(&file, &damaged.join(directory::CATALOG)),
        "directory" => {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }
        "link" => {
            let moved = damaged.join("moved");
            fs::rename(&file, &moved).unwrap();
            symlink(&moved, &file).unwrap();
        }
        "pipe" => {
            fs::remove_file(&file).unwrap();
            let path = CString::new(file.as_os_str().as_bytes()).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path.as_c_str(),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap();
        }
        "longer by zeros" => raw(&file).set_len(len + 4096).unwrap(),
        "longer by bytes" => raw(&file).write_all_at(b"more", len).unwrap(),
        _ => raw(&file).set_len(len.saturating_sub(4096)).unwrap(),
    }
    true
}

/// Damages bytes of a file, where it matters more often than elsewhere. Says how.
fn damage_bytes(victim: &Victim, damaged: &Path, name: &str, random: &mut Random) -> String {
    let raw = raw(&damaged.join(name));
    let len = raw.metadata().unwrap().len();
    let own = victim.own_bytes(name, len);
    let Range { start: first, end } =
        own[usize::from(random.below(2) == 0 || own[0].is_empty())].clone();
    let Range { start: first, end } = if first == end { own[0].clone() } else { first..end };
    if end <= first + 16 {
        raw.write_all_at(&random.bytes(9), 0).unwrap();
        return format!("{name}: some bytes written");
    }
    let within = end - first;
    let at = match random.below(6) {
        0 => first + random.below(256.min(within)),
        1 => end - 4096.min(within) + random.below(64.min(within)),
        2 => end - 2048.min(within) + random.below(64.min(within)),
        3 => end - 1 - random.below(4096.min(within)),
        4 => first + random.below(HEAD_BYTES.min(within)),
        _ => first + random.below(within),
    };
    let sector = at - at % SECTOR_BYTES;
    let mut sectors = [[0; SECTOR_BYTES as usize]; 2];
    let done = match random.below(10) {
        0 | 1 => {
            let mut byte = [0];
            raw.read_exact_at(&mut byte, at).unwrap();
            raw.write_all_at(&[byte[0] ^ 1 << random.below(8)], at).unwrap();
            "a bit flipped"
        }
        2 => {
            let mut bytes = random.bytes(64);
            bytes.truncate((end - at) as usize);
            raw.write_all_at(&bytes, at).unwrap();
            "random bytes"
        }
        3 => {
            raw.write_all_at(&vec![0; SECTOR_BYTES.min(end - sector) as usize], sector).unwrap();
            "a sector of zeros"
        }
        4 => {
            let page = at - at % 4096;
            raw.write_all_at(&vec![0; 4096.min(end - page) as usize], page).unwrap();
            "a page of zeros"
        }
        5 => {
            raw.write_all_at(&vec![0xff; SECTOR_BYTES.min(end - sector) as usize], sector).unwrap();
            "a sector of ones"
        }
        6 => {
            raw.set_len(at).unwrap();
            "cut off"
        }
        7 => {
            raw.write_all_at(&random.bytes(8192), len).unwrap();
            "longer"
        }
        8 => {
            let to = first + random.below(within);
            let to = to - to % SECTOR_BYTES;
            if sector.max(to) + SECTOR_BYTES <= end && sector.min(to) >= first {
                raw.read_exact_at(&mut sectors[0], sector).unwrap();
                raw.read_exact_at(&mut sectors[1], to).unwrap();
                raw.write_all_at(&sectors[0], to).unwrap();
                raw.write_all_at(&sectors[1], sector).unwrap();
            }
            "two sectors exchanged"
        }
        _ => {
            let mut words = [0; 16];
            raw.read_exact_at(&mut words, at.min(end - 16)).unwrap();
            raw.write_all_at(&words, first + random.below(within - 15)).unwrap();
            "16 bytes copied elsewhere"
        }
    };
    format!("{name}: {done} at {at} of {len}")
}

/// How an error may call the file of this name: a pool whose catalog cannot be found is said to
/// have none.
fn called(name: &str) -> Vec<&str> {
    let base = name.split('/').next().unwrap();
    vec![base.trim_end_matches('s')]
}

fn aimed(victim: &Victim, damaged: &Path, nr: &mut [u64; 2]) {
    for name in &victim.files {
        for how in FILE_DAMAGES {
            copy_all(&victim.path, damaged);
            if damage_file(victim, damaged, name, how) {
                let mut names = called(name);
                // On the device there is no file `catalog`, so a copy there is in the way.
                names.push("catalog");
                let is_whole = victim.judge(damaged, &names, &format!("{name}: {how}"), true);
                nr[usize::from(is_whole)] += 1;
            }
            fs::remove_dir_all(damaged).unwrap();
        }
        for other in victim.files.iter().filter(|other| *other > name) {
            copy_all(&victim.path, damaged);
            let (one, two) = (damaged.join(name), damaged.join(other));
            let aside = damaged.join("aside");
            fs::rename(&one, &aside).unwrap();
            fs::rename(&two, &one).unwrap();
            fs::rename(&aside, &two).unwrap();
            let names = [called(name), called(other), vec!["catalog"]].concat();
            let what = format!("{name} and {other} exchanged");
            nr[usize::from(victim.judge(damaged, &names, &what, true))] += 1;
            fs::remove_dir_all(damaged).unwrap();
        }
    }
}

#[test]
fn damage_to_any_file_of_a_closed_pool_is_a_clear_error_or_changes_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("PGMAP_TEST_SEED").unwrap_or_else(pgmap_os::clock::monotonic_ns);
    let nr_trials = number("PGMAP_DAMAGE_TRIALS").unwrap_or(NR_TRIALS);
    println!("seed {seed}; repeat with PGMAP_TEST_SEED={seed}");
    let mut random = Random(seed);
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let kinds = [Kind::Plain, Kind::WithOrphans, Kind::OnDevice];
    let victims: Vec<Victim> = kinds
        .into_iter()
        .zip(["plain", "orphans", "device"])
        .map(|(kind, name)| Victim::new(&place.path().join(name), kind))
        .collect();
    let damaged = place.path().join("damaged");
    let mut nr = [0; 2];
    for victim in &victims {
        aimed(victim, &damaged, &mut nr);
    }
    let nr_aimed = nr[0] + nr[1];
    while nr[0] + nr[1] < nr_trials {
        let victim = &victims[[0, 0, 1, 2][random.below(4) as usize]];
        copy_all(&victim.path, &damaged);
        let files: Vec<&str> = victim.files.iter().map(String::as_str).collect();
        // What the pool is made of is worth more trials than what is made again.
        let is_of_it = |name: &&str| [directory::CATALOG, directory::DATA].contains(name);
        let of_it: Vec<&str> = files.iter().copied().filter(is_of_it).collect();
        let among = if random.below(2) == 0 { of_it } else { files };
        let name = random.one_of(&among);
        let what = damage_bytes(victim, &damaged, name, &mut random);
        let is_used = random.below(16) == 0;
        nr[usize::from(victim.judge(&damaged, &called(name), &what, is_used))] += 1;
        fs::remove_dir_all(&damaged).unwrap();
    }
    let [nr_errors, nr_whole] = nr;
    println!("{nr_aimed} aimed trials, {} by chance", nr_errors + nr_whole - nr_aimed);
    println!("{nr_errors} errors, {nr_whole} times nothing was lost");
    assert!(nr_errors > nr_trials / 10 && nr_whole > nr_trials / 10);
}
