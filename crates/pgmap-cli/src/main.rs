//! The command `pgmap`: one memory pool for all the processes of a machine, from a shell.
//!
//! | module | one concept |
//! |---|---|
//! | `arguments` | the command line: every flag and every word of help |
//! | `verbs` | what each verb does, one file each |
//! | `demo` | `pgmap demo`: leases that time out against pins, with real processes |
//! | `attach` | how a verb reaches the owner |
//! | `output`, `table` | one value, shown as a table or as JSON |
//! | `sizes` | sizes as people write and read them |
//! | `failure` | errors and exit codes |
//! | `progress`, `stop`, `logging` | bars, signals, logs |

mod arguments;
mod attach;
mod demo;
mod failure;
mod logging;
mod output;
mod progress;
mod sizes;
mod stop;
mod table;
mod verbs;

use clap::Parser;
use std::process::ExitCode;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = arguments.output();
    logging::start(&arguments);
    match verbs::run(arguments.verb, &arguments.socket, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.show_failure(&failure);
            failure.exit.into()
        }
    }
}
