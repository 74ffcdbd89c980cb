//! Ledgers that are other files, or say other things, than when the last owner ended. A client goes
//! on writing into the file that it was given; who reads another one forgets what it holds.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{self, Second, block};
use pgmap::{Client, Error, Owner, Pool, PoolOptions};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 64 * MIB;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    if role == "client" {
        support::client_role::run(&place.join("s"));
    }
    let path = place.join("pool");
    let pool = match role.as_str() {
        "serve" => Pool::open(path),
        _ => Pool::create(&PoolOptions::in_directory(path, POOL_BYTES)),
    };
    let pool = pool.unwrap();
    let owner = Owner::start(pool).unwrap();
    owner.serve(place.join("s")).unwrap();
    support::say("ok");
    assert_eq!(support::commands().count(), 0);
    drop(owner);
    std::process::exit(0);
}

/// A file of zeros in the place of a ledger: what somebody leaves who makes room.
fn empty(path: &Path) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, []).unwrap();
}

/// A pool whose owner was killed. Client 0 pins the file "a", client 1 nothing.
struct Orphaned {
    clients: [Client; 2],
    place: tempfile::TempDir,
}

impl Orphaned {
    fn new() -> Self {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut owner = Second::start("create", place.path());
        assert_eq!(owner.answer(), "ok");
        let client = || Client::connect(place.path().join("s")).unwrap();
        let clients = [client(), client()];
        support::put(&clients[0], "a", &block::make(1, MIB as usize)).unwrap();
        owner.kill();
        Self { clients, place }
    }

    fn pool(&self) -> PathBuf {
        self.place.path().join("pool")
    }

    fn ledger(&self, client: usize) -> PathBuf {
        self.pool().join("ledgers").join(self.clients[client].id().to_string())
    }

    fn start(&self) -> Result<Owner, Error> {
        Pool::open(self.pool()).and_then(Owner::start)
    }
}

/// Nobody had the copy's lock, so its client passed for dead.
#[test]
fn a_ledger_in_whose_place_another_file_was_put_stops_the_start_and_is_named() {
    let orphaned = Orphaned::new();
    let pin = orphaned.clients[0].get("a").unwrap();
    let (path, kept, copy) =
        (orphaned.ledger(0), orphaned.pool().join("kept"), orphaned.pool().join("copy"));
    let number = format!("ledgers/{} ", orphaned.clients[0].id());
    std::fs::hard_link(&path, &kept).unwrap();
    // A copy of itself, and a copy of another client's ledger.
    for from in [&path.clone(), &orphaned.ledger(1)] {
        std::fs::copy(from, &copy).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        let error = orphaned.start().map(drop).unwrap_err().to_string();
        assert!(error.contains(&number) && error.contains("not the file"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&kept, &path).unwrap();
    }
    // The ledger of another pool.
    let other = Orphaned::new();
    std::fs::rename(other.ledger(0), &path).unwrap();
    drop(other.clients);
    let error = orphaned.start().map(drop).unwrap_err().to_string();
    assert!(error.contains(&number), "{error}");

    std::fs::rename(&kept, &path).unwrap();
    let owner = orphaned.start().unwrap();
    owner.client().unwrap().unlink("a").unwrap();
    let info = owner.info();
    assert_eq!((info.nr_clients, info.draining_bytes), (2, MIB), "its hold stands: {info:?}");
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
    drop(pin);
}

/// All of it is somebody else's, the seal too, or nothing but zeros after the mark of its first
/// page.
#[test]
fn a_live_client_whose_ledger_was_written_over_may_hold_what_is_in_use() {
    let with_anothers = |orphaned: &Orphaned| {
        std::fs::copy(orphaned.ledger(1), orphaned.ledger(0)).unwrap();
    };
    let with_zeros = |orphaned: &Orphaned| {
        let file = std::fs::File::options().write(true).open(orphaned.ledger(0)).unwrap();
        let len_bytes = file.metadata().unwrap().len();
        file.set_len(4096).unwrap();
        file.set_len(len_bytes).unwrap();
    };
    for write_over in [&with_anothers as &dyn Fn(&Orphaned), &with_zeros] {
        let orphaned = Orphaned::new();
        let pin = orphaned.clients[0].get("a").unwrap();
        write_over(&orphaned);
        let owner = orphaned.start().unwrap();
        owner.serve(orphaned.place.path().join("s")).unwrap();
        let client = owner.client().unwrap();
        client.unlink("a").unwrap();
        assert_eq!(owner.info().draining_bytes, MIB, "its hold is not forgotten");
        assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
        assert!(orphaned.clients[0].stat("a").is_err(), "it is cut off");
        // What came later it cannot hold.
        support::put(&client, "b", &block::make(2, MIB as usize)).unwrap();
        client.unlink("b").unwrap();
        support::wait_for_info(&owner, "b is free", |info| info.draining_bytes == MIB);
        drop(pin);
        drop(orphaned.clients);
        support::wait_for_info(&owner, "all is free", |info| {
            info.free_bytes == POOL_BYTES && info.orphaned_bytes == 0
        });
    }
}

/// Nobody ever held any of the copy, whatever the ledgers say that were copied with it.
#[test]
fn a_copy_of_a_whole_pool_with_the_ledgers_of_live_clients_is_nobodys() {
    let orphaned = Orphaned::new();
    let pin = orphaned.clients[0].get("a").unwrap();
    let (from, to) = (orphaned.pool(), orphaned.place.path().join("copy"));
    std::fs::create_dir_all(to.join("ledgers")).unwrap();
    for part in ["", "ledgers"] {
        let entries = std::fs::read_dir(from.join(part)).unwrap().flatten();
        for entry in entries.filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
        }
    }
    let owner = Owner::start(Pool::open(&to).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(1));
    client.unlink("a").unwrap();
    let info = support::wait_for_info(&owner, "all is free", |info| info.free_bytes == POOL_BYTES);
    assert_eq!((info.nr_clients, info.orphaned_bytes), (1, 0), "{info:?}");
    let original = orphaned.start().unwrap();
    assert_eq!(original.info().nr_clients, 2);
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
}

fn write_over_the_seal(ledger: &Path) {
    let file = std::fs::File::options().write(true).open(ledger).unwrap();
    file.write_all_at(&[0xAA; 4096], file.metadata().unwrap().len() - 4096).unwrap();
}

/// Its device may write anywhere, as after a ledger that was cut short.
#[test]
fn a_dead_clients_ledger_without_its_seal_orphans_what_is_in_use() {
    let orphaned = Orphaned::new();
    let path = orphaned.ledger(0);
    write_over_the_seal(&path);
    let Orphaned { clients, place } = orphaned;
    drop(clients);
    let owner = Owner::start(Pool::open(place.path().join("pool")).unwrap()).unwrap();
    let info = owner.info();
    assert_eq!((info.nr_clients, info.orphaned_bytes), (0, MIB), "{info:?}");
    owner.client().unwrap().unlink("a").unwrap();
    let info = support::wait_for_info(&owner, "it is free", |info| info.free_bytes == POOL_BYTES);
    assert_eq!(info.orphaned_bytes, 0);
    assert!(!path.exists(), "its ledger goes with its last orphan");
}

/// Story: nobody had the lock of a ledger that was not there, so its client had never been.
#[test]
fn a_ledger_that_was_deleted_or_emptied_while_its_client_lives_stops_the_start_and_is_named() {
    let orphaned = Orphaned::new();
    let pin = orphaned.clients[0].get("a").unwrap();
    let (path, kept) = (orphaned.ledger(0), orphaned.pool().join("kept"));
    let number = format!("ledgers/{} ", orphaned.clients[0].id());
    let process = format!("end process {}", std::process::id());
    let delete = |path: &Path| std::fs::remove_file(path).unwrap();
    std::fs::hard_link(&path, &kept).unwrap();
    for take_away in [&delete as &dyn Fn(&Path), &empty] {
        take_away(&path);
        // As often as it is tried.
        for _ in 0..2 {
            let error = orphaned.start().map(drop).unwrap_err().to_string();
            assert!(error.contains(&number) && error.contains(&process), "{error}");
        }
        assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(1));
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::hard_link(&kept, &path).unwrap();
    }
    let owner = orphaned.start().unwrap();
    owner.client().unwrap().unlink("a").unwrap();
    let info = owner.info();
    assert_eq!((info.nr_clients, info.draining_bytes), (2, MIB), "its hold stands: {info:?}");
    drop(pin);
}

/// Its processor holds nothing any more, and nobody knows what its device may still write to.
#[test]
fn a_ledger_that_was_deleted_or_emptied_and_whose_client_is_dead_orphans_what_is_in_use() {
    let delete = |path: &Path| std::fs::remove_file(path).unwrap();
    for take_away in [&delete as &dyn Fn(&Path), &empty] {
        let Orphaned { clients, place } = Orphaned::new();
        drop(clients);
        let mut owner = Second::start("serve", place.path());
        assert_eq!(owner.answer(), "ok");
        let mut client = Second::start("client", place.path());
        assert_eq!(client.answer(), "ok");
        let number = client.ask("id");
        owner.kill();
        client.kill();
        take_away(&place.path().join("pool/ledgers").join(&number));
        let open = || Pool::open(place.path().join("pool")).and_then(Owner::start).unwrap();
        let owner = open();
        let info = owner.info();
        assert_eq!((info.nr_clients, info.orphaned_bytes), (0, MIB), "{info:?}");
        owner.client().unwrap().unlink("a").unwrap();
        let is_free = |info: &pgmap::PoolInfo| info.free_bytes == POOL_BYTES;
        let info = support::wait_for_info(&owner, "it is free", is_free);
        assert_eq!(info.orphaned_bytes, 0);
        drop(owner);
        // Nobody remembers it.
        assert_eq!(open().info().orphaned_bytes, 0);
    }
}

/// Whoever came and went is not missed.
#[test]
fn clients_that_left_or_died_are_off_the_roster() {
    let Orphaned { clients, place } = Orphaned::new();
    drop(clients);
    let pool = place.path().join("pool");
    for _ in 0..3 {
        let owner = Owner::start(Pool::open(&pool).unwrap()).unwrap();
        owner.serve(place.path().join("s")).unwrap();
        drop((0..4).map(|_| owner.client().unwrap()).collect::<Vec<Client>>());
        let mut client = Second::start("client", place.path());
        assert_eq!(client.answer(), "ok");
        client.kill();
        support::wait_for_info(&owner, "it is reaped", |info| info.nr_clients == 0);
        drop(owner);
    }
    for entry in std::fs::read_dir(pool.join("ledgers")).unwrap().flatten() {
        std::fs::remove_file(entry.path()).unwrap();
    }
    let info = Owner::start(Pool::open(&pool).unwrap()).unwrap().info();
    assert_eq!((info.orphaned_bytes, info.nr_clients), (0, 0), "{info:?}");
}
