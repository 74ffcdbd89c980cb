//! Processes that hold something until they are killed or told to let go.

use std::io::Read;

use super::block::{BLOCK_BYTES, Identity};
use super::child::{DemoChild, say_ready};
use super::dma::{Dma, Memory};
use super::writer::{draft_spec, fill_by_dma};
use super::{HELD_FILE, NR_HELD_BLOCKS};
use crate::failure::Failure;

/// The name of the file number `at` that a process to be killed pins.
pub fn victim_file(at: u64) -> String {
    format!("victim-{at}")
}

/// Pins the files and reads them again and again.
///
/// # Errors
/// When the pool cannot be used.
pub fn read_for_ever(child: &DemoChild) -> Result<(), Failure> {
    let client = child.client()?;
    let pins: Result<Vec<_>, _> =
        (0..NR_HELD_BLOCKS).map(|at| client.get(victim_file(at))).collect();
    let pins = pins?;
    let mut bytes = vec![0; BLOCK_BYTES];
    say_ready()?;
    loop {
        for pin in &pins {
            pin.read_at(0, &mut bytes)?;
        }
    }
}

/// Has uncommitted files that a device never stops writing to.
///
/// # Errors
/// When the pool cannot be used.
pub fn write_for_ever(child: &DemoChild) -> Result<(), Failure> {
    let client = child.client()?;
    let dma = Dma::open(Memory::Pool(client.clone()), &child.scratch, child.dma);
    let mut dma = dma.map_err(|error| Failure::io("move bytes to", "the pool", &error))?;
    let specs = (0..NR_HELD_BLOCKS).map(|at| draft_spec(victim_file(at)));
    let specs = specs.collect::<Result<_, _>>()?;
    let mut drafts = Vec::new();
    for created in client.create_batch(specs)? {
        drafts.push(created?);
    }
    let mut generation = 1;
    loop {
        for (block, draft) in (0..).zip(&mut drafts) {
            fill_by_dma(&mut dma, Identity { block, generation }, draft)?;
        }
        if generation == 1 {
            say_ready()?;
        }
        generation += 1;
        while dma.nr_in_flight() > 0 {
            dma.wait().map_err(|error| Failure::io("move bytes to", "the pool", &error))?;
        }
    }
}

/// Pins a file until stdin ends.
///
/// # Errors
/// When the pool cannot be used.
pub fn hold_until_told(child: &DemoChild) -> Result<(), Failure> {
    let client = child.client()?;
    let pin = client.get(HELD_FILE)?;
    say_ready()?;
    // Whatever ends it: the answer is to let go.
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
    drop(pin);
    Ok(())
}
