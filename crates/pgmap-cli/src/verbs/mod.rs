//! What each verb does, one file each.

pub mod bench;
pub mod completions;
mod condition;
pub mod debug;
pub mod demo;
pub mod get;
pub mod ls;
pub mod man;
pub mod mv;
mod patience;
pub mod poison;
pub mod punch;
pub mod put;
pub mod repair;
pub mod rm;
pub mod serve;
pub mod stat;
pub mod truncate;
pub mod who;

use std::path::Path;

use crate::arguments::Verb;
use crate::failure::Failure;
use crate::output::Output;

/// Bytes that put and get move at a time.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Does what `verb` says.
///
/// # Errors
/// What the verb fails with.
pub fn run(verb: Verb, socket: &Path, output: &Output) -> Result<(), Failure> {
    match verb {
        Verb::Serve(serve) => serve.run(socket, output),
        Verb::Put(put) => put.run(socket, output),
        Verb::Get(get) => get.run(socket, output),
        Verb::Ls(ls) => ls.run(socket, output),
        Verb::Stat(stat) => stat.run(socket, output),
        Verb::Rm(rm) => rm.run(socket, output),
        Verb::Mv(mv) => mv.run(socket, output),
        Verb::Truncate(truncate) => truncate.run(socket, output),
        Verb::Punch(punch) => punch.run(socket, output),
        Verb::Who(who) => who.run(socket, output),
        Verb::Poison(poison) => poison.run(socket, output),
        Verb::Repair(repair) => repair.run(socket, output),
        Verb::Debug(debug) => debug.run(socket, output),
        Verb::Demo(demo) => demo.run(output),
        Verb::Bench(bench) => bench.run(output),
        Verb::Completions(completions) => completions.run(),
        Verb::Man(man) => man.run(),
        Verb::DemoChild(child) => child.run(),
    }
}
