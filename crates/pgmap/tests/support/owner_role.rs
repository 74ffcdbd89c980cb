//! A process that owns a pool in a directory until its input ends, or is a client of that owner.

use pgmap::{Owner, Pool, PoolOptions};

use super::{client_role, commands, role, say};

/// Runs this process as what it was started as: an owner that creates its pool ("create") or opens
/// it, or a client: of an owner in the same place ("client"), or of the socket that is named
/// ("other"). Returns only where it was not started as any of them.
pub fn run_if_asked(pool_bytes: u64) {
    let Some((role, place)) = role() else { return };
    if role == "client" {
        client_role::run(&place.join("s"));
    }
    if role == "other" {
        client_role::run(&place);
    }
    let pool = place.join("pool");
    let pool = match role.as_str() {
        "create" => Pool::create(&PoolOptions::in_directory(&pool, pool_bytes)),
        _ => Pool::open(&pool),
    };
    let owner = Owner::start(pool.unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    say("ok");
    assert_eq!(commands().count(), 0);
    drop(owner);
    std::process::exit(0);
}
