//! A way to an owner on which answers are lost and messages are counted.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgmap::os::poll::wait_for;
use pgmap::os::{Connection, Interest, Listener};
use pgmap::{Client, Owner, Pool, PoolOptions};

use crate::support::BOUND;

const MIB: u64 = 1 << 20;

/// The way to an owner, which loses an answer and the connection with it when it is asked to.
pub struct Way {
    pub client: Client,
    is_lossy: Arc<AtomicBool>,
    nr_messages: Arc<AtomicU64>,
    owner: Owner,
    _place: tempfile::TempDir,
}

impl Way {
    pub fn new() -> Self {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = PoolOptions::in_directory(place.path().join("pool"), 16 * MIB);
        let owner = Owner::start(Pool::create(&pool).unwrap()).unwrap();
        owner.serve(place.path().join("owner")).unwrap();
        let (is_lossy, nr_messages) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let listener = Listener::bind(&place.path().join("way"), 0o600).unwrap();
        let to = place.path().join("owner");
        let (lossy, nr) = (Arc::clone(&is_lossy), Arc::clone(&nr_messages));
        std::thread::spawn(move || relay_all(&listener, &to, &lossy, &nr));
        let client = Client::connect(place.path().join("way")).unwrap();
        Self { client, is_lossy, nr_messages, owner, _place: place }
    }

    /// How many messages the client has sent.
    pub fn nr_messages(&self) -> u64 {
        self.nr_messages.load(Ordering::SeqCst)
    }

    /// Loses the answer to what is asked next.
    pub fn lose_one(&self) {
        self.is_lossy.store(true, Ordering::SeqCst);
    }

    pub fn names(&self) -> Vec<String> {
        self.owner
            .client()
            .unwrap()
            .list()
            .unwrap()
            .iter()
            .map(|file| file.name.to_string())
            .collect()
    }
}

fn relay_all(listener: &Listener, to: &Path, is_lossy: &AtomicBool, nr: &AtomicU64) {
    while let Ok(true) = wait_for([(listener.as_fd(), Interest::Read)], BOUND).map(|[is]| is) {
        let Ok(Some(client)) = listener.accept() else { continue };
        let owner = Connection::connect(to).unwrap();
        while relay(&client, &owner, is_lossy, nr) {}
    }
}

/// Passes on one message of either side. False at the end of either.
fn relay(client: &Connection, owner: &Connection, is_lossy: &AtomicBool, nr: &AtomicU64) -> bool {
    let both = [(client.as_fd(), Interest::Read), (owner.as_fd(), Interest::Read)];
    let Ok([is_client, is_owner]) = wait_for(both, BOUND) else { return false };
    let pass_on = |from: &Connection, to: &Connection| {
        let mut buffer = vec![0; 1 << 20];
        let Ok(received) = from.recv(&mut buffer) else { return false };
        let fds: Vec<_> = received.fds.iter().map(|fd| fd.as_fd()).collect();
        !received.is_end() && to.send(&buffer[..received.len], &fds).is_ok()
    };
    if is_owner {
        return !is_lossy.swap(false, Ordering::SeqCst) && pass_on(owner, client);
    }
    nr.fetch_add(u64::from(is_client), Ordering::SeqCst);
    !is_client || pass_on(client, owner)
}
