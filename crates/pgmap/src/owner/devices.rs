//! Devices that go away while the pool is served, and come back.
//!
//! The pool's own data needs another owner then, which reads the catalog again. A further backing
//! is taken into use by this one: its files were on record all the time, and clients still hold
//! what they held of them.
//!
//! # States
//!
//! ```text
//!   there ── its driver is gone ──▶ missing ── bound again, and the head is its own ──▶ there
//! ```
//!
//! # Who may touch what
//! The owner alone, under its lock; the thread of `device_watch` asks for it.

use std::path::Path;
use std::sync::Arc;

use pgmap_mm::pagemap::FailureFlags;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::{MemoryKind, device_binding};

use crate::device_watch::{HasDevices, NextLook};
use crate::error::Error;
use crate::owner::backing::{Backing, BackingState};
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::owner::handle::Shared;
use crate::owner::holders::Call;
use crate::owner::part_drains::{DRAINED, lies_in};
use crate::pool::Pool;

impl Core {
    /// Gives up further backings whose devices are gone, and takes up those that are back.
    pub(crate) fn look_at_devices(&mut self) {
        let is_gone = |backing: &&Backing| backing.id != 0 && backing.is_device_gone();
        let gone: Vec<u64> =
            self.frames.backings().iter().filter(is_gone).map(|it| it.id).collect();
        gone.into_iter().for_each(|id| self.lose_backing(id));
        let is_missing = |backing: &&Backing| matches!(backing.state, BackingState::Missing(_));
        let missing = self.frames.backings().iter().filter(is_missing);
        let missing: Vec<_> = missing.map(|it| (it.id, it.path.clone())).collect();
        self.changes.keep_attempts(|id| missing.iter().any(|&(missing, _)| missing == id));
        for (id, path) in missing {
            if let Some(binding) = device_binding(&path)
                && self.changes.is_worth_trying(id, binding)
                && let Err(error) = self.try_device(id, &path)
            {
                tracing::debug!(%error, "the device of a missing backing is not taken into use");
            }
        }
    }

    fn try_device(&mut self, id: u64, path: &Path) -> Result<(), Error> {
        let Some((head, path)) = Pool::backing_at(path)?.filter(|(head, _)| head.id == id) else {
            return Ok(());
        };
        self.take_back(head, path)?;
        tracing::info!(backing = id, "the device of a backing is back, and its files with it");
        Ok(())
    }

    /// The medium of a further backing is gone. Its files stay, their contents are errors.
    fn lose_backing(&mut self, id: u64) {
        let Some(backing) = self.frames.backings_mut().iter_mut().find(|it| it.id == id) else {
            return;
        };
        if let Some(data) = &backing.data
            && let Err(error) = data.abandon()
        {
            tracing::warn!(%error, "a device that is gone could not be given up");
            return;
        }
        (backing.data, backing.lock) = (None, None);
        tracing::error!(backing = %backing.name, "its device is gone, and was given up");
        let why = format!(
            "its device, {}, went away; it is taken back when that is there again",
            backing.path.display()
        );
        let runs = backing.runs();
        self.end_parts_of(id);
        let Some(backing) = self.frames.backings_mut().iter_mut().find(|it| it.id == id) else {
            return;
        };
        match backing.state {
            BackingState::Leaving => self.changes.departs_missing(id, &why),
            _ => backing.state = BackingState::Missing(why),
        }
        self.memory_is_gone(runs);
    }

    /// A further backing was drained: its memory is given up. Its files stay, their contents are
    /// errors until it is added again, or its device is bound again.
    pub(crate) fn give_backing_up(&mut self, id: u64, runs: &SortedRuns) {
        // Their heads stay shut until clients have given it up; taking it back opens them.
        let is_its = |file: &FileRecord| file.doing == Some(DRAINED) && lies_in(file, runs);
        let its = self.files.values_mut().filter(|file| is_its(file));
        its.for_each(|file| file.doing = None);
        let Some(backing) = self.frames.backings_mut().iter_mut().find(|it| it.id == id) else {
            return;
        };
        if let Some(data) = &backing.data
            && let Err(error) = data.abandon()
        {
            tracing::warn!(backing = %backing.name, %error, "a descriptor is left open");
        }
        (backing.data, backing.lock) = (None, None);
        let path = backing.path.clone();
        let why = format!("it was drained; add {} again to have its files", path.display());
        backing.state = BackingState::Missing(why);
        if let Some(binding) = device_binding(&path) {
            // It is there still, and is not to be taken into use before it was away.
            self.changes.leave_alone(id, binding);
        }
        self.memory_is_gone(runs.iter().collect());
    }

    /// The device of the pool's data is gone.
    fn lose_data(&mut self) {
        let runs = self.frames.backings().at(0).runs();
        self.memory_is_gone(runs);
    }

    /// Tells whom it concerns: the pool's holder here, clients by the index.
    fn memory_is_gone(&mut self, runs: Vec<PfnRange>) {
        for run in runs {
            self.holder.notify(Call::Failure(run, FailureFlags::MEM_PRE_REMOVE));
        }
        self.frames.backings_changed();
        self.frames.registrations_ended();
    }
}

impl Backing {
    fn is_device_gone(&self) -> bool {
        #[cfg(test)]
        if self.as_if.is_gone {
            return self.data.is_some();
        }
        let is_gone =
            |data: &pgmap_os::MemoryFile| data.kind() == MemoryKind::DevDax && !data.is_present();
        self.data.as_ref().is_some_and(|data| is_gone(data))
    }
}

impl HasDevices for Shared {
    fn look(shared: &Arc<Self>) -> NextLook {
        let Ok(mut state) = shared.lock_running() else { return NextLook::Over };
        let pool = shared.pool();
        if pool.is_on_device() && !pool.is_device_gone() && !pool.data.is_present() {
            match pool.give_up() {
                Ok(()) => {
                    tracing::error!(device = pool.data.name(), "it is gone, and was given up");
                    state.core.lose_data();
                }
                Err(error) => {
                    tracing::warn!(%error, "a device that is gone could not be given up");
                }
            }
        }
        state.core.look_at_devices();
        NextLook::Again
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::owner::backing::AsIf;
    use crate::wire::{CreateSpec, FolioSize, Placement};
    use crate::{BackingOptions, Client, FileName, Owner, PoolOptions};
    use pgmap_mm::holder::{DrainReason, Holder, HolderAnswer, HolderId, Requester};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(PfnRange, FailureFlags)>>);

    impl Holder for Recorder {
        fn longterm_admit(&self, _: PfnRange, _: &Requester) -> HolderAnswer {
            HolderAnswer::Allow
        }
        fn notify_failure(&self, run: PfnRange, flags: FailureFlags) {
            self.0.lock().unwrap().push((run, flags));
        }
        fn drain_requested(&self, _: PfnRange, _: DrainReason, _: u64) {}
    }

    fn put(client: &Client, name: &str, backing: &str) -> Result<(), Error> {
        let placement = Placement::Only(vec![backing.into()]);
        let name = FileName::new(name).unwrap();
        let spec = CreateSpec { placement, ..CreateSpec::new(name, 5000, FolioSize::Pages4K) };
        let mut writer = client.create_batch(vec![spec])?.pop().unwrap()?;
        writer.write_all_at(0, &[7; 5000])?;
        writer.commit()
    }

    fn is_mapped(path: &Path) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(path.to_str().unwrap())
    }

    fn nr_open(path: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path)).count()
    }

    fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is_so() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not within 10 s: {what}");
    }

    /// The device is a file here, and it ends by hand.
    #[test]
    fn a_further_device_that_goes_is_given_up_by_all_and_comes_back_with_its_files_and_pins() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let two = place.path().join("a-further-device");
        let options = PoolOptions::in_directory(place.path().join("pool"), 8 << 20).room(2 << 30);
        let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
        owner.serve(place.path().join("socket")).unwrap();
        owner.add_backing(&BackingOptions::on(&two).size(4 << 20)).unwrap();
        let holder = Arc::new(Recorder::default());
        let id = HolderId::new(1).unwrap();
        let told = Arc::clone(&holder);
        let _registered = owner.set_holder(id, told, Duration::from_secs(1)).unwrap();
        let client = Client::connect(place.path().join("socket")).unwrap();
        put(&client, "far", "a-further-device").unwrap();
        put(&client, "near", "data").unwrap();
        let pinned = client.get("far").unwrap();
        assert!(is_mapped(&two) && nr_open(&two) > 0);
        let epoch = client.detach_epoch();
        let pretend = |is_gone| {
            let mut state = owner.shared().lock();
            let second = state.core.frames.backings_mut().iter_mut().find(|it| it.id != 0);
            second.unwrap().as_if = AsIf { is_gone, ..AsIf::default() };
        };
        pretend(true);
        soon("it is given up by owner and client", || !is_mapped(&two) && nr_open(&two) == 0);
        pretend(false);
        let mut bytes = [0; 5000];
        assert!(pinned.read_at(0, &mut bytes).is_err());
        let error = client.get("far").unwrap_err().to_string();
        assert!(error.contains("\"a-further-device\"") && error.contains("went away"), "{error}");
        assert!(put(&client, "more", "a-further-device").is_err());
        assert_eq!(client.get("near").unwrap().to_vec().unwrap(), [7; 5000]);
        let infos = client.backings().unwrap();
        let gone = client.next_event(Duration::from_secs(1)).unwrap();
        let event = crate::Event::BackingGone {
            backing: "a-further-device".into(),
            first_pfn: infos[1].first_pfn,
            nr_pages: 1024,
        };
        assert_eq!(gone, Some(event));
        let run = PfnRange::new(infos[1].first_pfn, 1024).unwrap();
        soon("the holder is notified", || !holder.0.lock().unwrap().is_empty());
        assert_eq!(*holder.0.lock().unwrap(), [(run, FailureFlags::MEM_PRE_REMOVE)]);
        assert!(client.detach_epoch() > epoch, "registrations are of no use");
        // It is back: a path that is no device is not tried by itself.
        owner.add_backing(&BackingOptions::on(&two)).unwrap();
        soon("the client maps it again", || pinned.read_at(0, &mut bytes).is_ok());
        assert_eq!(bytes, [7; 5000]);
        assert_eq!(client.get("far").unwrap().to_vec().unwrap(), [7; 5000]);
        drop(pinned);
        client.unlink("far").unwrap();
        owner.remove_backing("a-further-device", Duration::from_secs(1)).unwrap();
        soon("nobody has it once it is taken out", || !is_mapped(&two) && nr_open(&two) == 0);
    }
}
