//! `pgmap bench`: how fast it is on this machine, beside floors and rivals.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pgmap_bench::{Plan, Scale, Step, SuiteReport, Verdict, brief as number, nr_cpus, run_suite};

use crate::failure::Failure;
use crate::output::{Output, Show, Units, print};
use crate::own_command::OwnCommand;
use crate::progress::Steps;
use crate::stop::Stop;
use crate::table::{Side, Table};

/// Most of any number that is asked for: beyond it, a run would take days.
const MOST_ROUNDS: u64 = 1000;

/// Measure address spaces on this machine, beside floors and rivals
///
/// Needs no owner and no data: pins and translates by address over 64 GiB of page descriptors, next
/// to what vm-memory, arc-swap, crossbeam-epoch and a locked B-tree do for the same end, and next
/// to floors: the least that the machine allows. All rows run in every round, in turn, so that a
/// slow moment falls on all; what counts is the median of the ratios of one round, mostly to F: a
/// radix walk to a 2 MiB leaf, fetch_add on the folio's count, a second look, fetch_sub. About two
/// minutes and 1 GiB of memory.
///
/// A figure means something on a quiet machine only; the closing lines say when it was not. A
/// target that is missed is shown and is no failure.
///
/// Rows: A translate, B short pin, C long pin, D one hot folio, E ranges, F 4 KiB leaves, G remap,
/// H pins under remapping, I metadata, J filling 1 TiB.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Rounds, each of which runs every row once
    #[arg(long, value_name = "N", default_value_t = 11,
          value_parser = clap::value_parser!(u64).range(3..=MOST_ROUNDS))]
    rounds: u64,
    /// Least time of one row in one round, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 40,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    cell_ms: u64,
    /// Only these rows: letters as in A,B or a text in rows' names; may be given again
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Numbers of threads for rows A to D and H [default: 1,2 as far as there are CPUs]
    #[arg(long, value_name = "N,...", value_delimiter = ',',
          value_parser = clap::value_parser!(u64).range(1..=128))]
    threads: Vec<u64>,
    /// Run every row once with tiny counts, to see that it works
    #[arg(long = "small")]
    is_small: bool,
    /// Print the targets as a Markdown table, with floors and rivals beside them
    #[arg(long = "markdown")]
    is_markdown: bool,
    /// Also write the JSON to a file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    save: Option<PathBuf>,
    /// Also draw it: an SVG file, or an HTML file with it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    plot: Option<PathBuf>,
}

impl Show for SuiteReport {
    fn table(&self, _: Units) -> Table {
        let mut table = Table::new(&[
            ("ROW", Side::Left),
            ("WHAT", Side::Left),
            ("NS", Side::Right),
            ("MIN-MAX", Side::Right),
            ("RATIO", Side::Right),
            ("MIN-MAX", Side::Right),
            ("TO", Side::Left),
            ("TARGET", Side::Left),
            ("", Side::Left),
        ]);
        for (key, row) in self.rows() {
            let (target, word) = shown(row.verdict.as_ref());
            let is_base = row.base == row.name;
            let only_if = |text: String| if is_base { String::new() } else { text };
            table.row(vec![
                key.into(),
                row.name.clone(),
                number(row.ns.median),
                format!("{}-{}", number(row.ns.min), number(row.ns.max)),
                only_if(number(row.ratio.median)),
                only_if(format!("{}-{}", number(row.ratio.min), number(row.ratio.max))),
                only_if(row.base_name().into()),
                target,
                word,
            ]);
        }
        for figure in &self.figures {
            let (target, word) = shown(figure.verdict.as_ref());
            let value = format!("{} {}", number(figure.value), figure.unit);
            let mut cells = vec!["I".into(), figure.name.clone(), value];
            cells.extend([const { String::new() }; 4]);
            cells.extend([target, word]);
            table.row(cells);
        }
        table.closing(self.machine_line());
        table.closing(format!("{} targets met, {} missed", self.nr_met, self.nr_missed));
        for doubt in &self.load.doubts {
            table.closing(format!("not to be trusted: {doubt}"));
        }
        table
    }
}

fn shown(verdict: Option<&Verdict>) -> (String, String) {
    verdict.map_or_else(Default::default, |verdict| {
        (verdict.target.clone(), verdict.word().to_owned())
    })
}

impl Bench {
    /// Measures and shows it.
    ///
    /// # Errors
    /// When more threads are asked for than there are CPUs, a row does not work, or a file cannot
    /// be written.
    pub fn run(self, output: &Output, own_command: &OwnCommand) -> Result<(), Failure> {
        if self.is_markdown && output.is_json() {
            return Err(Failure::usage("--markdown and --json are two forms of one result"));
        }
        let plan = self.plan(own_command)?;
        let mut stop = Stop::listen()?;
        let steps = Steps::start(output);
        let mut watch = |step: Step<'_>| {
            steps.show(step.what, step.nr_done, step.nr_steps);
            if stop.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let report = run_suite(&plan, &mut watch);
        drop(steps);
        let report = report.map_err(|failure| match failure.is_stop() {
            true => stop.failure(),
            false => failed(failure),
        })?;
        if let Some(path) = &self.save {
            let json = serde_json::to_string_pretty(&report).map_err(|error| {
                Failure::new("failed", 0, format!("the result is no JSON: {error}"))
            })?;
            write(path, &(json + "\n"))?;
        }
        if let Some(path) = &self.plot {
            let svg = report.svg().map_err(failed)?;
            let is_html = path.extension().is_some_and(|extension| extension == "html");
            write(path, &if is_html { page(&svg) } else { svg })?;
        }
        if self.is_markdown { print(report.markdown().trim_end()) } else { output.show(&report) }
    }

    fn plan(&self, own_command: &OwnCommand) -> Result<Plan, Failure> {
        let nr_cpus = nr_cpus();
        let asked: Vec<usize> = self.threads.iter().map(|&threads| threads as usize).collect();
        if let Some(most) = asked.iter().max().filter(|&&most| most > nr_cpus) {
            return Err(Failure::usage(format!(
                "--threads: {most} threads need as many CPUs, and this process may use {nr_cpus}; \
                 two threads on one CPU would measure the scheduler"
            )));
        }
        if let Some(path) = &self.plot
            && !path.extension().is_some_and(|extension| extension == "svg" || extension == "html")
        {
            let path = path.display();
            return Err(Failure::usage(format!("--plot {path}: the name ends in .svg or .html")));
        }
        let usual = [1, 2].into_iter().filter(|&threads| threads <= nr_cpus);
        Ok(Plan {
            nr_rounds: self.rounds as usize,
            cell_ms: self.cell_ms,
            only: self.only.iter().flat_map(|asked| names(asked)).collect(),
            threads: if asked.is_empty() { usual.collect() } else { asked },
            scale: if self.is_small { Scale::Small } else { Scale::Full },
            command: own_command.line(),
        })
    }
}

/// The letters of a list of them, or the one text: names of rows have commas in them.
fn names(asked: &str) -> Vec<String> {
    let parts: Vec<&str> = asked.split(',').map(str::trim).collect();
    let are_letters = parts.iter().all(|part| part.chars().count() == 1);
    if are_letters { parts.into_iter().map(str::to_owned).collect() } else { vec![asked.into()] }
}

fn failed(failure: pgmap_bench::Failure) -> Failure {
    Failure::new("failed", 0, format!("bench: {failure}"))
}

fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::io("write", path.display(), &error))
}

/// A page with nothing but the picture, light whatever the reader prefers: so are its colours.
fn page(svg: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"color-scheme\" content=\"light\"><title>pgmap bench</title></head>\n\
         <body style=\"margin:0;background:#fff\">\n{svg}\n</body></html>\n"
    )
}
