//! Scenarios that kill the guest: its NVDIMMs are files that outlive it, and the next guest must
//! find what was committed.
//!
//! The guest says `putting N`, `put N`, `removing N` and `removed N`, where N is a file whose bytes
//! follow from its number. After opening the pool again it says `have N` for each file that it
//! finds with the right bytes, then `ready`. What was put and not removed must be there; what was
//! under way may be either.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::kernel::Kernel;
use super::machine::{self, Devices, End, Next, Wanted};
use super::report::Report;
use super::scenarios::Scenario;

/// Longest time from the moment that a pool is ready to the kill.
const LONGEST_MS: u64 = 6000;
/// The same from the moment that it begins to be opened, for kills of the recovery.
const LONGEST_OPENING_MS: u64 = 3000;
/// One kill in so many strikes while the pool is being opened.
const OPENING_KILLS: u64 = 4;

/// Runs `scenario` with `nr_kills` kills and a last boot that ends in order.
///
/// # Errors
/// A file that could not be made, a QEMU that could not be started.
pub fn run(
    place: &Path,
    kernel: &Kernel,
    image: &Path,
    scenario: &'static Scenario,
    nr_kills: u32,
    report: &mut Report,
) -> io::Result<()> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let mut random = Random(seed);
    for device in machine::MEMORIES {
        let _ = fs::remove_file(place.join(device));
    }
    report.hear(&format!("begin {}", scenario.name));
    let mut books = Books::default();
    for round in 0..=nr_kills {
        let is_last = round == nr_kills;
        let moment = (!is_last).then(|| Moment::any(&mut random));
        let word = match (round, is_last) {
            (_, true) => "last",
            (0, _) => "first",
            _ => "next",
        };
        let words = format!("pgmap.round={word}");
        let limit = scenario.limit + machine::BOOT;
        let (names, devices, memory) =
            (&[scenario.name][..], &Devices::Nvdimms, machine::USUAL_MEMORY);
        let wanted = Wanted { names, words: &words, memory, devices, limit };
        let mut said = Vec::new();
        let end = machine::run(place, kernel, image, &wanted, |line| {
            books.hear(line);
            said.push(line.to_owned());
            moment.map_or(Next::GoOn, |moment| moment.after(line))
        })?;
        if let Some(why) = said.iter().find(|line| line.starts_with("skipped ")) {
            report.hear(why);
            return Ok(());
        }
        // As good as a kill, but for the last boot, which has to end in order.
        let end = match end {
            End::EmulationFailed if !is_last => End::Killed,
            end => end,
        };
        let wrong = books.take_complaint().or_else(|| unexpected(end, is_last, scenario, &said));
        if let Some(wrong) = wrong {
            let context = format!("boot {} of {}, {moment:?}", round + 1, nr_kills + 1);
            report.hear(&format!("failed {} {wrong} ({context})", scenario.name));
            return Ok(());
        }
        for line in said.iter().filter(|line| line.starts_with("note ")) {
            report.hear(line);
        }
    }
    report.hear(&format!("note killed {nr_kills} times, {}", books.summary()));
    report.hear(&format!("ok {}", scenario.name));
    Ok(())
}

/// What is wrong with how a boot ended, if anything is.
fn unexpected(end: End, is_last: bool, scenario: &Scenario, said: &[String]) -> Option<String> {
    let prefix = |word: &str| format!("{word} {}", scenario.name);
    let of = |word: &str| said.iter().find_map(|line| line.strip_prefix(&prefix(word)));
    if let Some(why) = of("failed") {
        return Some(why.trim().to_owned());
    }
    match (end, is_last) {
        (End::Killed, false) => None,
        (End::PoweredOff, true) if of("ok").is_some() => None,
        (end, _) => Some(format!("{end} where it should not")),
    }
}

/// When a guest is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// So many milliseconds after it began to open the pool.
    Opening(u64),
    /// So many after the pool was ready.
    Ready(u64),
}

impl Moment {
    fn any(random: &mut Random) -> Moment {
        match random.below(OPENING_KILLS) {
            0 => Moment::Opening(random.below(LONGEST_OPENING_MS)),
            _ => Moment::Ready(random.below(LONGEST_MS)),
        }
    }

    fn after(self, line: &str) -> Next {
        match (self, line) {
            (Moment::Opening(ms), "opening") | (Moment::Ready(ms), "ready") => {
                Next::KillAfter(Duration::from_millis(ms))
            }
            _ => Next::GoOn,
        }
    }
}

/// Which files must be there, and which may be.
#[derive(Debug, Default)]
struct Books {
    certain: BTreeSet<u64>,
    uncertain: BTreeSet<u64>,
    seen: BTreeSet<u64>,
    nr_put: u64,
    nr_removed: u64,
    complaint: Option<String>,
}

impl Books {
    fn hear(&mut self, line: &str) {
        if line == "opening" {
            self.seen.clear();
        }
        if line == "ready" {
            self.compare();
        }
        let Some((word, Ok(number))) = line.split_once(' ').map(|(w, n)| (w, n.parse())) else {
            return;
        };
        match word {
            "putting" => {
                self.uncertain.insert(number);
            }
            "put" => {
                self.uncertain.remove(&number);
                self.certain.insert(number);
                self.nr_put += 1;
            }
            "removing" => {
                self.certain.remove(&number);
                self.uncertain.insert(number);
            }
            "removed" => {
                self.uncertain.remove(&number);
                self.nr_removed += 1;
            }
            "have" => {
                self.seen.insert(number);
            }
            _ => {}
        }
    }

    /// Compares what a guest found with what must and may be there.
    fn compare(&mut self) {
        let lost: Vec<u64> = self.certain.difference(&self.seen).copied().collect();
        let is_strange =
            |number: &u64| !self.certain.contains(number) && !self.uncertain.contains(number);
        let strange: Vec<u64> = self.seen.iter().copied().filter(is_strange).collect();
        if !lost.is_empty() {
            self.complaint = Some(format!("committed and lost: files {lost:?}"));
        } else if !strange.is_empty() {
            self.complaint = Some(format!("removed and back: files {strange:?}"));
        }
        self.certain = std::mem::take(&mut self.seen);
        self.uncertain.clear();
    }

    fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    fn summary(&self) -> String {
        format!("{} files put, {} removed, none lost", self.nr_put, self.nr_removed)
    }
}

/// Numbers for moments: any will do (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenarios;
    use super::*;

    fn after(lines: &[&str]) -> Option<String> {
        let mut books = Books::default();
        lines.iter().for_each(|line| books.hear(line));
        books.take_complaint()
    }

    #[test]
    fn what_was_put_must_be_there() {
        let lines = ["put 1", "put 2", "opening", "have 2", "ready"];
        assert!(after(&lines).unwrap().contains("lost: files [1]"));
        assert_eq!(after(&["put 1", "opening", "have 1", "ready"]), None);
    }

    #[test]
    fn what_was_removed_must_not_be_there() {
        let lines = ["put 1", "removing 1", "removed 1", "opening", "have 1", "ready"];
        assert!(after(&lines).unwrap().contains("back: files [1]"));
    }

    #[test]
    fn what_was_under_way_may_be_either_and_stays_what_it_was_found_to_be() {
        assert_eq!(after(&["putting 1", "opening", "ready"]), None);
        assert_eq!(after(&["put 1", "removing 1", "opening", "have 1", "ready"]), None);
        let twice = ["putting 1", "opening", "have 1", "ready", "opening", "ready"];
        assert!(after(&twice).is_some());
        let gone = ["putting 1", "opening", "ready", "opening", "have 1", "ready"];
        assert!(after(&gone).is_some());
    }

    #[test]
    fn an_opening_that_was_cut_short_changes_nothing() {
        let lines = ["put 1", "put 2", "opening", "have 1", "opening", "have 1", "have 2", "ready"];
        assert_eq!(after(&lines), None);
    }

    #[test]
    fn only_a_boot_that_ended_as_planned_is_good() {
        let scenario = scenarios::ALL.iter().find(|scenario| scenario.is_killed()).unwrap();
        let ok = [format!("ok {}", scenario.name)];
        assert_eq!(unexpected(End::PoweredOff, true, scenario, &ok), None);
        assert_eq!(unexpected(End::Killed, false, scenario, &[]), None);
        assert!(unexpected(End::PoweredOff, true, scenario, &[]).is_some());
        assert!(unexpected(End::OutOfTime, false, scenario, &[]).is_some());
        let failed = [format!("failed {} it broke", scenario.name)];
        assert_eq!(unexpected(End::Killed, false, scenario, &failed).unwrap(), "it broke");
    }
}
