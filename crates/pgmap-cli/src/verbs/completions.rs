//! `pgmap completions SHELL`: made from the flags, so never behind them.

use clap_complete::Shell;

use crate::arguments::command;
use crate::failure::Failure;

/// Print a completion script
///
/// For bash: `pgmap completions bash > ~/.local/share/bash-completion/completions/pgmap`.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Completions {
    /// For which shell
    shell: Shell,
}

impl Completions {
    /// Prints it.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "pgmap", &mut script);
        super::get::to_stdout(&script)
    }
}
