//! Guards: "while I hold this, no table I found can be torn down, and no policy I read has ended".
//!
//! A fault handler decides from the VM's region map and acts on a slot, without a lock. One guard
//! spans both: it opens before the map is read and closes after the install. Whoever changes the
//! policy, or takes a table out of the tree, publishes the change, waits until every CPU has been
//! seen outside a guard, and only then touches what a guard may have protected. It is what
//! `mmu_invalidate_seq` is in KVM; without it an old decision installs over a new policy:
//!
//! ```text
//! PE 0, in a fault handler            PE 1
//! reads the map: RAM, may populate
//!                                     takes the region away, sweeps its slots to Empty
//! installs a page                     <- the guest has memory that it should not have
//! ```
//!
//! Each CPU owns one counter on a cache line of its own: odd inside a guard, even outside. Opening
//! stores the odd value and then executes a full barrier (`DMB ISH`), so that every read under the
//! guard comes after the store as seen by a waiter; closing stores the even value with release
//! order, so that every access under the guard comes before it. A waiter executes the same full
//! barrier between publishing and reading the counters. Either the waiter sees the odd value and
//! waits, or the guard's reads see what was published.
//!
//! Everything outside a guard is quiescent: running a guest, WFI, a CPU that is off. So a vCPU that
//! never exits holds nobody up, and waiting needs no inter-processor interrupt. Nobody waits while
//! holding a lock or a guard.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;

use crate::lock::Rank;
use crate::sync::{AtomicBool, AtomicU64, Ordering, array, const_fn, fence};

/// The counters of up to `CPUS` CPUs.
#[derive(Debug)]
pub struct Epochs<const CPUS: usize> {
    cpus: [Counter; CPUS],
}

/// One CPU's counter, alone on its cache line (128 bytes: two lines, for adjacent-line prefetch).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counter {
    /// Odd inside a guard.
    epoch: AtomicU64,
    joined: AtomicBool,
}

impl Counter {
    const_fn! {
        const fn new() -> Self {
            Self { epoch: AtomicU64::new(0), joined: AtomicBool::new(false) }
        }
    }
}

/// Which [`Epochs`] something relies on: tables accept guards of their own domain only.
#[derive(Clone, Copy, Debug)]
pub struct Domain<'e> {
    cpus: &'e [Counter],
}

/// One CPU's right to open guards. There is one for each CPU, and it stays on it.
#[derive(Debug)]
pub struct Cpu<'e> {
    cpus: &'e [Counter],
    counter: &'e Counter,
    /// 64 bits: no program opens that many.
    depth: Cell<u64>,
    /// Locks of tables that this CPU holds, and the rank of the last that it took.
    locks: Cell<(u32, Rank)>,
}

/// Proof that this CPU is inside a guard. Nests; `!Send`, because it stands for the CPU.
#[derive(Debug)]
#[must_use = "the guard closes when it is dropped"]
pub struct Guard<'c> {
    cpu: &'c Cpu<'c>,
    not_send: PhantomData<*const ()>,
}

/// A CPU asked to wait while it is inside a guard itself, or holds a lock, which might never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsideGuard;

impl fmt::Display for InsideGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a CPU cannot wait for guards while it is inside one")
    }
}

impl core::error::Error for InsideGuard {}

impl<const CPUS: usize> Epochs<CPUS> {
    const_fn! {
        /// All CPUs quiescent, none joined.
        #[must_use]
        pub const fn new() -> Self {
            Self { cpus: array![Counter::new(); CPUS] }
        }
    }

    /// The right of CPU `index` to open guards; `None` beyond `CPUS`, or while somebody holds it.
    #[must_use]
    pub fn join(&self, index: usize) -> Option<Cpu<'_>> {
        let counter = self.cpus.get(index)?;
        // Acquire: this CPU counts on from where the last holder of its place stopped. Nobody learns
        // anything from the `true`.
        if counter.joined.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Cpu {
            cpus: &self.cpus,
            counter,
            depth: Cell::new(0),
            locks: Cell::new((0, Rank::NONE)),
        })
    }

    /// What tables remember of these epochs.
    #[must_use]
    pub const fn domain(&self) -> Domain<'_> {
        const { assert!(CPUS > 0, "epochs of no CPU have no place of their own in memory") };
        Domain { cpus: &self.cpus }
    }
}

impl<const CPUS: usize> Default for Epochs<CPUS> {
    fn default() -> Self {
        Self::new()
    }
}

impl Domain<'_> {
    /// Whether `guard` belongs here.
    #[inline]
    #[must_use]
    pub fn owns(&self, guard: &Guard<'_>) -> bool {
        // Where they begin tells them apart: `domain` sees to it that they are not none.
        self.cpus.as_ptr() == guard.cpu.cpus.as_ptr()
    }
}

impl Cpu<'_> {
    /// Opens a guard. Inside another one it only counts.
    #[inline(always)]
    pub fn enter(&self) -> Guard<'_> {
        let depth = self.depth.get();
        if depth == 0 {
            let epoch = self.counter.epoch.load(Ordering::Relaxed);
            self.counter.epoch.store(epoch.wrapping_add(1), Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        self.depth.set(depth.wrapping_add(1));
        Guard { cpu: self, not_send: PhantomData }
    }

    /// Whether this CPU holds no guard and no lock of a table: the condition for waiting, WFI, PSCI
    /// and entering a guest.
    #[must_use]
    pub fn is_quiescent(&self) -> bool {
        self.depth.get() == 0 && self.locks.get().0 == 0
    }

    /// Whether this CPU holds the lock of a table.
    pub(crate) fn holds_lock(&self) -> bool {
        self.locks.get().0 != 0
    }

    /// A table's lock is about to be taken.
    pub(crate) fn note_lock(&self, rank: Rank) {
        let (held, last) = self.locks.get();
        debug_assert!(held == 0 || last < rank, "locks: parent before child, siblings by IPA");
        self.locks.set((held.wrapping_add(1), rank));
    }

    /// A table's lock was given back. Until all are, the last rank stands.
    pub(crate) fn note_unlock(&self) {
        let (held, last) = self.locks.get();
        self.locks.set((held.wrapping_sub(1), last));
    }

    /// Returns once every CPU has been outside a guard since the call. `relax` runs between polls.
    ///
    /// What the caller stored before is seen by every guard that opens later; what guards read
    /// before is no longer in use. A guard that opens meanwhile holds nobody up. The caller holds no
    /// lock that a guard's holder may wait for.
    ///
    /// # Errors
    /// [`InsideGuard`]: this CPU would wait for itself.
    pub fn wait(&self, mut relax: impl FnMut()) -> Result<(), InsideGuard> {
        if !self.is_quiescent() {
            return Err(InsideGuard);
        }
        fence(Ordering::SeqCst);
        for counter in self.cpus {
            let seen = counter.epoch.load(Ordering::Acquire);
            while seen % 2 == 1 && counter.epoch.load(Ordering::Acquire) == seen {
                relax();
            }
        }
        Ok(())
    }
}

impl Drop for Cpu<'_> {
    fn drop(&mut self) {
        // A guard that was forgotten stays open for ever, and so does the CPU's place: a successor
        // would count its parity the wrong way round.
        if self.is_quiescent() {
            self.counter.joined.store(false, Ordering::Release);
        }
    }
}

impl<'c> Guard<'c> {
    /// Whose guard it is.
    pub(crate) const fn cpu(&self) -> &'c Cpu<'c> {
        self.cpu
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let depth = self.cpu.depth.get().wrapping_sub(1);
        self.cpu.depth.set(depth);
        if depth == 0 {
            let epoch = self.cpu.counter.epoch.load(Ordering::Relaxed);
            self.cpu.counter.epoch.store(epoch.wrapping_add(1), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicPtr, AtomicUsize};

    use super::*;

    #[test]
    fn one_right_for_each_cpu() {
        let epochs = Epochs::<2>::new();
        let first = epochs.join(0).unwrap();
        assert!(epochs.join(0).is_none());
        assert!(epochs.join(1).is_some());
        assert!(epochs.join(2).is_none());
        drop(first);
        assert!(epochs.join(0).is_some());
    }

    #[test]
    fn nested_guards_close_with_the_outermost() {
        let epochs = Epochs::<1>::new();
        let cpu = epochs.join(0).unwrap();
        let outer = cpu.enter();
        let inner = cpu.enter();
        drop(inner);
        assert!(!cpu.is_quiescent());
        assert_eq!(epochs.cpus[0].epoch.load(Ordering::Relaxed) % 2, 1);
        assert_eq!(cpu.wait(|| {}), Err(InsideGuard));
        drop(outer);
        assert!(cpu.is_quiescent());
        assert_eq!(cpu.wait(|| panic!("nobody is inside a guard")), Ok(()));
    }

    #[test]
    fn a_forgotten_guard_keeps_its_cpu() {
        let epochs = Epochs::<1>::new();
        let cpu = epochs.join(0).unwrap();
        std::mem::forget(cpu.enter());
        drop(cpu);
        assert!(epochs.join(0).is_none(), "a successor would invert the parity");
    }

    #[test]
    fn guards_belong_to_their_domain() {
        let (mine, other) = (Epochs::<1>::new(), Epochs::<1>::new());
        let cpu = mine.join(0).unwrap();
        let guard = cpu.enter();
        assert!(mine.domain().owns(&guard));
        assert!(!other.domain().owns(&guard));
    }

    #[test]
    fn a_waiter_waits_for_the_guard_it_met_and_no_other() {
        let epochs = Epochs::<2>::new();
        let (waiter, reader) = (epochs.join(0).unwrap(), epochs.join(1).unwrap());
        let guard = Cell::new(Some(reader.enter()));
        let polls = Cell::new(0);
        let waited = waiter.wait(|| {
            polls.set(polls.get() + 1);
            if polls.get() == 3 {
                // Closed and opened again: the new guard sees what was published.
                drop(guard.take());
                guard.set(Some(reader.enter()));
            }
        });
        assert_eq!((waited, polls.get()), (Ok(()), 3));
    }

    /// A value is retired only after a wait: no reader may meet it afterwards.
    #[test]
    fn readers_never_see_what_was_retired() {
        const READERS: usize = 2;
        const ROUNDS: usize = 2_000;
        let epochs = Epochs::<{ READERS + 1 }>::new();
        let alive: Vec<AtomicBool> = (0..=ROUNDS).map(|_| AtomicBool::new(true)).collect();
        let current = AtomicPtr::new(std::ptr::from_ref(&alive[0]).cast_mut());
        let reads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                let (epochs, current, alive, reads) = (&epochs, &current, &alive, &reads);
                scope.spawn(move || {
                    let cpu = epochs.join(reader).unwrap();
                    let last = std::ptr::from_ref(&alive[ROUNDS]).cast_mut();
                    loop {
                        let _guard = cpu.enter();
                        let seen = current.load(Ordering::Acquire);
                        // SAFETY: (1) points into `alive`, which outlives the scope.
                        let is_alive = unsafe { &*seen }.load(Ordering::Relaxed);
                        assert!(is_alive, "read after retirement");
                        reads.fetch_add(1, Ordering::Relaxed);
                        if seen == last {
                            break;
                        }
                    }
                });
            }
            let writer = epochs.join(READERS).unwrap();
            for round in 0..ROUNDS {
                current.store(std::ptr::from_ref(&alive[round + 1]).cast_mut(), Ordering::Release);
                writer.wait(std::thread::yield_now).unwrap();
                alive[round].store(false, Ordering::Relaxed);
            }
        });
        assert!(reads.load(Ordering::Relaxed) >= READERS);
    }
}
