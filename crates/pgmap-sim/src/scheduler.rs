//! Who runs when a lock of the page model is taken: whom the machine says.

use std::time::Duration;

use pgmap::mm::sync::{Scheduler, schedule};
use pgmap_os::sim::{Happening, with};

struct ByMachine;

impl Scheduler for ByMachine {
    fn step(&self) {
        let _did = pgmap_os::sim::word();
    }

    fn now(&self) -> Option<Duration> {
        with(|world| Duration::from_nanos(world.now_ns()))
    }

    fn wait(&self, timeout: Option<Duration>) -> bool {
        with(|world| {
            if world.is_ended() {
                assert!(timeout.is_some(), "a party that was ended waits for a lock");
                return false;
            }
            let nanos = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            let until_ns = timeout.map(|timeout| world.now_ns().saturating_add(nanos(timeout)));
            let what = if timeout.is_none() { Happening::Lock } else { Happening::Condition };
            world.wait(until_ns, what);
            true
        })
        .unwrap_or(false)
    }

    fn locked(&self, is_taken: bool) {
        with(|world| {
            world.locked(is_taken);
            if !is_taken {
                world.happened(Happening::Lock);
            }
        });
    }

    fn notified(&self) {
        with(|world| world.happened(Happening::Condition));
    }
}

/// Has the machine say who runs, in every run of this process.
pub fn install() {
    schedule(&ByMachine);
}
