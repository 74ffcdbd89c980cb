#![allow(missing_docs, clippy::unwrap_used)]
use pgmap_mm::barrier::BarrierMode;
use pgmap_mm::descriptor::*;
use pgmap_mm::extent::Extent;
use pgmap_mm::gup::*;
use pgmap_mm::ledger::*;
use pgmap_mm::level::*;
use pgmap_mm::mm::*;
use pgmap_mm::pfn::*;
use pgmap_mm::pin::*;
use pgmap_mm::stamp::Stamp;
use pgmap_mm::vma::*;
use pgmap_mm::vmemmap::*;
use pgmap_mm::words::*;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::*;
use std::time::Instant;

#[derive(Debug)]
struct Side {
    l: HeapWords,
    c: HeapCounts,
    v: Vmemmap<Arc<HeapWords>>,
    det: AtomicU64,
}
impl ClientSide for Side {
    type Ledger = HeapWords;
    type Counts = HeapCounts;
    type Descriptors = Arc<HeapWords>;
    #[inline]
    fn ledger(&self) -> &HeapWords {
        &self.l
    }
    #[inline]
    fn counts(&self) -> &HeapCounts {
        &self.c
    }
    #[inline]
    fn vmemmap(&self) -> &Vmemmap<Arc<HeapWords>> {
        &self.v
    }
    #[inline]
    fn barrier_mode(&self) -> BarrierMode {
        BarrierMode::Asymmetric
    }
    fn ring_doorbell(&self) {}
    #[inline]
    fn is_detached(&self) -> bool {
        self.det.load(Ordering::Relaxed) != 0
    }
    fn identity(&self) -> u64 {
        1
    }
}
#[derive(Debug)]
struct File {
    per: u64,
    life: Descriptor,
    n: u64,
}
impl Backing for File {
    fn kind(&self) -> VmaKind {
        VmaKind::Shared
    }
    fn nr_pages(&self) -> u64 {
        self.n
    }
    fn extent_at(&self, page: u64) -> Result<Backed, BackingError> {
        let first = page / self.per * self.per;
        let run = PfnRange::new(first, self.per).unwrap();
        Ok(Backed { extent: Extent::new(run, Level::Pmd, self.life).unwrap(), skip: page - first })
    }
}
const GIB: u64 = 1 << 30;
static ONLY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
fn time(name: &str, f_ns: f64, n: u64, mut f: impl FnMut(u64)) -> f64 {
    if name != "F" && !name.contains(ONLY.get().unwrap().as_str()) {
        return 0.0;
    }
    let mut best: Vec<f64> = Vec::new();
    for _ in 0..9 {
        let t = Instant::now();
        f(n);
        best.push(t.elapsed().as_nanos() as f64 / n as f64);
    }
    best.sort_by(f64::total_cmp);
    let m = best[4];
    println!("{name:45} {m:8.2} ns  {:.2} F   [{:.2}..{:.2}]", m / f_ns, best[0], best[8]);
    m
}
#[inline(always)]
fn next(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}
fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    ONLY.set(only).unwrap();
    let nr = 64 * GIB / 4096;
    let nleaf = nr / 512;
    // F: inline radix walk + fetch_add + recheck + fetch_sub
    let top: Vec<Box<[AtomicU64]>> =
        (0..64).map(|_| (0..512).map(|i| AtomicU64::new(1 << 63 | i)).collect()).collect();
    let counts: Vec<AtomicU64> = (0..nleaf).map(|_| AtomicU64::new(0)).collect();
    let n: u64 = std::env::var("N").map_or(4_000_000, |n| n.parse().unwrap());
    let addr = |x: &mut u64| (next(x) & (nleaf - 1)) << 21;
    let mut x = 88172645463325252u64;
    let f = time("F", 1.0, n, |n| {
        for _ in 0..n {
            let a = addr(&mut x);
            let t = &top[(a >> 30) as usize];
            let e = &t[(a >> 21) as usize & 511];
            let w = e.load(Ordering::Acquire);
            if w >> 63 == 0 {
                panic!()
            }
            let c = &counts[((a >> 30) * 512 + (w & 511)) as usize];
            c.fetch_add(1, Ordering::AcqRel);
            if e.load(Ordering::Acquire) != w {
                panic!()
            }
            black_box(w);
            c.fetch_sub(1, Ordering::Release);
        }
    });
    time("rng only", f, n, |n| {
        for _ in 0..n {
            black_box(addr(&mut x));
        }
    });
    time("bare walk", f, n, |n| {
        for _ in 0..n {
            let a = addr(&mut x);
            let e = &top[(a >> 30) as usize][(a >> 21) as usize & 511];
            black_box(e.load(Ordering::Acquire));
        }
    });
    let layout = VmemmapLayout::for_pages(nr).unwrap();
    for per in [nr, 512] {
        println!("-- extents of {per} pages");
        let v = Arc::new(HeapWords::new(layout.nr_words()));
        let own = Vmemmap::new(layout, v.clone()).unwrap();
        let flags = FolioFlags::WRITABLE.with(FolioFlags::LONGTERM_OK);
        let life = Descriptor::new(FolioState::Live, flags, Stamp::new(5).unwrap());
        own.set_run(Level::Pud, Pfn::new(0).unwrap(), 64, Descriptor::SPLIT);
        own.set_run(Level::Pmd, Pfn::new(0).unwrap(), nleaf, life);
        let ll = LedgerLayout::with_lanes(&layout, 4, 4096);
        let side = Side {
            l: HeapWords::new(ll.nr_words()),
            c: HeapCounts::new(ll.nr_counts()),
            v: Vmemmap::new(layout, v.clone()).unwrap(),
            det: AtomicU64::new(0),
        };
        let pinner = Pinner::new(side, ll).unwrap();
        let lane = pinner.lane().unwrap();
        let mm = Mm::for_device(&layout, 0, 65 * GIB).unwrap();
        let file = Arc::new(File { per, life, n: nr + 512 });
        mm.map(&MapRequest::new(file.clone(), 64 * GIB).at(2 << 20)).unwrap();
        let t = Instant::now();
        mm.populate(2 << 20, 64 * GIB).unwrap();
        println!("populate {:?} {:?}", t.elapsed(), mm.usage());
        let gup = Gup::new(&mm, &lane).unwrap();
        let e = file.extent_at(512).unwrap().extent;
        time("lane.pin known extent", f, n, |n| {
            for _ in 0..n {
                black_box(
                    lane.pin(
                        &e,
                        PfnRange::new(512 + (next(&mut x) & 511), 1).unwrap_or(e.run),
                        Agent::Cpu,
                    )
                    .unwrap()
                    .run(),
                );
            }
        });
        time("translate", f, n, |n| {
            for _ in 0..n {
                black_box(mm.translate((2 << 20) + addr(&mut x)).unwrap().pfn);
            }
        });
        time("fast_leaf", f, n, |n| {
            for _ in 0..n {
                black_box(
                    gup.fast_leaf((2 << 20) + addr(&mut x), 1, GupFlags::WRITE).unwrap().run(),
                );
            }
        });
        time("short pin fast range", f, n, |n| {
            for _ in 0..n {
                black_box(
                    gup.fast((2 << 20) + addr(&mut x), 1, GupFlags::WRITE).unwrap().nr_pages(),
                );
            }
        });
        time("short pin pin()", f, n, |n| {
            for _ in 0..n {
                black_box(
                    gup.pin((2 << 20) + addr(&mut x), 1, GupFlags::WRITE).unwrap().nr_pages(),
                );
            }
        });
        time("long pin folio", f, n, |n| {
            for _ in 0..n {
                black_box(
                    gup.fast_leaf_long((2 << 20) + addr(&mut x), 512, GupFlags::WRITE)
                        .unwrap()
                        .run(),
                );
            }
        });
        time("hot fast_leaf", f, n, |n| {
            for _ in 0..n {
                black_box(
                    gup.fast_leaf((2 << 20) + next(&mut x) % (2 << 20), 1, GupFlags::WRITE)
                        .unwrap()
                        .run(),
                );
            }
        });
        time("1 GiB pin", f, 100_000, |n| {
            for _ in 0..n {
                black_box(
                    gup.pin((next(&mut x) % 63) * GIB + (2 << 20), 262144, GupFlags::WRITE)
                        .unwrap()
                        .nr_pages(),
                );
            }
        });
        let s = ReadSection::open(&mm, &lane).unwrap();
        time("section translate", f, n, |n| {
            for _ in 0..n {
                black_box(s.translate((2 << 20) + addr(&mut x)).unwrap().run());
            }
        });
        drop(s);
        time("remap one leaf", f, 200_000, |n| {
            for _ in 0..n {
                let a = (2 << 20) + addr(&mut x);
                let b = addr(&mut x);
                mm.map(&MapRequest::new(file.clone(), 2 << 20).from_file_page(b / 4096).over(a))
                    .unwrap();
                mm.fault(a, pgmap_mm::prot::Access::Write).unwrap();
            }
        });
        println!("{:?}", mm.usage());
        let t = Instant::now();
        let _u = mm.unmap(2 << 20, 64 * GIB).unwrap();
        println!("unmap {:?} {:?}", t.elapsed(), mm.usage());
    }
}
