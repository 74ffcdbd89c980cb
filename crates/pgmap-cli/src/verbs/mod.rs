//! What each verb does, one file each.

pub mod backing;
pub mod bench;
pub mod check;
pub mod completions;
mod condition;
pub mod create;
pub mod debug;
pub mod demo;
pub mod drain;
pub mod events;
mod folio_level;
pub mod get;
pub mod grow;
pub mod list;
pub mod ls;
pub mod man;
pub mod mv;
mod patience;
pub mod poison;
mod pool;
pub mod punch;
pub mod put;
pub mod quarantine;
pub mod quota;
pub mod repair;
pub mod rm;
pub mod serve;
pub mod set;
pub mod stat;
pub mod trim;
pub mod truncate;
pub mod who;
mod who_file;

use crate::arguments::Verb;
use crate::attach::Place;
use crate::failure::Failure;
use crate::output::Output;
use crate::own_command::OwnCommand;

/// Bytes that put and get move at a time.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Does what `verb` says.
///
/// # Errors
/// What the verb fails with.
pub fn run(
    verb: Verb,
    place: &Place,
    output: &Output,
    own_command: &OwnCommand,
) -> Result<(), Failure> {
    match verb {
        Verb::Check(check) => check.run(output),
        Verb::Create(create) => create.run(output),
        Verb::Serve(serve) => serve.run(place, output),
        Verb::Put(put) => put.run(place, output),
        Verb::Get(get) => get.run(place, output),
        Verb::List(list) => list.run(output),
        Verb::Ls(ls) => ls.run(place, output),
        Verb::Stat(stat) => stat.run(place, output),
        Verb::Rm(rm) => rm.run(place, output),
        Verb::Mv(mv) => mv.run(place, output),
        Verb::Truncate(truncate) => truncate.run(place, output),
        Verb::Punch(punch) => punch.run(place, output),
        Verb::Who(who) => who.run(place, output),
        Verb::Poison(poison) => poison.run(place, output),
        Verb::Drain(drain) => drain.run(place, output),
        Verb::Quarantine(quarantine) => quarantine.run(place, output),
        Verb::Quota(quota) => quota.run(place, output),
        Verb::Set(set) => set.run(place, output),
        Verb::Trim(trim) => trim.run(place, output),
        Verb::Backing(backing) => backing.run(place, output),
        Verb::Grow(grow) => grow.run(place, output),
        Verb::Events(events) => events.run(place, output),
        Verb::Repair(repair) => repair.run(place, output),
        Verb::Debug(debug) => debug.run(place, output),
        Verb::Demo(demo) => demo.run(output, own_command),
        Verb::Bench(bench) => bench.run(output, own_command),
        Verb::Completions(completions) => completions.run(),
        Verb::Man(man) => man.run(),
        Verb::DemoChild(child) => child.run(),
    }
}
