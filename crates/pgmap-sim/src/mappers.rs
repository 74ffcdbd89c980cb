//! Clients that map files at addresses, read and pin by address, and cache translations.
//!
//! All threads of a client share one address space, each with addresses of its own: so what must
//! lie where is known exactly, while locks and tables are everybody's. The address spaces are
//! devices' ones, without a mapping for the processor.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgmap::mm::fault::FaultError;
use pgmap::mm::gup::{GupError, GupFlags, LongtermRefusal};
use pgmap::mm::mm::{
    AckToken, EndedRange, FillError, InvalidateSubscriber, MapError, Placed, SubscriptionId,
};
use pgmap::mm::prot::Prot;
use pgmap::mm::vma::BackingError;
use pgmap::space::{AddressSpace, PinnedPages, SpaceError};
use pgmap::{Client, Error, PinError};

use crate::changes::is_forbidden;
use crate::episode::Episode;
use crate::held::Held;
use crate::holders::Pinned;
use crate::model::PAGE;
use crate::plan::{Hold, NR_SLOTS, SLOT_PAGES};
use crate::reads::judge_pin;
use crate::verdict::{ANY, Asked, Verb};

/// Pages of a thread.
const WINDOW: usize = NR_SLOTS as usize * SLOT_PAGES as usize;
/// How long an unmapping waits for whoever caches translations.
const PATIENCE: Duration = Duration::from_millis(30);

/// A file that is mapped: what it may be.
struct Seen {
    name: String,
    /// Which versions, fewer as more is read of it.
    versions: RefCell<Vec<u64>>,
}

/// A page that is mapped.
#[derive(Clone)]
struct Mapped {
    seen: Rc<Seen>,
    page: u64,
    is_writable: bool,
    /// Which mapping it came with.
    mapping: u64,
}

/// What a thread has mapped, as naively as it can be said.
pub struct Mapper<'s> {
    space: &'s AddressSpace,
    /// First page of its addresses.
    first: u64,
    pages: Vec<Option<Mapped>>,
    nr_mappings: u64,
    device: Option<Device>,
}

/// A device that caches translations, of which it holds what they translate to.
struct Device {
    id: SubscriptionId,
    mail: Arc<Mail>,
}

/// Notifications that a device has not acknowledged yet.
#[derive(Debug, Default)]
struct Mail(Mutex<Vec<(Vec<EndedRange>, AckToken)>>);

impl InvalidateSubscriber for Mail {
    fn ended(&self, ranges: &[EndedRange], token: AckToken) {
        // Never held while another party runs.
        let mut mail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mail.push((ranges.to_vec(), token));
    }
}

/// The address space of a client with so many threads.
pub fn space_of(episode: &Episode, client: &Client) -> Option<Arc<AddressSpace>> {
    let asked = Asked::now(episode);
    let len = u64::from(episode.plan.threads) * WINDOW as u64 * PAGE;
    match AddressSpace::for_device(client, 0, len) {
        Ok(space) => Some(Arc::new(space)),
        Err(SpaceError::File(error)) => {
            episode.machine.note(|| format!("no address space: {error}"));
            episode.check(asked.check_error(episode, Verb::Look, &error));
            None
        }
        Err(error) => {
            episode.fail(format!("no address space: {error}"));
            None
        }
    }
}

impl<'s> Mapper<'s> {
    pub fn new(space: &'s AddressSpace, thread: u8) -> Self {
        let first = u64::from(thread) * WINDOW as u64;
        Self { space, first, pages: vec![None; WINDOW], nr_mappings: 0, device: None }
    }

    fn address(&self, at: usize) -> u64 {
        (self.first + at as u64) * PAGE
    }

    fn at(&self, address: u64) -> Option<usize> {
        let at = (address / PAGE).checked_sub(self.first)? as usize;
        (at < WINDOW).then_some(at)
    }

    /// Maps pages of a file over whatever is there.
    pub fn map(
        &mut self,
        episode: &Episode,
        (name, page): (&str, u64),
        (at, pages): (usize, usize),
        is_writable: bool,
    ) -> Result<(), Error> {
        let asked = Asked::now(episode);
        let client = self.space.client();
        let turn = episode.books.borrow_mut().look(name, asked.owner);
        let found = client.open(name);
        judge_pin(episode, asked, name, &turn, &found);
        let file = found?;
        let now = episode.machine.steps();
        let versions: Vec<u64> = episode.model.borrow().numbers(name, asked.from, now).collect();
        let prot = if is_writable { Prot::READ_WRITE } else { Prot::READ };
        let (place, len) = (Placed::Over(self.address(at)), pages as u64 * PAGE);
        match self.space.map(&file, page * PAGE, len, place, prot) {
            Ok(_) => {
                self.nr_mappings += 1;
                let seen = Rc::new(Seen { name: name.into(), versions: RefCell::new(versions) });
                for skip in 0..pages {
                    let page = page + skip as u64;
                    let (seen, mapping) = (Rc::clone(&seen), self.nr_mappings);
                    self.pages[at + skip] = Some(Mapped { seen, page, is_writable, mapping });
                }
            }
            Err(SpaceError::File(error)) => {
                episode.check(asked.check_error(episode, Verb::Pin(name), &error));
                return Err(error);
            }
            Err(SpaceError::Map(MapError::Dead)) if !self.must_live(episode, &versions, asked) => {}
            Err(error) => episode.fail(format!("{name:?} cannot be mapped: {error}")),
        }
        Ok(())
    }

    /// Maps the start of a file where nothing is, but for odd pages.
    pub fn map_where_none(&mut self, episode: &Episode, name: &str, at: (usize, usize)) {
        if self.pages[at.0].is_none()
            && at.0.is_multiple_of(2)
            && let Err(error) = self.map(episode, (name, 0), at, at.0.is_multiple_of(4))
        {
            episode.machine.note(|| format!("nothing is mapped: {error}"));
        }
    }

    fn must_live(&self, episode: &Episode, versions: &[u64], asked: Asked) -> bool {
        let model = episode.model.borrow();
        let now = episode.machine.steps();
        versions.iter().all(|&number| model.must_live(number, asked.from, now))
    }

    /// Takes away what is mapped at some addresses.
    pub fn unmap(
        &mut self,
        episode: &Episode,
        (at, pages): (usize, usize),
        held: &mut Vec<Held<'_>>,
    ) {
        match self.space.unmap(self.address(at), pages as u64 * PAGE) {
            Ok(unmapped) => {
                self.pages[at..at + pages].fill(None);
                self.obey(episode, held);
                if let Err(why) = unmapped.acks.wait(PATIENCE) {
                    episode.machine.note(|| format!("unmapped, and {why}"));
                }
                for at in at..at + pages {
                    self.check_absent(episode, at, "was unmapped");
                }
            }
            Err(error) => episode.fail(format!("{pages} pages cannot be unmapped: {error}")),
        }
    }

    /// Moves what one mapping has from a page on to other addresses.
    pub fn remap(&mut self, episode: &Episode, at: usize, to: usize) {
        let asked = Asked::now(episode);
        let Some(first) = self.pages[at].clone() else { return };
        let end = (at / SLOT_PAGES as usize + 1) * SLOT_PAGES as usize;
        let is_same = |(page, skip): (&Option<Mapped>, u64)| {
            page.as_ref().is_some_and(|own| {
                (own.mapping, own.page, own.is_writable)
                    == (first.mapping, first.page + skip, first.is_writable)
            })
        };
        let nr = self.pages[at..end].iter().zip(0..).take_while(|&pair| is_same(pair)).count();
        if to.abs_diff(at) < nr || to + nr > WINDOW {
            return;
        }
        let (from, len) = (self.address(at), nr as u64 * PAGE);
        let place = Placed::Over(self.address(to));
        match self.space.remap(from, len, len, place) {
            Ok(_) => {
                let moved: Vec<_> = self.pages[at..at + nr].iter_mut().map(Option::take).collect();
                self.pages[to..to + nr].clone_from_slice(&moved);
                for at in at..at + nr {
                    self.check_absent(episode, at, "was moved away");
                }
            }
            Err(MapError::Dead)
                if !self.must_live(episode, &first.seen.versions.borrow(), asked) => {}
            Err(error) => episode.fail(format!("{nr} pages cannot be moved: {error}")),
        }
    }

    /// Changes what may be done to pages that are all mapped.
    pub fn protect(&mut self, episode: &Episode, (at, pages): (usize, usize), is_writable: bool) {
        let prot = if is_writable { Prot::READ_WRITE } else { Prot::READ };
        let is_whole = self.pages[at..at + pages].iter().all(Option::is_some);
        let changed = self.space.protect(self.address(at), pages as u64 * PAGE, prot);
        match (changed, is_whole) {
            (Ok(_), true) => {
                let own = self.pages[at..at + pages].iter_mut().flatten();
                own.for_each(|page| page.is_writable = is_writable);
            }
            (Err(MapError::NotMapped { .. }), false) => {}
            (Ok(_), false) => episode.fail("pages were protected that are not mapped"),
            (Err(error), _) => episode.fail(format!("{pages} pages cannot be protected: {error}")),
        }
    }

    fn check_absent(&self, episode: &Episode, at: usize, why: &str) {
        if let Some(found) = self.space.mm().translate(self.address(at)) {
            episode.fail(format!("what {why} at page {at} translates to {found:?}"));
        }
    }

    /// Has files looked at that are mapped: what is gone for certain translates to nothing.
    pub fn refresh(&mut self, episode: &Episode, held: &mut Vec<Held<'_>>) {
        let from = episode.machine.steps();
        drop(self.space.refresh());
        let now = episode.machine.steps();
        for (at, mapped) in self.pages.iter().enumerate() {
            let Some(mapped) = mapped else { continue };
            let model = episode.model.borrow();
            let versions = mapped.seen.versions.borrow();
            if !versions.iter().any(|&number| model.may_live(number, from, now)) {
                self.check_absent(episode, at, "is gone");
            }
        }
        self.obey(episode, held);
    }

    /// Copies bytes by address.
    pub fn read(&self, episode: &Episode, (at, pages): (usize, usize)) -> Option<SpaceError> {
        let asked = Asked::now(episode);
        let mut bytes = vec![0; pages * PAGE as usize];
        match self.space.read_at(self.address(at), &mut bytes) {
            Ok(()) => {
                self.check_pages(episode, asked, at, &bytes);
                None
            }
            Err(error) => {
                self.judge(episode, asked, at, GupFlags::NONE, &error);
                Some(error)
            }
        }
    }

    /// What was read from a page on is what is mapped there; a hole reads as zeros.
    fn check_pages(&self, episode: &Episode, asked: Asked, at: usize, bytes: &[u8]) {
        let window = (asked.from, episode.machine.steps());
        for (skip, bytes) in bytes.chunks(PAGE as usize).enumerate() {
            let Some(mapped) = &self.pages[at + skip] else {
                episode.fail(format!("page {} was read, and nothing is mapped there", at + skip));
                return;
            };
            let model = episode.model.borrow();
            let tails = episode.may_leave_tails();
            let mut why = String::new();
            let mut versions = mapped.seen.versions.borrow_mut();
            let mut allowed = versions.clone();
            allowed.retain(|&number| {
                let result = model.page(number, mapped.page, bytes, window, tails);
                result.map_err(|what| why = what).is_ok()
            });
            if allowed.is_empty() {
                let name = &mapped.seen.name;
                episode.fail(format!("{name:?}, mapped at page {}: {why}", at + skip));
                return;
            }
            *versions = allowed;
        }
    }

    /// Holds pages by address, and reads them.
    pub fn pin(
        &mut self,
        episode: &Episode,
        (at, pages): (usize, usize),
        how: Hold,
        steps: u32,
    ) -> Result<Option<Held<'s>>, SpaceError> {
        if how == Hold::Cached {
            self.attach_device(episode);
        }
        let flags = match how {
            Hold::Short => GupFlags::NONE,
            Hold::Write => GupFlags::WRITE,
            Hold::Long => GupFlags::LONGTERM,
            Hold::Fast => GupFlags::FAST_ONLY,
            Hold::Device | Hold::Cached => GupFlags::DEVICE,
        };
        if flags.contains(GupFlags::DEVICE) {
            episode.may_quarantine.set(true);
        }
        let asked = Asked::now(episode);
        let pinned = match self.space.pin(self.address(at), pages as u64, flags) {
            Ok(pinned) => pinned,
            Err(error) => {
                self.judge(episode, asked, at, flags, &error);
                return Err(error);
            }
        };
        if pinned.is_empty() {
            if how != Hold::Fast {
                episode.fail("no page was held, and no error given");
            }
            return Ok(None);
        }
        let mut bytes = vec![0; pinned.len_bytes() as usize];
        pinned.read_at(0, &mut bytes)?;
        self.check_pages(episode, asked, at, &bytes);
        Ok(self.keep(episode, asked, at, pinned, bytes, (how, steps)))
    }

    fn keep(
        &self,
        episode: &Episode,
        asked: Asked,
        at: usize,
        pinned: PinnedPages<'s>,
        bytes: Vec<u8>,
        (how, steps): (Hold, u32),
    ) -> Option<Held<'s>> {
        let mapped = self.pages[at].as_ref()?;
        let frames: Vec<u64> = pinned.pages().map(|(_, pfn)| pfn.number()).collect();
        episode.check_healthy(&frames, asked.from);
        // Only a pin that one mapping of one version gave is known to be in the way of its cuts.
        let nr = pinned.nr_pages() as usize;
        let is_one = |(own, skip): (&Option<Mapped>, u64)| {
            own.as_ref().is_some_and(|own| {
                Rc::ptr_eq(&own.seen, &mapped.seen) && own.page == mapped.page + skip
            })
        };
        let versions = mapped.seen.versions.borrow();
        let is_known = versions.len() == 1 && self.pages[at..at + nr].iter().zip(0..).all(is_one);
        if how == Hold::Long && versions.iter().all(|&number| is_forbidden(number)) {
            episode.fail(format!("version {versions:?} was pinned long-term by address"));
        }
        let known = is_known.then(|| {
            let pages = (mapped.page..mapped.page + nr as u64).collect();
            (versions[0], pages)
        });
        let number = if is_known { Some((versions[0], mapped.page * PAGE)) } else { None };
        let known = Pinned { from: asked.from, frames: frames.clone(), version: known };
        let holding = episode.hold(Some(known));
        let until = episode.machine.steps() + u64::from(steps);
        let name = mapped.seen.name.clone();
        let is_cached = how == Hold::Cached && self.device.is_some();
        Some(Held::by_address(pinned, (bytes, frames), until, (name, number), is_cached, holding))
    }

    fn attach_device(&mut self, episode: &Episode) {
        if self.device.is_none() {
            let mail = Arc::new(Mail::default());
            let id = self.space.on_invalidate(Arc::clone(&mail) as Arc<dyn InvalidateSubscriber>);
            episode.machine.note(|| "a device caches translations from now on".to_owned());
            self.device = Some(Device { id, mail });
        }
    }

    /// The device lets go of what it was notified of, and says so.
    pub fn obey(&self, episode: &Episode, held: &mut Vec<Held<'_>>) {
        let Some(device) = &self.device else { return };
        let mail = &device.mail.0;
        let told = std::mem::take(&mut *mail.lock().unwrap_or_else(PoisonError::into_inner));
        for (ranges, token) in told {
            let is_meant = |own: &Held<'_>| {
                own.cached_at().is_some_and(|(start, end)| {
                    let meets = |range: &EndedRange| {
                        range.address < end && start < range.address + range.len_bytes
                    };
                    ranges.iter().any(meets)
                })
            };
            held.retain(|own| !is_meant(own));
            episode.machine.note(|| format!("the device lets go of {ranges:x?}"));
            token.acknowledge();
        }
    }

    /// Whether an error of a read or pin from a page on has a cause.
    fn judge(
        &self,
        episode: &Episode,
        asked: Asked,
        at: usize,
        flags: GupFlags,
        error: &SpaceError,
    ) {
        if !self.has_cause(episode, asked, at, flags, error) {
            let mapped = self.pages[at].as_ref().map(|own| (&own.seen.name, own.page));
            episode.fail(format!("page {at} ({mapped:?}) failed without a cause: {error}"));
        }
    }

    fn has_cause(
        &self,
        episode: &Episode,
        asked: Asked,
        at: usize,
        flags: GupFlags,
        error: &SpaceError,
    ) -> bool {
        let error = match error {
            SpaceError::Gup(error) => error,
            SpaceError::File(error) => {
                let name = self.pages[at].as_ref().map_or("", |own| &own.seen.name);
                // Under which name the file is by now is not known.
                let is_refused = matches!(error, Error::Refused(_));
                return is_refused || asked.check_error(episode, Verb::Lease(name), error).is_ok();
            }
            _ => return false,
        };
        match *error {
            GupError::Fault(FaultError::NoArea { address }) | GupError::NotPresent { address } => {
                self.at(address).is_some_and(|at| self.pages[at].is_none())
            }
            GupError::Fault(FaultError::Denied { address, .. }) => {
                let own = self.at(address).and_then(|at| self.pages[at].as_ref());
                flags.contains(GupFlags::WRITE) && own.is_some_and(|own| !own.is_writable)
            }
            GupError::Fault(FaultError::Fill { address, error: FillError::Backing(error) }) => {
                self.is_so(episode, asked, address, error)
            }
            GupError::Poisoned { .. } => episode.failures.borrow().is_any(),
            GupError::Unstable { address } => {
                self.is_so(episode, asked, address, BackingError::Busy)
            }
            GupError::Longterm { address, refusal: LongtermRefusal::Denied } => {
                let own = self.at(address).and_then(|at| self.pages[at].as_ref());
                episode.plan.has_holder
                    || episode.failures.borrow().is_any()
                    || episode.books.borrow().was_any_cut()
                    || own.is_none_or(|own| {
                        own.seen.versions.borrow().iter().any(|&number| is_forbidden(number))
                    })
            }
            GupError::Longterm { address, refusal: LongtermRefusal::Unsupported } => {
                let own = self.at(address).and_then(|at| self.pages[at].as_ref());
                own.is_some_and(|own| {
                    own.seen.versions.borrow().iter().any(|&number| is_forbidden(number))
                })
            }
            GupError::Longterm { address, refusal: LongtermRefusal::Busy } => {
                self.is_so(episode, asked, address, BackingError::Busy)
            }
            GupError::Hold(PinError::NoRoom) => {
                asked.self_lacked(episode, &ANY) || episode.may_lack_disk()
            }
            _ => false,
        }
    }

    /// Whether what is said of a page may be so.
    fn is_so(&self, episode: &Episode, asked: Asked, address: u64, error: BackingError) -> bool {
        let own = self.at(address).and_then(|at| self.pages[at].as_ref());
        let Some(own) = own else { return false };
        let (from, now, page) = (asked.from, episode.machine.steps(), own.page);
        let model = episode.model.borrow();
        let versions = own.seen.versions.borrow();
        let may_any = |is_so: &dyn Fn(u64) -> bool| versions.iter().any(|&number| is_so(number));
        match error {
            BackingError::BeyondEnd => {
                may_any(&|number| model.may_be_beyond(number, page, from, now))
            }
            BackingError::Hole => may_any(&|number| model.may_be_hole(number, page, from, now)),
            // Or an owner could not open its memory.
            BackingError::Dead => {
                episode.may_lose_backings()
                    || may_any(&|number| !model.must_live(number, from, now))
            }
            BackingError::Poisoned => episode.failures.borrow().is_any(),
            BackingError::Busy => {
                asked.is_disturbed(episode)
                    || episode.books.borrow().may_close(from)
                    || episode.failures.borrow().is_any()
                    || may_any(&|number| {
                        !model.must_live(number, from, now) || model.may_be_cut(number, from, now)
                    })
            }
            _ => false,
        }
    }
}

impl Drop for Mapper<'_> {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            self.space.unsubscribe(device.id);
        }
    }
}
