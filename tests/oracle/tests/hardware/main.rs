//! Hardware that updates descriptors at any permitted moment, against software that harvests what it
//! recorded.
//!
//! PE 0 is the hypervisor; PEs 1 and 2 run guests that read and write a few pages. Between any two
//! steps of the software the hardware does a few things, by a seed. Correct sequences have no
//! verdict and miss no page that was written; each wrong one gets its verdict.

mod rig;

use std::collections::BTreeSet;

use mmu_oracle::event::Dsb as Kind;
use mmu_oracle::walker::{Access, Choice, Outcome, Walk, store_by_held};
use mmu_oracle::{Defect, Event, Machine, OracleMachine};
use rig::{
    AF, DBM, DIRTY, DRAIN, GUESTS, PAGES, Rig, SEEDS, VALID, clean, dirty, ipa, sound, wrong,
};
use stage2::arch::Dsb;
use stage2::tlbi::Tlbi;
use stage2::{Arch, Memory};

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
