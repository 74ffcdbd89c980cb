//! The report as a table for a document: one line for each target, with what stands beside it.
//!
//! Rows that differ in nothing but the number of regions share a line, their figures in that order.

use crate::measure::{Measured, Verdict};
use crate::report::brief;
use crate::suite::SuiteReport;

/// Rows of one path on one number of threads, over the numbers of regions.
struct Line<'r> {
    key: char,
    stem: String,
    rows: Vec<&'r Measured>,
}

/// The unit of a line's figures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Ratio,
    Nanoseconds,
}

impl Line<'_> {
    fn nr_threads(&self) -> usize {
        self.rows.first().map_or(0, |row| row.nr_threads)
    }

    fn base(&self) -> &str {
        self.rows.first().map_or("", |row| row.base.as_str())
    }

    fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.rows.iter().filter_map(|row| row.verdict.as_ref())
    }

    /// Ratios say nothing where the row is its own base or the target is a time.
    fn unit(&self) -> Unit {
        let is_timed = self.verdicts().any(|verdict| verdict.target.contains('s'));
        if is_timed { Unit::Nanoseconds } else { Unit::Ratio }
    }

    fn medians(&self, unit: Unit) -> String {
        let medians = self.rows.iter().map(|row| match unit {
            Unit::Ratio => brief(row.ratio.median),
            Unit::Nanoseconds => brief(row.ns.median),
        });
        medians.collect::<Vec<_>>().join(" / ")
    }

    fn spreads(&self, unit: Unit) -> String {
        let spreads = self.rows.iter().map(|row| match unit {
            Unit::Ratio => spread([row.ratio.median, row.ratio.min, row.ratio.max]),
            Unit::Nanoseconds => spread([row.ns.median, row.ns.min, row.ns.max]),
        });
        spreads.collect::<Vec<_>>().join(" / ")
    }

    /// The last target: of a path's targets the one that says most.
    fn target(&self) -> String {
        self.verdicts().last().map_or_else(String::new, |verdict| verdict.target.clone())
    }

    fn word(&self) -> String {
        let nr_met = self.verdicts().filter(|verdict| verdict.is_met).count();
        match (nr_met, self.verdicts().count()) {
            (met, all) if met == all => "met".into(),
            (0, _) => "missed".into(),
            (met, all) => format!("missed, met by {met} of {all}"),
        }
    }
}

impl SuiteReport {
    /// What was reached, target by target, beside floors and rivals.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("`{}`: {}.\n", self.command, self.machine_line());
        for doubt in &self.load.doubts {
            text.push_str(&format!("\n**Not to be trusted: {doubt}.**\n"));
        }
        text.push_str(
            "\nMedians [least-greatest] of the rounds; figures with slashes are for 1, 16, 1024 \
             and 16384 regions, in G and H from 16 on.\n",
        );
        text.push_str("\n| | what | measured | | target | | beside it |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        let lines = self.lines();
        for line in lines.iter().filter(|line| line.verdicts().next().is_some()) {
            text.push_str(&told(line, &lines));
        }
        for figure in &self.figures {
            let verdict = figure.verdict.as_ref();
            let (target, word) =
                verdict.map_or(("", ""), |verdict| (verdict.target.as_str(), verdict.word()));
            let value = brief(figure.value);
            let (name, unit) = (&figure.name, figure.unit);
            text.push_str(&format!("| I | {name} | {value} | {unit} | {target} | {word} | |\n"));
        }
        text
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = Vec::new();
        for (key, row) in self.rows() {
            let stem = stem(&row.name);
            let is_same = |line: &&mut Line<'_>| {
                line.key == key && line.stem == stem && line.nr_threads() == row.nr_threads
            };
            match lines.iter_mut().find(is_same) {
                Some(line) => line.rows.push(row),
                None => lines.push(Line { key, stem, rows: vec![row] }),
            }
        }
        lines
    }
}

fn told(line: &Line<'_>, lines: &[Line<'_>]) -> String {
    let unit = line.unit();
    let is_own_base = |line: &Line<'_>| line.rows.iter().all(|row| row.base == row.name);
    let is_base_of = |line: &Line<'_>, other: &Line<'_>| {
        other.rows.iter().any(|row| row.name == line.base()) && unit == Unit::Nanoseconds
    };
    let is_beside = |other: &&Line<'_>| {
        let is_quiet_pair = line.base().contains(", quiet");
        other.key == line.key
            && other.nr_threads() == line.nr_threads()
            && other.verdicts().next().is_none()
            && (is_quiet_pair || other.base() == line.base() || is_base_of(line, other))
            && (unit == Unit::Nanoseconds || !is_own_base(other))
    };
    let beside: Vec<String> = lines
        .iter()
        .filter(is_beside)
        .map(|other| format!("{} {}", other.stem, other.medians(unit)))
        .collect();
    let base = match unit {
        Unit::Nanoseconds => "ns",
        Unit::Ratio => line.rows.first().map_or("", |row| row.base_name()),
    };
    let threads = line.nr_threads();
    let threads = if "ABCD".contains(line.key) { format!(", {threads}T") } else { String::new() };
    let Line { key, stem, .. } = line;
    format!(
        "| {key} | {stem}{threads} | {} | {base} | {} | {} | {} |\n",
        line.spreads(unit),
        line.target(),
        line.word(),
        beside.join("; ")
    )
}

/// A row's name without its number of regions and of threads.
fn stem(name: &str) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_count = |part: &&str| {
        part.strip_prefix("n=").is_some_and(is_number)
            || part.strip_suffix('T').is_some_and(is_number)
    };
    let parts: Vec<&str> = name.split(", ").filter(|part| !is_count(part)).collect();
    parts.join(", ")
}

/// A middle value with its least and greatest.
fn spread([median, min, max]: [f64; 3]) -> String {
    format!("{} [{}-{}]", brief(median), brief(min), brief(max))
}

impl Measured {
    /// The row it is compared to, as people call it.
    #[must_use]
    pub fn base_name(&self) -> &str {
        match self.base.as_str() {
            base if base.starts_with("F:") || base.starts_with("F, ") => "F",
            base if base.contains(", quiet") => "the same, quiet",
            base => base,
        }
    }
}

impl Verdict {
    /// `met` or `missed`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        if self.is_met { "met" } else { "missed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stem_has_neither_regions_nor_threads() {
        assert_eq!(stem("pgmap: Gup::fast_leaf, n=16, 2T"), "pgmap: Gup::fast_leaf");
        assert_eq!(stem("vm-memory, n=16, quiet, 1 readers"), "vm-memory, quiet, 1 readers");
        assert_eq!(stem("F, 2T"), "F");
    }
}
