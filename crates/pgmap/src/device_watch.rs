//! Watching the device that a pool lies on, and giving it up when it is gone.
//!
//! The kernel takes a device-dax device away without asking: it waits for no mapping and no
//! descriptor. What is left of those afterwards can keep the device from coming back (seen on Linux
//! 6.12: a descriptor that is closed after the device was bound again makes the next open ENXIO).
//! So each process that has the device, owner and clients, looks a few times a second whether it is
//! still there, and if not, puts nothing in the place of what it has mapped and closes what it has
//! open. Copies are errors from then on.
//!
//! Nothing is lost by that but time: catalog and contents are on the device. When it is back, the
//! owner is started again and opens the pool; clients attach again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use pgmap_os::{MemoryFile, MemoryKind, OsError, WriteMapping, thread};

use crate::error::Error;

/// How often it is looked: how long a device that is gone may be kept.
const PAUSE: Duration = Duration::from_millis(200);

/// Who has a device and can give it up.
pub(crate) trait HasDevice: Send + Sync + 'static {
    /// The data of the pool.
    fn data(&self) -> &MemoryFile;

    /// Whether the owner is done with it: it is about to go.
    fn is_closed(&self) -> bool {
        false
    }

    /// Gives up what is mapped and open of it.
    ///
    /// # Errors
    /// When a part of it could not be; it is asked again.
    fn give_up(&self) -> Result<(), Error>;
}

/// Has `user` give up its device when that is gone. The thread ends with the user, or with the
/// device.
///
/// # Errors
/// [`Error::Os`] when no thread can be started.
pub(crate) fn watch(user: &Arc<impl HasDevice>) -> Result<(), Error> {
    if user.data().kind() != MemoryKind::DevDax {
        return Ok(());
    }
    let weak = Arc::downgrade(user);
    let name = user.data().name().to_owned();
    thread::Builder::new()
        .name("pgmap-device".into())
        .spawn(move || run(&weak))
        .map(drop)
        .map_err(|error| OsError::new("watch", name, error).into())
}

/// Maps a pool's data for a client. Of a device that is gone there is nothing to map, and the
/// client can still ask who holds what.
///
/// # Errors
/// As [`WriteMapping::map`].
pub(crate) fn map_data(data: &MemoryFile, len_bytes: u64) -> Result<WriteMapping, OsError> {
    // An owner that gave the device up hands out an empty file.
    let is_gone = !data.is_present() || data.len_bytes() == 0;
    match WriteMapping::map(data, 0, len_bytes) {
        Err(_) if is_gone => WriteMapping::nothing(len_bytes),
        mapped => mapped,
    }
}

fn run(weak: &Weak<impl HasDevice>) {
    loop {
        thread::sleep(PAUSE);
        let Some(user) = weak.upgrade() else { return };
        if user.data().is_present() && !user.is_closed() {
            continue;
        }
        match user.give_up() {
            Ok(()) => {
                tracing::error!(
                    device = user.data().name(),
                    "the device is gone, or goes, and was given up"
                );
                return;
            }
            Err(error) => tracing::warn!(%error, "a device that is gone could not be given up"),
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
        client.inner.give_up().unwrap();
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
