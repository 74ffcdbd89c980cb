//! Bringing up a pool of 1 TiB that takes memory on demand: anonymous, and on a sparse file, whose
//! file system must have so much room. root mounts a tmpfs that says so.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgmap::os::{MemoryFile, PageSize, WriteMapping};
use pgmap::{Owner, Pool, PoolOptions};

use crate::children::Folder;
use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target};

const TIB: u64 = 1 << 40;
const SPARSE_BASE: &str = "sparse file of 1 TiB: create, size, map, unmap, remove";
const BASE: &str = "memfd of 1 TiB: create, size, map, unmap";
/// Issue 2.
const TARGET: Target = Target::Nanoseconds(10e6);

/// The scenario.
pub fn scenario(_: Scale) -> Result<Scenario, Failure> {
    let base = Row::new(BASE, |worker| {
        for _ in 0..worker.nr_ops {
            let file = MemoryFile::anonymous("bench-tebibyte", TIB, PageSize::Base)?;
            let _mapping = WriteMapping::map(&file, 0, TIB)?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let up = Row::new("pgmap: Pool::create + Owner::start, 1 TiB", |worker| {
        let mut spent = Duration::ZERO;
        let mut bytes = 0;
        for _ in 0..worker.nr_ops {
            let start = Instant::now();
            let owner = Owner::start(Pool::create(&PoolOptions::anonymous(TIB))?)?;
            spent += start.elapsed();
            bytes += owner.info().free_bytes;
        }
        Ok(Done::timed(bytes / TIB, spent))
    });
    let up_and_down = Row::new("pgmap: the same, one client, and drop", |worker| {
        let mut bytes = 0;
        for _ in 0..worker.nr_ops {
            let owner = Owner::start(Pool::create(&PoolOptions::anonymous(TIB))?)?;
            bytes += owner.client()?.pool_bytes();
        }
        Ok(Done::ops(bytes / TIB))
    });
    let mut rows = vec![
        base,
        up.against(BASE).target(TARGET).at_most(64),
        up_and_down.against(BASE).target(TARGET).at_most(64),
    ];
    let mut notes = vec!["sparse; times are per pool".into()];
    match Roomy::new() {
        Ok(place) => rows.extend(on_a_file(Arc::new(place))),
        Err(failure) => notes.push(format!("no rows of a sparse file: {failure}")),
    }
    Ok(Scenario { title: "bring-up".into(), notes, rows })
}

/// A pool whose data is a sparse file, made and removed.
fn on_a_file(place: Arc<Roomy>) -> [Row; 2] {
    let (path, directory) = (place.path().join("data"), place.path().join("pool"));
    let (base_place, base_path) = (Arc::clone(&place), path.clone());
    let base = Row::new(SPARSE_BASE, move |worker| {
        let _place = &base_place;
        for _ in 0..worker.nr_ops {
            let file = MemoryFile::create_named(&base_path, TIB)?;
            drop(WriteMapping::map(&file, 0, TIB)?);
            std::fs::remove_file(&base_path)?;
        }
        Ok(Done::ops(worker.nr_ops))
    });
    let up =
        Row::new("pgmap: Pool::create on a sparse file + Owner::start, 1 TiB", move |worker| {
            let _place = &place;
            let mut spent = Duration::ZERO;
            let mut bytes = 0;
            for _ in 0..worker.nr_ops {
                let start = Instant::now();
                let options = PoolOptions::on(&path, &directory).size(TIB);
                let owner = Owner::start(Pool::create(&options)?)?;
                spent += start.elapsed();
                bytes += owner.info().size_bytes;
                drop(owner);
                std::fs::remove_file(&path)?;
                std::fs::remove_dir_all(&directory)?;
            }
            Ok(Done::timed(bytes / TIB, spent))
        });
    [base, up.against(SPARSE_BASE).target(TARGET).at_most(64)]
}

/// A folder on a file system with room for files that take none.
struct Roomy {
    folder: Folder,
}

impl Roomy {
    fn new() -> Result<Self, Failure> {
        let folder = Folder::new("roomy")?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2T", "none"]).arg(folder.join(""));
        let mounted = mount.output()?;
        if mounted.status.success() {
            return Ok(Self { folder });
        }
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        Err(Failure::new(format!("a tmpfs of 2 TiB cannot be mounted: {why}")))
    }

    fn path(&self) -> PathBuf {
        self.folder.join("")
    }
}

impl Drop for Roomy {
    fn drop(&mut self) {
        // The folder is removed after this; what is left mounted is empty and in memory.
        let unmounted = Command::new("umount").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("pgmap-bench: {} is left mounted", self.path().display());
        }
    }
}
