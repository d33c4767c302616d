//! The machine, with hardware between any two steps of the software.

use std::sync::{Mutex, PoisonError};

use mmu_oracle::OracleMachine;
use mmu_oracle::walker::Hardware;
use stage2::arch::{Dsb, Observation};
use stage2::tlbi::Tlbi;
use stage2::{Arch, Slot};

/// The machine; before each step of the software the hardware gets its chance.
#[derive(Clone, Copy)]
pub(crate) struct Shaken<'m>(pub(crate) &'m OracleMachine, pub(crate) &'m Mutex<Hardware<'m>>);

impl<'m> Shaken<'m> {
    /// The machine, after the hardware's chance.
    pub(crate) fn machine(&self) -> &'m OracleMachine {
        let mut hardware = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        (0..3).for_each(|_| hardware.act());
        self.0
    }
}

// SAFETY: every method is that of the machine.
unsafe impl Arch for Shaken<'_> {
    fn load(&self, slot: &Slot) -> u64 {
        self.0.load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.machine().store(slot, bits) };
    }

    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.0.store_detached(slot, bits) };
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { self.machine().swap(slot, bits) }
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        unsafe { self.machine().compare_exchange(slot, old, new) }
    }

    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { self.machine().clear_bits(slot, bits) }
    }

    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { self.machine().set_bits(slot, bits) }
    }

    fn dsb(&self, kind: Dsb) {
        self.machine().dsb(kind);
    }

    fn isb(&self) {
        self.0.isb();
    }

    fn tlbi(&self, op: Tlbi) {
        self.machine().tlbi(op);
    }

    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }

    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: (1, 2) the caller's clauses.
        unsafe { self.0.set_vttbr(value) };
    }

    fn observe(&self, what: Observation) {
        self.0.observe(what);
    }
}
