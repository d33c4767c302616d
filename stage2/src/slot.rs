//! One descriptor in memory: the only file that touches one.
//!
//! The hardware walker is always a concurrent reader of a slot, other PEs' fault handlers are
//! concurrent writers, and with hardware management of the access flag or the dirty state the
//! walker writes too. So a slot is only ever reached by single 64-bit atomic accesses, and nobody
//! makes a `&mut` to one. Three rules carry the design:
//!
//! 1. **Empty slots belong to whoever wins the compare-exchange; the lock owns the rest.** A lock
//!    holder must expect an Empty slot to become populated under its feet. Strict zero is
//!    deliberate: it is narrower than "not valid", so an install can overwrite no Busy, Drain, Note
//!    or Dead.
//!
//!    ```text
//!    PE 0, holds the lock             PE 1, in a fault handler, no lock
//!    live -> Busy
//!                                     sees "not valid", stores its page   <- the race this prevents:
//!    Busy -> old, writable again         its page is lost, two writers think they own the slot
//!    ```
//! 2. **A slot becomes Empty only after the flush of what it held has completed.** Live → Drain →
//!    (TLBI, DSB) → 0. [`Slot::clear`] does the first step and hands out a [`Drained`]; only with a
//!    [`Flushed`] token does it take the last.
//!
//!    ```text
//!    PE 0                             PE 1
//!    live -> 0
//!                                     faults, installs another page
//!    TLBI, DSB                           while PE 2 still translates by the old entry: two live
//!                                        frames behind one address, a break-before-make violation
//!    ```
//! 3. **A lock holder never stores blindly over a valid slot**, only by atomic read-modify-write:
//!    hardware and lock-free upgrades may have changed it since it was read. Hence `clear` is a swap,
//!    and what the swap returns is the final accessed and dirty state.
//!
//! What writes a slot is `unsafe`, and its clauses are these rules: a descriptor gives a guest memory.
//!
//! The contract of [`Slot::try_set`] and of `clear` is that of Linux' `ptep_try_set` and
//! `ptep_get_and_clear`: installers and clearers agree on the outcome because both are atomic.

use core::fmt;
use core::marker::PhantomData;

use crate::addr::Level;
use crate::arch::{Arch, Dsb};
use crate::descriptor::Descriptor;
use crate::epoch::Guard;
use crate::flush::Flushed;
use crate::sync::{AtomicU64, Ordering, const_fn};

/// One 64-bit descriptor in memory.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Slot(AtomicU64);

/// Why [`Slot::try_set`] did not install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySetError {
    /// The slot was not Empty. This is what it held: somebody else got there first.
    Occupied(Descriptor),
    /// This [`Arch`] has no atomic install. The caller falls through to its unrecovered path.
    Unsupported,
}

impl fmt::Display for TrySetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Occupied(seen) => write!(f, "the slot already holds {:#x}", seen.bits()),
            Self::Unsupported => f.write_str("this machine has no atomic install"),
        }
    }
}

impl core::error::Error for TrySetError {}

/// A slot that was swapped to Drain. It owes a flush, and then a release.
#[derive(Debug)]
#[must_use = "the slot stays in Drain, and every access to it faults, until it is released"]
pub struct Drained<'t> {
    slot: &'t Slot,
    old: Descriptor,
    /// The PE that stored is the PE whose DSB counts \[RSPVBD\].
    not_send: PhantomData<*const ()>,
}

impl Slot {
    const_fn! {
        /// A slot in memory that holds `descriptor`: for building tables that nobody walks yet.
        #[must_use]
        pub const fn new(descriptor: Descriptor) -> Self {
            Self(AtomicU64::new(descriptor.bits()))
        }
    }

    /// Reads the slot. What a table descriptor points to may be read after this (acquire).
    #[inline]
    pub fn load<A: Arch>(&self, arch: &A) -> Descriptor {
        Descriptor::from_bits(arch.load(self))
    }

    /// Installs `new` if the slot is Empty, that is, exactly zero.
    ///
    /// Takes no lock, allocates nothing, flushes nothing: a translation that faults is not cached
    /// \[RXCLRD\], so there is nothing to flush. It may therefore run in a fault handler that is nested
    /// under any lock. `new` is published with release order: what it points to must be complete
    /// before. Remote PEs see the new translation once the caller's `DSB ISHST` completes; until
    /// then they may take one more fault.
    ///
    /// The guard shows that the table cannot be torn down meanwhile.
    ///
    /// # Errors
    /// [`TrySetError::Occupied`] with what stood there (read with acquire order, so that a loser may
    /// descend into the winner's table). [`TrySetError::Unsupported`] on an [`Arch`] without it.
    ///
    /// # Safety
    /// 1. The slot was found under this guard.
    /// 2. `new` is a leaf or table for the slot's level, what it points to is complete, and it is the
    ///    VM's to use until a flush has completed after the descriptor was taken away again.
    // A function of its own in an image, so that a test can find it there and read its instructions.
    #[cfg_attr(target_os = "none", inline(never))]
    #[cfg_attr(not(target_os = "none"), inline)]
    pub unsafe fn try_set<A: Arch>(
        &self,
        arch: &A,
        _guard: &Guard<'_>,
        new: Descriptor,
    ) -> Result<(), TrySetError> {
        // SAFETY: (1) Empty may become a leaf or a table, by whoever wins; clause 2 for the rest.
        match unsafe { arch.compare_exchange(self, Descriptor::EMPTY.bits(), new.bits()) } {
            Some(Ok(_)) => Ok(()),
            Some(Err(seen)) => Err(TrySetError::Occupied(Descriptor::from_bits(seen))),
            None => Err(TrySetError::Unsupported),
        }
    }

    /// Swaps a live slot to Drain, which remembers what the slot held: the only way out of a live one.
    /// `None`, and no change, if it is not live.
    ///
    /// Afterwards the caller owes the flush that covers what the slot held. Until that completes,
    /// remote PEs may go on using the old translation; new walks fault. The swap returns the final
    /// accessed and dirty state: hardware updates are atomic \[RLFTXR, RPQJJR\] and re-read the
    /// descriptor before they set the dirty state \[RSGJBL\], so none can follow it.
    ///
    /// # Safety
    /// 1. The caller holds the lock of the slot's table, which is of `level`, and, until the slot is no longer in
    ///    Drain, a claim on its addresses: an operation on ranges releases what it finds in Drain in its own. Of
    ///    a [contiguous run](crate::Leaf::is_contiguous) all members are cleared before the flush: one that stays
    ///    may translate for those that go.
    #[inline]
    pub unsafe fn clear<A: Arch>(&self, arch: &A, level: Level) -> Option<Drained<'_>> {
        let seen = self.load(arch);
        let drain = seen.to_drain(level)?;
        // SAFETY: (1) the lock's holder may drain what is live, and nobody else makes it otherwise.
        let old = Descriptor::from_bits(unsafe { arch.swap(self, drain.bits()) });
        if old != seen {
            // Hardware set AF or S2AP[1], or a fault handler granted more, between the two.
            let drain = old.to_drain(level).unwrap_or(drain);
            // SAFETY: (1) in Drain since the swap.
            unsafe { arch.store(self, drain.bits()) };
        }
        Some(Drained { slot: self, old, not_send: PhantomData })
    }

    /// Swaps an Empty slot to Dead, so that nothing is installed in it any more.
    ///
    /// # Errors
    /// [`TrySetError`], as [`try_set`](Self::try_set).
    ///
    /// # Safety
    /// 1. The caller holds the lock of the slot's table and of its parent, and takes the table out of
    ///    the tree.
    #[inline]
    pub unsafe fn kill<A: Arch>(&self, arch: &A) -> Result<(), TrySetError> {
        // SAFETY: (1) Empty may become Dead by who tears the table down; it points nowhere.
        let result = unsafe {
            arch.compare_exchange(self, Descriptor::EMPTY.bits(), Descriptor::DEAD.bits())
        };
        match result {
            Some(Ok(_)) => Ok(()),
            Some(Err(seen)) => Err(TrySetError::Occupied(Descriptor::from_bits(seen))),
            None => Err(TrySetError::Unsupported),
        }
    }

    /// Makes a slot Empty that is Dead, or in Drain and flushed.
    ///
    /// # Safety
    /// 1. The slot is Dead and the caller killed it, or it is in Drain, is the caller's, and a flush of
    ///    this VM that covers what it held has completed since.
    #[inline]
    pub(crate) unsafe fn empty<A: Arch>(&self, arch: &A) {
        // SAFETY: (1) the caller's clause; (2) Drain and Dead may become Empty then.
        unsafe { arch.store(self, Descriptor::EMPTY.bits()) };
    }
}

impl Drained<'_> {
    /// What the slot held: the final word on its accessed and dirty state.
    #[must_use]
    pub const fn old(&self) -> Descriptor {
        self.old
    }

    /// Makes the slot Empty, now that no PE can still translate by what it held.
    ///
    /// # Safety
    /// 1. `flushed` comes from a flush of this VM, after the clear, that covers what the slot held.
    pub unsafe fn release<A: Arch>(self, arch: &A, _flushed: &Flushed) -> Descriptor {
        // SAFETY: (1) in Drain since `clear`, and flushed.
        unsafe { self.slot.empty(arch) };
        self.old
    }

    /// Puts a new descriptor in place of the old one: the last two steps of break-before-make
    /// \[RDDMVT\].
    ///
    /// # Safety
    /// 1. As of [`release`](Self::release).
    /// 2. As clause 2 of [`Slot::try_set`].
    pub unsafe fn replace<A: Arch>(
        self,
        arch: &A,
        _flushed: &Flushed,
        new: Descriptor,
    ) -> Descriptor {
        // SAFETY: (1) in Drain since `clear`; (2) flushed, so it may be live again.
        unsafe { arch.store(self.slot, new.bits()) };
        arch.dsb(Dsb::IshSt);
        self.old
    }
}

/// The machine's own atomics on a slot, for an [`Arch`] to build on.
///
/// Orders: loads acquire, stores and successful exchanges release, failed exchanges acquire, swaps
/// both. On the Armv8.0 baseline an exchange compiles to an `LDAXR`/`STLXR` loop.
pub mod native {
    use super::{Ordering, Slot};

    /// Reads the slot.
    #[inline]
    pub fn load(slot: &Slot) -> u64 {
        slot.0.load(Ordering::Acquire)
    }

    /// Writes the slot.
    ///
    /// # Safety
    /// 1. As of [`Arch::store`](crate::Arch::store).
    #[inline]
    pub unsafe fn store(slot: &Slot, bits: u64) {
        slot.0.store(bits, Ordering::Release);
    }

    /// Writes the slot without any order.
    ///
    /// # Safety
    /// 1. As of [`Arch::store_detached`](crate::Arch::store_detached).
    #[inline]
    pub unsafe fn store_detached(slot: &Slot, bits: u64) {
        slot.0.store(bits, Ordering::Relaxed);
    }

    /// Writes the slot and returns what it held.
    ///
    /// # Safety
    /// 1. As of [`Arch::swap`](crate::Arch::swap).
    #[inline]
    pub unsafe fn swap(slot: &Slot, bits: u64) -> u64 {
        slot.0.swap(bits, Ordering::AcqRel)
    }

    /// Writes `new` if the slot holds `old`; returns what it held.
    ///
    /// # Safety
    /// 1. As of [`Arch::compare_exchange`](crate::Arch::compare_exchange).
    #[inline]
    pub unsafe fn compare_exchange(slot: &Slot, old: u64, new: u64) -> Result<u64, u64> {
        slot.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Clears bits of the slot; returns what it held.
    ///
    /// # Safety
    /// 1. As of [`Arch::clear_bits`](crate::Arch::clear_bits).
    #[inline]
    pub unsafe fn clear_bits(slot: &Slot, bits: u64) -> u64 {
        slot.0.fetch_and(!bits, Ordering::AcqRel)
    }

    /// Sets bits of the slot; returns what it held.
    ///
    /// # Safety
    /// 1. As of [`Arch::set_bits`](crate::Arch::set_bits).
    #[inline]
    pub unsafe fn set_bits(slot: &Slot, bits: u64) -> u64 {
        slot.0.fetch_or(bits, Ordering::AcqRel)
    }

    /// [`swap`] by one `SWPAL` instruction.
    ///
    /// # Safety
    /// 1. As of [`Arch::swap`](crate::Arch::swap).
    /// 2. Every PE that may run this has FEAT_LSE.
    #[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
    #[inline]
    pub unsafe fn swap_lse(slot: &Slot, bits: u64) -> u64 {
        let seen: u64;
        // SAFETY: (1) the instruction exists, by clause 2. (2) The address is that of an AtomicU64:
        // aligned, alive and shared.
        unsafe {
            core::arch::asm!(
                ".arch_extension lse",
                "swpal {bits}, {seen}, [{slot}]",
                bits = in(reg) bits,
                seen = lateout(reg) seen,
                slot = in(reg) slot.0.as_ptr(),
                options(nostack, preserves_flags),
            );
        }
        seen
    }

    /// [`compare_exchange`] by one `CASAL` instruction.
    ///
    /// # Safety
    /// 1. As of [`Arch::compare_exchange`](crate::Arch::compare_exchange).
    /// 2. Every PE that may run this has FEAT_LSE.
    #[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
    #[inline]
    pub unsafe fn compare_exchange_lse(slot: &Slot, old: u64, new: u64) -> Result<u64, u64> {
        let seen: u64;
        // SAFETY: (1) the instruction exists, by clause 2. (2) The address is that of an AtomicU64:
        // aligned, alive and shared.
        unsafe {
            core::arch::asm!(
                ".arch_extension lse",
                "casal {seen}, {new}, [{slot}]",
                seen = inlateout(reg) old => seen,
                new = in(reg) new,
                slot = in(reg) slot.0.as_ptr(),
                options(nostack, preserves_flags),
            );
        }
        if seen == old { Ok(seen) } else { Err(seen) }
    }

    /// [`clear_bits`] by one `LDCLRAL` instruction.
    ///
    /// # Safety
    /// 1. As of [`Arch::clear_bits`](crate::Arch::clear_bits).
    /// 2. Every PE that may run this has FEAT_LSE.
    #[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
    #[inline(always)]
    pub unsafe fn clear_bits_lse(slot: &Slot, bits: u64) -> u64 {
        let seen: u64;
        // SAFETY: (1) the instruction exists, by clause 2. (2) The address is that of an AtomicU64:
        // aligned, alive and shared.
        unsafe {
            core::arch::asm!(
                ".arch_extension lse",
                "ldclral {bits}, {seen}, [{slot}]",
                bits = in(reg) bits,
                seen = lateout(reg) seen,
                slot = in(reg) slot.0.as_ptr(),
                options(nostack, preserves_flags),
            );
        }
        seen
    }

    /// [`set_bits`] by one `LDSETAL` instruction.
    ///
    /// # Safety
    /// 1. As of [`Arch::set_bits`](crate::Arch::set_bits).
    /// 2. Every PE that may run this has FEAT_LSE.
    #[cfg(all(target_arch = "aarch64", not(any(loom, shuttle))))]
    #[inline(always)]
    pub unsafe fn set_bits_lse(slot: &Slot, bits: u64) -> u64 {
        let seen: u64;
        // SAFETY: as of `clear_bits_lse`.
        unsafe {
            core::arch::asm!(
                ".arch_extension lse",
                "ldsetal {bits}, {seen}, [{slot}]",
                bits = in(reg) bits,
                seen = lateout(reg) seen,
                slot = in(reg) slot.0.as_ptr(),
                options(nostack, preserves_flags),
            );
        }
        seen
    }
}

#[cfg(any(test, all(target_arch = "aarch64", not(any(loom, shuttle)))))]
pub(crate) mod alter;
#[cfg(test)]
mod tests;
