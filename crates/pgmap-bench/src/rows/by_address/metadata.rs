//! I: memory that describes 1 TiB: page table and descriptors.
//!
//! Descriptors are counted by their resident pages. Page tables are counted by what the process has
//! grown by, so this is to run first, while no freed memory lies about.

use pgmap::mm::level::Level;
use pgmap::mm::mm::{MapRequest, Mm};
use pgmap::space::TABLE_MEMORY;

use super::world;
use crate::failure::Failure;
use crate::harness::Scale;
use crate::measure::Verdict;
use crate::report::Figure;
use crate::space::Space;

const TIB: u64 = 1 << 40;
const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;
const GIB: f64 = MIB * KIB;

/// One leaf size: how much of a TiB is built, how often, and what the target is.
struct Case {
    leaf: Level,
    bytes: u64,
    nr_copies: u64,
    unit: (&'static str, f64),
    most: f64,
}

/// Anonymous memory of the process that is resident, in bytes.
fn anonymous_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.ok_or_else(|| Failure::new("/proc/self/status has no RssAnon"))? << 10)
}

impl Case {
    /// Bytes per TiB: what an address space over one file adds to the process, and descriptors.
    /// With what was measured: it must stay, lest the next case take freed memory, which counts as
    /// nothing.
    fn measure(&self) -> Result<(f64, (Space, Vec<Mm>)), Failure> {
        let mut space = Space::new(self.bytes)?;
        let file = world::file(&mut space, self.bytes, self.leaf)?;
        let request = MapRequest::new(file, self.bytes).at(0).filled();
        let before = anonymous_bytes()?;
        let mut spaces = Vec::new();
        for _ in 0..self.nr_copies {
            let mm = Mm::for_device_in(TABLE_MEMORY, space.layout(), 0, self.bytes);
            let mm = mm.ok_or_else(|| Failure::new("no such address space"))?;
            mm.map(&request)?;
            let last = mm.translate(self.bytes - 1).map(|found| found.level);
            if last != Some(self.leaf) {
                return Err(Failure::new(format!("the last leaf is of {last:?}")));
            }
            spaces.push(mm);
        }
        let tables = anonymous_bytes()?.saturating_sub(before) as f64 / self.nr_copies as f64;
        let bytes = (tables + space.vmemmap_bytes() as f64) * (TIB as f64 / self.bytes as f64);
        Ok((bytes, (space, spaces)))
    }
}

/// The figures.
pub fn figures(scale: Scale) -> Result<Vec<Figure>, Failure> {
    let small = scale.pick(64 << 30, 1 << 30);
    let cases = [
        Case { leaf: Level::Pud, bytes: TIB, nr_copies: 64, unit: ("KiB", KIB), most: 24.0 },
        Case { leaf: Level::Pmd, bytes: TIB, nr_copies: 1, unit: ("MiB", MIB), most: 12.0 },
        Case { leaf: Level::Pte, bytes: small, nr_copies: 1, unit: ("GiB", GIB), most: 4.0 },
    ];
    let mut kept = Vec::new();
    cases.iter().map(|case| figure(case, &mut kept)).collect()
}

fn figure(case: &Case, kept: &mut Vec<(Space, Vec<Mm>)>) -> Result<Figure, Failure> {
    let (bytes, keep) = case.measure()?;
    kept.push(keep);
    let (unit, scale) = case.unit;
    let value = bytes / scale;
    let verdict =
        Verdict { target: format!("<= {} {unit}", case.most), is_met: value <= case.most };
    let name = format!("1 TiB by {} leaves: page table + descriptors", case.leaf);
    Ok(Figure { name, value, unit, verdict: Some(verdict) })
}
