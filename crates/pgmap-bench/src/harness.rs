//! What a row and a scenario are.

use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::failure::Failure;
use crate::random::Random;

/// How large everything is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// To be measured.
    Full,
    /// To be tested.
    Small,
}

impl Scale {
    /// One of two numbers.
    pub const fn pick(self, full: u64, small: u64) -> u64 {
        match self {
            Self::Full => full,
            Self::Small => small,
        }
    }
}

/// What one thread of a row is to do.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Which of the row's threads.
    pub thread: usize,
    /// Operations to do.
    pub nr_ops: u64,
    /// Its own numbers, different in every cell.
    pub random: Random,
}

/// What one thread of a row has done.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Operations that were seen to work. Must be what was asked for.
    pub nr_ops: u64,
    /// The time they took where that is not all of the time.
    pub spent: Option<Duration>,
}

impl Done {
    /// So many operations in all of the time.
    pub const fn ops(nr_ops: u64) -> Self {
        Self { nr_ops, spent: None }
    }

    /// So many operations in a part of the time.
    pub const fn timed(nr_ops: u64, spent: Duration) -> Self {
        Self { nr_ops, spent: Some(spent) }
    }
}

/// A path to measure. Called on each of the row's threads with the worker's share.
pub type Path = Arc<dyn Fn(Worker) -> Result<Done, Failure> + Send + Sync>;

/// What a row is to reach.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most so many times its base.
    Ratio(f64),
    /// At most so many nanoseconds.
    Nanoseconds(f64),
    /// At most so many nanoseconds, and at most so many times its base.
    Both(f64, f64),
}

impl Target {
    /// The most that it allows in times of the base.
    pub const fn ratio(self) -> Option<f64> {
        match self {
            Self::Ratio(most) | Self::Both(_, most) => Some(most),
            Self::Nanoseconds(_) => None,
        }
    }
}

/// Whose path a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// The least that anybody must do: rows named `F` or `floor`.
    Floor,
    /// This project's: rows named `pgmap`.
    Pgmap,
    /// Somebody else's: all others.
    Rival,
}

impl Whose {
    /// What a row's name says.
    pub fn of(name: &str) -> Self {
        let starts = |start: &str| name.starts_with(start);
        match name {
            _ if starts("pgmap") => Self::Pgmap,
            _ if starts("floor") || starts("F:") || starts("F, ") => Self::Floor,
            _ => Self::Rival,
        }
    }
}

/// The CPUs that this process may use, as they were at the first call: before any thread was bound
/// to one of them.
pub fn cpus() -> &'static [usize] {
    static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
    CPUS.get_or_init(pgmap::os::process::allowed_cpus)
}

/// One path, on so many threads, and what it is compared to.
pub struct Row {
    pub name: String,
    pub nr_threads: usize,
    /// The row of the same scenario whose times this one's are divided by.
    pub base: String,
    pub path: Path,
    pub target: Option<Target>,
    /// Most operations of one cell, where a path can do no more in one go.
    pub most_ops: u64,
}

impl Row {
    /// A row on one thread, compared to itself.
    pub fn new(
        name: impl Into<String>,
        path: impl Fn(Worker) -> Result<Done, Failure> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        let base = name.clone();
        Self { name, nr_threads: 1, base, path: Arc::new(path), target: None, most_ops: u64::MAX }
    }

    /// Compares it to the row called `base`.
    pub fn against(mut self, base: &str) -> Self {
        self.base = base.into();
        self
    }

    /// Says what it is to reach.
    pub const fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Says how many operations one cell has at most.
    pub const fn at_most(mut self, nr_ops: u64) -> Self {
        self.most_ops = nr_ops;
        self
    }

    /// The same path on `nr_threads` threads at once, each on a CPU of its own.
    pub fn on_threads(mut self, nr_threads: usize) -> Self {
        self.nr_threads = nr_threads;
        self
    }
}

/// Rows that are measured together.
pub struct Scenario {
    pub title: String,
    /// What one has to know to read the figures.
    pub notes: Vec<String>,
    pub rows: Vec<Row>,
}

impl Scenario {
    /// The same under this title.
    pub fn titled(self, title: &str) -> Self {
        Self { title: title.into(), ..self }
    }
}

/// Runs `row` once with `nr_ops` operations per thread: nanoseconds per operation and thread.
pub fn run_cell(row: &Row, nr_ops: u64, seed: u64) -> Result<(f64, Duration), Failure> {
    let cpus = cpus();
    let start_line = Barrier::new(row.nr_threads);
    let work = |thread: usize| -> Result<Duration, Failure> {
        let cpu = cpus.get(thread).or(cpus.first()).copied().unwrap_or(0);
        let pinned = pgmap::os::process::pin_to_cpu(cpu);
        let random = Random::new(seed * 64 + thread as u64);
        // Before any failure is reported: the other threads wait for this one.
        start_line.wait();
        pinned?;
        let start = Instant::now();
        let done = (row.path)(Worker { thread, nr_ops, random })?;
        let spent = done.spent.unwrap_or_else(|| start.elapsed());
        if done.nr_ops != nr_ops {
            let did = done.nr_ops;
            return Err(Failure::new(format!("{did} operations worked of {nr_ops}")));
        }
        Ok(spent)
    };
    let spent: Vec<Duration> = if row.nr_threads == 1 {
        vec![work(0)?]
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..row.nr_threads).map(|thread| scope.spawn(move || work(thread))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| Failure::new("a thread panicked"))?)
                .collect::<Result<_, Failure>>()
        })?
    };
    let total: Duration = spent.iter().sum();
    let ns = total.as_nanos() as f64 / (nr_ops as f64 * row.nr_threads as f64);
    Ok((ns, total / row.nr_threads as u32))
}
