//! The executing CPU as crate `stage2` uses it, with what it does counted, and in builds for that
//! recorded (`traced`).
//!
//! A space keeps an account of its own flushes; what is counted here is the machine's, over all lives of the VM:
//! `ALLE1IS`, which is no space's, and the barriers of installs, too.

#[cfg(feature = "selftest")]
use stage2::arch::Locked;
use stage2::arch::aarch64::Aarch64;
use stage2::arch::{Alteration, Altered, Arch, Dsb, HeldWalks};
use stage2::slot::Slot;
use stage2::tlbi::Tlbi;
use stage2::{Errata, Features};

use crate::cpu;
use crate::event::counters::Own;
use crate::mem::tables::Tables;

/// The CPU of the VM's tables.
#[cfg(not(feature = "trace"))]
pub(crate) type Pe = Counted;
/// The CPU of the VM's tables.
#[cfg(feature = "trace")]
pub(crate) type Pe = super::traced::Traced<Counted>;

/// The pages of the VM's tables.
#[cfg(not(feature = "trace"))]
pub(crate) type Pages = Tables;
/// The pages of the VM's tables.
#[cfg(feature = "trace")]
pub(crate) type Pages = super::traced::Traced<Tables>;

/// The executing CPU, whichever that is, and its table pages.
///
/// # Safety
/// 1. As of [`Aarch64::new`].
pub(crate) unsafe fn new(features: &Features) -> (Pe, Pages) {
    // SAFETY: (1) the caller's clause.
    let (pe, pages) = (Counted(unsafe { Aarch64::new(features) }), Tables);
    #[cfg(feature = "trace")]
    let (pe, pages) = (super::traced::Traced(pe), super::traced::Traced(pages));
    (pe, pages)
}

/// [`Aarch64`], counting barriers and invalidations in the executing CPU's counters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(Aarch64);

// SAFETY: every method is that of `Aarch64`.
unsafe impl Arch for Counted {
    #[inline]
    fn load(&self, slot: &Slot) -> u64 {
        self.0.load(slot)
    }

    #[inline]
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.0.store(slot, bits) };
    }

    #[inline]
    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { self.0.store_detached(slot, bits) };
    }

    #[inline]
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { self.0.swap(slot, bits) }
    }

    #[inline]
    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        unsafe { self.0.compare_exchange(slot, old, new) }
    }

    #[inline]
    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { self.0.clear_bits(slot, bits) }
    }

    #[inline]
    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        unsafe { self.0.set_bits(slot, bits) }
    }

    #[inline]
    unsafe fn alter_while(&self, slots: &[Slot], how: &Alteration) -> Option<Altered> {
        // SAFETY: the caller's clauses.
        unsafe { self.0.alter_while(slots, how) }
    }

    #[inline]
    fn dsb(&self, kind: Dsb) {
        cpu::current().counters.bump_own(Own::Dsb);
        self.0.dsb(kind);
    }

    #[inline]
    fn isb(&self) {
        self.0.isb();
    }

    fn tlbi(&self, op: Tlbi) {
        cpu::current().counters.bump_tlbi(op.name());
        self.0.tlbi(op);
    }

    #[inline]
    fn vttbr(&self) -> u64 {
        self.0.vttbr()
    }

    #[inline]
    unsafe fn set_vttbr(&self, value: u64) {
        // SAFETY: (1, 2) the caller's clauses.
        unsafe { self.0.set_vttbr(value) };
    }

    #[inline]
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

    #[cfg(feature = "selftest")]
    fn about_to_lock(&self, which: Locked) {
        crate::lock::ask(format_args!("{which}"));
    }
}
