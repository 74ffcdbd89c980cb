//! T4: the owner is killed under live clients. They keep reading; new calls wait and then work;
//! what was not committed is gone; every frame is accounted for.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{self, Random, Second, block};
use pgmap::{Client, Error, FolioSize, Refusal};

const POOL_BYTES: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

#[test]
fn child_entry() {
    support::owner_role::run_if_asked(POOL_BYTES);
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = support::roomy();
    let path = directory.path().to_owned();
    (directory, path)
}

#[test]
fn t4_clients_read_on_and_calls_wait_for_the_next_owner() {
    let (_directory, place) = place();
    let mut owner = Second::ready("create", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let mut other = Second::ready("client", &place);
    let mut victim = Second::ready("client", &place);
    support::put(&client, "a", &block::make(1, 3 << 20)).unwrap();
    support::put(&client, "gone", &block::make(2, 2 << 20)).unwrap();
    other.must("pin gone");
    client.unlink("gone").unwrap();
    let pin = client.get("a").unwrap();
    let mut draft = client.create("draft", 5 * MIB, FolioSize::BestFit).unwrap();
    draft.write_all_at(0, &block::make(3, 5 << 20)).unwrap();
    victim.must("pin a");
    victim.must("write lost 4 1000000");
    owner.kill();
    // Nobody is there: what needs no call goes on, and a client dies unnoticed.
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    assert_eq!(other.ask("verify"), "generation 2");
    assert_eq!(other.ask("get a"), "generation 1");
    victim.kill();

    let second_owner = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.stat("a"));
        other.tell("stat a");
        let second_owner = Second::ready("open", &place);
        assert_eq!(waiting.join().unwrap().unwrap().len_bytes, 3 << 20);
        second_owner
    });
    assert_eq!(other.answer(), "3145728 bytes");
    let refused = draft.commit().unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::NoDraft { .. })), "{refused}");
    assert_eq!(other.ask("verify"), "generation 2", "a pin of an unlinked file outlives an owner");
    let info = client.pool_stat().unwrap();
    assert_eq!((info.draining_bytes, info.live_bytes), (2 * MIB, 3 * MIB), "{info:?}");
    other.must("drop");
    let info = support::wait_until("the dead and the dropped are given back", || {
        let info = client.pool_stat().unwrap();
        (info.nr_clients == 2 && info.draining_bytes == 0).then_some(info)
    });
    support::assert_accounted(&info);
    assert_eq!(info.live_bytes, 3 * MIB);
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    client.unlink("a").unwrap();
    assert_eq!(client.pool_stat().unwrap().draining_bytes, 3 * MIB, "the old pin still counts");
    drop(pin);
    support::wait_until("all is free", || {
        (client.pool_stat().unwrap().free_bytes == POOL_BYTES).then_some(())
    });
    drop(second_owner);
}

#[test]
fn t4_an_owner_killed_again_and_again_under_load_loses_no_committed_file() {
    const NR_KILLS: usize = 12;
    let (_directory, place) = place();
    let mut owner = Second::ready("create", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let mut random = Random(support::seed());
    let seeds: Vec<u64> = (0..3).map(|_| random.next()).collect();
    let (stop, nr_steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Also when the rest of this fails: the scope waits for them.
        let _stop = support::SetOnDrop(&stop);
        for (number, &seed) in seeds.iter().enumerate() {
            let (client, stop, nr_steps) = (&client, &stop, &nr_steps);
            scope.spawn(move || load(client, number, seed, stop, nr_steps));
        }
        for _ in 0..NR_KILLS {
            // The moment of the kill is what is random here; nothing is waited for.
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            owner.kill();
            owner = Second::ready("open", &place);
            let before = nr_steps.load(Ordering::Relaxed);
            support::wait_until("the clients go on", || {
                (nr_steps.load(Ordering::Relaxed) > before + 30).then_some(())
            });
        }
    });
    println!("{} steps over {NR_KILLS} killed owners", nr_steps.load(Ordering::Relaxed));
    let info = client.pool_stat().unwrap();
    support::assert_accounted(&info);
    assert_eq!((info.nr_clients, info.orphaned_bytes), (1, 0), "{info:?}");
    let files = client.list().unwrap();
    assert_eq!(files.iter().map(|file| file.allocated_bytes).sum::<u64>(), info.live_bytes);
    for file in files {
        let pin = client.get(file.name.as_bytes()).unwrap();
        block::check(&pin.to_vec().unwrap()).unwrap();
    }
}

/// One thread's files: it alone writes them, so it knows what must be there, whatever is killed.
fn load(client: &Client, thread: usize, seed: u64, stop: &AtomicBool, nr_steps: &AtomicU64) {
    let mut random = Random(seed);
    // What the last call that was answered left; none while an answer was lost.
    let mut known: Vec<Option<u64>> = vec![Some(0); 4];
    while !stop.load(Ordering::Relaxed) {
        let place = random.below(4) as usize;
        let name = format!("t{thread}-{place}");
        if random.below(3) == 0 {
            check_known(client, &name, known[place]);
            continue;
        }
        let before = known[place].take();
        known[place] = if before == Some(0) {
            let generation = 1 + random.next() / 2;
            let bytes = block::make(generation, 1 + random.below(400_000) as usize);
            write(client, &name, &bytes).then_some(generation)
        } else {
            remove(client, &name);
            Some(0)
        };
        nr_steps.fetch_add(1, Ordering::Relaxed);
    }
    for (place, known) in known.iter().enumerate() {
        check_known(client, &format!("t{thread}-{place}"), *known);
    }
}

fn check_known(client: &Client, name: &str, known: Option<u64>) {
    let found = match client.get(name) {
        Ok(pin) => block::check(&pin.to_vec().unwrap()).unwrap(),
        Err(Error::Refused(Refusal::NotFound { .. })) => 0,
        Err(error) => panic!("get of {name}: {error}"),
    };
    if let Some(known) = known {
        assert_eq!(found, known, "{name}");
    }
}

/// How the second owner refused what the first one may have done.
fn refused_at_last(result: Result<(), Error>) -> Result<(), Error> {
    result.map_err(|error| match error {
        Error::Refused(Refusal::MayBeDone { refusal, .. }) => Error::Refused(*refusal),
        error => error,
    })
}

/// True when the commit was answered; a killed owner may have lost the draft, or the answer.
fn write(client: &Client, name: &str, bytes: &[u8]) -> bool {
    match refused_at_last(support::put(client, name, bytes)) {
        Ok(()) => true,
        Err(Error::Refused(Refusal::NoDraft { .. })) => false,
        Err(error) => panic!("put of {name}: {error}"),
    }
}

fn remove(client: &Client, name: &str) {
    match refused_at_last(client.unlink(name)) {
        // Not found: it was never committed, or the call was done twice because an answer was lost.
        Ok(()) | Err(Error::Refused(Refusal::NotFound { .. })) => {}
        Err(error) => panic!("unlink of {name}: {error}"),
    }
}
