//! Puts of many files at once, with an owner in another process: it makes room for some while the
//! client copies others, and each file has the answer that it would have had alone.

use std::time::Duration;

use pgmap::{Client, CreateSpec, Error, FolioSize, PoolInfo, Refusal};

use crate::support::{self, Second, block, serving_owner, wait_until};

const KIB: u64 = 1 << 10;
const BLOCK: u64 = 64 * KIB;
const NR_FILES: u64 = 70;
const POOL_BYTES: u64 = 64 << 20;

#[test]
fn child_entry() {
    support::owner_role::run_if_asked(POOL_BYTES);
}

fn name(number: u64) -> String {
    format!("file/{number:03}")
}

fn spec(number: u64, len_bytes: u64) -> CreateSpec {
    CreateSpec::named(name(number), len_bytes, FolioSize::BestFit).unwrap()
}

/// Contents of the files 0 to `NR_FILES`, more than a mebibyte in all.
fn blocks(generation: u64) -> Vec<Vec<u8>> {
    (0..NR_FILES).map(|number| block::make(generation + number, BLOCK as usize)).collect()
}

fn put_all(client: &Client, blocks: &[Vec<u8>]) -> Result<Vec<Result<(), Error>>, Error> {
    let files = (0..).zip(blocks).map(|(number, bytes)| (spec(number, BLOCK), &bytes[..]));
    client.put_batch(files.collect())
}

fn generation_of(client: &Client, number: u64) -> Option<u64> {
    let bytes = match client.get(name(number)) {
        Err(Error::Refused(Refusal::NotFound { .. })) => return None,
        pin => pin.unwrap().to_vec().unwrap(),
    };
    assert_eq!(bytes.len() as u64, BLOCK);
    Some(block::check(&bytes).unwrap())
}

fn info(client: &Client) -> PoolInfo {
    client.pool_stat().unwrap()
}

#[test]
fn each_file_of_many_has_its_own_bytes_and_its_own_answer() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(socket).unwrap();
    // One name is taken, and the contents of another are longer than it is said to be.
    let (taken, long) = (17, 44);
    client.put(spec(taken, BLOCK), &block::make(9000, BLOCK as usize)).unwrap();
    let blocks = blocks(100);
    let files = (0..).zip(&blocks).map(|(number, bytes)| {
        (spec(number, if number == long { BLOCK - 1 } else { BLOCK }), &bytes[..])
    });
    let answers = client.put_batch(files.collect()).unwrap();
    assert_eq!(answers.len() as u64, NR_FILES);
    for (number, answer) in (0..).zip(&answers) {
        match answer {
            Err(Error::Refused(Refusal::Exists { name: at })) if number == taken => {
                assert_eq!(*at, name(taken));
            }
            Err(Error::OutOfRange { .. }) if number == long => {}
            answer => assert!(answer.is_ok(), "{number}: {answer:?}"),
        }
        let expected = match number {
            _ if number == taken => Some(9000),
            _ if number == long => None,
            _ => Some(100 + number),
        };
        assert_eq!(generation_of(&client, number), expected, "{number}");
    }
    let stat = info(&client);
    assert_eq!(stat.nr_files, NR_FILES - 1);
    assert_eq!(stat.reserved_bytes, stat.spare_bytes, "no draft is left");
    assert!(stat.spare_bytes > 0, "the last ones brought frames for the next batch");
}

/// A batch brought frames for a part of the next one, which made creates for the rest.
#[test]
fn a_batch_brings_frames_for_another_one() {
    let place = tempfile::tempdir().unwrap();
    let owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    // Of up to 4 MiB.
    let few = &blocks(1)[..60];
    assert!(put_all(&client, few).unwrap().iter().all(Result::is_ok));
    // Nothing of this can ask an owner that stands still.
    owner.stop();
    client.set_deadline(Duration::from_millis(200));
    let ahead = |number| client.create_ahead(spec(NR_FILES + number, BLOCK));
    let writers: Vec<_> = (0..few.len() as u64).map(ahead).collect::<Result<_, _>>().unwrap();
    std::mem::forget(writers);
    owner.signal(rustix::process::Signal::CONT);
}

/// A client that puts batches has frames for a whole one in the end, and what was taken back of
/// them is asked for again.
#[test]
fn frames_of_a_batch_that_were_handed_out_ahead_and_taken_back_are_asked_for_again() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let (client, other) = (Client::connect(&socket).unwrap(), Client::connect(&socket).unwrap());
    let names: Vec<String> = (0..NR_FILES).map(name).collect();
    for generation in (0..8).map(|round| 1000 * round) {
        assert!(put_all(&client, &blocks(generation)).unwrap().iter().all(Result::is_ok));
        assert_eq!(generation_of(&client, NR_FILES - 1), Some(generation + NR_FILES - 1));
        client.unlink_batch(&names).unwrap();
    }
    let spares = info(&client).spare_bytes;
    assert!(spares > NR_FILES * BLOCK, "{spares} bytes for {NR_FILES} files and what is in stock");
    other.create("all", POOL_BYTES, FolioSize::BestFit).unwrap().commit().unwrap();
    assert_eq!(info(&client).spare_bytes, 0);
    other.unlink("all").unwrap();
    assert!(put_all(&client, &blocks(9000)).unwrap().iter().all(Result::is_ok));
    for number in 0..NR_FILES {
        assert_eq!(generation_of(&client, number), Some(9000 + number), "{number}");
    }
    let stat = info(&client);
    assert_eq!((stat.nr_files, stat.reserved_bytes), (NR_FILES, stat.spare_bytes));
}

#[test]
fn an_owner_that_stands_still_is_an_error_and_what_it_reserved_meanwhile_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    client.set_deadline(Duration::from_millis(200));
    owner.stop();
    let blocks = blocks(1);
    let Err(Error::TimedOut { .. }) = put_all(&client, &blocks) else {
        panic!("the owner cannot have answered")
    };
    owner.signal(rustix::process::Signal::CONT);
    client.set_deadline(support::BOUND);
    // It finds the request that nobody waits for, or is asked to forget it first.
    wait_until("nothing is reserved for nobody", || {
        let stat = info(&client);
        (stat.reserved_bytes == stat.spare_bytes).then_some(())
    });
    assert_eq!(info(&client).nr_files, 0);
    assert!(put_all(&client, &blocks).unwrap().iter().all(Result::is_ok));
}

/// Several commits under way had kept what the last wave needed from being evicted.
#[test]
fn a_batch_larger_than_the_pool_goes_in_if_its_first_files_may_go() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(socket).unwrap();
    let bytes = block::make(1, 512 * KIB as usize);
    for _ in 0..2 {
        // Four waves of 20 MiB.
        let files = (0..160)
            .map(|number| (spec(number, bytes.len() as u64).replacing().evictable(1), &bytes[..]));
        let answers = client.put_batch(files.collect()).unwrap();
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    assert!(info(&client).nr_evicted >= 32);
}

/// Each took the other's frames that were handed out ahead, and so both made creates each time.
#[test]
fn sizes_that_are_put_in_turns_keep_frames_that_were_handed_out_ahead() {
    let place = tempfile::tempdir().unwrap();
    let owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    // Together more than the 128 that there may be.
    let few: Vec<String> = (0..40).map(|number| format!("few/{number}")).collect();
    let many: Vec<String> = (0..100).map(|number| format!("many/{number}")).collect();
    let sizes = [(&few, BLOCK - 4 * KIB), (&many, BLOCK)];
    let specs = |names: &[String], len_bytes| -> Vec<CreateSpec> {
        let spec = |name| CreateSpec::named(name, len_bytes, FolioSize::BestFit).unwrap();
        names.iter().map(spec).collect()
    };
    for generation in 0..6 {
        for (names, len_bytes) in sizes {
            let bytes = block::make(generation, len_bytes as usize);
            let files = specs(names, len_bytes).into_iter().map(|spec| (spec, &bytes[..]));
            let answers = client.put_batch(files.collect()).unwrap();
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            client.unlink_batch(names).unwrap();
        }
    }
    // Nothing of this can ask an owner that stands still.
    owner.stop();
    client.set_deadline(Duration::from_millis(200));
    for (names, len_bytes) in sizes {
        let specs = specs(names, len_bytes).into_iter().take(80);
        let ahead = specs.map(|spec| client.create_ahead(spec));
        let writers: Vec<_> = ahead.collect::<Result<_, _>>().unwrap();
        std::mem::forget(writers);
    }
    owner.signal(rustix::process::Signal::CONT);
}

/// The commits of a batch with frames that were handed out ahead are all under way then.
#[test]
fn an_owner_that_stands_still_is_waited_for_once_and_each_file_is_there_or_not() {
    let place = tempfile::tempdir().unwrap();
    let owner = Second::ready("create", place.path());
    let client = Client::connect(place.path().join("s")).unwrap();
    let names: Vec<String> = (0..NR_FILES).map(name).collect();
    for generation in (0..6).map(|round| 1000 * round) {
        assert!(put_all(&client, &blocks(generation)).unwrap().iter().all(Result::is_ok));
        client.unlink_batch(&names).unwrap();
    }
    let deadline = Duration::from_secs(2);
    client.set_deadline(deadline);
    owner.stop();
    let blocks = blocks(7000);
    let since = std::time::Instant::now();
    let ended = put_all(&client, &blocks);
    let waited = since.elapsed();
    assert!(matches!(ended, Err(Error::TimedOut { .. })), "{ended:?}");
    assert!(waited >= deadline && waited < 2 * deadline, "{waited:?}");
    owner.signal(rustix::process::Signal::CONT);
    client.set_deadline(support::BOUND);
    wait_until("nothing is reserved for nobody", || {
        let stat = info(&client);
        (stat.reserved_bytes == stat.spare_bytes).then_some(())
    });
    for number in 0..NR_FILES {
        let found = generation_of(&client, number);
        assert!(found.is_none_or(|found| found == 7000 + number), "{number}: {found:?}");
    }
    client.unlink_batch(&names).unwrap();
    assert!(put_all(&client, &blocks).unwrap().iter().all(Result::is_ok));
}

/// Whenever the owner is killed, a file is there as a whole or not at all, and one that was said to
/// be there is.
#[test]
fn an_owner_that_is_killed_while_many_files_are_put_has_each_of_them_or_not() {
    let place = tempfile::tempdir().unwrap();
    let mut owner = Second::ready("create", place.path());
    let mut nr_cut_short = 0;
    for round in 0..12 {
        let client = Client::connect(place.path().join("s")).unwrap();
        client.unlink_batch(&(0..NR_FILES).map(name).collect::<Vec<_>>()).unwrap();
        let generation = 1000 * (round + 1);
        let blocks = blocks(generation);
        let answers = std::thread::scope(|scope| {
            let putting = scope.spawn(|| put_all(&client, &blocks));
            std::thread::sleep(Duration::from_micros(300 * round));
            owner.kill();
            owner = Second::ready("open", place.path());
            putting.join().unwrap()
        });
        let is_ok = |number: u64| match &answers {
            Ok(answers) => answers[number as usize].is_ok(),
            Err(_) => false,
        };
        nr_cut_short += u64::from(!(0..NR_FILES).all(is_ok));
        let client = Client::connect(place.path().join("s")).unwrap();
        for number in 0..NR_FILES {
            let found = generation_of(&client, number);
            assert!(found.is_none_or(|found| found == generation + number), "{number}: {found:?}");
            assert!(found.is_some() || !is_ok(number), "{number} was put: {answers:?}");
        }
    }
    assert!(nr_cut_short > 0, "no put was ever interrupted");
}
