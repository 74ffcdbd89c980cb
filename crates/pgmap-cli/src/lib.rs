//! The command `pgmap`: one memory pool for all the processes of a machine, from a shell.
//!
//! | module | one concept |
//! |---|---|
//! | `arguments` | the command line: every flag and every word of help |
//! | `verbs` | what each verb does, one file each |
//! | `demo` | `pgmap demo`: leases that time out against pins, with real processes |
//! | `attach` | how a verb reaches the owner, and whether that is to be trusted |
//! | `output`, `table` | one value, shown as a table or as JSON |
//! | `sizes` | sizes as people write and read them |
//! | `names` | names and paths in results, for people and byte for byte |
//! | `failure`, `errno` | errors, their numbers and exit codes |
//! | `target` | a file on disk that is written whole or not at all |
//! | `progress`, `stop`, `logging` | bars, signals, logs |
//! | `own_command` | how this command was started, and is started again |
//! | `standard_streams` | whether there is a stdout |

mod arguments;
mod attach;
mod demo;
mod durations;
mod errno;
mod failure;
mod logging;
mod names;
mod output;
mod own_command;
mod progress;
mod sizes;
mod standard_streams;
mod stop;
mod table;
mod target;
mod verbs;

use std::ffi::OsString;

use clap::Parser;

use crate::arguments::Arguments;
use crate::failure::{Exit, Failure};
use crate::output::{Format, Output, Talk, Units};

/// An owner makes and frees a few small pieces of memory for each file, often with cold caches.
/// This allocator touches less for it than the C library's (ADR 0106). The Python package has it
/// from here, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prints what was asked for of clap, or what it did not understand.
fn answered(error: &clap::Error, is_json: bool) -> u8 {
    // Where an error cannot be printed there is nobody to tell.
    let _ = error.print();
    if !error.use_stderr()
        && let Err(failure) = output::stdout()
    {
        Output::new(Format::Table, Units::Bytes, Talk::Usual).show_failure(&failure);
        return failure.exit.code();
    }
    if error.use_stderr() && is_json {
        let text = error.render().to_string();
        Output::new(Format::Json, Units::Bytes, Talk::Usual)
            .report(&Failure::usage(text.trim_start_matches("error: ").trim_end()));
    }
    u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code())
}

/// Runs the command line `words`, the name of the command among them. Returns the exit code.
///
/// It takes the process as its own: signals, logs, and the processes that the demo starts with this
/// program and whatever words stand before the command's own.
#[must_use]
pub fn run(words: &[OsString]) -> u8 {
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => return answered(&error, words.iter().any(|word| word == "--json")),
    };
    let (place, output) = (arguments.place(), arguments.output());
    logging::start(&arguments);
    stop::keep_file_size_limit_an_error();
    let command = own_command::OwnCommand::of(words);
    match verbs::run(arguments.verb, &place, &output, &command) {
        Ok(()) => 0,
        Err(failure) => {
            output.show_failure(&failure);
            failure.exit.code()
        }
    }
}
