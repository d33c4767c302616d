//! The second of the two traits: what a PE does to descriptors and to TLBs.
//!
//! Everything that the architecture orders goes through [`Arch`]: the atomic accesses to a slot,
//! the barriers, and the TLB invalidations. The protocols above it are ordinary code over these
//! primitives, so the same code runs on AArch64, in a test on the host, and under a model of the
//! architecture that judges every step.

use core::fmt;

use crate::addr::{IpaRange, Pa, Vmid};
use crate::errata::Errata;
use crate::slot::Slot;
use crate::tlbi::Tlbi;

#[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
pub mod aarch64;
#[cfg(test)]
pub(crate) mod host;

/// The data synchronization barriers that the protocols use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dsb {
    /// Stores only, Inner shareable: before a TLBI, and before relying on an install.
    IshSt,
    /// Loads and stores, Inner shareable: completes a broadcast TLBI \[RPSMWS\].
    Ish,
    /// Loads and stores, this PE: completes a local TLBI.
    Nsh,
}

/// A lock of this crate, which somebody is about to wait for: see [`Arch::about_to_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// Of this table.
    Table(Pa),
    /// Of the VM's dirty session: who starts, harvests or stops it, and who has a claim and may have to tell it of something.
    Session,
    /// Of the VM's claims: who claims a range. That a claim ends is not announced.
    Claims,
    /// Of the machine's VMIDs: who enters or flushes a VM that may have to be lent another one.
    Vmids,
}

impl fmt::Display for Locked {
    /// Which one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "the lock of the stage-2 table at {table}"),
            Self::Session => f.write_str("the lock of the dirty session"),
            Self::Claims => f.write_str("the lock of the claims"),
            Self::Vmids => f.write_str("the lock of the VMIDs"),
        }
    }
}

/// What a protocol has reached, for whoever watches it: see [`Arch::observe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A flush has completed, and its [`Flushed`](crate::Flushed) is about to be handed out: the
    /// caller goes on as if no PE translated `range` by what slots held before the flush began.
    Flushed {
        /// The VM.
        vmid: Vmid,
        /// Its IPAs; `None` is all of them.
        range: Option<IpaRange>,
    },
    /// A flush of EL2's own regime has completed: the caller goes on as if no PE translated EL2's addresses by what its tables held
    /// before the flush began.
    El2Flushed,
    /// The VMID is about to be lent to a VM: the caller goes on as if it had never been used.
    Lent {
        /// The VMID.
        vmid: Vmid,
    },
    /// This CPU has taken a table's lock.
    Locked {
        /// The table page.
        table: Pa,
    },
    /// This CPU is about to give a table's lock back.
    Unlocked {
        /// The table page.
        table: Pa,
    },
}

/// One change for slots side by side that are alike: see [`Arch::alter_while`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alteration {
    /// Under this mask,
    pub mask: u64,
    /// slots that are alike hold this.
    pub value: u64,
    /// Bits to set.
    pub set: u64,
    /// Bits to clear: others than those.
    pub clear: u64,
    /// Whether some may be set a moment before the others are cleared.
    pub apart: bool,
    /// Whether the caller wants to hear what a slot held if that was not what it had held the moment before.
    pub watched: bool,
}

impl Alteration {
    /// Whether a slot that holds this is one of those.
    #[inline(always)]
    #[must_use]
    pub const fn concerns(&self, seen: u64) -> bool {
        seen & self.mask == self.value
    }

    /// What such a slot becomes.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, seen: u64) -> u64 {
        seen & !self.clear | self.set
    }
}

/// What became of slots side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Altered {
    /// So many were altered, from the first on.
    pub count: usize,
    /// What the last of them held, if that is [watched](Alteration::watched) and was something else than the moment
    /// before: hardware or a fault handler had set a record in it.
    pub last: Option<u64>,
}

/// EL1's registers as they were before [`Arch::hold_walks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "no guest may run before the walks are released"]
pub struct HeldWalks {
    /// TCR_EL1.
    pub tcr: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// One PE's atomics, barriers and TLB maintenance.
///
/// # Safety
/// An implementation promises that each method does what it says, on the executing PE, in program
/// order with the others; a caller frees memory on the strength of it.
pub unsafe trait Arch: Sync {
    /// Reads a slot with acquire order.
    fn load(&self, slot: &Slot) -> u64;

    /// Writes a slot with release order.
    ///
    /// # Safety
    /// 1. The caller made the slot Busy, Drain or Dead, and it still is.
    /// 2. `bits` are what the table of slot states lets it become.
    unsafe fn store(&self, slot: &Slot, bits: u64);

    /// Writes a slot of a table that nobody else reaches yet: no order is needed, because the
    /// exchange that links the table publishes it.
    ///
    /// # Safety
    /// 1. The table is not linked and never was, or its flush and grace period are over.
    /// 2. `bits` are what the table of slot states lets it become.
    #[inline]
    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: (1) nobody else reaches it; (2) the caller's clause.
        unsafe { self.store(slot, bits) };
    }

    /// Writes a slot and returns what it held, with acquire and release order.
    ///
    /// # Safety
    /// 1. The caller may take the slot out of any state that it can be in now.
    /// 2. `bits` are what the table of slot states lets it become.
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64;

    /// Writes `new` if the slot holds `old`: acquire and release order on success, acquire on failure. Both
    /// ways it returns what the slot held.
    ///
    /// `None` where there is no such atomic, which is the default, as in Linux' generic
    /// `ptep_try_set`: an architecture opts in.
    ///
    /// # Safety
    /// 1. The table of slot states lets `old` become `new`, and what `new` points to is complete.
    #[inline]
    unsafe fn compare_exchange(
        &self,
        _slot: &Slot,
        _old: u64,
        _new: u64,
    ) -> Option<Result<u64, u64>> {
        None
    }

    /// Clears bits of a slot, with acquire and release order. Returns what it held; `None` as for
    /// [`compare_exchange`](Self::compare_exchange), of which it is made unless the machine has an instruction for it.
    ///
    /// # Safety
    /// 1. The table of slot states lets all that the slot can hold now become that without these bits.
    #[inline]
    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        loop {
            let seen = self.load(slot);
            // SAFETY: (1) the caller's clause.
            if let Ok(old) = unsafe { self.compare_exchange(slot, seen, seen & !bits) }? {
                return Some(old);
            }
        }
    }

    /// Sets bits of a slot. Otherwise as [`clear_bits`](Self::clear_bits).
    ///
    /// # Safety
    /// 1. The table of slot states lets all that the slot can hold now become that with these bits.
    #[inline]
    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        loop {
            let seen = self.load(slot);
            // SAFETY: (1) the caller's clause.
            if let Ok(old) = unsafe { self.compare_exchange(slot, seen, seen | bits) }? {
                return Some(old);
            }
        }
    }

    /// Alters one slot after the other for as long as they are alike: by one atomic read-modify-write each, or by two if it
    /// sets and clears bits and that may be done [apart](Alteration::apart). It may end early. `None` as for
    /// [`compare_exchange`](Self::compare_exchange).
    ///
    /// # Safety
    /// 1. The table of slot states lets what is alike become what the alteration makes of it, and if that may be done apart,
    ///    what it is in between.
    /// 2. If the alteration only clears bits, or does it apart: whatever others make of what is alike meanwhile may become
    ///    what the alteration makes of it, too.
    #[inline]
    unsafe fn alter_while(&self, slots: &[Slot], how: &Alteration) -> Option<Altered> {
        for (count, slot) in slots.iter().enumerate() {
            let seen = self.load(slot);
            if !how.concerns(seen) {
                return Some(Altered { count, last: None });
            }
            if how.set == 0 || how.apart {
                if how.set != 0 {
                    // SAFETY: (1) the caller's clauses.
                    unsafe { self.set_bits(slot, how.set) }?;
                }
                // SAFETY: (1) the caller's clauses.
                let old = unsafe { self.clear_bits(slot, how.clear) }?;
                if how.watched && old != seen | how.set {
                    return Some(Altered { count: count + 1, last: Some(old) });
                }
            } else {
                // SAFETY: (1) the caller's clause.
                let done = unsafe { self.compare_exchange(slot, seen, how.of(seen)) }?;
                if done.is_err() {
                    return Some(Altered { count, last: None });
                }
            }
        }
        Some(Altered { count: slots.len(), last: None })
    }

    /// Executes a data synchronization barrier.
    fn dsb(&self, kind: Dsb);

    /// Executes an instruction synchronization barrier.
    fn isb(&self);

    /// Executes one TLB invalidation. It is complete only after a [`Dsb`] of its scope.
    fn tlbi(&self, op: Tlbi);

    /// Reads VTTBR_EL2, which holds the VMID that `IPAS2*` and `VMALL*` act on.
    fn vttbr(&self) -> u64;

    /// Writes VTTBR_EL2. It takes effect at the next [`isb`](Self::isb).
    ///
    /// # Safety
    /// 1. When a guest next runs on this PE, the register holds that guest's own value.
    /// 2. A DSB was executed since the last guest ran on this PE: its walks, which go on speculatively
    ///    after the exception to EL2 \[RLFHQG\], have ended \[IQVPYJ\] and cannot fill a TLB under the
    ///    new value.
    unsafe fn set_vttbr(&self, value: u64);

    /// What is wrong with the PEs: nothing, unless an implementation says so.
    #[inline]
    fn errata(&self) -> Errata {
        Errata::empty()
    }

    /// Keeps every stage-1 walk of the EL1&0 regime from starting on this PE, speculatively too: walks
    /// are disabled in TCR_EL1 (EPD0, EPD1), and stage 1 is on, so that they count. For PEs with
    /// [`Errata::SPECULATIVE_AT`]: VTTBR_EL2 may then be another VM's than EL1's registers.
    fn hold_walks(&self) -> HeldWalks {
        HeldWalks { tcr: 0, sctlr: 0 }
    }

    /// Ends what [`hold_walks`](Self::hold_walks) began.
    ///
    /// # Safety
    /// 1. `held` is what it returned, on this PE, and no guest has run since.
    /// 2. VTTBR_EL2 is what it was then, and an ISB has been executed since it was written.
    unsafe fn release_walks(&self, _held: HeldWalks) {}

    /// Called before this CPU waits for a lock of this crate, whether it is free or not. For hypervisors that check that
    /// nobody asks for one where none may be asked for, as in a fault handler; the default does nothing.
    #[inline]
    fn about_to_lock(&self, which: Locked) {
        let _ = which;
    }

    /// Hears what a protocol has reached. Models and traces listen; hardware has nothing to do.
    #[inline]
    fn observe(&self, _what: Observation) {}
}
