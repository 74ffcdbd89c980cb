//! pgmap for C: what a storage plugin needs, as `include/pgmap.h` and a shared library.
//!
//! | module | one concept |
//! |---|---|
//! | `pool` | connecting, and what is done by name |
//! | `writer` | a file that is being written |
//! | `pin` | the pinned bytes of a file |
//! | `events` | what becomes of files |
//! | `quotas` | quotas and water marks |
//! | `arguments` | what C passes, checked |
//! | `failure` | errors as numbers of errno.h, with a message for each thread |
//!
//! # Rights
//! An object is made by one call and ended by one other; in between its address is the caller's.
//! Null is checked for, a wrong address cannot be. A writer, pin or subscription keeps its client
//! attached, so that `pgmap_disconnect` may come before their ends.

mod arguments;
mod events;
mod failure;
mod pin;
mod pool;
mod quotas;
mod writer;

pub use events::{
    PGMAP_CREATED, PGMAP_DRAINED, PGMAP_EVICTED, PGMAP_REMOVED, pgmap_event, pgmap_events,
    pgmap_events_fd, pgmap_events_next, pgmap_subscribe, pgmap_unsubscribe,
};
pub use failure::pgmap_last_error;
pub use pin::{
    pgmap_get, pgmap_get_for_device, pgmap_is_reclaim_requested, pgmap_pin, pgmap_pin_len,
    pgmap_pin_segments, pgmap_read, pgmap_segment, pgmap_unpin,
};
pub use pool::{
    PGMAP_CHECKSUM, PGMAP_EVICTABLE, PGMAP_READ_ONLY, PGMAP_REPLACE, pgmap_connect,
    pgmap_connect_with, pgmap_disconnect, pgmap_exists, pgmap_is_read_only, pgmap_memory,
    pgmap_pool, pgmap_rename, pgmap_unlink, pgmap_version,
};
pub use quotas::{
    PGMAP_MAX_QUOTAS, PGMAP_NO_LIMIT, pgmap_quota, pgmap_quotas, pgmap_remove_prefix_quota,
    pgmap_remove_uid_quota, pgmap_set_prefix_quota, pgmap_set_uid_quota, pgmap_set_water_marks,
    pgmap_water_marks,
};
pub use writer::{
    pgmap_abort, pgmap_commit, pgmap_create, pgmap_set_device, pgmap_write, pgmap_writer,
    pgmap_writer_segments,
};
