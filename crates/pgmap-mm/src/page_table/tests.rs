//! The page table against a naive map of pages, one step at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::cursor::{Cursor, LeafPlacement};
use super::entry::LeafFlags;
use super::{PageTable, TableMemory, TableWriter};
use crate::descriptor::{Descriptor, FolioFlags, FolioState};
use crate::extent::Extent;
use crate::level::{FANOUT, Level};
use crate::pfn::{Pfn, PfnRange};
use crate::stamp::Stamp;
use crate::vmemmap::VmemmapLayout;

const PAGES: u64 = 4 * FANOUT;

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, nr_pages: u64, extent: u64, skip: u64, is_writable: bool },
    Clear { page: u64, nr_pages: u64 },
    Weaken { page: u64, nr_pages: u64 },
    Invalidate { extent: u64, skip: u64, nr_pages: u64 },
}

fn place() -> impl Strategy<Value = (u64, u64)> {
    let page = (0..4_u64, prop_oneof![Just(0), 0..9_u64]).prop_map(|(b, p)| b * FANOUT + p);
    let length = prop_oneof![1..9_u64, Just(FANOUT), Just(2 * FANOUT)];
    (page, length).prop_map(|(page, nr_pages)| (page, nr_pages.min(PAGES - page)))
}

fn step() -> impl Strategy<Value = Step> {
    let skip = prop_oneof![Just(0), Just(FANOUT), 0..9_u64];
    prop_oneof![
        4 => (place(), 0..3_u64, skip.clone(), any::<bool>()).prop_map(
            |((page, nr_pages), extent, skip, is_writable)| {
                Step::Map { page, nr_pages, extent, skip, is_writable }
            }
        ),
        2 => place().prop_map(|(page, nr_pages)| Step::Clear { page, nr_pages }),
        1 => place().prop_map(|(page, nr_pages)| Step::Weaken { page, nr_pages }),
        1 => (0..3_u64, skip, 1..600_u64).prop_map(|(extent, skip, nr_pages)| {
            Step::Invalidate { extent, skip, nr_pages }
        }),
    ]
}

fn extent(number: u64) -> Extent {
    let stamp = Stamp::new(number + 1).unwrap();
    let life = Descriptor::new(FolioState::Live, FolioFlags::WRITABLE, stamp);
    let run = PfnRange::new(number * 4 * PAGES, 2 * PAGES).unwrap();
    Extent::new(run, Level::Pte, life).unwrap()
}

type Naive = BTreeMap<u64, (u64, LeafFlags)>;

fn apply(cursor: &mut Cursor<'_>, naive: &mut Naive, step: &Step) {
    match *step {
        Step::Map { page, nr_pages, extent: number, skip, is_writable } => {
            let flags = if is_writable { LeafFlags::WRITE } else { LeafFlags::NONE };
            let extent = extent(number);
            let only_level = None;
            let place = LeafPlacement { page, nr_pages, extent, skip, flags, only_level };
            let mut replaced = 0;
            cursor.map(&place, |_, nr_pages| replaced += nr_pages).unwrap();
            let before = naive.range(page..page + nr_pages).count();
            assert_eq!(replaced, before as u64);
            for at in 0..nr_pages {
                naive.insert(page + at, (extent.run.start() + skip + at, flags));
            }
        }
        Step::Clear { page, nr_pages } => {
            let mut removed = Vec::new();
            cursor.clear(page, page + nr_pages, None, |page, nr| removed.push((page, nr)));
            let gone: u64 = removed.iter().map(|(_, nr_pages)| nr_pages).sum();
            let kept = naive.split_off(&(page + nr_pages));
            assert_eq!(gone, naive.split_off(&page).len() as u64);
            naive.extend(kept);
        }
        Step::Weaken { page, nr_pages } => {
            let without = |flags: LeafFlags| flags.without(LeafFlags::WRITE);
            cursor.change_flags(page, page + nr_pages, without).unwrap();
            for (_, (_, flags)) in naive.range_mut(page..page + nr_pages) {
                *flags = LeafFlags::NONE;
            }
        }
        Step::Invalidate { extent: number, skip, nr_pages } => {
            let run = extent(number).run.sub_run(skip, nr_pages).unwrap();
            for (span, first, end) in cursor.ranges_of(run) {
                cursor.clear(first, end, Some(span), |_, _| {});
            }
            naive.retain(|_, (pfn, _)| !run.contains(Pfn::new(*pfn).unwrap()));
        }
    }
}

fn check(table: &PageTable, naive: &Naive) {
    for page in 0..PAGES {
        let found = table.walk(page);
        assert_eq!(
            found.map(|found| (found.frame_of(page), found.leaf.flags())),
            naive.get(&page).copied(),
            "page {page:#x}"
        );
        let Some(found) = found else { continue };
        let (first, flags) = naive[&page];
        assert!(table.life(found.leaf).is_some());
        let reach = table.reach(found.leaf);
        if page.checked_sub(1).is_some_and(|before| reach.from(before) != 0) {
            continue;
        }
        // The reach never promises more than there is; looking at its start is enough.
        for ahead in 0..reach.from(page) {
            assert_eq!(naive.get(&(page + ahead)), Some(&(first + ahead, flags)));
        }
    }
}

proptest! {
    #[test]
    fn a_page_table_says_what_a_page_by_page_map_says(
        steps in prop::collection::vec(step(), 1..30)
    ) {
        let layout = VmemmapLayout::for_pages(1 << 18).unwrap();
        let table = PageTable::new((0, 1 << 18), layout, TableMemory::HEAP);
        let mut writer = TableWriter::default();
        let mut naive = Naive::new();
        for step in &steps {
            apply(&mut table.cursor(&mut writer), &mut naive, step);
            check(&table, &naive);
        }
        table.cursor(&mut writer).clear(0, PAGES, None, |_, _| {});
        let usage = writer.usage();
        prop_assert_eq!((usage.nr_tables, usage.nr_spans), (0, 0));
    }
}

#[test]
fn leaves_that_come_in_any_order_end_up_in_one_span() {
    let table =
        PageTable::new((0, 1 << 18), VmemmapLayout::for_pages(1 << 18).unwrap(), TableMemory::HEAP);
    let mut writer = TableWriter::default();
    let map = |writer: &mut TableWriter, page: u64| {
        let (extent, flags) = (extent(0), LeafFlags::NONE);
        let place =
            LeafPlacement { page, nr_pages: 1, extent, skip: page, flags, only_level: None };
        table.cursor(writer).map(&place, |_, _| {}).unwrap();
    };
    for page in (0..32).map(|at| 2 * at).chain((0..32).rev().map(|at| 2 * at + 1)) {
        map(&mut writer, page);
    }
    assert_eq!(writer.usage().nr_spans, 1);
    assert_eq!(table.reach(table.walk(0).unwrap().leaf).from(0), 64);
    // A hole in the middle leaves two ranges, each with a reach of its own.
    table.cursor(&mut writer).clear(20, 21, None, |_, _| {});
    assert_eq!(writer.usage().nr_spans, 2);
    assert_eq!(table.reach(table.walk(0).unwrap().leaf).from(0), 20);
    assert_eq!(table.reach(table.walk(21).unwrap().leaf).from(21), 43);
    map(&mut writer, 20);
    assert_eq!(writer.usage().nr_spans, 1);
}
