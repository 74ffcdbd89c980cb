//! Stock: spares that are made after one answer, so that the next has some at once.
//!
//! A client that was handed a spare is likely to ask for more. So others like it are made once the
//! answer is sent, while the client copies, and so is the room that they need. A spare in stock is
//! a draft of its client as any spare is (see `spares`), but the client does not know of it yet.

use std::collections::{BTreeMap, VecDeque};

use pgmap_mm::drain::ClientId;
use pgmap_mm::index::FileId;

use crate::owner::batch_room::BatchRoom;
use crate::owner::core::Core;
use crate::spare_places::{SparePlaces, SpareShare};
use crate::wire::{CreateSpec, Draft, extents_to_words};

/// Most spares in stock for one client.
pub(crate) const MAX_STOCK: usize = 16;
/// And most bytes of them together.
pub(crate) const MAX_STOCK_BYTES: u64 = 8 << 20;
const PLACES: SparePlaces = SparePlaces { nr: MAX_STOCK, bytes: MAX_STOCK_BYTES };
/// So many are made at once: a message that comes meanwhile waits for these, and for the evictions
/// that all need, and not for the rest.
const STEP_SPARES: usize = 4;

/// What is in stock, and what is to be.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    of: BTreeMap<ClientId, ClientStock>,
    /// Clients for whom some are to be made, each once.
    due: VecDeque<ClientId>,
}

/// The stock of one client.
#[derive(Debug, Default)]
struct ClientStock {
    made: Vec<StockedKind>,
    /// Spares are to be made like these.
    due: VecDeque<CreateSpec>,
}

/// Spares that are alike.
#[derive(Debug)]
struct StockedKind {
    /// What the first was made like.
    like: CreateSpec,
    /// The latest last. Some may have been taken back since.
    ids: Vec<FileId>,
}

impl StockedKind {
    const fn share(&self) -> SpareShare {
        SpareShare { nr: self.ids.len(), len_bytes: self.like.len_bytes }
    }
}

impl ClientStock {
    fn kind(&mut self, spec: &CreateSpec) -> Option<&mut StockedKind> {
        self.made.iter_mut().find(|kind| kind.like.has_like_frames(spec))
    }

    /// Finds a place for one like `spec`, beside `nr_due` that are to be made; `None` if there is
    /// none. Else those that give one up each.
    fn place(&self, spec: &CreateSpec, nr_due: usize) -> Option<Vec<usize>> {
        let is_alike = |kind: &&StockedKind| kind.like.has_like_frames(spec);
        let nr_own = self.made.iter().find(is_alike).map_or(0, |kind| kind.ids.len());
        let own = SpareShare { nr: nr_own + nr_due, len_bytes: spec.len_bytes };
        let others = self.made.iter().map(|kind| match is_alike(&kind) {
            // It is counted by itself.
            true => SpareShare { nr: 0, ..kind.share() },
            false => kind.share(),
        });
        PLACES.for_one_more(own, others)
    }

    /// Makes a place for one like `spec`, if there is any; returns the spares that go for it.
    fn make_place(&mut self, spec: &CreateSpec) -> Option<Vec<FileId>> {
        let giving = self.place(spec, 0)?;
        Some(giving.into_iter().filter_map(|nth| self.made[nth].ids.pop()).collect())
    }

    fn add(&mut self, id: FileId, spec: CreateSpec) {
        match self.kind(&spec) {
            Some(kind) => kind.ids.push(id),
            None => {
                self.made.retain(|kind| !kind.ids.is_empty());
                self.made.push(StockedKind { like: spec, ids: vec![id] });
            }
        }
    }
}

impl Stock {
    /// Whether any are to be made.
    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The spare of a client that was made last and is like `spec`, if `is_there` says so of it.
    fn take(
        &mut self,
        client: ClientId,
        spec: &CreateSpec,
        is_there: impl Fn(FileId) -> bool,
    ) -> Option<FileId> {
        let ids = &mut self.of.get_mut(&client)?.kind(spec)?.ids;
        while let Some(id) = ids.pop() {
            if is_there(id) {
                return Some(id);
            }
        }
        None
    }

    /// Has a spare made like `spec`, if there is a place for one more.
    pub(crate) fn order(&mut self, client: ClientId, spec: CreateSpec) {
        let stock = self.of.entry(client).or_default();
        let nr_due = stock.due.iter().filter(|other| other.has_like_frames(&spec)).count();
        if stock.due.len() < MAX_STOCK && stock.place(&spec, nr_due).is_some() {
            if stock.due.is_empty() {
                self.due.push_back(client);
            }
            stock.due.push_back(spec);
        }
    }

    /// Forgets a client. The frames of its spares are others' business.
    pub(crate) fn forget(&mut self, client: ClientId) {
        self.of.remove(&client);
        self.due.retain(|other| *other != client);
    }
}

impl Core {
    /// Hands out a spare in stock that is as a file of this `spec` would be.
    pub(crate) fn take_stocked(&mut self, client: ClientId, spec: &CreateSpec) -> Option<Draft> {
        let files = &self.files;
        let id = self.stock.take(client, spec, |id| files.spare_of(id, client).is_some())?;
        let extents = extents_to_words(&files.draft(id)?.extents);
        Some(Draft { id: id.0, extents })
    }

    /// Makes the next few spares that are due to one client, and the room for all of them.
    pub(crate) fn restock(&mut self) {
        let Some(client) = self.stock.due.pop_front() else { return };
        let Some(stock) = self.stock.of.get_mut(&client) else { return };
        let mut due = std::mem::take(&mut stock.due);
        if self.check_open().is_err() {
            return;
        }
        let wanted_pages = self.evicting_pages(client, due.iter());
        let mut room = BatchRoom { wanted_pages, ..BatchRoom::new() };
        if let Some(stock) = self.stock.of.get_mut(&client) {
            // Some may have been taken back.
            let is_there = |id: &FileId| self.files.spare_of(*id, client).is_some();
            stock.made.iter_mut().for_each(|kind| kind.ids.retain(is_there));
        }
        for spec in due.drain(..due.len().min(STEP_SPARES)) {
            self.stock_one(client, spec, &mut room);
        }
        if !due.is_empty()
            && let Some(stock) = self.stock.of.get_mut(&client)
        {
            stock.due = due;
            self.stock.due.push_back(client);
        }
    }

    fn stock_one(&mut self, client: ClientId, spec: CreateSpec, room: &mut BatchRoom) {
        let stock = self.stock.of.get_mut(&client);
        let Some(given_up) = stock.and_then(|stock| stock.make_place(&spec)) else { return };
        let drafts = given_up.into_iter().filter_map(|id| self.files.take_spare(id, client));
        let drafts: Vec<_> = drafts.collect();
        self.retire_drafts(drafts);
        if let Some(draft) = self.spare_like(client, spec.clone(), room, true)
            && let Some(stock) = self.stock.of.get_mut(&client)
        {
            stock.add(FileId(draft.id), spec);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FolioSize;

    const CLIENT: ClientId = ClientId(7);

    fn spec(len_bytes: u64) -> CreateSpec {
        CreateSpec::named("a", len_bytes, FolioSize::BestFit).unwrap()
    }

    fn stock_of(made: &[(u64, u64)]) -> Stock {
        let mut stock = Stock::default();
        let of_client = stock.of.entry(CLIENT).or_default();
        made.iter().for_each(|&(id, len_bytes)| of_client.add(FileId(id), spec(len_bytes)));
        stock
    }

    #[test]
    fn what_is_alike_and_still_there_is_taken() {
        let mut stock = stock_of(&[(1, 5), (2, 6), (3, 5)]);
        assert_eq!(stock.take(CLIENT, &spec(7), |_| true), None);
        assert_eq!(stock.take(CLIENT, &spec(5), |id| id != FileId(3)), Some(FileId(1)));
        assert_eq!(stock.take(CLIENT, &spec(5), |_| true), None, "what is gone is forgotten");
        assert_eq!(stock.take(ClientId(8), &spec(6), |_| true), None, "it is another's");
    }

    #[test]
    fn so_many_are_ordered_and_so_many_bytes() {
        let nr_due = |stock: &Stock| stock.of[&CLIENT].due.len();
        for (len_bytes, most) in [(5, MAX_STOCK), (MAX_STOCK_BYTES / 4, 4), (MAX_STOCK_BYTES, 1)] {
            let mut stock = Stock::default();
            (0..2 * MAX_STOCK).for_each(|_| stock.order(CLIENT, spec(len_bytes)));
            assert_eq!((nr_due(&stock), stock.due.len()), (most, 1), "{len_bytes}");
            stock.forget(CLIENT);
            assert!(!stock.has_due());
        }
        let mut stock = stock_of(&[(1, 5), (2, 6)]);
        (0..2 * MAX_STOCK).for_each(|_| stock.order(CLIENT, spec(5)));
        assert_eq!(nr_due(&stock), MAX_STOCK - 2, "what is there counts");
    }

    #[test]
    fn sizes_that_are_put_in_turns_keep_their_places() {
        let quarter = MAX_STOCK_BYTES / 4;
        let mut stock = stock_of(&[(1, quarter), (2, quarter), (3, quarter), (4, quarter)]);
        let of_client = stock.of.get_mut(&CLIENT).unwrap();
        assert_eq!(of_client.make_place(&spec(quarter)), None);
        assert_eq!(of_client.make_place(&spec(5)), Some(vec![FileId(4)]));
        for id in 10..10 + MAX_STOCK as u64 - 3 {
            assert_eq!(of_client.make_place(&spec(5)), Some(vec![]));
            of_client.add(FileId(id), spec(5));
        }
        let nr_ids = |stock: &ClientStock| stock.made.iter().map(|kind| kind.ids.len()).collect();
        let before: Vec<usize> = nr_ids(of_client);
        assert_eq!(before, [3, MAX_STOCK - 3]);
        // There is no place for more of either, and none goes for nothing.
        assert_eq!(of_client.make_place(&spec(5)), None);
        assert_eq!(of_client.make_place(&spec(quarter)), None);
        assert_eq!(nr_ids(of_client), before);
    }
}
