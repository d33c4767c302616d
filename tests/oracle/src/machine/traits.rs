//! The machine's two traits: each method is the host's access, and an event.

use stage2::arch::{Dsb as ArchDsb, Observation};
use stage2::slot::native;
use stage2::tlbi::Tlbi;
use stage2::{Arch, Memory, PAGE_SIZE, Pa, Slot, Table, TableMeta};

use super::{BASE, OracleMachine, order};
use crate::event::{Aim, Dsb, Event, Scope, Span};
use crate::model::Model;

// SAFETY: (1) each page is Empty and in one pair of hands: new, or given back and cleared. (2) The
// arena does not move. (3) A page given back is reused by a later call only.
unsafe impl Memory for &OracleMachine {
    fn alloc_table(&self, pages: usize) -> Option<Pa> {
        let mut state = self.state();
        state.budget = state.budget.checked_sub(1)?;
        let pa = match state.free.pop().filter(|_| pages == 1) {
            Some(pa) => pa,
            None => {
                let start = state.next.next_multiple_of(pages);
                if start + pages > self.arena.len() {
                    return None;
                }
                state.next = start + pages;
                Pa::new(BASE + start as u64 * PAGE_SIZE)
            }
        };
        for page in 0..pages as u64 {
            let table = pa.get() + page * PAGE_SIZE;
            state.model.apply(&Event::AllocTable { pe: order::pe(), table });
        }
        Some(pa)
    }

    unsafe fn free_table(&self, pa: Pa, pages: usize) {
        let mut state = self.state();
        for page in 0..pages as u64 {
            let table = pa.get() + page * PAGE_SIZE;
            assert!(state.model.is_blank(table), "clause 3 of free_table: every slot is zero");
            state.model.apply(&Event::FreeTable { pe: order::pe(), table });
            state.free.push(Pa::new(table));
        }
    }

    unsafe fn table(&self, pa: Pa) -> &Table {
        self.page(pa)
    }

    unsafe fn meta(&self, pa: Pa) -> &TableMeta {
        // SAFETY: (1) the caller's clause.
        unsafe { self.meta_at(pa) }
    }
}

// SAFETY: the atomics are the host's; maintenance is an event for the model.
unsafe impl Arch for &OracleMachine {
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        let store = || unsafe { native::store(slot, bits) };
        self.access(slot, store, |(), slot, model| written(model, slot, bits, Kind::Store));
    }

    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        let store = || unsafe { native::store_detached(slot, bits) };
        self.access(slot, store, |(), slot, model| written(model, slot, bits, Kind::Detached));
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        let swap = || unsafe { native::swap(slot, bits) };
        self.access(slot, swap, |_, slot, model| written(model, slot, bits, Kind::Atomic))
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        self.before_exchange();
        // SAFETY: the caller's clause.
        let exchange = || unsafe { native::compare_exchange(slot, old, new) };
        Some(self.access(slot, exchange, |result, slot, model| {
            if result.is_ok() {
                written(model, slot, new, Kind::Atomic);
            }
        }))
    }

    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        self.before_exchange();
        // SAFETY: the caller's clause.
        let clear = || unsafe { native::clear_bits(slot, bits) };
        Some(self.access(slot, clear, |old, slot, model| {
            written(model, slot, old & !bits, Kind::Atomic);
        }))
    }

    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        self.before_exchange();
        // SAFETY: the caller's clause.
        let set = || unsafe { native::set_bits(slot, bits) };
        Some(self.access(slot, set, |old, slot, model| {
            written(model, slot, old | bits, Kind::Atomic);
        }))
    }

    fn dsb(&self, kind: ArchDsb) {
        let kind = match kind {
            ArchDsb::IshSt => Dsb::IshSt,
            ArchDsb::Ish => Dsb::Ish,
            ArchDsb::Nsh => Dsb::Nsh,
        };
        order::fence(kind);
        self.barrier(kind);
    }

    fn isb(&self) {
        self.note(|pe| Event::Isb { pe });
    }

    fn tlbi(&self, op: Tlbi) {
        let (scope, aim) = match op {
            Tlbi::Ipas2e1Is(operand) => (Scope::Is, Aim::Ipa(operand.bits())),
            Tlbi::Ripas2e1Is(operand) => (Scope::Is, Aim::IpaRange(operand.bits())),
            Tlbi::Ipas2e1(operand) => (Scope::Local, Aim::Ipa(operand.bits())),
            Tlbi::Vmalle1Is => (Scope::Is, Aim::VmStage1),
            Tlbi::Vmalle1 => (Scope::Local, Aim::VmStage1),
            Tlbi::Vmalls12e1Is => (Scope::Is, Aim::Vm),
            Tlbi::Vmalls12e1 => (Scope::Local, Aim::Vm),
            Tlbi::Alle1Is => (Scope::Is, Aim::All),
            Tlbi::Vae2Is(operand) => (Scope::Is, Aim::El2Va(operand.bits())),
            Tlbi::Alle2Is => (Scope::Is, Aim::El2All),
        };
        self.invalidate(scope, aim);
    }

    fn vttbr(&self) -> u64 {
        self.state().vttbr[order::pe()]
    }

    unsafe fn set_vttbr(&self, value: u64) {
        let mut state = self.state();
        state.vttbr[order::pe()] = value;
        state.model.apply(&Event::SetVttbr { pe: order::pe(), value });
    }

    fn observe(&self, what: Observation) {
        self.note(|pe| match what {
            Observation::Flushed { vmid, range } => {
                let span =
                    range.map(|range| Span { ipa: range.start().get(), bytes: range.bytes() });
                Event::Flushed { pe, vmid: vmid.get(), span }
            }
            Observation::El2Flushed => Event::El2Flushed { pe },
            Observation::Lent { vmid } => Event::ReuseVmid { pe, vmid: vmid.get() },
            Observation::Locked { table } => Event::Lock { pe, table: table.get() },
            Observation::Unlocked { table } => Event::Unlock { pe, table: table.get() },
        });
    }
}

/// How a slot was written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By a store with release order.
    Store,
    /// By a store without any order.
    Detached,
    /// By an atomic read-modify-write.
    Atomic,
}

/// The event of a write that was done.
fn written(model: &mut Model, slot: u64, new: u64, kind: Kind) {
    let (atomic, relaxed) = (kind == Kind::Atomic, kind == Kind::Detached);
    model.apply(&Event::Write { pe: order::pe(), slot, new, atomic, relaxed });
}
