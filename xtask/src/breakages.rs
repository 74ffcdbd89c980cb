//! Faults that this project once had, put back one by one, each of which the simulation must find.
//!
//! Each is an edit of the sources, made in a copy of the tree. An edit whose text is no longer
//! there is an error: somebody changed that place, and must say here how to break it now.

use std::path::Path;
use std::process::Command;
use std::time::Instant;
use std::{env, fs, io};

use crate::steps::cargo;

/// How long the simulation may look for each.
const SECONDS: &str = "60";

/// A fault, and how to put it back.
struct Breakage {
    name: &'static str,
    /// File, what stands there, and what stands there instead.
    edits: &'static [(&'static str, &'static str, &'static str)],
}

const BREAKAGES: &[Breakage] = &[
    Breakage {
        name: "device holds are forgotten at a restart",
        edits: &[(
            "crates/pgmap/src/owner/recovery.rs",
            "else { device_holds(&record.ledger) }",
            "else { SortedRuns::default() }",
        )],
    },
    Breakage {
        name: "the ledger goes although orphans exist",
        edits: &[(
            "crates/pgmap/src/owner/clients.rs",
            "self.dead.keep(id, &client);",
            "self.dead.keep(id, &client);\n            self.remove_ledger(id);",
        )],
    },
    Breakage {
        name: "a refused cut leaves pieces",
        edits: &[(
            "crates/pgmap/src/owner/frames/cut.rs",
            "let mut joined = self.join_within(before, joined_holes(extents), cut.undo);",
            "let mut joined = joined_holes(extents);",
        )],
    },
    Breakage {
        name: "an empty ledger",
        edits: &[
            (
                "crates/pgmap/src/pool/ledgers.rs",
                "let file = match self.fill_ledger(&new) {",
                "let file = match self.fill_ledger(path) {",
            ),
            (
                "crates/pgmap/src/pool/ledgers.rs",
                "disk::rename(&new, path).map_err(|error| os_error(\"rename\", &new, error))?;",
                "",
            ),
            (
                "crates/pgmap/src/owner/recovery.rs",
                "if !is_whole && matches!(file_lock::is_locked(&file), Ok(false)) {",
                "if false {",
            ),
            ("crates/pgmap/src/pool/ledgers.rs", "_ if is_unused(&file)? => ", "_ if false => "),
        ],
    },
    Breakage {
        name: "a catalog that stays broken after ENOSPC",
        edits: &[
            (
                "crates/pgmap/src/pool/catalog/log.rs",
                "let payload = encode(&self.medium, changes)?;",
                "let payload = encode(&self.medium, changes)?;\n        if self.tried_end == u64::MAX {\n            \
                 return Err(self.medium.failed(\"broken\"));\n        }",
            ),
            (
                "crates/pgmap/src/pool/catalog/log.rs",
                "self.medium.write(&record(self.header.id, end, &payload), end)?;",
                "if let Err(error) = self.medium.write(&record(self.header.id, end, &payload), end) {\n            \
                 self.tried_end = u64::MAX;\n            return Err(error);\n        }",
            ),
        ],
    },
    Breakage {
        name: "tails are not zeroed",
        edits: &[(
            "crates/pgmap/src/owner/frames/mod.rs",
            "let used = len_bytes % PAGE_BYTES;\n        if used == 0 {",
            "let used = len_bytes % PAGE_BYTES;\n        if used < PAGE_BYTES {",
        )],
    },
    Breakage {
        name: "a forgotten stamp limit",
        edits: &[(
            "crates/pgmap/src/owner/frames/mod.rs",
            "self.pool.record(&[Change::StampLimit(limit)])?;",
            "",
        )],
    },
    Breakage {
        name: "reuse before the drain's scan",
        edits: &[("crates/pgmap-mm/src/drain.rs", "self.held.is_empty()\n    }", "true\n    }")],
    },
    Breakage {
        name: "a draft of a dead client is kept",
        edits: &[(
            "crates/pgmap/src/owner/clients.rs",
            "self.retire_drafts(drafts);",
            "drop(drafts);",
        )],
    },
    Breakage {
        name: "what is replaced is counted for ever",
        edits: &[(
            "crates/pgmap/src/owner/counted.rs",
            "self.uses.count(before.whose(place.key()), before.nr_pages(), Use::minus);",
            "",
        )],
    },
    Breakage {
        name: "a commit is answered before it is on record",
        edits: &[(
            "crates/pgmap/src/pool/catalog/log.rs",
            "self.commit(Header { end: end + len, ..self.header.clone() })?;",
            "if changes.len() > 1 {\n            self.commit(Header { end: end + len, ..self.header.clone() })?;\n        }",
        )],
    },
    Breakage {
        name: "the seals of a new pool are not synced",
        edits: &[(
            "crates/pgmap/src/pool.rs",
            "            file.sync()?;",
            "            let _ = file;",
        )],
    },
    Breakage {
        name: "what was not synced before a power failure is kept",
        edits: &[(
            "crates/pgmap/src/pool/catalog.rs",
            "if log.is_unsynced(boot) {",
            "if log.is_unsynced(boot) && contents.files.is_empty() {",
        )],
    },
    Breakage {
        name: "the first holder of a drain is not told",
        edits: &[(
            "crates/pgmap/src/owner/drains.rs",
            "for (client, ranges) in drain.asks(most_asks) {",
            "for (client, ranges) in drain.asks(most_asks).into_iter().skip(1) {",
        )],
    },
    Breakage {
        name: "a device that caches translations is not told",
        edits: &[(
            "crates/pgmap-mm/src/mm/invalidate.rs",
            "self.list.iter().map(|(_, subscriber)| subscriber.clone()).collect()",
            "self.list.iter().skip(1).map(|(_, subscriber)| subscriber.clone()).collect()",
        )],
    },
    Breakage {
        name: "what is moved away keeps its translation",
        edits: &[(
            "crates/pgmap-mm/src/mm/map.rs",
            "self.clear_for_good(state, part.page, part.end(), ended);\n            self.clear(",
            "self.clear(",
        )],
    },
    Breakage {
        name: "a pool closes although somebody holds some of it",
        edits: &[(
            "crates/pgmap/src/owner/closing.rs",
            "drain.is_idle() && self.dead.is_empty()",
            "(drain.is_idle() || true) && self.dead.is_empty()",
        )],
    },
    Breakage {
        name: "transfers that keep a lock are not waited for",
        edits: &[(
            "crates/pgmap/src/owner/dead_devices.rs",
            "!matches!(file_lock::is_locked(file), Ok(false))",
            "file_lock::is_locked(file).is_err()",
        )],
    },
    Breakage {
        name: "frames of a backing that is gone are given to the next at once",
        edits: &[(
            "crates/pgmap/src/owner/departures.rs",
            "self.changes.retire(line, self.clients.ids());",
            "self.changes.retire(line, []);",
        )],
    },
    Breakage {
        name: "the name of a backing is not synced",
        edits: &[("crates/pgmap/src/pool/backing.rs", "self.sync_name(&path)?;", "")],
    },
];

/// The text of each file that must be there for a fault to be put back.
pub fn places() -> impl Iterator<Item = (&'static str, &'static str)> {
    BREAKAGES.iter().flat_map(|breakage| breakage.edits).map(|&(file, old, _)| (file, old))
}

/// Puts each back whose name contains `filter`. Says whether the simulation found all of them.
pub fn run(root: &Path, filter: &str) -> io::Result<bool> {
    let place = env::temp_dir().join(format!("pgmap-breakages-{}", std::process::id()));
    let mut nr_missed = 0;
    for breakage in BREAKAGES.iter().filter(|breakage| breakage.name.contains(filter)) {
        copy_tree(root, &place)?;
        breakage.edits.iter().try_for_each(|edit| break_file(&place, edit))?;
        let start = Instant::now();
        let built = simulation(root, &place).arg("build").args(PACKAGE).output()?;
        if !built.status.success() {
            let why = String::from_utf8_lossy(&built.stderr);
            return Err(io::Error::other(format!("{}: does not build: {why}", breakage.name)));
        }
        let built_in = start.elapsed();
        let start = Instant::now();
        let mut run = simulation(root, &place);
        run.arg("run").args(PACKAGE).args(["--", "--seconds", SECONDS, "--shrink-seconds", "5"]);
        run.args(["--steps", "1000000000000", "--out", "/dev/null"]);
        let output = run.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let (is_found, last) = (!output.status.success(), said.lines().last().unwrap_or_default());
        nr_missed += usize::from(!is_found);
        println!(
            "{:8} {:4.0} s  {} (built in {:.0} s)\n         {}",
            if is_found { "found" } else { "MISSED" },
            start.elapsed().as_secs_f64(),
            breakage.name,
            built_in.as_secs_f64(),
            last.chars().take(200).collect::<String>()
        );
    }
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    Ok(nr_missed == 0)
}

const PACKAGE: [&str; 2] = ["--package", "pgmap-sim"];

fn simulation(root: &Path, place: &Path) -> Command {
    let mut command = cargo(place);
    command.env("CARGO_TARGET_DIR", root.join("target/breakages"));
    command
}

/// Copies what git knows of the tree. A file that is the same keeps its time, so that little is
/// built again.
fn copy_tree(root: &Path, place: &Path) -> io::Result<()> {
    let listed = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output()?;
    for name in String::from_utf8_lossy(&listed.stdout).split_terminator('\0') {
        let (from, to) = (root.join(name), place.join(name));
        let Ok(contents) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == contents) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(to, contents)?;
    }
    Ok(())
}

fn break_file(place: &Path, &(file, old, new): &(&str, &str, &str)) -> io::Result<()> {
    let path = place.join(file);
    let text = fs::read_to_string(&path)?;
    if !text.contains(old) {
        return Err(io::Error::other(format!("{file} no longer has: {old}")));
    }
    fs::write(path, text.replacen(old, new, 1))
}
