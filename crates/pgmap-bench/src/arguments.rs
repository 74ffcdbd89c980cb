//! The command line.

use std::path::PathBuf;

use crate::failure::Failure;

/// The manual.
pub const HELP: &str = "\
pgmap beside its floors and rivals, measured in interleaved rounds.

Usage: pgmap-bench [options]
       cargo bench -p pgmap-bench -- [options]

Options:
  --rows TEXT      only scenarios and rows whose name contains TEXT, and what they are compared to
  --rounds N       rounds of each scenario (11)
  --cell-ms N      least time of one row in one round, in milliseconds (30)
  --json FILE      also write everything to FILE; the schema is in its field `schema`
  --small          run every row once with tiny counts and check that it works: a test of seconds
  --help           print this text

A cell is min/median/max in ns per operation and thread. `x` is the median, with least and greatest,
of the ratios to the row named `base` in the same round; `x least` is the ratio of the two least
times, for orientation on a busy machine, and claims nothing.

Exit codes: 0 all rows ran (a missed target is shown, it is no failure), 1 a row failed,
2 the command line is wrong.
";

const LEAST_ROUNDS: usize = 3;

/// What was asked for.
pub struct Arguments {
    pub filter: Option<String>,
    pub nr_rounds: usize,
    pub cell_ms: u64,
    pub json: Option<PathBuf>,
    pub is_small: bool,
    /// As typed.
    pub line: String,
}

/// What to do.
pub enum Command {
    Help,
    Run(Arguments),
}

impl Arguments {
    /// Understands `args`.
    pub fn parse(args: &[String]) -> Result<Command, Failure> {
        let mut arguments = Self {
            filter: None,
            nr_rounds: 11,
            cell_ms: 30,
            json: None,
            is_small: false,
            line: format!("pgmap-bench {}", args.join(" ")).trim_end().to_owned(),
        };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words.next().ok_or_else(|| Failure::new(format!("{word} needs a value after it")))
            };
            match word.as_str() {
                "--help" | "-h" => return Ok(Command::Help),
                "--small" => arguments.is_small = true,
                "--rows" => arguments.filter = Some(value()?.clone()),
                "--json" => arguments.json = Some(value()?.into()),
                "--rounds" => arguments.nr_rounds = number(word, value()?)?.max(LEAST_ROUNDS),
                "--cell-ms" => arguments.cell_ms = number(word, value()?)?.max(1) as u64,
                _ => return Err(Failure::new(format!("`{word}` is no option"))),
            }
        }
        Ok(Command::Run(arguments))
    }
}

fn number(option: &str, text: &str) -> Result<usize, Failure> {
    text.parse().map_err(|_| Failure::new(format!("{option} takes a number, not `{text}`")))
}
