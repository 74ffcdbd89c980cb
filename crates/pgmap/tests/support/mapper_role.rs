//! A process with an address space of its own that carries out commands: one a line, one answer
//! each.

// UNSAFETY: raw loads and stores at mapped and vacated addresses are what it is for.
#![allow(unsafe_code)]

use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, FaultAnswer, TouchFault};
use pgmap::{Client, Event};

use super::block;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(10);

pub fn load(address: u64) -> u64 {
    // SAFETY: an address of a process address space; whether anything is there is what is tested.
    unsafe { ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

pub fn store(address: u64, value: u64) {
    // SAFETY: as in `load`.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(value) };
}

/// Maps all of a file.
pub fn map(space: &AddressSpace, name: &str, place: Placed, prot: Prot) -> u64 {
    let file = space.client().open(name).unwrap();
    space.map(&file, 0, file.len_bytes(), place, prot).unwrap()
}

/// Connects to the owner at `socket` and obeys until the parent closes the pipe.
pub fn run(socket: &Path) -> ! {
    let client = Client::connect(socket).unwrap();
    let space = Arc::new(AddressSpace::for_process(&client, GIB).unwrap());
    let mapper = Mapper { space, faults: Arc::default(), seen: Arc::default() };
    super::say("ok");
    for line in super::commands() {
        let words: Vec<&str> = line.split(' ').collect();
        super::say(mapper.obey(&words));
    }
    std::process::exit(0);
}

/// A process with an address space that carries out commands.
struct Mapper {
    space: Arc<AddressSpace>,
    /// Address and count of the faults that the handler was asked about.
    faults: Arc<Mutex<Vec<u64>>>,
    /// Every word that the watching thread saw, once.
    seen: Arc<Mutex<Vec<u64>>>,
}

impl Mapper {
    fn obey(&self, words: &[&str]) -> String {
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            "map" => map(&self.space, words[1], Placed::Anywhere, Prot::READ_WRITE).to_string(),
            "map-many" => {
                for number in 0..number(1) {
                    map(&self.space, &format!("f{number}"), Placed::Anywhere, Prot::READ_WRITE);
                }
                "ok".into()
            }
            "load" => load(number(1)).to_string(),
            "store" => {
                store(number(1), number(2));
                "ok".into()
            }
            "read" => {
                let mut bytes = vec![0; number(2) as usize];
                match self.space.read_at(number(1), &mut bytes) {
                    Ok(()) => block::check(&bytes).map_or_else(|wrong| wrong, |g| g.to_string()),
                    Err(error) => format!("err {} {error}", error.errno()),
                }
            }
            "write" => match self.space.write_at(number(1), b"12345678") {
                Ok(()) => "ok".into(),
                Err(error) => format!("err {} {error}", error.errno()),
            },
            "handle" => {
                self.handle();
                "ok".into()
            }
            "watch" => {
                self.watch(number(1));
                "ok".into()
            }
            "faults" => format!("{:?}", self.faults.lock().unwrap()),
            "seen" => format!("{:?}", self.seen.lock().unwrap()),
            "event" => match self.space.client().next_event(WAIT).unwrap() {
                Some(Event::ReclaimRequested { .. }) => "reclaim requested".into(),
                Some(Event::MemoryFailure { .. }) => "failure".into(),
                other => format!("{other:?}"),
            },
            other => panic!("no such command: {other}"),
        }
    }

    /// Maps the file "spare" wherever a touch finds nothing.
    fn handle(&self) {
        let (space, faults) = (Arc::downgrade(&self.space), Arc::clone(&self.faults));
        self.space.on_touch_fault(move |fault: &TouchFault| {
            faults.lock().unwrap().push(fault.address);
            let Some(space) = space.upgrade() else { return FaultAnswer::Fail };
            let page = fault.address - fault.address % PAGE;
            let spare = space.client().open("spare").unwrap();
            space.map(&spare, 0, PAGE, Placed::Over(page), Prot::READ_WRITE).unwrap();
            FaultAnswer::Retry
        });
    }

    /// Loads a word again and again, until the process ends.
    fn watch(&self, address: u64) {
        let seen = Arc::clone(&self.seen);
        let first = load(address);
        seen.lock().unwrap().push(first);
        std::thread::spawn(move || {
            let mut last = first;
            loop {
                let now = load(address);
                if now != last {
                    seen.lock().unwrap().push(now);
                    last = now;
                }
            }
        });
    }
}
