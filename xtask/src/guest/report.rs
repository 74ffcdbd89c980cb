//! What a guest says of its scenarios, line by line, and what became of each.
//!
//! A guest prints `begin NAME`, then `ok NAME`, `failed NAME REASON` or `skipped NAME REASON`;
//! `note TEXT` is passed on. A scenario of which nothing was heard has failed.

use std::time::Instant;

use super::kernel::Line;
use super::machine::End;
use super::scenarios::Scenario;

/// What became of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Ok,
    /// It failed, and its reason was printed.
    Failed,
    /// It cannot run in this guest, and why was printed.
    Skipped,
    /// The guest said nothing of its end.
    Unheard,
}

/// The scenarios of one boot.
#[derive(Debug)]
pub struct Report {
    /// In whose name it is printed: several kernels run at once.
    kernel: Line,
    verdicts: Vec<(&'static str, Verdict)>,
    begun: Option<(&'static str, Instant)>,
    /// The lines that said of a scenario that it failed, to be printed once more at the very end.
    failures: Vec<String>,
}

impl Report {
    /// Nothing heard yet.
    pub fn new(kernel: Line, scenarios: &[&'static Scenario]) -> Report {
        let verdicts = scenarios.iter().map(|scenario| (scenario.name, Verdict::Unheard));
        Report { kernel, verdicts: verdicts.collect(), begun: None, failures: Vec::new() }
    }

    /// Takes in a line of the guest's, and prints what people should see of it.
    pub fn hear(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "note" {
            self.say("", rest);
            return;
        }
        let (name, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let kernel = self.kernel;
        let Some(entry) = self.verdicts.iter_mut().find(|entry| entry.0 == name) else { return };
        let name = entry.0;
        let seconds = self
            .begun
            .filter(|begun| begun.0 == name)
            .map_or(0.0, |begun| begun.1.elapsed().as_secs_f64());
        match word {
            "begin" => {
                self.begun = Some((name, Instant::now()));
                return;
            }
            "ok" => {
                entry.1 = Verdict::Ok;
                say(kernel, "ok", &format!("{name} ({seconds:.1} s)"));
            }
            "failed" => {
                entry.1 = Verdict::Failed;
                self.fail(&format!("{name}: {reason} ({seconds:.1} s)"));
            }
            "skipped" => {
                entry.1 = Verdict::Skipped;
                say(kernel, "skipped", &format!("{name}: {reason}"));
            }
            _ => return,
        }
        self.begun = None;
    }

    /// Prints a line in the kernel's name.
    pub fn say(&self, word: &str, text: &str) {
        say(self.kernel, word, text);
    }

    /// Prints that a scenario failed, and keeps the line.
    pub fn fail(&mut self, text: &str) {
        self.say("FAILED", text);
        self.failures.push(format!("{}: {text}", self.kernel));
    }

    /// What failed, with the kernel and the reason, a line each.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Takes in how the guest ended: what was under way then has failed.
    pub fn close(&mut self, end: &End) {
        let Some((name, since)) = self.begun.take() else { return };
        let seconds = since.elapsed().as_secs_f64();
        self.fail(&format!("{name}: under way for {seconds:.1} s when {end}"));
        if let Some(entry) = self.verdicts.iter_mut().find(|entry| entry.0 == name) {
            entry.1 = Verdict::Failed;
        }
    }

    /// Takes what was under way for not begun: it will be begun again.
    pub fn forget_begun(&mut self) {
        self.begun = None;
    }

    /// Whether nothing was heard of how `name` ended.
    pub fn is_unheard(&self, name: &str) -> bool {
        self.unheard().contains(&name)
    }

    /// The scenarios of which nothing was heard.
    pub fn unheard(&self) -> Vec<&'static str> {
        let unheard = self.verdicts.iter().filter(|entry| entry.1 == Verdict::Unheard);
        unheard.map(|entry| entry.0).collect()
    }

    /// Whether any did not end well.
    pub fn has_failed(&self) -> bool {
        self.verdicts.iter().any(|entry| matches!(entry.1, Verdict::Failed | Verdict::Unheard))
    }
}

fn say(kernel: Line, word: &str, text: &str) {
    println!("{word:<8} {:<5} {text}", kernel.to_string());
}

#[cfg(test)]
mod tests {
    use super::super::scenarios;
    use super::*;

    fn report() -> Report {
        Report::new(Line::Seven, &scenarios::ALL.iter().take(3).collect::<Vec<_>>())
    }

    fn names() -> Vec<&'static str> {
        scenarios::ALL.iter().take(3).map(|scenario| scenario.name).collect()
    }

    #[test]
    fn silence_is_a_failure() {
        let mut report = report();
        let names = names();
        for line in [format!("ok {}", names[0]), format!("ok {}", names[1])] {
            report.hear(&line);
        }
        assert!(report.has_failed());
        report.hear(&format!("skipped {} there is no device", names[2]));
        assert!(!report.has_failed());
    }

    #[test]
    fn what_was_under_way_at_the_end_has_failed() {
        let mut report = report();
        let names = names();
        report.hear(&format!("begin {}", names[1]));
        report.close(&End::OutOfTime);
        assert_eq!(report.verdicts[1], (names[1], Verdict::Failed));
        assert!(report.failures()[0].contains(names[1]), "{:?}", report.failures());
    }

    #[test]
    fn what_is_begun_again_is_what_has_no_verdict() {
        let mut report = report();
        let names = names();
        report.hear(&format!("ok {}", names[0]));
        report.hear(&format!("begin {}", names[1]));
        report.forget_begun();
        let left: Vec<_> = names.iter().filter(|name| report.is_unheard(name)).collect();
        assert_eq!(left, [&names[1], &names[2]]);
    }

    #[test]
    fn a_failure_is_not_made_good_by_other_words() {
        let mut report = report();
        report.hear(&format!("failed {} it broke", names()[0]));
        report.hear("note all is well");
        report.hear("ok something/else");
        assert_eq!(report.verdicts[0].1, Verdict::Failed);
    }
}
