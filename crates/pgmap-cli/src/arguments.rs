//! The command line: every flag, and the help that is also the manual.

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};

use crate::attach::Place;
use crate::output::{Format, Output, Talk, Units};
use crate::verbs;

const ABOUT: &str = "One memory pool for all the processes of a machine";
const LONG_ABOUT: &str = "\
One memory pool for all the processes of a machine.

A block cannot be reused while anything still reads it, and a killed process gives everything back \
in milliseconds; there are no time-outs to tune. `pgmap demo` shows both in ten seconds and needs \
nothing but itself.

`pgmap serve` owns a pool. Every other verb is a client of the owner that listens at the socket: \
files are put into the pool, found by name, and read without a call to the owner. Names are flat: \
1 to 255 bytes, any but NUL.";

const AFTER_LONG_HELP: &str = "\
Sizes:
  Bytes, or a number with K, M, G, T, P, E (powers of 1024; KiB, MiB … say the same), or 0x….
  2GB is refused, for it means two things.

Output:
  Results go to stdout as a table, with --json as one object with a `schema` field (for example
  \"pgmap.ls/1\") and raw integers. Fields are added, never renamed or removed, under one number.
  A failure with --json also prints a \"pgmap.error/1\" object: `kind` is a name that stays what it
  is (not_found, exists, no_space, held ...), `errno` the system's name and number for it.
  Everything else goes to stderr.
  NO_COLOR turns styling off; PGMAP_LOG sets what is logged, as in `PGMAP_LOG=pgmap=debug`.

Names:
  Tables and messages write control characters, bytes that are not UTF-8 and the backslash as
  \\n, \\xff and \\\\, so that no two names look alike. In JSON each name has a companion with its
  exact bytes: `name` is the name itself if it is UTF-8 (else written as in tables), and
  `name_base64` is always exact; likewise `file`, `old`, `new`, `pool`, `socket` and `metadata`.

Exit codes:
  0    it worked
  1    error
  2    the command line is wrong
  3    somebody holds it, or is at work on it
  4    it is quarantined
  124  the deadline passed; the message names who holds it
  129, 130, 143  ended by SIGHUP, SIGINT, SIGTERM

Examples:
  pgmap serve --size 4GiB &
  pgmap put weights.bin weights
  pgmap get weights - | sha256sum
  pgmap ls -u
  pgmap who weights
  pgmap events --prefix kv/ --json
  pgmap quota set --prefix kv/ --bytes 10G --files 100000
  pgmap set --evict-low 1G --evict-high 2G
  pgmap list --devices -u
  pgmap who /dev/dax0.0
  pgmap truncate weights 1M --deadline 500
  pgmap repair weights 0x3000 --from weights.bin";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "pgmap",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = AFTER_LONG_HELP,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// Socket of the pool's owner
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "PGMAP_SOCKET",
        value_hint = ValueHint::FilePath,
        long_help = "Socket of the pool's owner. Default: $XDG_RUNTIME_DIR/pgmap/pgmap.sock, or \
                     /dev/shm/pgmap-UID/pgmap/pgmap.sock where there is no such directory. The \
                     default is used only if nobody but this user and root could have put it \
                     there; a socket that is named is used as it is"
    )]
    socket: Option<PathBuf>,
    /// How long to wait for an owner that is only starting, in milliseconds
    #[arg(long, global = true, value_name = "MS", default_value_t = 2000)]
    wait: u64,
    /// Print results as JSON
    #[arg(long = "json", global = true)]
    is_json: bool,
    /// Write sizes for people in tables: 1.5 GiB
    #[arg(short = 'u', long = "human", global = true)]
    is_human: bool,
    /// Print results and errors only: no progress, notes or closing lines
    #[arg(short = 'q', long = "quiet", global = true)]
    pub is_quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

// No doc comments on the variants: they would hide the help that each verb has in its file.
/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Create(verbs::create::Create),
    Check(verbs::check::Check),
    Serve(verbs::serve::Serve),
    Put(verbs::put::Put),
    Get(verbs::get::Get),
    Ls(verbs::ls::Ls),
    Stat(verbs::stat::Stat),
    Rm(verbs::rm::Rm),
    Mv(verbs::mv::Mv),
    Truncate(verbs::truncate::Truncate),
    Punch(verbs::punch::Punch),
    Who(verbs::who::Who),
    List(verbs::list::List),
    Poison(verbs::poison::Poison),
    Repair(verbs::repair::Repair),
    Trim(verbs::trim::Trim),
    Backing(verbs::backing::Backing),
    Grow(verbs::grow::Grow),
    Drain(verbs::drain::Drain),
    Events(verbs::events::Events),
    Quarantine(verbs::quarantine::Quarantine),
    Quota(verbs::quota::Quota),
    Set(verbs::set::Set),
    Debug(verbs::debug::Debug),
    Demo(verbs::demo::Demo),
    Bench(verbs::bench::Bench),
    Completions(verbs::completions::Completions),
    Man(verbs::man::Man),
    #[command(hide = true)]
    DemoChild(crate::demo::child::DemoChild),
}

impl Arguments {
    /// Where the owner listens, or will.
    pub fn place(&self) -> Place {
        Place::new(self.socket.clone(), Duration::from_millis(self.wait))
    }

    /// Where results go, and how they look.
    pub fn output(&self) -> Output {
        Output::new(
            if self.is_json { Format::Json } else { Format::Table },
            if self.is_human { Units::Human } else { Units::Bytes },
            if self.is_quiet { Talk::Quiet } else { Talk::Usual },
        )
    }
}

/// The command line as clap knows it, for completions and manual pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_and_verb_has_help() {
        for verb in command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            assert!(verb.get_long_about().is_some(), "{} has no more to say", verb.get_name());
            for arg in verb.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
            }
        }
    }
}
