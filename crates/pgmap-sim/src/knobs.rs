//! What a run has of each fault, drawn from its seed.

use serde::{Deserialize, Serialize};

/// Rates are out of 65,536 calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    /// Most steps of a thread before another may run.
    pub longest_turn: u32,
    /// How much time a step takes.
    pub step_ns: u32,
    pub no_space: u32,
    pub io_error: u32,
    pub full_socket: u32,
    pub no_memory: u32,
    pub no_membarrier: u32,
    pub lost_ring: u32,
    pub late_event: u32,
    /// What owners tell clients: lost, and told twice.
    #[serde(default)]
    pub lost_event: u32,
    /// Whether the pool promises more than that it outlives its owner; then its files lie on a
    /// disk, and a power failure loses names as well.
    #[serde(default)]
    pub is_disk: bool,
    /// Whether what was answered outlives a power failure.
    #[serde(default)]
    pub is_flushed: bool,
    #[serde(default)]
    pub doubled_event: u32,
    /// Whether every other file may be evicted.
    #[serde(default)]
    pub evicts: bool,
    /// Whether the pool's memory cannot be given back to the system, as that of a device.
    #[serde(default)]
    pub is_attached: bool,
}

impl Knobs {
    /// Draws them; about half of the faults are absent from a run.
    pub fn draw(chance: &mut fastrand::Rng) -> Self {
        let mut rate = |most: u32| if chance.bool() { 0 } else { chance.u32(1..=most) };
        let (no_space, io_error, full_socket) = (rate(400), rate(200), rate(4_000));
        let (no_memory, lost_ring, late_event) = (rate(200), rate(20_000), rate(30_000));
        let (lost_event, doubled_event) = (rate(60_000), rate(20_000));
        let no_membarrier = if chance.u32(0..6) == 0 { 20_000 } else { 0 };
        Self {
            longest_turn: [2, 8, 30, 120, 500][chance.usize(0..5)],
            step_ns: [10, 100, 1_000, 20_000][chance.usize(0..4)],
            no_space,
            io_error,
            full_socket,
            no_memory,
            no_membarrier,
            lost_ring,
            late_event,
            lost_event: if chance.bool() { lost_event } else { 0 },
            doubled_event,
            is_disk: false,
            is_flushed: false,
            is_attached: false,
            evicts: false,
        }
    }
}
