//! Watching the devices that a pool lies on: giving them up when they are gone, and finding them
//! again.
//!
//! The kernel takes a device-dax device away without asking: it waits for no mapping and no
//! descriptor. What is left of those afterwards can keep the device from coming back (seen on Linux
//! 6.12: a descriptor that is closed after the device was bound again makes the next open ENXIO).
//! So each process that has devices, owner and clients, looks a few times a second whether they are
//! still there, and of one that is not, puts nothing in the place of what it has mapped and closes
//! what it has open. Copies are errors from then on.
//!
//! Nothing is lost by that but time: what was on the device is there when it is back. A further
//! backing is then taken up by the owner that lost it; for the pool's own data the owner is started
//! again, and opens the pool. Clients map it again where it was: what they hold they have held.
//!
//! Clients look in the same way for backings that were added or taken out: the owner counts such
//! changes in the index.

use std::sync::{Arc, Weak};
use std::time::Duration;

use pgmap_os::{OsError, thread};

use crate::error::Error;

/// How often it is looked: how long a device that is gone may be kept.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextLook {
    Again,
    Over,
}

/// Who has devices and can give them up.
pub(crate) trait HasDevices: Send + Sync + 'static {
    /// Gives up what is gone, and takes up what is back. What fails is tried at the next look.
    fn look(user: &Arc<Self>) -> NextLook;
}

/// Has `user` look at its devices for as long as it lives.
///
/// # Errors
/// [`Error::Os`] when no thread can be started.
pub(crate) fn watch(user: &Arc<impl HasDevices>) -> Result<(), Error> {
    let weak = Arc::downgrade(user);
    thread::Builder::new()
        .name("pgmap-device".into())
        .spawn(move || run(&weak))
        .map(drop)
        .map_err(|error| OsError::new("watch", "devices", error).into())
}

fn run(weak: &Weak<impl HasDevices>) {
    loop {
        thread::sleep(PAUSE);
        let Some(user) = weak.upgrade() else { return };
        if HasDevices::look(&user) == NextLook::Over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FolioSize;
    use crate::{Event, Owner, Pool, PoolOptions};
    use std::fs;

    fn is_mapped(name: &str) -> bool {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| line.contains(name))
    }

    /// The device is a file here, and its end is set by hand.
    #[test]
    fn what_was_given_up_is_an_error_to_touch_and_nothing_of_it_is_kept() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let (file, directory) = (place.path().join("given-up"), place.path().join("pool"));
        let pool = Pool::create(&PoolOptions::on(&file, &directory).size(32 << 20)).unwrap();
        let owner = Owner::start(pool).unwrap();
        let client = owner.client().unwrap();
        let mut writer = client.create("a", 5000, FolioSize::BestFit).unwrap();
        writer.write_all_at(0, &[7; 5000]).unwrap();
        writer.commit().unwrap();
        let opened = client.open("a").unwrap();
        let pinned = opened.pin_all().unwrap();
        assert!(is_mapped("given-up"));
        client.give_up(|_| true).unwrap();
        owner.pool().give_up().unwrap();
        assert!(!is_mapped("given-up"), "a mapping is left");
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let is_it = |path: std::path::PathBuf| path == file;
        let left = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(is_it));
        assert_eq!(left.count(), 0, "a descriptor is left");
        let mut bytes = [0; 5000];
        assert!(pinned.read_at(0, &mut bytes).is_err());
        assert!(client.get("a").and_then(|pin| pin.to_vec()).is_err());
        let draft = client.create("b", 5000, FolioSize::BestFit);
        assert!(draft.and_then(|mut writer| writer.write_all_at(0, &[1; 5000])).is_err());
        assert_eq!(client.list().unwrap().len(), 1);
        assert_eq!(client.stat("a").unwrap().len_bytes, 5000);
        assert_eq!(client.next_event(Duration::ZERO).unwrap(), Some(Event::DeviceGone));
        // Who subscribes now gets what is known.
        let late = owner.client().unwrap();
        assert_eq!(late.stat("a").unwrap().len_bytes, 5000);
        assert!(late.get("a").and_then(|pin| pin.to_vec()).is_err());
        drop(late);
        drop((pinned, opened));
        drop((client, owner));
        // It is back.
        let owner = Owner::start(Pool::open(&directory).unwrap()).unwrap();
        assert_eq!(owner.client().unwrap().get("a").unwrap().to_vec().unwrap(), [7; 5000]);
    }
}
