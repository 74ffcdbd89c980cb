//! Power failures at every fence of random histories: pools on a device of persistent memory of
//! which only what was flushed is left, in any order.
//!
//! `PGMAP_POWER_HISTORIES` says how many histories there are (40), `PGMAP_POWER_SEED` which is the
//! first.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgmap::check::CheckOptions;
use pgmap::{
    Client, CreateSpec, Durability, FileName, FolioSize, Owner, Pool, PoolOptions, Replace,
};
use pgmap_os::sim::power::{self, Broken};

const DEVICE_BYTES: u64 = 8 << 20;
/// The catalog's header, and all that lies before the contents of files.
const HEADER_BYTES: u64 = 2 * 4096;
const HEAD_BYTES: u64 = 6 << 20;
/// One power failure in so many fences.
const FENCES_PER_IMAGE: usize = 3;
const OPERATIONS: usize = 12;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Files and their contents.
type State = BTreeMap<String, Vec<u8>>;

/// What was left at a fence, while so many operations had ended and so many begun.
struct Image {
    nr_ended: usize,
    nr_begun: usize,
    bytes: Vec<u8>,
}

/// One device at a time.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().map_or(or, |text| text.parse().unwrap())
}

/// Does one operation, on the pool and on the model.
fn step(random: &mut fastrand::Rng, client: &Client, state: &mut State) {
    let name = NAMES[random.usize(..NAMES.len())];
    match random.u8(..10) {
        0..=4 => {
            let len = random.usize(1..40_000);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            let file = FileName::new(name).unwrap();
            let spec = CreateSpec {
                replace: state.contains_key(name),
                ..CreateSpec::new(file, len as u64, FolioSize::Pages4K)
            };
            let mut writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
            for part in 0..3 {
                let range = len * part / 3..len * (part + 1) / 3;
                writer.write_all_at(range.start as u64, &bytes[range]).unwrap();
            }
            writer.commit().unwrap();
            state.insert(name.into(), bytes);
        }
        5..=6 => {
            if state.remove(name).is_some() {
                client.unlink(name).unwrap();
            }
        }
        7 => {
            if let Some(bytes) = state.get_mut(name) {
                let len = random.usize(..bytes.len());
                client.truncate(name, len as u64, Duration::from_secs(1)).unwrap();
                bytes.truncate(len);
            }
        }
        _ => {
            let to = NAMES[random.usize(..NAMES.len())];
            if to != name
                && !state.contains_key(to)
                && let Some(bytes) = state.remove(name)
            {
                client.rename(name, to, Replace::No).unwrap();
                state.insert(to.into(), bytes);
            }
        }
    }
}

/// A history from an empty device, and what was left at each of its fences.
fn history(seed: u64, place: &Path, broken: &Broken) -> (Vec<State>, Vec<Image>) {
    let device = place.join("device");
    let file = std::fs::File::create(&device).unwrap();
    file.set_len(DEVICE_BYTES).unwrap();
    let images = Arc::new(Mutex::new(Vec::new()));
    let (ended, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut lines = random.fork();
    let at_fence = {
        let (images, ended, begun) = (Arc::clone(&images), Arc::clone(&ended), Arc::clone(&begun));
        move |device: &mut power::Device| {
            // SeqCst: not in a hurry.
            let nr_ended = ended.load(Ordering::SeqCst);
            let nr_begun = begun.load(Ordering::SeqCst);
            if nr_begun > 0 && lines.usize(..FENCES_PER_IMAGE) == 0 {
                let bytes = device.after_power_failure(|nr| lines.usize(..nr)).unwrap();
                images.lock().unwrap().push(Image { nr_ended, nr_begun, bytes });
            }
        }
    };
    power::plug(&device, broken.clone(), Some(Box::new(at_fence))).unwrap();
    let options = PoolOptions::on(&device, place.join("pool")).durability(Durability::PowerFailure);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut states = vec![State::new()];
    for _ in 0..OPERATIONS {
        let mut state = states.last().unwrap().clone();
        begun.fetch_add(1, Ordering::SeqCst);
        step(&mut random, &client, &mut state);
        ended.fetch_add(1, Ordering::SeqCst);
        states.push(state);
    }
    drop((client, owner));
    std::fs::remove_dir_all(place.join("pool")).unwrap();
    let images = std::mem::take(&mut *images.lock().unwrap());
    (states, images)
}

/// What a pool whose device says `bytes` has.
fn state_after(place: &Path, bytes: &[u8]) -> Result<State, String> {
    let device = place.join("device");
    std::fs::OpenOptions::new().write(true).open(&device).unwrap().write_all_at(bytes, 0).unwrap();
    power::plug(&device, Broken::Nothing, None).unwrap();
    let options = CheckOptions::default().read_data();
    let checked =
        pgmap::check::check(&device, options, &mut |_, _| {}).map_err(|e| e.to_string())?;
    if !checked.findings.is_empty() {
        return Err(format!("check finds {:?}", checked.findings));
    }
    let pool: PathBuf = place.join("pool");
    let opened = Pool::open_on(&device, &pool).map_err(|error| error.to_string());
    let result = opened.and_then(|pool| {
        let owner = Owner::start(pool).map_err(|error| error.to_string())?;
        let client = owner.client().map_err(|error| error.to_string())?;
        let files = client.list().map_err(|error| error.to_string())?;
        let read = files.into_iter().map(|file| {
            let name = file.name.to_string();
            let bytes = if file.len_bytes == 0 {
                Vec::new()
            } else {
                let pin = client.get(&name).map_err(|error| error.to_string())?;
                pin.to_vec().map_err(|error| error.to_string())?
            };
            Ok((name, bytes))
        });
        read.collect()
    });
    drop(std::fs::remove_dir_all(&pool));
    result
}

/// Why what was left at a fence is not what it must be.
fn judge(states: &[State], image: &Image, place: &Path) -> Result<(), String> {
    let found = state_after(place, &image.bytes)?;
    if states[image.nr_ended..=image.nr_begun].contains(&found) {
        return Ok(());
    }
    let shown = |state: &State| {
        let files = state.iter().map(|(name, bytes)| format!("{name}: {} bytes", bytes.len()));
        files.collect::<Vec<_>>().join(", ")
    };
    let expected: Vec<String> = states[image.nr_ended..=image.nr_begun].iter().map(shown).collect();
    Err(format!("found {}; expected one of {expected:?}", shown(&found)))
}

/// How many images were judged, and the first that was wrong.
fn judge_histories(first: u64, nr_histories: u64, broken: &Broken) -> (usize, Option<String>) {
    let mut nr_images = 0;
    for seed in first..first + nr_histories {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let (states, images) = history(seed, place.path(), broken);
        for (fence, image) in images.iter().enumerate() {
            nr_images += 1;
            if let Err(why) = judge(&states, image, place.path()) {
                let Image { nr_ended, nr_begun, .. } = image;
                let why = format!("seed {seed}, fence {fence}, {nr_ended} of {nr_begun}: {why}");
                return (nr_images, Some(why));
            }
        }
    }
    (nr_images, None)
}

#[test]
fn after_a_power_failure_at_any_fence_each_file_is_old_or_new_and_whole() {
    let _alone = alone();
    let nr_histories = number("PGMAP_POWER_HISTORIES", 40);
    let first = number("PGMAP_POWER_SEED", 1);
    let (nr_images, wrong) = judge_histories(first, nr_histories, &Broken::Nothing);
    println!("{nr_histories} histories, {nr_images} power failures");
    assert_eq!(wrong, None);
    assert!(nr_images as u64 > 8 * nr_histories, "{nr_images}");
}

/// Sees that histories find out what is broken on purpose.
fn finds(broken: &Broken) {
    let _alone = alone();
    let (nr_images, wrong) = judge_histories(1, 40, broken);
    println!("{broken:?}: after {nr_images} power failures: {wrong:?}");
    assert!(wrong.is_some());
}

#[test]
fn flushes_of_contents_that_are_left_out_are_found() {
    finds(&Broken::Flushes(HEAD_BYTES..DEVICE_BYTES));
}

#[test]
fn flushes_of_the_catalog_that_are_left_out_are_found() {
    finds(&Broken::Flushes(0..HEAD_BYTES));
}

/// The fence that makes a commit last before it is answered.
#[test]
fn a_fence_after_the_header_that_is_left_out_is_found() {
    finds(&Broken::Fences(0..HEADER_BYTES));
}

/// One of these alone is made good by the next, and by the checksum of each record.
#[test]
fn fences_before_the_header_that_are_all_left_out_are_found() {
    finds(&Broken::Fences(HEADER_BYTES..DEVICE_BYTES));
}

/// Story: both headers lay in one page, and the device lost it.
#[test]
fn a_device_that_loses_the_page_of_either_header_is_repaired_and_has_its_files() {
    let _alone = alone();
    for slot in 0..2 {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let (states, _) = history(slot, place.path(), &Broken::Nothing);
        let device = place.path().join("device");
        let page = slot * 4096..(slot + 1) * 4096;
        power::plug(&device, Broken::Reads(page), None).unwrap();
        let error = Pool::open_on(&device, place.path().join("pool")).unwrap_err().to_string();
        assert!(error.contains("one of its two headers") && error.contains("--repair"), "{error}");
        let options = CheckOptions::default().read_data().repair();
        let checked = pgmap::check::check(&device, options, &mut |_, _| {}).unwrap();
        let repairs: Vec<_> = checked.findings.iter().map(|finding| &finding.repair).collect();
        assert!(matches!(&repairs[..], [Some(_)]), "{:?}", checked.findings);
        let bytes = std::fs::read(&device).unwrap();
        assert_eq!(state_after(place.path(), &bytes).as_ref(), Ok(states.last().unwrap()));
    }
}
