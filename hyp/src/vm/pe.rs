//! The executing CPU as crate `stage2` uses it, with what it does counted, and in builds for that
//! recorded (`traced`).
//!
//! A space keeps an account of its own flushes; what is counted here is the machine's, over all lives of the VM:
//! `ALLE1IS`, which is no space's, and the barriers of installs, too.
//!
//! Builds with the feature `selftest` also count what the executing CPU has in its hands: slots that it has made Busy or Drain and nothing
//! else since, and locks of tables. The safe point asserts that it is nothing (`run`).

use stage2::arch::aarch64::Aarch64;
use stage2::arch::{Alteration, Altered, Arch, Dsb, HeldWalks};
#[cfg(feature = "selftest")]
use stage2::arch::{Locked, Observation};
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
        #[cfg(feature = "selftest")]
        in_hand::slot(self.0.load(slot), bits);
        // SAFETY: the caller's clauses.
        unsafe { self.0.store(slot, bits) };
    }

    #[inline]
    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        #[cfg(feature = "selftest")]
        in_hand::slot(self.0.load(slot), bits);
        // SAFETY: the caller's clauses.
        unsafe { self.0.store_detached(slot, bits) };
    }

    #[inline]
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        let old = unsafe { self.0.swap(slot, bits) };
        #[cfg(feature = "selftest")]
        in_hand::slot(old, bits);
        old
    }

    #[inline]
    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        let result = unsafe { self.0.compare_exchange(slot, old, new) };
        #[cfg(feature = "selftest")]
        if matches!(result, Some(Ok(_))) {
            in_hand::slot(old, new);
        }
        result
    }

    #[inline]
    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        let old = unsafe { self.0.clear_bits(slot, bits) };
        #[cfg(feature = "selftest")]
        if let Some(old) = old {
            in_hand::slot(old, old & !bits);
        }
        old
    }

    #[inline]
    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause.
        let old = unsafe { self.0.set_bits(slot, bits) };
        #[cfg(feature = "selftest")]
        if let Some(old) = old {
            in_hand::slot(old, old | bits);
        }
        old
    }

    #[inline]
    unsafe fn alter_while(&self, slots: &[Slot], how: &Alteration) -> Option<Altered> {
        #[cfg(feature = "selftest")]
        let before = in_hand::among(slots.iter().map(|slot| self.0.load(slot)));
        // SAFETY: the caller's clauses.
        let altered = unsafe { self.0.alter_while(slots, how) };
        #[cfg(feature = "selftest")]
        in_hand::changed(in_hand::among(slots.iter().map(|slot| self.0.load(slot))) - before);
        altered
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

    #[cfg(feature = "selftest")]
    fn observe(&self, what: Observation) {
        in_hand::table(&what);
    }
}

/// What the executing CPU has in its hands.
#[cfg(feature = "selftest")]
mod in_hand {
    use stage2::arch::Observation;
    use stage2::{Descriptor, Level, View};

    use crate::cpu;

    /// A slot was changed.
    pub(super) fn slot(old: u64, new: u64) {
        changed(i64::from(is_transient(new)) - i64::from(is_transient(old)));
    }

    /// How many of these are Busy or Drain. Of slots side by side that are altered the lock is held: others change none of them to
    /// that, or from it.
    pub(super) fn among(slots: impl Iterator<Item = u64>) -> i64 {
        slots.map(|bits| i64::from(is_transient(bits))).sum()
    }

    /// So many more slots are in transition.
    pub(super) fn changed(by: i64) {
        if by != 0 {
            let count = &cpu::current().in_transition;
            count.set(count.get() + by);
        }
    }

    /// The lock of a table was taken, or given back.
    pub(super) fn table(what: &Observation) {
        let held = &cpu::current().held;
        match what {
            Observation::Locked { .. } => held.set(held.get().wrapping_add(1)),
            Observation::Unlocked { .. } => held.set(held.get().wrapping_sub(1)),
            _ => {}
        }
    }

    fn is_transient(bits: u64) -> bool {
        // Blocks are foreign at level 3.
        let views = [Level::L2, Level::L3].map(|level| Descriptor::from_bits(bits).view(level));
        views.iter().any(|view| matches!(view, View::Busy(_) | View::Drain(_)))
    }
}
