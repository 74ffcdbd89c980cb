//! The figures of the demo, as people and programs read them. All are counted.

use std::time::Duration;

use serde::Serialize;

use super::block::BLOCK_BYTES;
use super::dma::Kind;
use super::drain::Drained;
use super::halves::Half;
use super::kill::Kills;
use super::{NR_BLOCKS, NR_BRISK_READERS, NR_SLOW_READERS, PAUSE, TTL};
use crate::output::{Show, Units};
use crate::table::{Side, Table};

/// All figures.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    is_good: bool,
    /// What the memory lies on.
    on: String,
    work: Work,
    ttl: Guarded,
    pgmap: Guarded,
    dma: DmaFigures,
    kill: KillFigures,
    drain: DrainFigures,
    notes: Vec<String>,
}

/// What both halves did.
#[derive(Debug, Serialize)]
struct Work {
    nr_blocks: u64,
    block_bytes: u64,
    nr_brisk_readers: u64,
    nr_slow_readers: u64,
    lease_ms: u64,
    slow_read_ms: u64,
}

/// One half.
#[derive(Debug, Serialize)]
struct Guarded {
    reads: u64,
    /// Reads that returned bytes which were not those asked for, as if they were.
    stale_reads_served: u64,
    /// Those that got another generation or block.
    other_generation_reads: u64,
    /// Those that were overwritten while they were read.
    torn_reads: u64,
    slow_reads: u64,
    /// Attempts that got "gone": the honest answer.
    misses: u64,
    reads_per_second: u64,
    recycled_blocks: u64,
    writer_waits: u64,
    elapsed_ms: u64,
}

#[derive(Debug, Serialize)]
struct DmaFigures {
    kind: String,
    is_direct: bool,
    why: Option<String>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct KillFigures {
    nr_readers: u64,
    nr_writers: u64,
    reclaim_ms_p50: f64,
    reclaim_ms_max: f64,
    reader_reclaim_ms_p50: f64,
    writer_reclaim_ms_p50: f64,
    leaked_bytes: u64,
    leaked_pins: u64,
    leaked_clients: u64,
    overwritten_bytes: u64,
}

#[derive(Debug, Serialize)]
struct DrainFigures {
    named_pid: i32,
    named_command: String,
    expected_pid: i32,
    waited_ms: u64,
    released_ms: u64,
    answer: String,
}

impl From<Half> for Guarded {
    fn from(half: Half) -> Self {
        let readers = half.readers;
        let seconds = half.elapsed.as_secs_f64();
        Self {
            reads: readers.reads,
            stale_reads_served: readers.other + readers.torn,
            other_generation_reads: readers.other,
            torn_reads: readers.torn,
            slow_reads: half.slow_readers.reads,
            misses: readers.misses,
            reads_per_second: (readers.reads as f64 / seconds) as u64,
            recycled_blocks: half.writer.recycled,
            writer_waits: half.writer.waits,
            elapsed_ms: half.elapsed.as_millis() as u64,
        }
    }
}

impl From<Kills> for KillFigures {
    fn from(kills: Kills) -> Self {
        let all: Vec<Duration> = kills.readers.iter().chain(&kills.writers).copied().collect();
        Self {
            nr_readers: kills.readers.len() as u64,
            nr_writers: kills.writers.len() as u64,
            reclaim_ms_p50: median_ms(all.clone()),
            reclaim_ms_max: all.iter().max().copied().map_or(0.0, milliseconds),
            reader_reclaim_ms_p50: median_ms(kills.readers),
            writer_reclaim_ms_p50: median_ms(kills.writers),
            leaked_bytes: kills.leaked_bytes,
            leaked_pins: kills.leaked_pins,
            leaked_clients: kills.leaked_clients,
            overwritten_bytes: kills.overwritten_bytes,
        }
    }
}

impl Report {
    /// Puts the figures together.
    pub fn new(on: &str, ttl: Half, pins: Half, kills: Kills, drain: Drained) -> Self {
        let Kind { engine, is_direct, why } = pins.writer.dma.clone();
        let dma = DmaFigures {
            kind: engine,
            is_direct,
            why,
            bytes: ttl.writer.dma_bytes + pins.writer.dma_bytes,
        };
        let mut report = Self {
            schema: "pgmap.demo/1",
            is_good: false,
            on: on.to_owned(),
            work: Work {
                nr_blocks: NR_BLOCKS,
                block_bytes: BLOCK_BYTES as u64,
                nr_brisk_readers: NR_BRISK_READERS,
                nr_slow_readers: NR_SLOW_READERS,
                lease_ms: TTL.as_millis() as u64,
                slow_read_ms: PAUSE.as_millis() as u64,
            },
            ttl: ttl.into(),
            pgmap: pins.into(),
            dma,
            kill: kills.into(),
            drain: DrainFigures {
                named_pid: drain.named_pid,
                named_command: drain.named_command,
                expected_pid: drain.expected_pid,
                waited_ms: drain.waited_ms,
                released_ms: drain.released_ms,
                answer: drain.answer,
            },
            notes: Vec::new(),
        };
        report.is_good = report.complaints().is_empty();
        report.notes = report.make_notes();
        report
    }

    /// What pgmap did not keep of what it promises.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (what, nr) in [
            ("stale reads served under pins", self.pgmap.stale_reads_served),
            ("bytes leaked by killed processes", self.kill.leaked_bytes),
            ("pins leaked by killed processes", self.kill.leaked_pins),
            ("killed clients still on the books", self.kill.leaked_clients),
            ("bytes overwritten by a dead process's device", self.kill.overwritten_bytes),
        ] {
            if nr > 0 {
                complaints.push(format!("{nr} {what}"));
            }
        }
        if self.pgmap.reads == 0 {
            complaints.push("nothing was read under pins".into());
        }
        if self.drain.named_pid != self.drain.expected_pid {
            let DrainFigures { named_pid, expected_pid, .. } = self.drain;
            complaints.push(format!("the drain named pid {named_pid}, not {expected_pid}"));
        }
        complaints
    }

    fn make_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.ttl.stale_reads_served == 0 {
            notes.push("no lease was outlived: the comparison proved nothing this time".into());
        }
        if let Some(why) = &self.dma.why {
            notes.push(format!("transfers by {}: {why}", self.dma.kind));
        }
        notes
    }
}

impl Show for Report {
    fn table(&self, units: Units) -> Table {
        let Self { ttl, pgmap, kill, drain, work, .. } = self;
        let mut table =
            Table::new(&[("", Side::Left), ("LEASES", Side::Right), ("PGMAP", Side::Right)]);
        let mut row = |what: &str, leases: String, pins: String| {
            table.row(vec![what.into(), leases, pins]);
        };
        for (what, leases, pins) in [
            ("reads", ttl.reads, pgmap.reads),
            ("of them slow", ttl.slow_reads, pgmap.slow_reads),
            ("stale reads served", ttl.stale_reads_served, pgmap.stale_reads_served),
            ("of another generation", ttl.other_generation_reads, pgmap.other_generation_reads),
            ("torn", ttl.torn_reads, pgmap.torn_reads),
            ("told \"gone\"", ttl.misses, pgmap.misses),
            ("reads per second", ttl.reads_per_second, pgmap.reads_per_second),
            ("blocks recycled by DMA", ttl.recycled_blocks, pgmap.recycled_blocks),
        ] {
            row(what, leases.to_string(), pins.to_string());
        }
        let dash = || "-".to_owned();
        row("kill -9 to all back, p50", dash(), format!("{:.2} ms", kill.reclaim_ms_p50));
        row("kill -9 to all back, max", dash(), format!("{:.2} ms", kill.reclaim_ms_max));
        row("bytes leaked", dash(), kill.leaked_bytes.to_string());
        row("pins leaked", dash(), kill.leaked_pins.to_string());
        row("bytes changed by late DMA", dash(), kill.overwritten_bytes.to_string());
        table.closing(format!(
            "work    {} blocks of {}, {} brisk readers and {} slow ({} ms a read), leases of {} ms",
            work.nr_blocks,
            crate::sizes::human(work.block_bytes),
            work.nr_brisk_readers,
            work.nr_slow_readers,
            work.slow_read_ms,
            work.lease_ms
        ));
        let direct = if self.dma.is_direct { " with O_DIRECT" } else { "" };
        let moved = match units {
            Units::Bytes => format!("{} bytes", self.dma.bytes),
            Units::Human => units.bytes(self.dma.bytes),
        };
        table.closing(format!("memory  {}", self.on));
        table.closing(format!("dma     {}{direct}, {moved}", self.dma.kind));
        table.closing(format!(
            "kills   {} readers holding pins, {} writers with transfers under way",
            kill.nr_readers, kill.nr_writers
        ));
        table.closing(format!("drain   {} (expected pid {})", drain.answer, drain.expected_pid));
        for note in &self.notes {
            table.closing(format!("note    {note}"));
        }
        table.closing(match self.is_good {
            true => "pgmap served no stale read and lost nothing".to_owned(),
            false => format!("pgmap FAILED: {}", self.complaints().join("; ")),
        });
        table
    }
}

fn milliseconds(time: Duration) -> f64 {
    // Microseconds are as much as the clock and the polling can tell.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().map_or(0.0, milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_in_milliseconds() {
        let times = [9000, 1500, 2000].map(Duration::from_micros).to_vec();
        assert!((median_ms(times) - 2.0).abs() < 1e-9);
        assert!(median_ms(Vec::new()).abs() < 1e-9);
    }
}
