//! This crate, through its public interface.
//!
//! [`Host`] has real atomics, and barriers and TLB maintenance that do nothing: a host has no stage-2 TLB. So
//! what is measured is software: what a DSB or a broadcast TLBI costs, only hardware can say.

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use stage2::arch::Dsb;
use stage2::epoch::Cpu;
use stage2::slot::native;
use stage2::space::{Batch, Collapse, Extent, Mapping};
use stage2::tlbi::Tlbi;
use stage2::vmid::Vmids;
use stage2::{
    Arch, Epochs, Flushed, Former, Frames, Geometry, Guard, HwUpdate, Install, Ipa, IpaRange,
    Level, Notes, Owner, PAGE_SIZE, Pa, Progress, Release, Slot, Space, Tally, Vmid,
};

use crate::arena::Arena;
use crate::threads;
use crate::work::{Bench, FEATURES, Pages, check_mapped, check_unmapped, ram, timed};

/// A machine without TLBs.
struct Host;

// SAFETY: the atomics are the host's; there is no TLB that could hold anything back, and no walker
// but this program, for which x86 and AArch64 atomics have the orders that the trait asks for.
unsafe impl Arch for Host {
    #[inline]
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }
    #[inline]
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store(slot, bits) };
    }
    #[inline]
    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store_detached(slot, bits) };
    }
    #[inline]
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { native::swap(slot, bits) }
    }
    #[inline]
    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        Some(unsafe { native::compare_exchange(slot, old, new) })
    }
    fn dsb(&self, _kind: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _op: Tlbi) {}
    fn vttbr(&self) -> u64 {
        0
    }
    unsafe fn set_vttbr(&self, _value: u64) {}
}

/// One VMID: the tables that were made last run under it, so that flushes have something to do.
static VMIDS: Vmids<1> = Vmids::only(Vmid::new(1, 8).unwrap());

type Tables<'a> = Space<'a, &'a Arena, Host>;

/// Empty tables: 39 bits of IPA, so that a walk has three levels.
fn tables<'a>(arena: &'a Arena, epochs: &'a Epochs<2>) -> Tables<'a> {
    let geometry = Geometry::new(39, &FEATURES, HwUpdate::Off).expect("a legal shape");
    let tables = Space::new(geometry, &VMIDS, epochs.domain(), arena, Host);
    let tables = tables.expect("a page for the root");
    let mut cpu = VMIDS.join(0).expect("one thread makes tables");
    // SAFETY: (1, 2) no guest runs on the host.
    core::mem::forget(unsafe { tables.enter(&mut cpu, 0) }.expect("a VMID"));
    tables
}

fn root(tables: &Tables<'_>) -> u64 {
    tables.root().get()
}

fn range(pages: Pages) -> IpaRange {
    IpaRange::new(Ipa::new(pages.ipa), pages.bytes()).expect("a legal range")
}

fn check(tables: &Tables<'_>, cpu: &Cpu<'_>, pages: Pages, who: &str) {
    check_mapped(root(tables), pages, who);
    let guard = cpu.enter();
    for index in 0..pages.count {
        let found = tables.translate(&guard, Ipa::new(pages.ipa_of(index))).map(|found| found.pa);
        assert_eq!(found, Some(Pa::new(pages.pa_of(index))), "{who}: page {index}");
    }
}

/// Frames one after another.
struct Ascending(u64);

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Frames for Ascending {
    #[inline]
    fn take(&mut self) -> Option<Pa> {
        let frame = self.0;
        self.0 += PAGE_SIZE;
        Some(Pa::new(frame))
    }
    fn give_back(&mut self, _frame: Pa) {
        panic!("no race is lost in this bench");
    }
}

/// Pages of RAM. The compiler is not to know their level.
fn mapping(tables: &Tables<'_>) -> Mapping {
    black_box(tables.mapping(Level::L3, &ram(), Owner::Vm).expect("RAM has an encoding"))
}

/// Populates a run of pages, as that many faults under one guard would.
#[inline]
fn populate(tables: &Tables<'_>, guard: &Guard<'_>, pages: Pages, run: Range<usize>) {
    let (mapping, mut tally) = (mapping(tables), Tally::default());
    let mut frames = Ascending(pages.pa_of(run.start));
    let count = run.len();
    for index in run {
        let ipa = Ipa::new(pages.ipa_of(index));
        match tables.install(guard, ipa, &mapping, &mut frames, &mut tally) {
            Ok(Install::Installed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((tally.installed as usize, tally.lost_races), (count, 0));
}

/// Each page by a walk and a compare-exchange of its own, under one guard.
pub(crate) fn install(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    let time = timed(|| populate(&tables, &cpu.enter(), pages, 0..pages.count));
    check(&tables, &cpu, pages, "stage2 install");
    time
}

/// The same, and each under a guard of its own, as faults are.
pub(crate) fn install_guarded(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    let time = timed(|| {
        let (tables, cpu) = (&tables, &cpu);
        let (mapping, mut tally) = (mapping(tables), Tally::default());
        let mut frames = Ascending(pages.pa);
        for index in 0..pages.count {
            let ipa = Ipa::new(pages.ipa_of(index));
            match tables.install(&cpu.enter(), ipa, &mapping, &mut frames, &mut tally) {
                Ok(Install::Installed(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    check(&tables, &cpu, pages, "stage2 install, a guard each");
    time
}

/// Two threads, half of the pages each. The tables are theirs alone but for the root and one more.
pub(crate) fn install_by_two(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let tables = tables(&bench.arena, &epochs);
    let part = |cpu: usize, run: Range<usize>| {
        let cpu = epochs.join(cpu).expect("free");
        populate(&tables, &cpu.enter(), pages, run);
    };
    let half = pages.count / 2;
    let time = threads::both(|| part(0, 0..half), || part(1, half..pages.count));
    check(&tables, &epochs.join(0).expect("free"), pages, "stage2 install by two threads");
    time
}

/// Maps all of it; pages only.
fn map_all(tables: &Tables<'_>, cpu: &Cpu<'_>, pages: Pages) {
    map_by(tables, cpu, pages, Level::L3);
}

/// Maps all of it by leaves of `coarsest` at the most.
fn map_by(tables: &Tables<'_>, cpu: &Cpu<'_>, pages: Pages, coarsest: Level) {
    let extent = Extent { pa: Pa::new(pages.pa), attributes: ram(), owner: Owner::Vm, coarsest };
    let mut claim = tables.claim(range(pages)).expect("nobody else claims");
    let all = Batch::all_of(&claim);
    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    let done = unsafe { tables.map(cpu, &mut claim, all, &extent) };
    assert_eq!(done, Ok(Progress::Done));
}

/// A range, by whole tables.
pub(crate) fn map(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    let time = timed(|| map_all(&tables, &cpu, pages));
    check(&tables, &cpu, pages, "stage2 map");
    time
}

/// A look-up of every page in random order, under one guard.
pub(crate) fn translate(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    map_all(&tables, &cpu, pages);
    let (order, mut sum) = (&bench.order, 0);
    let time = timed(|| {
        let (tables, guard) = (&tables, &cpu.enter());
        let find = |index: &u32| {
            let ipa = Ipa::new(pages.ipa_of(*index as usize));
            tables.translate(guard, ipa).expect("mapped").pa.get()
        };
        sum = order.iter().map(find).sum();
    });
    assert_eq!(sum, pages.sum(), "stage2 translate: a page was not found");
    time
}

/// Blocks of 2 MiB become pages.
pub(crate) fn split(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    map_by(&tables, &cpu, pages, Level::L2);
    let mut claim = tables.claim(range(pages)).expect("nobody else claims");
    let time = timed(|| {
        let mut batch = Batch::all_of(&claim);
        while let Progress::Until(next) =
            tables.split(&cpu, &mut claim, batch, Level::L3).expect("tables for all")
        {
            batch.from = next;
        }
    });
    check(&tables, &cpu, pages, "stage2 split");
    time
}

/// Tables of pages become blocks of 2 MiB.
pub(crate) fn collapse(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    map_all(&tables, &cpu, pages);
    let mut claim = tables.claim(range(pages)).expect("nobody else claims");
    let mut made = 0;
    let time = timed(|| {
        let mut batch = Batch::all_of(&claim);
        let relax = || panic!("nobody is inside a guard");
        let mut heard = |_, what| made += usize::from(what == Collapse::Made);
        while let Progress::Until(next) = tables
            .collapse(&cpu, &mut claim, batch, Level::L2, relax, &mut heard)
            .expect("a legal call")
        {
            batch.from = next;
        }
    });
    assert_eq!((made, bench.arena.live()), (pages.tables(), 2), "stage2 collapse: tables");
    let guard = cpu.enter();
    for index in 0..pages.count {
        let found = tables.translate(&guard, Ipa::new(pages.ipa_of(index)));
        let found = found.map(|found| (found.pa, found.leaf.level()));
        assert_eq!(found, Some((Pa::new(pages.pa_of(index)), Level::L2)), "page {index}");
    }
    time
}

/// What came out of the tables.
#[derive(Default)]
struct Harvest {
    frames: usize,
    sum: u64,
    tables: usize,
}

impl Release for Harvest {
    #[inline]
    fn frame(&mut self, _ipa: Ipa, former: &Former, _flushed: &Flushed) {
        self.frames += 1;
        self.sum = self.sum.wrapping_add(former.pa().get());
    }
    fn table(&mut self, _ipa: Ipa) {
        self.tables += 1;
    }
}

/// All of it, each frame handed back against the flush, each table freed.
pub(crate) fn unmap(bench: &mut Bench) -> Duration {
    let pages = bench.pages();
    bench.arena.reset();
    let epochs = Epochs::new();
    let (tables, cpu) = (tables(&bench.arena, &epochs), epochs.join(0).expect("free"));
    map_all(&tables, &cpu, pages);
    let mut claim = tables.claim(range(pages)).expect("nobody else claims");
    let mut harvest = Harvest::default();
    let time = timed(|| {
        let relax = || panic!("nobody is inside a guard");
        let all = Batch::all_of(&claim);
        let done = tables.unmap(&cpu, &mut claim, all, Notes::Remove, relax, &mut harvest);
        assert_eq!(done, Ok(Progress::Done));
    });
    assert_eq!((harvest.frames, harvest.sum), (pages.count, pages.sum()), "stage2 unmap: frames");
    // The table of level 2 ends only with all of its 1 GiB. The root stays.
    let whole = usize::from(pages.bytes() == Level::L2.table_bytes());
    let given_back = (harvest.tables, bench.arena.live());
    assert_eq!(given_back, (pages.tables() + whole, 2 - whole), "stage2 unmap: tables");
    check_unmapped(root(&tables), pages, "stage2 unmap");
    time
}
