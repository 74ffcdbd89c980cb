//! A scan in steps of any size finds what one in one go finds, in order, whoever comes and goes
//! meanwhile.
use crate::heap_world::{self, Client, World, run};
use pgmap_mm::barrier::PortableBarrier;
use pgmap_mm::drain::{ClientId, Drain, Held, Scan};
use pgmap_mm::extent::Extent;
use pgmap_mm::ledger::Agent;
use pgmap_mm::level::Level;
use pgmap_mm::runs::SortedRuns;

const PMD: u64 = Level::Pmd.nr_pages();

fn extent(world: &World) -> Extent {
    world.extent_of_huge_folios(8)
}

/// Clients 1 to `clients.len()`, from `next` on.
fn from(
    clients: &[Client],
    next: ClientId,
) -> impl Iterator<Item = (ClientId, &heap_world::Reader)> {
    let all = clients.iter().zip(1..).map(|(client, id)| (ClientId(id), &client.reader));
    all.filter(move |&(id, _)| id >= next)
}

fn in_order(held: &[Held]) -> Vec<(u64, ClientId, u32)> {
    assert!(held.is_sorted_by_key(|held| held.hold.run));
    let mut all: Vec<_> =
        held.iter().map(|h| (h.hold.run.start(), h.client, h.hold.nr_pins)).collect();
    all.sort_unstable();
    all
}

#[test]
fn steps_of_any_size_find_the_holds_of_all_clients_in_slots_and_counts() {
    let world = World::new();
    let extent = extent(&world);
    let clients: Vec<Client> = (1..=4).map(|id| world.client(id, 3, 50)).collect();
    // The third one holds nothing.
    let holders = [&clients[0], &clients[1], &clients[3]];
    let lanes: Vec<_> =
        holders.iter().flat_map(|c| (0..3).map(|_| c.pinner.lane().unwrap())).collect();
    let mut pins = Vec::new();
    for (number, lane) in (0..).zip(&lanes) {
        let first = |n: u64| (number * 977 + n * 131) % (8 * PMD - 3);
        pins.extend((0..45).map(|n| lane.pin(&extent, run(first(n), 3), Agent::Cpu).unwrap()));
    }
    let longterm: Vec<_> = [(0, 0, 2), (1, 5, 1), (3, 3, 4)]
        .into_iter()
        .map(|(client, first, nr): (usize, u64, u64)| {
            let run = run(first * PMD, nr * PMD);
            clients[client].pinner.pin_longterm(&extent, run, Agent::Device).unwrap()
        })
        .collect();
    let everything = SortedRuns::covering(Level::Pud.nr_pages());
    let parts = SortedRuns::new(vec![run(100, 300), run(PMD + 7, 1), run(3 * PMD - 20, 2 * PMD)]);
    for runs in [everything, parts, SortedRuns::new(vec![extent.run])] {
        let whole = Drain::start(runs.clone(), &PortableBarrier, from(&clients, ClientId(0)));
        let whole = in_order(whole.held());
        assert!(whole.len() > 10);
        for most in [1, 2, 3, 17, 60, usize::MAX] {
            let mut scan = Scan::start(runs.clone(), &PortableBarrier, from(&clients, ClientId(0)));
            let mut nr_steps = 1;
            while !scan.look_on(most, from(&clients, scan.next_client())) {
                nr_steps += 1;
                assert!(nr_steps < 10_000, "it does not end");
            }
            assert_eq!(nr_steps == 1, most == usize::MAX, "{nr_steps} steps of {most}");
            let drain = scan.finish();
            assert_eq!((in_order(drain.held()), drain.runs()), (whole.clone(), &runs));
        }
    }
    drop((pins, longterm));
}

/// Of whom died nothing is read any more, and the place in its ledger is no place in the next
/// one's. Of whom came later nothing matters.
#[test]
fn clients_that_come_and_go_between_steps_keep_none_from_being_read() {
    let world = World::new();
    let extent = extent(&world);
    let clients: Vec<Client> = (1..=3).map(|id| world.client(id, 2, 50)).collect();
    let lanes: Vec<_> =
        clients.iter().flat_map(|c| (0..2).map(|_| c.pinner.lane().unwrap())).collect();
    let pins: Vec<_> = (0..)
        .zip(&lanes)
        .map(|(n, lane)| lane.pin(&extent, run(10 * n, 2), Agent::Cpu).unwrap())
        .collect();
    let runs = SortedRuns::new(vec![extent.run]);
    let mut scan = Scan::start(runs, &PortableBarrier, from(&clients[..2], ClientId(0)));
    assert!(!scan.look_on(1, from(&clients, ClientId(0))));
    assert_eq!(scan.next_client(), ClientId(1), "in the middle of its ledger");
    // The first is dead, the third is new.
    while !scan.look_on(1, from(&clients, ClientId(2).max(scan.next_client()))) {}
    let held = in_order(scan.finish().held());
    assert_eq!(held, [(0, ClientId(1), 1), (20, ClientId(2), 1), (30, ClientId(2), 1)]);
    drop(pins);
}

/// A look that ended its round too early would look at the first holds for ever.
#[test]
fn a_look_in_steps_comes_to_the_last_hold_before_it_says_how_many_have_ended() {
    let world = World::new();
    let extent = extent(&world);
    let client = world.client(1, 1, 50);
    let lane = client.pinner.lane().unwrap();
    let pin = |n: u64| lane.pin(&extent, run(10 * n, 1), Agent::Cpu).unwrap();
    let mut pins: Vec<_> = (0..10).map(pin).collect();
    let ledgers = [(ClientId(1), &client.reader)];
    let mut drain = Drain::start(SortedRuns::new(vec![extent.run]), &PortableBarrier, ledgers);
    let round = |drain: &mut Drain| {
        let look = |drain: &mut Drain| drain.look_on(4, |_| Some(&client.reader));
        assert!(!drain.is_in_round());
        assert_eq!((look(drain), drain.is_in_round()), (None, true));
        assert_eq!((look(drain), drain.is_in_round()), (None, true));
        look(drain)
    };
    assert_eq!(round(&mut drain), Some(0));
    drop((pins.pop(), pins.remove(3)));
    assert_eq!(round(&mut drain), Some(2));
    let held: Vec<u64> = drain.held().iter().map(|held| held.hold.run.start() / 10).collect();
    assert_eq!(held, [0, 1, 2, 4, 5, 6, 7, 8]);
    drop(pins);
    drain.look_again(|_| Some(&client.reader));
    assert!(drain.is_idle());
}
