//! The report as a table for a document.

use crate::harness::Whose;
use crate::measure::{Measured, Verdict};
use crate::report::brief;
use crate::suite::SuiteReport;

impl SuiteReport {
    /// What was reached, target by target, and what the rest of each group took.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("`{}`\n\n{}.\n", self.command, self.machine_line());
        for doubt in &self.load.doubts {
            text.push_str(&format!("\n**Not to be trusted: {doubt}.**\n"));
        }
        let title = "\n| row | what | ns [min-max] | ratio [min-max] | to | target | |\n";
        text.push_str(title);
        text.push_str("|---|---|---|---|---|---|---|\n");
        for (key, row) in self.rows() {
            text.push_str(&line(key, row));
        }
        for figure in &self.figures {
            let (target, met) = verdict(figure.verdict.as_ref());
            let value = format!("{} {}", brief(figure.value), figure.unit);
            text.push_str(&format!("| I | {} | {value} | | | {target} | {met} |\n", figure.name));
        }
        for group in &self.groups {
            let notes = group.measurement.notes.join("; ");
            text.push_str(&format!("\n{}, {}: {notes}.", group.key, group.measurement.title));
        }
        text
    }
}

fn line(key: char, row: &Measured) -> String {
    let (target, met) = verdict(row.verdict.as_ref());
    let ns = spread([row.ns.median, row.ns.min, row.ns.max]);
    let is_base = row.base == row.name;
    let ratio = if is_base {
        String::new()
    } else {
        spread([row.ratio.median, row.ratio.min, row.ratio.max])
    };
    let base = if is_base { "" } else { row.base_name() };
    let name =
        if row.whose == Whose::Pgmap { format!("**{}**", row.name) } else { row.name.clone() };
    format!("| {key} | {name} | {ns} | {ratio} | {base} | {target} | {met} |\n")
}

fn verdict(verdict: Option<&Verdict>) -> (&str, &str) {
    verdict.map_or(("", ""), |verdict| (verdict.target.as_str(), verdict.word()))
}

/// A middle value with its least and greatest.
pub fn spread([median, min, max]: [f64; 3]) -> String {
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
