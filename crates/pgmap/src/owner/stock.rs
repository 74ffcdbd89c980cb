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
use crate::wire::{CreateSpec, Draft, extents_to_words};

/// Most spares in stock for one client.
pub(crate) const MAX_STOCK: usize = 16;
/// And most bytes of them together, if they are more than one.
pub(crate) const MAX_STOCK_BYTES: u64 = 8 << 20;

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
    /// The latest last, with what each was made like. Some may have been taken back since.
    made: VecDeque<(FileId, CreateSpec)>,
    /// Spares are to be made like these.
    due: Vec<CreateSpec>,
}

impl ClientStock {
    /// Gives up the oldest ones for which there is no place beside one like `spec`.
    fn make_place(&mut self, spec: &CreateSpec) -> Vec<FileId> {
        let mut bytes: u64 = self.made.iter().map(|(_, made)| made.len_bytes).sum();
        let mut given_up = Vec::new();
        while (self.made.len() >= MAX_STOCK || bytes + spec.len_bytes > MAX_STOCK_BYTES)
            && let Some((id, made)) = self.made.pop_front()
        {
            bytes -= made.len_bytes;
            given_up.push(id);
        }
        given_up
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
        let made = &mut self.of.get_mut(&client)?.made;
        while let Some(place) = made.iter().rposition(|(_, made)| made.has_like_frames(spec)) {
            let id = made.remove(place)?.0;
            if is_there(id) {
                return Some(id);
            }
        }
        None
    }

    /// Has a spare made like `spec`, if there is a place for one more.
    pub(crate) fn order(&mut self, client: ClientId, spec: CreateSpec) {
        let stock = self.of.entry(client).or_default();
        let made = stock.made.iter().map(|(_, made)| made);
        let nr_alike = made.chain(&stock.due).filter(|other| other.has_like_frames(&spec)).count();
        let most = MAX_STOCK_BYTES.checked_div(spec.len_bytes).unwrap_or(0).max(1);
        if (nr_alike as u64) < most && nr_alike < MAX_STOCK && stock.due.len() < MAX_STOCK {
            if stock.due.is_empty() {
                self.due.push_back(client);
            }
            stock.due.push(spec);
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
        let is_spare = |id| files.draft_of(id, client).is_some_and(|draft| draft.is_spare);
        let id = self.stock.take(client, spec, is_spare)?;
        let extents = extents_to_words(&files.draft(id)?.extents);
        Some(Draft { id: id.0, extents })
    }

    /// Makes the spares that are due to one client.
    pub(crate) fn restock(&mut self) {
        let Some(client) = self.stock.due.pop_front() else { return };
        let due = self.stock.of.get_mut(&client).map(|stock| std::mem::take(&mut stock.due));
        let due = due.filter(|_| self.check_open().is_ok()).unwrap_or_default();
        let wanted_pages = self.evicting_pages(client, due.iter());
        let mut room = BatchRoom { wanted_pages, ..BatchRoom::new() };
        for spec in due {
            let Some(stock) = self.stock.of.get_mut(&client) else { return };
            let given_up = stock.make_place(&spec);
            let drafts = given_up.into_iter().filter_map(|id| self.files.take_spare(id, client));
            let drafts: Vec<_> = drafts.collect();
            self.retire_drafts(drafts);
            if let Some(draft) = self.spare_like(client, spec.clone(), &mut room, true)
                && let Some(stock) = self.stock.of.get_mut(&client)
            {
                stock.made.push_back((FileId(draft.id), spec));
            }
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
        let made = made.iter().map(|&(id, len_bytes)| (FileId(id), spec(len_bytes))).collect();
        let of = BTreeMap::from([(CLIENT, ClientStock { made, due: Vec::new() })]);
        Stock { of, due: VecDeque::new() }
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
    fn so_many_are_ordered_and_so_many_bytes_and_one_of_any_size() {
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
        assert_eq!(nr_due(&stock), MAX_STOCK - 1, "what is there counts");
    }

    #[test]
    fn the_oldest_make_place() {
        let quarter = MAX_STOCK_BYTES / 4;
        let mut stock = stock_of(&[(1, quarter), (2, quarter), (3, quarter)]);
        let of_client = stock.of.get_mut(&CLIENT).unwrap();
        assert_eq!(of_client.make_place(&spec(quarter)), []);
        assert_eq!(of_client.make_place(&spec(2 * quarter)), [FileId(1)]);
        let many: Vec<_> = (0..MAX_STOCK as u64).map(|id| (id, 5)).collect();
        let mut stock = stock_of(&many);
        assert_eq!(stock.of.get_mut(&CLIENT).unwrap().make_place(&spec(6)), [FileId(0)]);
    }
}
