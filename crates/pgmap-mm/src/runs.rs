//! Sorted sets of frame runs: the batch of ranges that one drain works on.

use crate::pfn::{MAX_RUN_PAGES, PfnRange};

/// Runs in rising order that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SortedRuns {
    runs: Vec<PfnRange>,
}

impl SortedRuns {
    /// Sorts `runs` and joins those that overlap or touch, as long as a run can be.
    #[must_use]
    pub fn new(mut runs: Vec<PfnRange>) -> Self {
        if runs.len() <= 1 {
            return Self { runs };
        }
        runs.sort_unstable();
        let mut joined: Vec<PfnRange> = Vec::with_capacity(runs.len());
        for run in runs {
            if let Some(last) = joined.last_mut()
                && run.start() <= last.end()
                && let Some(both) =
                    PfnRange::new(last.start(), run.end().max(last.end()) - last.start())
            {
                *last = both;
                continue;
            }
            joined.push(run);
        }
        Self { runs: joined }
    }

    /// All frames below `nr_pages`.
    #[must_use]
    pub fn covering(nr_pages: u64) -> Self {
        let mut runs = Vec::new();
        let mut first = 0;
        while first < nr_pages {
            let Some(run) = PfnRange::new(first, (nr_pages - first).min(MAX_RUN_PAGES)) else {
                break;
            };
            runs.push(run);
            first = run.end();
        }
        Self { runs }
    }

    /// Whether `run` has a frame in common with one of these.
    #[must_use]
    #[inline]
    pub fn overlaps(&self, run: PfnRange) -> bool {
        // Most runs that anybody asks for lie before or behind all of these.
        let (Some(first), Some(last)) = (self.runs.first(), self.runs.last()) else { return false };
        if run.end() <= first.start() || run.start() >= last.end() {
            return false;
        }
        let after = self.runs.partition_point(|r| r.end() <= run.start());
        self.runs.get(after).is_some_and(|r| r.overlaps(run))
    }

    /// What these and `others` have in common, in order.
    #[must_use]
    pub fn intersections(&self, others: &Self) -> Vec<PfnRange> {
        let mut common = Vec::new();
        let mut next = 0;
        for run in &self.runs {
            next += others.runs[next..].partition_point(|other| other.end() <= run.start());
            let overlapping = others.runs[next..].iter().take_while(|o| o.start() < run.end());
            common.extend(overlapping.filter_map(|other| run.intersection(*other)));
        }
        common
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.runs.iter().copied()
    }

    /// Whether there is no run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Frames in all runs together.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        self.runs.iter().map(|run| run.nr_pages()).sum()
    }
}

impl FromIterator<PfnRange> for SortedRuns {
    fn from_iter<I: IntoIterator<Item = PfnRange>>(runs: I) -> Self {
        Self::new(runs.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_runs_join_and_gaps_stay() {
        let run = |first, nr| PfnRange::new(first, nr).unwrap();
        let runs = SortedRuns::new(vec![run(20, 5), run(0, 4), run(4, 4), run(22, 10)]);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [run(0, 8), run(20, 12)]);
        assert!(runs.overlaps(run(7, 1)) && !runs.overlaps(run(8, 12)));
        assert!(runs.overlaps(run(31, 9)) && !runs.overlaps(run(32, 9)));
        assert_eq!(runs.nr_pages(), 20);
        let others = SortedRuns::new(vec![run(2, 2), run(6, 16), run(30, 9)]);
        assert_eq!(runs.intersections(&others), [run(2, 2), run(6, 2), run(20, 2), run(30, 2)]);
    }
}
