//! Logs go to stderr, where systemd's journal and shells expect them.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::arguments::{Arguments, Verb};

/// The variable that overrides what is logged, in the syntax of `tracing` (`pgmap=debug`).
const VARIABLE: &str = "PGMAP_LOG";

/// Starts logging: a server tells what happens, any other verb only what is wrong.
pub fn start(arguments: &Arguments) {
    let usual = match arguments.verb {
        _ if arguments.is_quiet => "error",
        Verb::Serve(_) => "info",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}
