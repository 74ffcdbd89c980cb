//! How this command was started, and is started again.

use std::ffi::OsString;
use std::process::Command;

/// What stands before the command's own words: nothing for the program `pgmap`; for an interpreter
/// that runs the command itself, under the name it was called by, and a script.
#[derive(Clone, Debug)]
pub struct OwnCommand {
    before: Vec<OsString>,
    words: Vec<OsString>,
}

impl OwnCommand {
    /// Of a command whose own words are `words`, its name among them.
    pub fn of(words: &[OsString]) -> Self {
        let all: Vec<OsString> = std::env::args_os().collect();
        Self::within(&all, words)
    }

    fn within(all: &[OsString], words: &[OsString]) -> Self {
        let words = words.get(1..).unwrap_or_default().to_vec();
        let before = &all[..all.len().saturating_sub(words.len())];
        let is_alone = before.len() < 2;
        Self { before: if is_alone { Vec::new() } else { before.to_vec() }, words }
    }

    /// To be started with other words.
    ///
    /// # Errors
    /// When the system does not say which program this is.
    pub fn again(&self) -> std::io::Result<Command> {
        let Some((interpreter, script)) = self.before.split_first() else {
            return Ok(Command::new(std::env::current_exe()?));
        };
        // By its name: where a link leads to it, as in a virtual environment of Python, it finds
        // other packages than under its own.
        let mut command = Command::new(interpreter);
        command.args(script);
        Ok(command)
    }

    /// As it was typed, under the command's own name.
    pub fn line(&self) -> String {
        let words = self.words.iter().map(|word| word.to_string_lossy().into_owned());
        ["pgmap".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_program_has_nothing_before_its_words_and_an_interpreter_has_a_script() {
        let own = words("pgmap ls --json");
        let program = OwnCommand::within(&own, &own);
        assert_eq!((program.before.len(), program.line()), (0, "pgmap ls --json".into()));
        let all = words("python3 -m pgmap ls --json");
        let module = OwnCommand::within(&all, &own);
        assert_eq!(module.before, words("python3 -m pgmap"));
        assert_eq!(module.words, words("ls --json"));
        assert_eq!(OwnCommand::within(&words("pgmap"), &words("pgmap")).line(), "pgmap");
    }
}
