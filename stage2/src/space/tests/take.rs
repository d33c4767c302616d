//! What a transaction takes from leaves, and says of them.

use super::map::extent;
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
        // The note behind a leaf with the record.
        vm.put(page(70), Descriptor::EMPTY);
        vm.put(page(75), Descriptor::note(Note::new(DIRTY | ACCESSED).unwrap()));
        vm.alter(page(73), 0, NON_OWNED);
        vm.alter(GIB + 2 * MIB2, bit, 0);
        let recorded = |number: u64| !matches!(number, 70 | 73 | 75) && !number.is_multiple_of(3);
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

/// The host, where hardware or a fault handler sets the records of a leaf just before it is altered.
struct Racing(Host);

// SAFETY: it is the host, but for what a machine may do, too.
unsafe impl Arch for Racing {
    fn load(&self, slot: &crate::Slot) -> u64 {
        self.0.load(slot)
    }
    unsafe fn store(&self, slot: &crate::Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.0.store(slot, bits) };
    }
    unsafe fn swap(&self, slot: &crate::Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { self.0.swap(slot, bits) }
    }
    unsafe fn compare_exchange(
        &self,
        slot: &crate::Slot,
        old: u64,
        new: u64,
    ) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        unsafe { self.0.compare_exchange(slot, old, new) }
    }
    unsafe fn clear_bits(&self, slot: &crate::Slot, bits: u64) -> Option<u64> {
        if self.load(slot) & 1 != 0 {
            // SAFETY: (1, 2) what hardware does to a leaf.
            unsafe { native::set_bits(slot, DIRTY | ACCESSED) };
        }
        // SAFETY: (1) the caller's clause.
        Some(unsafe { native::clear_bits(slot, bits) })
    }
    fn dsb(&self, kind: Dsb) {
        self.0.dsb(kind);
    }
    fn isb(&self) {
        self.0.isb();
    }
    fn tlbi(&self, op: crate::tlbi::Tlbi) {
        self.0.tlbi(op);
    }
    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }
    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.0.set_vttbr(value) };
    }
}

/// What was writable-clean is made dirty between the look at it and its change: it is write-protected all the same.
#[test]
fn a_record_that_is_set_at_the_last_moment_is_no_permission() {
    for engine in ENGINES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let (vmids, arch) = (vmids(), Racing(Host::new()));
        let space = Space::new(geometry(40), vmids, epochs.domain(), &pages, arch).unwrap();
        let mut entered = vmids.join(0).unwrap();
        // SAFETY: (1, 2) no guest runs on the host.
        core::mem::forget(unsafe { space.enter(&mut entered, 0) }.unwrap());
        space.pin_engine(Some(engine));
        let (cpu, at) = (epochs.join(0).unwrap(), range(GIB, MIB2));
        let mut claim = space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        // SAFETY: (1, 2) no guest runs on the host.
        let mapped = unsafe { space.map(&cpu, &mut claim, all, &extent(8 * GIB, Level::L3)) };
        assert_eq!(mapped, Ok(Progress::Done));
        let held = |number: u64| {
            space.lookup(&cpu.enter(), Ipa::new(page(number))).unwrap().descriptor.bits()
        };
        let guard = cpu.enter();
        for number in 0..512 {
            let table = space.lookup_rw(&guard, at.start()).unwrap().lock().unwrap();
            let slot = table.slot(Ipa::new(page(number))).unwrap();
            let clean = held(number) & !(DIRTY | ACCESSED) | DIRTY_MODIFIER;
            // SAFETY: (1, 2) the lock is held, and no guest runs on the host.
            unsafe { native::store(slot, clean) };
        }
        drop(guard);
        assert_eq!(space.write_protect(&cpu, &mut claim, all), Ok(Progress::Done));
        for number in 0..512 {
            let bits = held(number) & (DIRTY | ACCESSED | DIRTY_MODIFIER | 1);
            assert_eq!(bits, ACCESSED | 1, "{engine:?}: page {number}");
        }
    }
}
