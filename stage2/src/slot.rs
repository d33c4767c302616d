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
    // A function of its own, so that a test can find it in an image and read its instructions.
    #[inline(never)]
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
    /// 1. The caller holds the lock of the slot's table, which is of `level`.
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
        slot.0.compare_exchange(old, new, Ordering::Release, Ordering::Acquire)
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
}

#[cfg(test)]
mod tests {
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
}
