//! Pools that lie in several memories: each with frames of its own, found again by the next owner,
//! added and taken out while others read.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgmap::check::CheckOptions;
use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::mm::vma::VmaKind;
use pgmap::space::AddressSpace;
use pgmap::{
    BackingOptions, Client, CreateSpec, Error, FolioSize, Owner, Placement, Pool, PoolOptions,
    Refusal,
};

use crate::support::{self, Random, Second, block};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BEST: FolioSize = FolioSize::BestFit;

fn options(directory: &Path) -> PoolOptions {
    PoolOptions::in_directory(directory.join("pool"), 8 * MIB).room(4 * GIB)
}

fn create(directory: &Path) -> Owner {
    Owner::start(Pool::create(&options(directory)).unwrap()).unwrap()
}

fn reopen(directory: &Path) -> Owner {
    Owner::start(Pool::open(directory.join("pool")).unwrap()).unwrap()
}

fn try_put(client: &Client, name: &str, bytes: &[u8], placement: Placement) -> Result<(), Error> {
    let spec = CreateSpec::named(name, bytes.len() as u64, FolioSize::Pages4K).unwrap();
    let spec = spec.placement(placement);
    let mut writer = client.create_batch(vec![spec])?.pop().unwrap()?;
    writer.write_all_at(0, bytes)?;
    writer.commit()
}

fn put(client: &Client, name: &str, bytes: &[u8], placement: Placement) {
    try_put(client, name, bytes, placement).unwrap();
}

fn only(name: &str) -> Placement {
    Placement::Only(vec![name.into()])
}

fn get(client: &Client, name: &str) -> Vec<u8> {
    client.get(name).unwrap().to_vec().unwrap()
}

fn frame_of(client: &Client, name: &str) -> u64 {
    client.get(name).unwrap().segments().next().unwrap().pool_offset / 4096
}

/// On which backing a file lies.
fn backing_of(client: &Client, name: &str) -> String {
    let frame = frame_of(client, name);
    let backings = client.backings().unwrap();
    backings.into_iter().rev().find(|backing| backing.first_pfn <= frame).unwrap().name
}

/// A client in the owner's process keeps the owner's books, and with them the backings' files.
/// Their locks end with the owner all the same: else the next one is refused its own backing.
#[test]
fn backings_have_their_next_owner_although_a_client_of_the_last_one_stays() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    let client = owner.client().unwrap();
    owner.add_backing(&BackingOptions::on(path.join("near")).size(4 * MIB)).unwrap();
    put(&client, "a", &[7; 4096], only("near"));
    drop(owner);
    let again = reopen(path);
    assert_eq!(get(&again.client().unwrap(), "a"), [7; 4096]);
    drop(client);
}

#[test]
fn files_lie_where_their_creator_wants_and_are_found_again() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    let client = owner.client().unwrap();
    owner.add_backing(&BackingOptions::on(path.join("near")).size(4 * MIB)).unwrap();
    owner.add_backing(&BackingOptions::on(path.join("x")).size(2 * MIB).name("far")).unwrap();
    let names: Vec<String> =
        client.backings().unwrap().into_iter().map(|backing| backing.name).collect();
    assert_eq!(names, ["data", "near", "far"]);
    assert_eq!(owner.info().size_bytes, 14 * MIB);
    put(&client, "a", &[1; 5000], Placement::Any);
    put(&client, "b", &[2; 5000], only("near"));
    put(&client, "c", &[3; 5000], only("far"));
    put(&client, "d", &[4; 5000], Placement::Prefer(vec!["far".into(), "near".into()]));
    put(&client, "e", &[5; 3 << 20], Placement::Prefer(vec!["far".into(), "near".into()]));
    let on = |client: &Client| ["a", "b", "c", "d", "e"].map(|name| backing_of(client, name));
    assert_eq!(on(&client), ["data", "near", "far", "far", "near"]);
    let free = owner.info().free_bytes;
    drop(client);
    drop(owner);
    let owner = reopen(path);
    let client = owner.client().unwrap();
    assert_eq!(on(&client), ["data", "near", "far", "far", "near"]);
    assert_eq!(owner.info().free_bytes, free);
    for (name, byte, len) in [("a", 1, 5000), ("b", 2, 5000), ("c", 3, 5000), ("e", 5, 3 << 20)] {
        assert_eq!(get(&client, name), vec![byte; len], "{name}");
    }
    // Its frames are free again, there and nowhere else.
    client.unlink("e").unwrap();
    put(&client, "e", &[6; 3 << 20], only("near"));
    assert_eq!(get(&client, "e"), vec![6; 3 << 20]);
}

#[test]
fn a_refusal_names_the_backings_and_what_is_free_there() {
    let directory = support::roomy();
    let owner = create(directory.path());
    let client = owner.client().unwrap();
    owner.add_backing(&BackingOptions::on(directory.path().join("two")).size(2 * MIB)).unwrap();
    put(&client, "a", &[1; 1 << 20], only("two"));
    let full = try_put(&client, "b", &[1; 3 << 19], only("two")).unwrap_err();
    let Error::Refused(Refusal::NoSpaceOn { wanted_bytes, tried, .. }) = &full else {
        panic!("{full}")
    };
    assert_eq!((*wanted_bytes, tried.len()), (3 << 19, 1));
    assert_eq!((tried[0].backing.as_str(), tried[0].free_bytes), ("two", 1 << 20));
    assert!(full.to_string().contains("1048576 free on \"two\""), "{full}");
    let long = try_put(&client, "b", &[1; 3 << 20], only("two")).unwrap_err();
    assert!(matches!(&long, Error::Refused(Refusal::BadLength { .. })), "{long}");
    let absent = try_put(&client, "b", &[1; 10], only("three")).unwrap_err();
    let text = absent.to_string();
    assert!(text.contains("\"three\"") && text.contains("data, two"), "{text}");
    // What does not fit there goes on.
    put(&client, "b", &[1; 3 << 19], Placement::Prefer(vec!["two".into()]));
    assert_eq!(backing_of(&client, "b"), "data");
    let same = owner.add_backing(&BackingOptions::on(directory.path().join("two")).size(MIB));
    assert!(same.unwrap_err().to_string().contains("\"two\" already"));
    let large = owner.add_backing(&BackingOptions::on(directory.path().join("l")).size(4 * GIB));
    assert!(large.unwrap_err().to_string().contains("room"));
    assert!(!directory.path().join("l").exists());
}

#[test]
fn a_client_that_knows_nothing_of_a_backing_finds_its_files() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    owner.serve(path.join("socket")).unwrap();
    let old = Client::connect(path.join("socket")).unwrap();
    let client = owner.client().unwrap();
    owner.add_backing(&BackingOptions::on(path.join("two")).size(4 * MIB)).unwrap();
    put(&client, "a", &[7; 10_000], only("two"));
    assert_eq!(get(&old, "a"), [7; 10_000]);
    let new = Client::connect(path.join("socket")).unwrap();
    assert_eq!(get(&new, "a"), [7; 10_000]);
    put(&old, "b", &[8; 10_000], only("two"));
    assert_eq!(get(&new, "b"), [8; 10_000]);
}

#[test]
fn a_backing_is_taken_out_when_nothing_lies_on_it() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    let client = owner.client().unwrap();
    let two = BackingOptions::on(path.join("two")).size(4 * MIB);
    owner.add_backing(&two).unwrap();
    put(&client, "a", &[7; 10_000], only("two"));
    let now = Duration::ZERO;
    let used = owner.remove_backing("two", now).unwrap_err();
    assert!(used.to_string().contains("\"a\""), "{used}");
    let first = client.backings().unwrap()[1].first_pfn;
    let pin = client.get("a").unwrap();
    client.unlink("a").unwrap();
    let held = owner.remove_backing("two", Duration::from_millis(50)).unwrap_err();
    let Error::Refused(Refusal::Held { holders, .. }) = &held else { panic!("{held}") };
    assert_eq!((holders.len(), holders[0].client), (1, client.id()), "{held}");
    put(&client, "back", &[7; 10_000], only("two"));
    client.unlink("back").unwrap();
    // A writer is a holder too.
    let draft = CreateSpec::named("draft", 100, FolioSize::Pages4K).unwrap();
    let draft = draft.placement(only("two"));
    let drafts = client.create_batch(vec![draft]).unwrap();
    let held = client.remove_backing("two", Duration::from_millis(20)).unwrap_err();
    assert!(held.to_string().contains("\"two\" is still held"), "{held}");
    drop(drafts);
    assert_eq!(pin.to_vec().unwrap(), [7; 10_000]);
    put(&client, "b", &[1; 100], Placement::Any);
    std::thread::scope(|scope| {
        let other = owner.client().unwrap();
        let removing = scope.spawn(move || {
            loop {
                // While a file lies there it is refused at once.
                match other.remove_backing("two", Duration::from_secs(20)) {
                    Err(Error::Refused(Refusal::InUse { .. })) => {}
                    result => return result,
                }
            }
        });
        support::wait_until("nothing is put on it any more", || {
            try_put(&client, "c", &[1; 10], only("two")).err().or_else(|| {
                client.unlink("c").unwrap();
                None
            })
        });
        drop(pin);
        removing.join().unwrap().unwrap();
    });
    assert!(!path.join("two").exists());
    assert_eq!(owner.info().size_bytes, 8 * MIB);
    assert!(try_put(&client, "c", &[1; 10], only("two")).is_err());
    // This client may have it mapped: its frames are nobody's as long as it lives.
    owner.add_backing(&two).unwrap();
    let second = client.backings().unwrap()[1].first_pfn;
    assert_ne!(second, first);
    put(&client, "c", &[9; 10_000], only("two"));
    assert_eq!(get(&client, "c"), [9; 10_000]);
    client.unlink("c").unwrap();
    drop(client);
    owner.remove_backing("two", now).unwrap();
    owner.add_backing(&two).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.backings().unwrap()[1].first_pfn, first);
    put(&client, "c", &[9; 10_000], only("two"));
    drop(client);
    drop(owner);
    let owner = reopen(path);
    assert_eq!(get(&owner.client().unwrap(), "c"), [9; 10_000]);
}

#[test]
fn what_lies_on_a_missing_backing_is_an_error_until_it_is_back() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    let two = path.join("two");
    let whole = CheckOptions::default().read_data();
    owner.add_backing(&BackingOptions::on(&two).size(4 * MIB)).unwrap();
    let client = owner.client().unwrap();
    put(&client, "a", &[7; 10_000], only("two"));
    put(&client, "b", &[8; 10_000], Placement::Any);
    drop((client, owner));
    let report = || pgmap::check::check(path.join("pool"), whole, &mut |_, _| {}).unwrap();
    assert_eq!((report().findings.len(), report().read_bytes), (0, 20_000));
    std::fs::rename(&two, path.join("away")).unwrap();
    let found = report().findings;
    assert_eq!((found.len(), found[0].what.as_str()), (1, "backing \"two\""), "{found:?}");
    let owner = reopen(path);
    let client = owner.client().unwrap();
    assert_eq!(get(&client, "b"), [8; 10_000]);
    assert_eq!(client.stat("a").unwrap().len_bytes, 10_000);
    let gone = client.get("a").unwrap_err();
    assert!(gone.to_string().contains("\"two\""), "{gone}");
    let placed = try_put(&client, "c", &[1; 10], only("two")).unwrap_err();
    assert!(placed.to_string().contains("missing"), "{placed}");
    put(&client, "c", &[1; 10], Placement::Prefer(vec!["two".into()]));
    assert!(client.backings().unwrap()[1].missing.is_some());
    // Something else in its place is not it.
    std::fs::write(&two, vec![0; 6 << 20]).unwrap();
    assert!(owner.add_backing(&BackingOptions::on(&two).size(MIB)).is_err());
    // Elsewhere it is found again.
    owner.add_backing(&BackingOptions::on(path.join("away"))).unwrap();
    assert_eq!(get(&client, "a"), [7; 10_000]);
    drop((client, owner));
    let owner = reopen(path);
    assert_eq!(get(&owner.client().unwrap(), "a"), [7; 10_000]);
}

/// What is behind the last backing that a client has mapped is not all that it has not mapped.
#[test]
fn a_backing_before_one_that_is_mapped_is_mapped_before_it_is_read() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    let one = BackingOptions::on(path.join("one")).size(MIB);
    owner.add_backing(&one).unwrap();
    owner.add_backing(&BackingOptions::on(path.join("two")).size(MIB)).unwrap();
    owner.remove_backing("one", Duration::ZERO).unwrap();
    let client = owner.client().unwrap();
    put(&client, "b", &[1; 5000], only("two"));
    owner.add_backing(&one).unwrap();
    let other = owner.client().unwrap();
    put(&other, "a", &[2; 5000], only("one"));
    assert!(frame_of(&other, "a") < frame_of(&other, "b"));
    assert_eq!(get(&client, "a"), [2; 5000]);
    assert_eq!(get(&client, "b"), [1; 5000]);
}

#[test]
fn a_file_on_a_backing_is_mapped_and_pinned_by_address() {
    const BASE: u64 = 0x4000_0000;
    let directory = support::roomy();
    let owner = create(directory.path());
    let client = owner.client().unwrap();
    let space = AddressSpace::for_device(&client, BASE, GIB).unwrap();
    owner.add_backing(&BackingOptions::on(directory.path().join("two")).size(4 * MIB)).unwrap();
    let other = owner.client().unwrap();
    put(&other, "a", &[7; 8192], only("two"));
    let file = client.open("a").unwrap();
    space.map(&file, 0, 8192, Placed::At(BASE), Prot::READ_WRITE).unwrap();
    let pinned = space.pin(BASE, 2, GupFlags::NONE).unwrap();
    let mut bytes = [0; 8192];
    pinned.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 8192]);
    assert!(matches!(space.mm().area_at(BASE).unwrap().kind(), VmaKind::FsDax));
}

#[test]
fn a_backing_has_one_pool() {
    let directory = support::roomy();
    let (one, other) = (directory.path().join("one"), directory.path().join("other"));
    std::fs::create_dir_all(&one).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    let owner = create(&one);
    let two = directory.path().join("two");
    owner.add_backing(&BackingOptions::on(&two).size(MIB)).unwrap();
    let again = owner.add_backing(&BackingOptions::on(&two)).unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
    let theirs = create(&other);
    let foreign = theirs.add_backing(&BackingOptions::on(&two)).unwrap_err();
    assert!(foreign.to_string().contains("backing of pool"), "{foreign}");
    // Not even with its own name in another pool's place.
    drop(owner);
    let copy = directory.path().join("copy");
    std::fs::copy(&two, &copy).unwrap();
    std::fs::remove_file(&two).unwrap();
    theirs.add_backing(&BackingOptions::on(&two).size(MIB)).unwrap();
    let owner = reopen(&one);
    let missing = owner.client().unwrap().backings().unwrap()[1].missing.clone().unwrap();
    assert!(missing.contains("it is a backing of pool"), "{missing}");
}

/// Grown by a file beside its data, a pool can be moved as a whole.
#[test]
fn a_pool_grows_while_it_is_used_and_is_moved_with_what_it_grew_by() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    owner.serve(path.join("socket")).unwrap();
    let client = Client::connect(path.join("socket")).unwrap();
    put(&client, "a", &[1; 6 << 20], Placement::Any);
    let full = try_put(&client, "b", &[2; 6 << 20], Placement::Any).unwrap_err();
    assert!(matches!(&full, Error::Refused(Refusal::NoSpace { .. })), "{full}");
    let held = client.get("a").unwrap();
    client.grow(16 * MIB).unwrap();
    assert_eq!(owner.info().size_bytes, 24 * MIB);
    put(&client, "b", &[2; 6 << 20], Placement::Any);
    owner.grow(16 * MIB).unwrap();
    put(&client, "c", &[3; 12 << 20], Placement::Any);
    assert_eq!(held.to_vec().unwrap(), [1; 6 << 20]);
    assert_eq!(
        (backing_of(&client, "b"), backing_of(&client, "c")),
        ("data-2".into(), "data-3".into())
    );
    drop(held);
    drop((client, owner));
    let elsewhere = path.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::rename(path.join("pool"), elsewhere.join("pool")).unwrap();
    let owner = reopen(&elsewhere);
    let client = owner.client().unwrap();
    assert_eq!(get(&client, "b"), [2; 6 << 20]);
    assert_eq!(get(&client, "c"), [3; 12 << 20]);
    client.unlink("b").unwrap();
    owner.remove_backing("data-2", Duration::from_secs(5)).unwrap();
    assert!(!elsewhere.join("pool/data-2").exists() && elsewhere.join("pool/data-3").exists());
}

#[test]
fn an_anonymous_pool_grows_too_and_one_without_room_says_what_to_do() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(4 * MIB).room(GIB)).unwrap());
    let owner = owner.unwrap();
    let client = owner.client().unwrap();
    client.grow(64 * MIB).unwrap();
    put(&client, "a", &[5; 32 << 20], Placement::Any);
    assert_eq!(get(&client, "a"), [5; 32 << 20]);
    let narrow = Owner::start(Pool::create(&PoolOptions::anonymous(4 * MIB)).unwrap()).unwrap();
    let error = narrow.grow(MIB).unwrap_err().to_string();
    assert!(error.contains("pgmap grow --room"), "{error}");
}

#[test]
fn room_is_given_to_a_pool_that_nobody_uses() {
    let directory = support::roomy();
    let path = directory.path();
    let pool = || Pool::open(path.join("pool"));
    let made = Pool::create(&PoolOptions::in_directory(path.join("pool"), 8 * MIB)).unwrap();
    let owner = Owner::start(made).unwrap();
    let client = owner.client().unwrap();
    put(&client, "a", &[1; 5000], Placement::Any);
    assert!(client.grow(MIB).is_err());
    drop((client, owner));
    pool().unwrap().give_room(3 * GIB).unwrap();
    let less = pool().unwrap().give_room(GIB).unwrap_err();
    assert!(less.to_string().contains("already"), "{less}");
    let owner = Owner::start(pool().unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(get(&client, "a"), [1; 5000]);
    client.grow(16 * MIB).unwrap();
    put(&client, "b", &[2; 12 << 20], Placement::Any);
    drop((client, owner));
    let owner = Owner::start(pool().unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(get(&client, "b"), [2; 12 << 20]);
    drop(owner);
    // A client that is left has a ledger as narrow as the pool.
    let refused = pool().unwrap().give_room(8 * GIB).unwrap_err();
    assert!(refused.to_string().contains(&format!("clients {}", client.id())), "{refused}");
    drop(client);
    let whole = CheckOptions::default().read_data();
    let report = pgmap::check::check(path.join("pool"), whole, &mut |_, _| {}).unwrap();
    assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
}

#[test]
fn what_was_taken_out_is_mapped_and_open_nowhere_although_nobody_asks() {
    let directory = support::roomy();
    let path = directory.path();
    let owner = create(path);
    owner.serve(path.join("socket")).unwrap();
    let client = Client::connect(path.join("socket")).unwrap();
    let two = path.join("two-that-goes");
    owner.add_backing(&BackingOptions::on(&two).size(4 * MIB)).unwrap();
    put(&client, "a", &[7; 10_000], only("two-that-goes"));
    client.unlink("a").unwrap();
    let is_kept = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut open = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let name = "two-that-goes";
        maps.contains(name) || open.any(|to| to.to_string_lossy().contains(name))
    };
    assert!(is_kept());
    let first_pfn = client.backings().unwrap()[1].first_pfn;
    // The client has looked since the backing came: it is the removal that it must notice.
    std::thread::sleep(Duration::from_millis(600));
    owner.remove_backing("two-that-goes", Duration::from_secs(5)).unwrap();
    support::wait_until("nothing of it is kept", || (!is_kept()).then_some(()));
    let event =
        pgmap::Event::BackingGone { backing: "two-that-goes".into(), first_pfn, nr_pages: 1024 };
    assert_eq!(client.next_event(Duration::from_secs(10)).unwrap(), Some(event));
}

#[test]
fn memory_is_taken_on_the_nodes_that_were_named() {
    let directory = support::roomy();
    let absent = PoolOptions::in_directory(directory.path().join("pool"), 8 * MIB).nodes([77]);
    let error = Pool::create(&absent).unwrap_err().to_string();
    assert!(error.contains("node 77 has no memory"), "{error}");
    let owner = Owner::start(Pool::create(&options(directory.path()).nodes([0])).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let two = BackingOptions::on(directory.path().join("two")).size(4 * MIB);
    let error = client.add_backing(&two.clone().nodes([77])).unwrap_err().to_string();
    assert!(error.contains("node 77 has no memory"), "{error}");
    client.add_backing(&two.nodes([0])).unwrap();
    put(&client, "a", &[1; 1 << 20], Placement::Any);
    put(&client, "b", &[1; 1 << 20], only("two"));
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let root = directory.path().to_str().unwrap();
    for name in ["pool/data", "two"] {
        let file = format!("file={root}/{name}");
        let line = maps.lines().find(|line| line.contains(&format!("{file} "))).unwrap();
        assert!(line.contains("bind:0"), "{line}");
    }
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    let owner = if role == "create" { create(&place) } else { reopen(&place) };
    owner.serve(place.join("s")).unwrap();
    support::say("ok");
    assert_eq!(support::commands().count(), 0);
    drop(owner);
    std::process::exit(0);
}

/// Owners are killed while one client adds and takes out backings and fills them, and another
/// reads. Each successor finds each committed file whole where it was put, and accounts for each
/// frame.
#[test]
fn killed_owners_leave_every_backing_as_the_record_says() {
    let directory = support::roomy();
    let place = directory.path().to_owned();
    let mut random = Random(support::seed());
    let mut owner = Second::ready("create", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let reader = Client::connect(place.join("s")).unwrap();
    let mut generation = 0;
    for round in 0..12 {
        let is_over = AtomicBool::new(false);
        let pause = Duration::from_micros(random.below(20_000));
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                std::thread::sleep(pause);
                owner.kill();
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    for name in ["data", "one", "two"] {
                        if let Ok(pin) = reader.get(name) {
                            block::check(&pin.to_vec().unwrap()).unwrap();
                        }
                    }
                }
            });
            for name in ["one", "two", "data"].into_iter().cycle().take(30) {
                generation += 1;
                let bytes = block::make(generation, 8192 + random.below(100_000) as usize);
                let spec = CreateSpec::named(name, bytes.len() as u64, BEST).unwrap();
                let spec = spec.placement(only(name)).replacing();
                client.set_deadline(Duration::from_millis(1));
                let put = client.create_batch(vec![spec]).and_then(|mut drafts| {
                    let mut writer = drafts.pop().unwrap()?;
                    writer.write_all_at(0, &bytes)?;
                    writer.commit()
                });
                drop(put);
                if name != "data" && random.below(4) == 0 {
                    drop(
                        client
                            .unlink(name)
                            .and_then(|()| client.remove_backing(name, Duration::ZERO)),
                    );
                }
                let options = BackingOptions::on(place.join(name)).size(MIB);
                drop(client.add_backing(&options));
                if killer.is_finished() {
                    break;
                }
            }
            killer.join().unwrap();
            is_over.store(true, Ordering::Release);
        });
        owner = Second::ready("open", &place);
        client.set_deadline(pgmap::DEFAULT_DEADLINE);
        for backing in client.backings().unwrap() {
            assert_eq!(backing.missing, None, "round {round}: {backing:?}");
        }
        for file in client.list().unwrap() {
            let name = file.name.to_string();
            block::check(&get(&client, &name)).unwrap();
            assert_eq!(backing_of(&client, &name), name, "round {round}");
        }
        let info = support::wait_until("all that was left is free", || {
            let info = client.pool_stat().unwrap();
            (info.draining_bytes == 0 && info.reserved_bytes == 0).then_some(info)
        });
        support::assert_accounted(&info);
        let backings = client.backings().unwrap();
        let free: u64 = backings.iter().map(|backing| backing.free_bytes).sum();
        assert_eq!(free, info.free_bytes, "round {round}");
    }
    drop((client, reader));
    owner.kill();
    let report =
        pgmap::check::check(place.join("pool"), CheckOptions::default(), &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}
