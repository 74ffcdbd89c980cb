//! `pgmap man [VERB]`: made from the flags, so never behind them.

use clap_mangen::Man as Page;

use crate::arguments::command;
use crate::failure::Failure;

/// Print a manual page
///
/// `pgmap man | man -l -` shows the page of the command, `pgmap man put` prints that of a verb.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The verb; the whole command when absent
    verb: Option<String>,
}

impl Man {
    /// Prints it.
    ///
    /// # Errors
    /// When there is no such verb, or stdout cannot be written.
    pub fn run(self) -> Result<(), Failure> {
        let mut whole = command();
        whole.build();
        let page = match self.verb {
            None => whole,
            Some(verb) => {
                let known = whole.find_subcommand(&verb).cloned();
                let Some(found) = known.filter(|found| !found.is_hide_set()) else {
                    return Err(Failure::usage(format!(
                        "there is no verb `{verb}`: `pgmap --help` lists them"
                    )));
                };
                found
            }
        };
        let mut text = Vec::new();
        Page::new(page)
            .manual("pgmap")
            .render(&mut text)
            .map_err(|error| Failure::io("write", "the page", &error))?;
        super::get::to_stdout(&text)
    }
}
