//! What a transaction takes from leaves, and says of them.

use super::prot::{
    ACCESSED, CONTIGUOUS, DIRTY, DIRTY_MODIFIER, ENGINES, GIB, MIB2, RUN, page, vm_with,
};
use super::unmap::range;
use super::*;
use crate::descriptor::Note;
use crate::space::{Batch, Progress, Relax, Taken};

const NON_OWNED: u64 = 1 << 57;

/// What is taken is reported by its place in a group of 64, with the level, and nothing else is; what stays has it no more.
#[test]
fn what_is_taken_is_reported_and_gone_and_the_rest_stays() {
    for (what, engine) in
        [Taken::Dirty, Taken::Accessed].into_iter().flat_map(|what| ENGINES.map(|e| (what, e)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, 2 * MIB2), Level::L3);
        vm.lay(range(GIB + 2 * MIB2, 2 * MIB2), Level::L2);
        let (bit, other) = if what == Taken::Dirty { (DIRTY, ACCESSED) } else { (ACCESSED, DIRTY) };
        // Plain and managed, with the record and without, in the other record's two states.
        for number in 0..1024 {
            let of = |set: bool, bits| if set { bits } else { 0 };
            let clear = of(number % 3 == 0, bit) | of(number % 7 == 0, other);
            vm.alter(page(number), clear, of(number % 5 < 3, DIRTY_MODIFIER));
        }
        vm.put(page(70), Descriptor::EMPTY);
        vm.put(page(71), Descriptor::note(Note::new(DIRTY | ACCESSED).unwrap()));
        vm.alter(page(73), 0, NON_OWNED);
        vm.alter(GIB + 2 * MIB2, bit, 0);
        let recorded = |number: u64| !matches!(number, 70 | 71 | 73) && !number.is_multiple_of(3);
        let before: Vec<u64> = (0..1024).map(|n| vm.held(page(n))).collect();
        let (mut claim, mut from) = (vm.space.claim(range(GIB, 4 * MIB2)).unwrap(), Ipa::new(GIB));
        let (guard, mut told) = (vm.cpu.enter(), Vec::new());
        loop {
            let batch = Batch { from, slots: 100 };
            let mut open =
                vm.space.modify_prot(&guard, &mut claim, batch, Relax::Everywhere).unwrap();
            open.take(what, |first, level, slots| {
                assert!(slots != 0 && first.is_aligned(64 * level.slot_bytes()));
                let set = (0..64).filter(|n| slots & 1 << n != 0);
                told.extend(set.map(|n| (first.get() + n * level.slot_bytes(), level)));
            })
            .unwrap();
            match open.finish().progress {
                Progress::Done => break,
                Progress::Until(next) => from = next,
            }
        }
        drop(guard);
        let mut wanted: Vec<_> =
            (0..1024).filter(|n| recorded(*n)).map(|n| (page(n), Level::L3)).collect();
        wanted.push((GIB + 3 * MIB2, Level::L2));
        assert_eq!(told, wanted, "{what:?}, {engine:?}");
        for number in 0..1024 {
            let was = before[number as usize];
            let managed = if what == Taken::Dirty { DIRTY_MODIFIER } else { 0 };
            let now = if recorded(number) { was & !bit | managed } else { was };
            assert_eq!(vm.held(page(number)), now, "{what:?}, {engine:?}: page {number}");
        }
        let account = vm.space.account();
        assert!(account.flushes + account.whole_flushes > 0, "no flush");
    }
}

/// The members of a run that loses its records stand for themselves afterwards: a fault handler sets them one by one.
#[test]
fn a_run_that_loses_its_records_is_dissolved() {
    for (what, engine) in
        [Taken::Dirty, Taken::Accessed].into_iter().flat_map(|what| ENGINES.map(|e| (what, e)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
        vm.space.pin_engine(Some(engine));
        vm.lay(range(GIB, MIB2), Level::L3);
        // The second has no dirty record and keeps its own.
        (0..32).for_each(|n| vm.alter(page(n), 0, DIRTY_MODIFIER | CONTIGUOUS));
        (1..16).for_each(|n| vm.alter(page(n), DIRTY | ACCESSED, 0));
        (16..32).for_each(|n| vm.alter(page(n), DIRTY | DIRTY_MODIFIER, 0));
        let mut claim = vm.space.claim(range(GIB, 2 * RUN)).unwrap();
        let (guard, all, mut told) = (vm.cpu.enter(), Batch::all_of(&claim), 0);
        let mut open = vm.space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).unwrap();
        open.take(what, |first, _, slots| {
            assert_eq!(first, Ipa::new(GIB));
            told |= slots;
        })
        .unwrap();
        let _ = open.finish();
        drop(guard);
        let dirty = what == Taken::Dirty;
        assert_eq!(told, if dirty { 0xffff } else { 0xffff_ffff }, "{what:?}, {engine:?}");
        for number in 0..32 {
            let stays = dirty && number >= 16;
            let contiguous = vm.held(page(number)) & CONTIGUOUS != 0;
            assert_eq!(contiguous, stays, "{what:?}, {engine:?}: page {number}");
        }
        assert_eq!(vm.space.account().runs_dissolved, if dirty { 1 } else { 2 });
    }
}
