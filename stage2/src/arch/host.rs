//! [`Arch`] on the host: real atomics, and a log instead of barriers and TLBs.
//!
//! For unit tests of what the protocols do and in which order. It proves nothing about TLBs: there
//! are none.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use super::{Arch, Dsb, HeldWalks, Locked, Observation};
use crate::errata::Errata;
use crate::slot::{Slot, native};
use crate::tlbi::Tlbi;

/// One thing that the architecture would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A barrier.
    Dsb(Dsb),
    /// An instruction synchronization barrier.
    Isb,
    /// An invalidation, under the VTTBR_EL2 value that stood then.
    Tlbi(Tlbi, u64),
    /// VTTBR_EL2 was written.
    SetVttbr(u64),
    /// Stage-1 walks cannot start any more.
    HoldWalks,
    /// They can again.
    ReleaseWalks(HeldWalks),
    /// A descriptor was stored.
    Store(u64),
    /// A descriptor was swapped in.
    Swap(u64),
    /// A compare-exchange, and whether it won.
    CompareExchange(bool),
    /// A protocol has got somewhere.
    Observe(Observation),
}

/// A machine with atomics, whose maintenance is only logged.
#[derive(Debug, Default)]
pub(crate) struct Host {
    vttbr: AtomicU64,
    errata: Errata,
    log: Mutex<Vec<Event>>,
    asked: Mutex<Vec<Locked>>,
}

impl Host {
    /// VTTBR_EL2 is 0 and the log is empty.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The same, with something wrong.
    #[must_use]
    pub(crate) fn with_errata(errata: Errata) -> Self {
        Self { errata, ..Self::default() }
    }

    /// Takes what was logged so far.
    #[must_use]
    pub(crate) fn take_log(&self) -> Vec<Event> {
        core::mem::take(&mut *self.lock())
    }

    /// Takes the locks that were asked for so far.
    #[must_use]
    pub(crate) fn take_asked(&self) -> Vec<Locked> {
        core::mem::take(&mut *self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn log(&self, event: Event) {
        self.lock().push(event);
    }

    /// A poisoned log is still a log.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// SAFETY: the atomics are the host's; there is no TLB that could hold anything back.
unsafe impl Arch for Host {
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }

    unsafe fn store(&self, slot: &Slot, bits: u64) {
        self.log(Event::Store(bits));
        // SAFETY: the caller's clauses.
        unsafe { native::store(slot, bits) };
    }

    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store_detached(slot, bits) };
    }

    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        self.log(Event::Swap(bits));
        // SAFETY: the caller's clauses.
        unsafe { native::swap(slot, bits) }
    }

    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause.
        let result = unsafe { native::compare_exchange(slot, old, new) };
        self.log(Event::CompareExchange(result.is_ok()));
        Some(result)
    }

    fn dsb(&self, kind: Dsb) {
        self.log(Event::Dsb(kind));
    }

    fn isb(&self) {
        self.log(Event::Isb);
    }

    fn tlbi(&self, op: Tlbi) {
        self.log(Event::Tlbi(op, self.vttbr()));
    }

    fn vttbr(&self) -> u64 {
        self.vttbr.load(Ordering::Relaxed)
    }

    unsafe fn set_vttbr(&self, value: u64) {
        self.vttbr.store(value, Ordering::Relaxed);
        self.log(Event::SetVttbr(value));
    }

    fn errata(&self) -> Errata {
        self.errata
    }

    fn about_to_lock(&self, which: Locked) {
        self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(which);
    }

    fn hold_walks(&self) -> HeldWalks {
        self.log(Event::HoldWalks);
        HeldWalks { tcr: 0x7c12, sctlr: 0x5c71 }
    }

    unsafe fn release_walks(&self, held: HeldWalks) {
        self.log(Event::ReleaseWalks(held));
    }

    fn observe(&self, what: Observation) {
        self.log(Event::Observe(what));
    }
}

/// A machine without an atomic install, as Linux' generic `ptep_try_set` knows it.
#[derive(Debug, Default)]
pub(crate) struct NoAtomicInstall;

// SAFETY: loads and stores are the host's; there is no TLB.
unsafe impl Arch for NoAtomicInstall {
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store(slot, bits) };
    }
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses.
        unsafe { native::swap(slot, bits) }
    }
    fn dsb(&self, _kind: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _op: Tlbi) {}
    fn vttbr(&self) -> u64 {
        0
    }
    unsafe fn set_vttbr(&self, _value: u64) {}
}
