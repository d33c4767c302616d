//! The executing CPU and its table pages, with every step recorded (`event/trace.rs`).
//!
//! Each method is that of what it wraps. A write is recorded with what it replaced: a reader of the
//! trace can tell whether anything between two writes of a slot is missing.

use hyp_core::trace::{Access, Barrier, Invalidation, What};
use stage2::arch::{Arch, Dsb, HeldWalks, Locked, Observation};
use stage2::slot::Slot;
use stage2::tlbi::Tlbi;
use stage2::{Errata, Memory, Pa, Table, TableMeta};

use crate::event::trace::{note, step};
use crate::mem::PAGE;

/// What is wrapped, recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traced<T>(pub(crate) T);

/// EL2's map is the identity.
fn address(slot: &Slot) -> u64 {
    core::ptr::from_ref(slot).addr() as u64
}

// SAFETY: every method is that of the wrapped `Arch`; the steps stay in program order.
unsafe impl<A: Arch> Arch for Traced<A> {
    fn load(&self, slot: &Slot) -> u64 {
        self.0.load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        step(|| {
            let old = self.0.load(slot);
            // SAFETY: the caller's clauses.
            unsafe { self.0.store(slot, bits) };
            let slot = address(slot);
            ((), Some(What::Write { slot, old, new: bits, by: Access::Store }))
        });
    }

    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        step(|| {
            let old = self.0.load(slot);
            // SAFETY: the caller's clauses.
            unsafe { self.0.store_detached(slot, bits) };
            let slot = address(slot);
            ((), Some(What::Write { slot, old, new: bits, by: Access::Relaxed }))
        });
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        step(|| {
            // SAFETY: the caller's clauses.
            let old = unsafe { self.0.swap(slot, bits) };
            let slot = address(slot);
            (old, Some(What::Write { slot, old, new: bits, by: Access::Atomic }))
        })
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        step(|| {
            // SAFETY: the caller's clause.
            let result = unsafe { self.0.compare_exchange(slot, old, new) };
            let won = matches!(result, Some(Ok(_)));
            let what = What::Write { slot: address(slot), old, new, by: Access::Atomic };
            (result, won.then_some(what))
        })
    }

    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        step(|| {
            // SAFETY: the caller's clause.
            let old = unsafe { self.0.clear_bits(slot, bits) };
            let what = |old| {
                let new = old & !bits;
                What::Write { slot: address(slot), old, new, by: Access::Atomic }
            };
            (old, old.map(what))
        })
    }

    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        step(|| {
            // SAFETY: the caller's clause.
            let old = unsafe { self.0.set_bits(slot, bits) };
            let what = |old| {
                let new = old | bits;
                What::Write { slot: address(slot), old, new, by: Access::Atomic }
            };
            (old, old.map(what))
        })
    }

    fn dsb(&self, kind: Dsb) {
        let barrier = match kind {
            Dsb::IshSt => Barrier::IshSt,
            Dsb::Ish => Barrier::Ish,
            Dsb::Nsh => Barrier::Nsh,
        };
        step(|| (self.0.dsb(kind), Some(What::Dsb(barrier))));
    }

    fn isb(&self) {
        step(|| (self.0.isb(), Some(What::Synchronized)));
    }

    fn tlbi(&self, op: Tlbi) {
        let (invalidation, operand) = match op {
            Tlbi::Ipas2e1Is(operand) => (Invalidation::Ipas2e1Is, operand.bits()),
            Tlbi::Ripas2e1Is(operand) => (Invalidation::Ripas2e1Is, operand.bits()),
            Tlbi::Ipas2e1(operand) => (Invalidation::Ipas2e1, operand.bits()),
            Tlbi::Vmalle1Is => (Invalidation::Vmalle1Is, 0),
            Tlbi::Vmalle1 => (Invalidation::Vmalle1, 0),
            Tlbi::Vmalls12e1Is => (Invalidation::Vmalls12e1Is, 0),
            Tlbi::Vmalls12e1 => (Invalidation::Vmalls12e1, 0),
            Tlbi::Alle1Is => (Invalidation::Alle1Is, 0),
            Tlbi::Vae2Is(operand) => (Invalidation::Vae2Is, operand.bits()),
            Tlbi::Alle2Is => (Invalidation::Alle2Is, 0),
        };
        step(|| (self.0.tlbi(op), Some(What::Tlbi(invalidation, operand))));
    }

    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }

    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: (1, 2) the caller's clauses.
        step(|| (unsafe { self.0.set_vttbr(value) }, Some(What::SetVttbr { value })));
    }

    fn errata(&self) -> Errata {
        self.0.errata()
    }

    fn hold_walks(&self) -> HeldWalks {
        self.0.hold_walks()
    }

    unsafe fn release_walks(&self, held: HeldWalks) {
        // SAFETY: (1, 2) the caller's clauses.
        unsafe { self.0.release_walks(held) };
    }

    fn about_to_lock(&self, which: Locked) {
        self.0.about_to_lock(which);
    }

    fn observe(&self, what: Observation) {
        note(match what {
            Observation::Flushed { vmid, range } => {
                let range = range.map(|range| (range.start().get(), range.bytes()));
                What::Flushed { vmid: vmid.get(), range }
            }
            Observation::El2Flushed => What::El2Flushed,
            Observation::Lent { vmid } => What::Lent { vmid: vmid.get() },
            Observation::Locked { table } => What::Locked { table: table.get() },
            Observation::Unlocked { table } => What::Unlocked { table: table.get() },
        });
        self.0.observe(what);
    }
}

// SAFETY: (1-3) those of the wrapped `Memory`.
unsafe impl<M: Memory> Memory for Traced<M> {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        let first = self.0.alloc_table(pages)?;
        for page in 0..pages as u64 {
            note(What::AllocTable { table: first.get() + page * PAGE });
        }
        Some(first)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        for page in 0..pages as u64 {
            note(What::FreeTable { table: pa.get() + page * PAGE });
        }
        // SAFETY: (1-3) the caller's clauses.
        unsafe { self.0.free_table(pa, pages) };
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        // SAFETY: (1) the caller's clause.
        unsafe { self.0.table(pa) }
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // SAFETY: (1) the caller's clause.
        unsafe { self.0.meta(pa) }
    }
}
