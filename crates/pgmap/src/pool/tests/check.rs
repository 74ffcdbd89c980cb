//! What a check finds, and what a repair does about it.

use super::*;
use crate::check::{CheckOptions, CheckReport};
use crate::pool::catalog::StoredFile;

const CHECK: CheckOptions = CheckOptions { reads_data: true, repairs: false };
const REPAIR: CheckOptions = CheckOptions { reads_data: true, repairs: true };

/// A pool with three files that was closed.
fn closed(path: &Path) {
    let owner = create(path);
    let client = owner.client().unwrap();
    for (name, byte, len) in [("a", 1, 5000), ("b", 2, 300_000), ("c", 3, 4096)] {
        put(&client, name, byte, len);
    }
}

fn run(path: &Path, options: CheckOptions) -> CheckReport {
    crate::check::check(path, options, &mut |read, total| assert!(read <= total)).unwrap()
}

/// Finds one fault, about `what`, and repairs it: the pool opens, without what is in `lost`.
fn is_found_and_repaired(path: &Path, what: &str, lost: &[&str]) {
    let before = run(path, CHECK);
    assert!(!before.is_sound() && before.findings[0].what.contains(what), "{before:?}");
    assert_eq!(run(path, CHECK), before, "a check changes nothing");
    let repaired = run(path, REPAIR);
    assert!(repaired.is_sound() && repaired.findings.len() == before.findings.len());
    assert_eq!(run(path, CHECK).findings, []);
    let owner = Owner::start(Pool::open(path).unwrap()).unwrap();
    let contents = contents(&owner.client().unwrap());
    for (name, byte, len) in [("a", 1, 5000), ("b", 2, 300_000), ("c", 3, 4096)] {
        let found = contents.get(name);
        assert_eq!(found.is_none(), lost.contains(&name), "{name}");
        assert!(found.is_none_or(|bytes| *bytes == vec![byte; len]), "{name}");
    }
}

#[test]
fn nothing_is_wrong_with_a_closed_pool_and_one_that_has_an_owner_is_left_alone() {
    let (_directory, path) = place();
    closed(&path);
    let report = run(&path, CHECK);
    assert_eq!((report.nr_files, report.read_bytes), (3, 5000 + 300_000 + 4096));
    assert!(report.is_sound() && report.findings.is_empty());
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let error = crate::check::check(&path, CHECK, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("has an owner"), "{error}");
    drop(owner);
    let error = crate::check::check(path.join("not"), CHECK, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("there is no pool"), "{error}");
}

#[test]
fn a_pool_on_a_file_is_checked_by_its_directory_and_by_its_data() {
    let (_directory, path) = place();
    let file = path.with_extension("data");
    let options = PoolOptions::on(&file, &path).size(32 << 20);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    put(&owner.client().unwrap(), "a", 1, 5000);
    drop(owner);
    for place in [&path, &file] {
        let report = run(place, CHECK);
        assert_eq!((report.nr_files, report.read_bytes, report.findings.len()), (1, 5000, 0));
    }
}

#[test]
fn a_damaged_header_is_written_again_from_its_copy() {
    let (_directory, path) = place();
    closed(&path);
    let catalog = fs::File::options().write(true).open(path.join(directory::CATALOG)).unwrap();
    catalog.write_all_at(&[0xff; 8], 100).unwrap();
    is_found_and_repaired(&path, "catalog", &[]);
}

#[test]
fn bytes_behind_the_end_of_a_file_are_found_and_zeroed() {
    let (_directory, path) = place();
    closed(&path);
    let stored = stored_files(&path);
    let frame = stored["a"].extents().unwrap()[0].run.byte_range().start;
    let data = fs::File::options().write(true).open(path.join(directory::DATA)).unwrap();
    data.write_all_at(&[7], frame + 5000).unwrap();
    is_found_and_repaired(&path, "\"a\"", &[]);
}

#[test]
fn files_that_no_pool_can_have_are_found_and_removed() {
    for fault in ["overlap", "outside", "stamp", "longer"] {
        let (_directory, path) = place();
        closed(&path);
        let stored = stored_files(&path);
        let mut wrong = stored["c"].clone();
        match fault {
            "overlap" => wrong.extents = vec![stored["b"].extents[0]],
            "outside" => wrong.extents[0][0] = POOL_BYTES / PAGE_BYTES,
            "stamp" => wrong.extents = vec![fresh_stamp(&path, &stored["c"])],
            _ => wrong.len_bytes = 4097,
        }
        let pool = Pool::open(&path).unwrap();
        pool.begin().unwrap();
        pool.record(&[Change::Put(&FileName::new("c").unwrap(), wrong)]).unwrap();
        pool.end().unwrap();
        drop(pool);
        let lost: &[&str] = if fault == "overlap" { &["b", "c"] } else { &["c"] };
        is_found_and_repaired(&path, "file", lost);
    }
}

fn stored_files(path: &Path) -> BTreeMap<String, StoredFile> {
    let catalog = Catalog::open(&path.join(directory::CATALOG)).unwrap();
    let files = catalog.files().unwrap().into_iter();
    files.map(|(name, file)| (name.to_string(), file)).collect()
}

/// The extent of `file` under a stamp that nobody was given.
fn fresh_stamp(path: &Path, file: &StoredFile) -> [u64; 3] {
    use pgmap_mm::descriptor::Descriptor;
    use pgmap_mm::stamp::Stamp;
    let limit = Catalog::open(&path.join(directory::CATALOG)).unwrap().stamp_limit();
    let extent = file.extents().unwrap()[0];
    let life =
        Descriptor::new(extent.life.state(), extent.life.flags(), Stamp::new(limit + 7).unwrap());
    pgmap_mm::extent::Extent::new(extent.run, extent.head_level, life).unwrap().to_words()
}
