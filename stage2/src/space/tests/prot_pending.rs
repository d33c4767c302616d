//! A flush is pending wherever a transaction has changed something, and until it is over.

use super::map::extent;
use super::prot::{GIB, MIB2, vm};
use super::unmap::range;
use super::*;
use crate::descriptor::Change;
use crate::space::{Batch, Relax};

/// In each table that the batch came to, and in none that it did not.
#[test]
fn a_flush_is_pending_wherever_something_was_changed() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm(&pages, &epochs);
    vm.lay(range(GIB, 3 * MIB2), Level::L3);
    vm.lay(range(GIB + 4 * MIB2, MIB2), Level::L2);
    let pending = |mib: u64| vm.space.pending_flush(Ipa::new(GIB + mib * (MIB2 / 2)));
    let modified = vm.modify(range(GIB + MIB2 / 2, 2 * MIB2), Relax::Everywhere, |transaction| {
        transaction.each(|_, _| Some(Change::WRITE_PROTECT)).unwrap();
        assert!((1..=5).all(pending), "a flush is owed, and nobody is told");
        assert!((6..12).chain([500]).all(|mib| !pending(mib)));
    });
    assert_eq!(modified.changed, 1024);
    assert!((0..12).all(|mib| !pending(mib)));
}

/// The host, and somebody who looks at every invalidation before it is executed.
struct Watched(Host, std::sync::Barrier, AtomicBool);

// SAFETY: every method is the host's.
unsafe impl Arch for Watched {
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
    fn dsb(&self, kind: Dsb) {
        self.0.dsb(kind);
    }
    fn isb(&self) {
        self.0.isb();
    }
    fn tlbi(&self, op: Tlbi) {
        // The other looks between the two.
        if self.2.load(Ordering::Relaxed) {
            self.1.wait();
            self.1.wait();
        }
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

/// Whoever reads what was changed, while TLBs hold what was there before, is told so up to the last invalidation.
#[test]
fn a_flush_is_pending_until_it_is_over() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let arch = Watched(Host::new(), std::sync::Barrier::new(2), AtomicBool::new(false));
    let vmids = vmids();
    let space = Space::new(geometry(40), vmids, epochs.domain(), &pages, arch).unwrap();
    let mut entered = vmids.join(0).unwrap();
    // SAFETY: (1, 2) no guest runs on the host.
    core::mem::forget(unsafe { space.enter(&mut entered, 0) }.unwrap());
    let at = range(GIB, 3 * PAGE_SIZE);
    let (pending, stop) = (|| space.pending_flush(at.start()), AtomicBool::new(false));
    let (mut told, mut looks) = (true, 0);
    space.arch.2.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                space.arch.1.wait();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                (told, looks) = (told && pending(), looks + 1);
                space.arch.1.wait();
            }
        });
        let cpu = epochs.join(0).unwrap();
        let mut claim = space.claim(at).unwrap();
        let all = Batch::all_of(&claim);
        // SAFETY: (1, 2) no guest runs on the host.
        let mapped = unsafe { space.map(&cpu, &mut claim, all, &extent(8 * GIB, Level::L3)) };
        assert_eq!(mapped, Ok(Progress::Done));
        assert_eq!(space.write_protect(&cpu, &mut claim, all), Ok(Progress::Done));
        stop.store(true, Ordering::Relaxed);
        space.arch.1.wait();
    });
    assert_eq!(looks, 4, "three pages, and the combined entries");
    assert!(told, "an invalidation is under way, and no flush is pending");
    assert!(!pending());
}
