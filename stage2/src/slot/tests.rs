//! What the operations on a slot do to each of its states, alone and raced.

use super::*;
use crate::arch::host::{Event, Host, NoAtomicInstall};
use crate::epoch::Epochs;
use crate::{Level, Note, Pa, flush};

fn table(pa: u64) -> Descriptor {
    Descriptor::table(Level::L2, Pa::new(pa)).unwrap()
}

fn try_set<A: Arch>(arch: &A, slot: &Slot, new: Descriptor) -> Result<(), TrySetError> {
    let epochs = Epochs::<1>::new();
    let cpu = epochs.join(0).unwrap();
    // SAFETY: (1) the slot is the test's. (2) Nothing walks it.
    unsafe { slot.try_set(arch, &cpu.enter(), new) }
}

#[test]
fn install_wins_an_empty_slot_once() {
    let (arch, slot) = (Host::new(), Slot::default());
    assert_eq!(try_set(&arch, &slot, table(0x1000)), Ok(()));
    let lost = try_set(&arch, &slot, table(0x2000));
    assert_eq!(lost, Err(TrySetError::Occupied(table(0x1000))));
    assert_eq!(slot.load(&arch), table(0x1000));
}

#[test]
fn install_loses_to_every_state_but_empty() {
    let arch = Host::new();
    let note = Descriptor::note(Note::new(0).unwrap());
    let busy = table(0x3000).to_busy().unwrap();
    let drain = table(0x3000).to_drain(Level::L2).unwrap();
    for held in [drain, Descriptor::DEAD, note, busy, table(0x3000)] {
        let slot = Slot::new(held);
        let lost = try_set(&arch, &slot, table(0x1000));
        assert_eq!(lost, Err(TrySetError::Occupied(held)));
        assert_eq!(slot.load(&arch), held, "a lost install changes nothing");
    }
}

#[test]
fn install_is_unsupported_without_the_atomic() {
    let slot = Slot::default();
    let result = try_set(&NoAtomicInstall, &slot, table(0x1000));
    assert_eq!(result, Err(TrySetError::Unsupported));
    assert_eq!(slot.load(&NoAtomicInstall), Descriptor::EMPTY);
}

#[test]
fn a_cleared_slot_stays_in_drain_until_flushed() {
    let (arch, slot) = (Host::new(), Slot::new(table(0x1000)));
    // SAFETY: (1) the only user of the slot is this test.
    let drained = unsafe { slot.clear(&arch, Level::L2) }.unwrap();
    assert_eq!(drained.old(), table(0x1000));
    let lost = try_set(&arch, &slot, table(0x2000));
    let drain = table(0x1000).to_drain(Level::L2).unwrap();
    assert_eq!(lost, Err(TrySetError::Occupied(drain)), "it remembers what it was");
    let flushed = flush::all(&arch);
    // SAFETY: (1) everything was flushed, after the clear.
    assert_eq!(unsafe { drained.release(&arch, &flushed) }, table(0x1000));
    assert_eq!(try_set(&arch, &slot, table(0x2000)), Ok(()));
}

#[test]
fn only_what_is_live_can_be_cleared() {
    let arch = Host::new();
    for held in [Descriptor::EMPTY, Descriptor::DEAD, table(0x1000).to_busy().unwrap()] {
        let slot = Slot::new(held);
        // SAFETY: (1) the only user of the slot is this test.
        assert!(unsafe { slot.clear(&arch, Level::L2) }.is_none());
        assert_eq!(slot.load(&arch), held);
    }
}

/// A machine whose walker sets S2AP\[1\] in the moment before a swap.
struct Writes;

// SAFETY: the atomics are the host's; there is no TLB.
unsafe impl Arch for Writes {
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store(slot, bits) };
    }
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        slot.0.fetch_or(1 << 7, Ordering::Relaxed);
        // SAFETY: the caller's clauses.
        unsafe { native::swap(slot, bits) }
    }
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: crate::tlbi::Tlbi) {}
    fn vttbr(&self) -> u64 {
        0
    }
    unsafe fn set_vttbr(&self, _: u64) {}
}

#[test]
fn drain_remembers_what_hardware_set_last() {
    // A page with AF and DBM, not yet dirty.
    let clean = Descriptor::from_bits(0x0108_0000_4020_177f);
    let slot = Slot::new(clean);
    // SAFETY: (1) the only user of the slot is this test.
    let drained = unsafe { slot.clear(&Writes, Level::L3) }.unwrap();
    assert_eq!(drained.old().bits(), clean.bits() | 1 << 7);
    let crate::View::Drain(former) = slot.load(&Writes).view(Level::L3) else { panic!() };
    assert!(former.written(), "the write came before the swap");
    assert_eq!(former.pa(), Pa::new(0x4020_1000));
}

#[test]
fn a_dead_slot_was_empty_and_takes_no_install() {
    let (arch, slot) = (Host::new(), Slot::default());
    // SAFETY: (1) the only user of the slot is this test.
    unsafe {
        assert_eq!(slot.kill(&arch), Ok(()));
        assert_eq!(slot.kill(&arch), Err(TrySetError::Occupied(Descriptor::DEAD)));
    }
    assert!(try_set(&arch, &slot, table(0x1000)).is_err());
    // SAFETY: (1) killed above.
    unsafe { slot.empty(&arch) };
    assert_eq!(try_set(&arch, &slot, table(0x1000)), Ok(()));
}

#[test]
fn replace_makes_the_new_descriptor_and_waits_for_it() {
    let (arch, slot) = (Host::new(), Slot::new(table(0x1000)));
    // SAFETY: (1) the only user of the slot is this test.
    let drained = unsafe { slot.clear(&arch, Level::L2) }.unwrap();
    let flushed = flush::all(&arch);
    let _ = arch.take_log();
    // SAFETY: (1) flushed after the clear. (2) Nothing walks it.
    let old = unsafe { drained.replace(&arch, &flushed, table(0x2000)) };
    assert_eq!((old, slot.load(&arch)), (table(0x1000), table(0x2000)));
    let store = Event::Store(table(0x2000).bits());
    assert_eq!(arch.take_log(), [store, Event::Dsb(Dsb::IshSt)]);
}

/// Raw threads on one slot: what was installed was cleared, once each.
#[test]
fn racing_installs_and_clears_agree_on_the_outcome() {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 50_000;
    let slot = Slot::default();
    let race = |thread: u64| {
        let (mut installed, mut cleared) = (0u64, 0u64);
        for _ in 0..ROUNDS {
            let mine = table((thread + 1) << 12).bits();
            // SAFETY: (1) nothing walks this slot.
            let exchange = unsafe { native::compare_exchange(&slot, 0, mine) };
            installed += u64::from(exchange.is_ok());
            // SAFETY: (1, 2) as above.
            cleared += u64::from(unsafe { native::swap(&slot, 0) } != 0);
        }
        (installed, cleared)
    };
    let sums = std::thread::scope(|scope| {
        let race = &race;
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || race(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let installed: u64 = sums.iter().map(|(installed, _)| installed).sum();
    let cleared: u64 = sums.iter().map(|(_, cleared)| cleared).sum();
    assert_eq!(installed, cleared, "each install was cleared by exactly one");
    assert_eq!(native::load(&slot), 0);
}
