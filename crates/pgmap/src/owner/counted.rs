//! Files and drafts, counted: what each user and each prefix with a quota takes is known at any
//! time, and nobody goes through all files for it.
//!
//! The map is read as any other and changed only here, so that no change can be forgotten. What is
//! changed in place ([`Counted::get_mut`]) keeps its user, its name and its number of frames.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Deref;

use pgmap_mm::index::FileId;

use crate::name::FileName;
use crate::owner::file_book::{DraftRecord, FileRecord};
use crate::wire::QuotaOf;

/// What is taken of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub files: u64,
    pub pages: u64,
}

impl Use {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self { files: self.files + other.files, pages: self.pages + other.pages }
    }

    pub(crate) const fn minus(self, other: Self) -> Self {
        Self { files: self.files - other.files, pages: self.pages - other.pages }
    }
}

/// What is counted.
pub(crate) trait Counts<K> {
    /// Whose it is, and how it is called.
    fn whose<'a>(&'a self, key: &'a K) -> (u32, &'a FileName);
    /// How many frames it has.
    fn nr_pages(&self) -> u64;
}

impl Counts<FileName> for FileRecord {
    fn whose<'a>(&'a self, key: &'a FileName) -> (u32, &'a FileName) {
        (self.uid, key)
    }

    fn nr_pages(&self) -> u64 {
        self.allocated_pages()
    }
}

impl Counts<FileId> for DraftRecord {
    fn whose<'a>(&'a self, _: &'a FileId) -> (u32, &'a FileName) {
        (self.uid, &self.name)
    }

    fn nr_pages(&self) -> u64 {
        Self::nr_pages(self)
    }
}

/// A map of files or drafts, and what they take.
#[derive(Debug)]
pub(crate) struct Counted<K, V> {
    map: BTreeMap<K, V>,
    uses: Uses,
}

#[derive(Debug, Default)]
struct Uses {
    of_uid: BTreeMap<u32, Use>,
    /// Of the prefixes that have a quota.
    of_prefix: BTreeMap<FileName, Use>,
}

impl Uses {
    fn count(&mut self, (uid, name): (u32, &FileName), nr_pages: u64, change: fn(Use, Use) -> Use) {
        let one = Use { files: 1, pages: nr_pages };
        let of_uid = self.of_uid.entry(uid).or_default();
        *of_uid = change(*of_uid, one);
        if *of_uid == Use::default() {
            self.of_uid.remove(&uid);
        }
        for (prefix, used) in &mut self.of_prefix {
            if name.as_bytes().starts_with(prefix.as_bytes()) {
                *used = change(*used, one);
            }
        }
    }
}

impl<K, V> Default for Counted<K, V> {
    fn default() -> Self {
        Self { map: BTreeMap::new(), uses: Uses::default() }
    }
}

impl<K, V> Deref for Counted<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K: Ord + Clone, V: Counts<K>> Counted<K, V> {
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let entry = self.map.entry(key);
        self.uses.count(value.whose(entry.key()), value.nr_pages(), Use::plus);
        match entry {
            Entry::Vacant(place) => {
                place.insert(value);
                None
            }
            Entry::Occupied(mut place) => {
                let before = place.insert(value);
                self.uses.count(before.whose(place.key()), before.nr_pages(), Use::minus);
                Some(before)
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.remove_entry(key).map(|(_, value)| value)
    }

    pub(crate) fn remove_entry(&mut self, key: &K) -> Option<(K, V)> {
        let (key, value) = self.map.remove_entry(key)?;
        self.uses.count(value.whose(&key), value.nr_pages(), Use::minus);
        Some((key, value))
    }

    /// Takes out those of which that is so.
    pub(crate) fn take_all(&mut self, is_to_go: impl Fn(&V) -> bool) -> Vec<V> {
        let going = self.map.iter().filter(|(_, value)| is_to_go(value));
        let keys: Vec<K> = going.map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// To change what is not counted.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    /// As [`get_mut`](Self::get_mut), of all.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.map.iter_mut()
    }

    /// What those take that a quota is for.
    pub(crate) fn used_by(&self, of: &QuotaOf) -> Use {
        match of {
            QuotaOf::Uid(uid) => self.uses.of_uid.get(uid),
            QuotaOf::Prefix(prefix) => self.uses.of_prefix.get(prefix),
        }
        .copied()
        .unwrap_or_default()
    }

    /// Counts a prefix from now on.
    pub(crate) fn count_prefix(&mut self, prefix: &FileName) {
        let used = self.recounted(&QuotaOf::Prefix(prefix.clone()));
        self.uses.of_prefix.insert(prefix.clone(), used);
    }

    /// Counts it no more.
    pub(crate) fn forget_prefix(&mut self, prefix: &FileName) {
        self.uses.of_prefix.remove(prefix);
    }

    /// What those take that a quota is for, by going through all.
    pub(crate) fn recounted(&self, of: &QuotaOf) -> Use {
        self.map.iter().fold(Use::default(), |used, (key, value)| {
            let (uid, name) = value.whose(key);
            match of.has(uid, name) {
                true => used.plus(Use { files: 1, pages: value.nr_pages() }),
                false => used,
            }
        })
    }
}
