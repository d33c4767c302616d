//! Hardware that updates descriptors at any permitted moment, against software that harvests what it
//! recorded.
//!
//! PE 0 is the hypervisor; PEs 1 and 2 run guests that read and write a few pages. Between any two
//! steps of the software the hardware does a few things, by a seed. Correct sequences have no
//! verdict and miss no page that was written; each wrong one gets its verdict.

use std::collections::BTreeSet;

use mmu_oracle::descriptor::writes_freely;
use mmu_oracle::event::Dsb as Kind;
use mmu_oracle::walker::{Access, Choice, Counts, Hardware, Outcome, Walk, store_by_held};
use mmu_oracle::{Defect, Event, Machine, OracleMachine};
use stage2::arch::Dsb;
use stage2::tlbi::{LeafLevel, PageOperand, Tlbi};
use stage2::{Arch, Caps, Ipa, Memory, Pa, Slot};

const PAGES: usize = 3;
const GUESTS: [usize; 2] = [1, 2];
const SEEDS: u64 = 300;

const VALID: u64 = 1;
const AF: u64 = 1 << 10;
const DIRTY: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const DRAIN: u64 = 0b10;

/// A writable-clean page that was never accessed.
fn clean(page: usize) -> u64 {
    (0x8000_0000 + page as u64 * 0x1000) | DBM | 0b11 << 8 | 1 << 6 | 0b1111 << 2 | 0b11
}

fn ipa(page: usize) -> u64 {
    page as u64 * 0x1000
}

/// The machine, its one leaf table, and the hardware.
struct Rig<'m> {
    machine: &'m OracleMachine,
    leaves: u64,
    hardware: Hardware<'m>,
}

impl Rig<'_> {
    fn slot(&self, page: usize) -> &Slot {
        // SAFETY: (1) allocated, and never freed.
        unsafe { self.machine.table_at(Pa::new(self.leaves)) }.slot(page)
    }

    fn address(&self, page: usize) -> u64 {
        self.leaves + page as u64 * 8
    }

    /// Hardware gets its chance.
    fn step(&mut self) {
        (0..4).for_each(|_| self.hardware.act());
    }

    fn swap(&mut self, page: usize, bits: u64) -> u64 {
        self.step();
        // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
        unsafe { self.machine.swap(self.slot(page), bits) }
    }

    fn store(&mut self, page: usize, bits: u64) {
        self.step();
        // SAFETY: (1, 2) as above.
        unsafe { self.machine.store(self.slot(page), bits) };
    }

    /// Read, change, compare-exchange, until it goes through. Returns what was there.
    fn update(&mut self, page: usize, change: impl Fn(u64) -> u64) -> u64 {
        loop {
            let seen = self.machine.load(self.slot(page));
            self.step();
            // SAFETY: (1) as above.
            let done = unsafe {
                self.machine.compare_exchange(self.slot(page), seen, change(seen)).unwrap()
            };
            if done.is_ok() {
                return seen;
            }
        }
    }

    /// All pages, by IPA.
    fn flush(&mut self) {
        self.step();
        self.machine.dsb(Dsb::IshSt);
        for page in 0..PAGES {
            let operand = PageOperand::new(Ipa::new(ipa(page)), LeafLevel::L3, Caps::TTL);
            self.machine.tlbi(Tlbi::Ipas2e1Is(operand));
            self.step();
        }
        self.machine.dsb(Dsb::Ish);
        self.step();
        self.machine.tlbi(Tlbi::Vmalle1Is);
        self.step();
        self.machine.dsb(Dsb::Ish);
        self.machine.isb();
    }

    fn harvested(&mut self, page: usize) {
        self.step();
        let slot = self.address(page);
        self.machine.note(|pe| Event::Harvested { pe, slot, count: 1 });
    }
}

/// What one run showed.
struct Run {
    defects: BTreeSet<Defect>,
    counts: Counts,
    /// Pages that guests wrote and that software took for clean.
    missed: Vec<u64>,
}

/// Maps the pages, lets guests at them, runs `software`, which returns the pages that it took for
/// written.
fn run(seed: u64, software: fn(&mut Rig<'_>) -> BTreeSet<usize>) -> Run {
    let setup = Machine { pes: 3, hw_access: true, hw_dirty: true, ..Machine::default() };
    let machine = OracleMachine::new(setup, 3);
    let table = || (&machine).alloc_table(1).unwrap().get();
    let (root, middle, leaves) = (table(), table(), table());
    // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
    unsafe {
        (&machine).store(machine.table_at(Pa::new(middle)).slot(0), leaves | 3);
        (&machine).store(machine.table_at(Pa::new(root)).slot(0), middle | 3);
    }
    let ipas: Vec<u64> = (0..PAGES).map(ipa).collect();
    let hardware = Hardware::new(&machine, seed, &GUESTS, &ipas);
    let mut rig = Rig { machine: &machine, leaves, hardware };
    for page in 0..PAGES {
        // SAFETY: (1, 2) as above.
        unsafe { (&machine).store(rig.slot(page), clean(page)) };
    }
    (&machine).dsb(Dsb::Ish);
    for pe in 0..3 {
        machine.on_pe(pe, || {
            // SAFETY: (1, 2) no guest ran before.
            unsafe { (&machine).set_vttbr((1 << 48) | root) };
            (&machine).isb();
        });
    }
    (0..10).for_each(|_| rig.step());
    let harvest = software(&mut rig);
    (0..10).for_each(|_| rig.step());
    rig.hardware.stop();
    machine.finish();
    let written: BTreeSet<u64> = rig.hardware.written().collect();
    let missed = written.into_iter().filter(|at| !harvest.contains(&((*at / 0x1000) as usize)));
    Run {
        missed: missed.collect(),
        counts: rig.hardware.counts(),
        defects: machine.verdicts().iter().map(|verdict| verdict.defect).collect(),
    }
}

/// Every seed is sound, and the hardware was not idle.
fn sound(software: fn(&mut Rig<'_>) -> BTreeSet<usize>) -> Counts {
    let mut all = Counts::default();
    for seed in 1..=SEEDS {
        let run = run(seed, software);
        assert!(run.defects.is_empty(), "seed {seed}: {:?}", run.defects);
        assert_eq!(run.missed, Vec::<u64>::new(), "seed {seed}: written, and taken for clean");
        all.done += run.counts.done;
        all.again += run.counts.again;
        all.by_held += run.counts.by_held;
        all.stored_first += run.counts.stored_first;
    }
    println!("{all:?}");
    assert!(all.done > 1000 && all.again > 100 && all.stored_first > 100, "{all:?}");
    all
}

/// Some seed shows the defect. Returns how many did, and how many missed a page.
fn wrong(software: fn(&mut Rig<'_>) -> BTreeSet<usize>, defect: Defect) -> (usize, usize) {
    let runs: Vec<Run> = (1..=SEEDS).map(|seed| run(seed, software)).collect();
    let found = runs.iter().filter(|run| run.defects.contains(&defect)).count();
    let missed = runs.iter().filter(|run| !run.missed.is_empty());
    for run in missed.clone() {
        assert!(!run.defects.is_empty(), "a page was missed, and nobody said so");
    }
    let missed = missed.count();
    println!("{defect}: in {found} runs of {SEEDS}; pages were missed in {missed}");
    assert!(found > 0, "{defect} was not found");
    (found, missed)
}

fn dirty(pages: impl IntoIterator<Item = (usize, u64)>) -> BTreeSet<usize> {
    pages.into_iter().filter(|(_, bits)| writes_freely(*bits)).map(|(page, _)| page).collect()
}

/// Live → Drain by swap, flush, and only then is what the swaps returned the final word.
fn clear(rig: &mut Rig<'_>) -> BTreeSet<usize> {
    let old: Vec<_> = (0..PAGES).map(|page| (page, rig.swap(page, DRAIN))).collect();
    rig.flush();
    (0..PAGES).for_each(|page| rig.harvested(page));
    dirty(old)
}

/// VALID off, flush, read back, write: the break of a protection change.
fn write_protect(rig: &mut Rig<'_>) -> BTreeSet<usize> {
    for page in 0..PAGES {
        rig.update(page, |seen| seen & !VALID);
    }
    rig.flush();
    let old: Vec<_> = (0..PAGES).map(|p| (p, rig.machine.load(rig.slot(p)))).collect();
    (0..PAGES).for_each(|page| rig.harvested(page));
    for (page, bits) in &old {
        rig.store(*page, bits & !(DBM | DIRTY) | VALID);
    }
    rig.machine.dsb(Dsb::IshSt);
    dirty(old)
}

/// The guests stop, each with a DSB; then the descriptors are only read.
fn stop_and_read(rig: &mut Rig<'_>, kind: Kind) -> BTreeSet<usize> {
    rig.hardware.stop();
    for pe in GUESTS {
        rig.machine.on_pe(pe, || match kind {
            Kind::Ish => rig.machine.dsb(Dsb::Ish),
            kind => rig.machine.note(|pe| Event::Dsb { pe, kind }),
        });
    }
    let old: Vec<_> = (0..PAGES).map(|p| (p, rig.machine.load(rig.slot(p)))).collect();
    for page in 0..PAGES {
        let slot = rig.address(page);
        rig.machine.note(|pe| Event::Harvested { pe, slot, count: 1 });
    }
    let seen = dirty(old);
    // Whatever the guests write after this is for the next harvest.
    let rest = (0..PAGES).filter(|page| !rig.hardware.written().any(|at| at == ipa(*page)));
    seen.into_iter().chain(rest).collect()
}

#[test]
fn what_a_swap_returned_is_final_once_flushed() {
    let counts = sound(clear);
    assert!(counts.by_held > 100, "nobody wrote by an entry that was held: {counts:?}");
}

#[test]
fn what_is_read_back_after_break_and_flush_is_final() {
    sound(write_protect);
}

#[test]
fn a_dsb_for_loads_and_stores_completes_the_records() {
    sound(|rig| stop_and_read(rig, Kind::Ish));
}

#[test]
fn harvest_after_a_dsb_for_stores_only() {
    let (_, missed) = wrong(|rig| stop_and_read(rig, Kind::IshSt), Defect::LostDirty);
    assert!(missed > 0);
}

#[test]
fn harvest_after_a_dsb_for_loads_only() {
    let (_, missed) = wrong(|rig| stop_and_read(rig, Kind::IshLd), Defect::LostDirty);
    assert!(missed > 0);
}

#[test]
fn a_plain_store_over_a_live_leaf() {
    fn software(rig: &mut Rig<'_>) -> BTreeSet<usize> {
        let mut old = Vec::new();
        for page in 0..PAGES {
            let seen = rig.machine.load(rig.slot(page));
            rig.store(page, DRAIN);
            old.push((page, seen));
        }
        rig.flush();
        (0..PAGES).for_each(|page| rig.harvested(page));
        dirty(old)
    }
    let (found, missed) = wrong(software, Defect::UpdateOverwritten);
    assert!(found == SEEDS as usize && missed > 0, "{found} {missed}");
}

#[test]
fn a_permission_change_without_a_break() {
    fn software(rig: &mut Rig<'_>) -> BTreeSet<usize> {
        let old: Vec<_> =
            (0..PAGES).map(|page| (page, rig.update(page, |b| b & !(DBM | DIRTY)))).collect();
        rig.flush();
        (0..PAGES).for_each(|page| rig.harvested(page));
        dirty(old)
    }
    let (found, missed) = wrong(software, Defect::DirtyAtRisk);
    assert!(found > 0 && missed > 0, "{found} {missed}");
    wrong(software, Defect::LostDirty);
}

/// The same change in two halves, so that hardware may fail between them: DBM stays, a software bit
/// changes.
#[test]
fn a_change_without_a_break_lets_hardware_invent_a_record() {
    fn software(rig: &mut Rig<'_>) -> BTreeSet<usize> {
        for page in 0..PAGES {
            rig.update(page, |bits| bits | 1 << 55);
        }
        rig.flush();
        let old: Vec<_> = (0..PAGES).map(|page| (page, rig.swap(page, DRAIN))).collect();
        rig.flush();
        dirty(old)
    }
    wrong(software, Defect::InventedDirty);
}

#[test]
fn harvest_before_the_flush() {
    fn software(rig: &mut Rig<'_>) -> BTreeSet<usize> {
        let old: Vec<_> = (0..PAGES).map(|page| (page, rig.swap(page, DRAIN))).collect();
        (0..PAGES).for_each(|page| rig.harvested(page));
        rig.flush();
        dirty(old)
    }
    wrong(software, Defect::LostDirty);
}

#[test]
fn dirty_state_cleared_and_not_flushed() {
    fn software(rig: &mut Rig<'_>) -> BTreeSet<usize> {
        let old: Vec<_> = (0..PAGES).map(|page| (page, rig.update(page, |b| b & !DIRTY))).collect();
        (0..PAGES).for_each(|page| rig.harvested(page));
        dirty(old)
    }
    wrong(software, Defect::DirtyAtRisk);
    wrong(software, Defect::LostDirty);
}

/// One walk in flight over one change, step by step, for each thing that hardware may choose.
#[test]
fn each_failure_is_there_for_the_asking_and_only_at_risk() {
    fn with(change: bool, choice: Choice, access: Access) -> (Outcome, Vec<Defect>) {
        let mut found = None;
        let setup = Machine { hw_access: true, hw_dirty: true, ..Machine::default() };
        let machine = OracleMachine::new(Machine { start_level: 3, ..setup }, 1);
        let root = (&machine).alloc_table(1).unwrap();
        // SAFETY: (1) allocated, and never freed.
        let slot = unsafe { machine.table_at(root) }.slot(0);
        // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
        unsafe {
            (&machine).store(slot, clean(0));
            (&machine).set_vttbr((1 << 48) | root.get());
        }
        (&machine).isb();
        let walk = Walk::begin(&machine, 0, 0, access).unwrap();
        if change {
            // SAFETY: (1, 2) as above.
            _ = machine.on_pe(1, || unsafe { (&machine).swap(slot, clean(0) | 1 << 55) });
            found = Some(walk.finish(choice));
        }
        let outcome = found.unwrap_or_else(|| walk.finish(choice));
        (outcome, machine.verdicts().iter().map(|verdict| verdict.defect).collect())
    }
    let done = |bits| Outcome::Done(clean(0) | bits);
    for choice in [Choice::LoseAccess, Choice::LoseDirty, Choice::InventDirty] {
        assert_eq!(with(false, choice, Access::Write), (done(AF | DIRTY), vec![]));
        assert_eq!(with(false, choice, Access::Speculative), (done(AF), vec![]));
    }
    let risk = Defect::DirtyAtRisk;
    assert_eq!(with(true, Choice::Faithful, Access::Write), (Outcome::Again, vec![risk]));
    assert_eq!(with(true, Choice::LoseDirty, Access::Write), (Outcome::DirtyLost, vec![risk]));
    let invented = vec![risk, Defect::InventedDirty];
    assert_eq!(with(true, Choice::InventDirty, Access::Read), (Outcome::DirtyInvented, invented));
    // Lost access flags are permitted, and only noted.
    assert_eq!(with(true, Choice::LoseAccess, Access::Read), (Outcome::AccessLost, vec![risk]));
}

/// A writable-dirty entry goes on writing until the flush is over, and not beyond.
#[test]
fn a_held_entry_writes_until_it_is_flushed() {
    let setup = Machine { hw_access: true, hw_dirty: true, start_level: 3, ..Machine::default() };
    let machine = OracleMachine::new(setup, 1);
    let root = (&machine).alloc_table(1).unwrap();
    // SAFETY: (1) allocated, and never freed.
    let slot = unsafe { machine.table_at(root) }.slot(0);
    // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
    unsafe {
        (&machine).store(slot, clean(0) | AF | DIRTY);
        (&machine).set_vttbr((1 << 48) | root.get());
    }
    (&machine).dsb(Dsb::Ish);
    (&machine).isb();
    // SAFETY: (1, 2) as above.
    unsafe { (&machine).swap(slot, DRAIN) };
    assert!(store_by_held(&machine, 0, 0).is_some());
    (&machine).dsb(Dsb::IshSt);
    (&machine).tlbi(Tlbi::Vmalls12e1Is);
    assert!(store_by_held(&machine, 0, 0).is_some(), "not complete");
    (&machine).dsb(Dsb::Ish);
    assert!(store_by_held(&machine, 0, 0).is_none());
    assert!(machine.verdicts().is_empty());
}

/// The change was not broken, but flushed: from then on hardware does not fail.
#[test]
fn a_flush_ends_the_risk() {
    let setup = Machine { hw_access: true, hw_dirty: true, start_level: 3, ..Machine::default() };
    let machine = OracleMachine::new(setup, 1);
    let root = (&machine).alloc_table(1).unwrap();
    // SAFETY: (1) allocated, and never freed.
    let slot = unsafe { machine.table_at(root) }.slot(0);
    // SAFETY: (1, 2) a test: nothing is ever reached through these tables.
    unsafe {
        (&machine).store(slot, clean(0));
        (&machine).set_vttbr((1 << 48) | root.get());
    }
    (&machine).dsb(Dsb::Ish);
    (&machine).isb();
    let at_risk = || machine.with_model(|model| model.at_risk(root.get()));
    // SAFETY: (1, 2) as above.
    unsafe { (&machine).swap(slot, clean(0) | 1 << 55) };
    (&machine).dsb(Dsb::IshSt);
    (&machine).tlbi(Tlbi::Vmalls12e1Is);
    assert!(at_risk(), "the invalidation is not complete");
    (&machine).dsb(Dsb::Ish);
    assert!(!at_risk());
    let walk = Walk::begin(&machine, 0, 0, Access::Read).unwrap();
    assert_eq!(walk.finish(Choice::InventDirty), Outcome::Done(clean(0) | 1 << 55 | AF));
}
