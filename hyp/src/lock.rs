//! Locks and waiting, and the path on which there are none.
//!
//! Locks are ticket locks (crate `spin`): first come, first served, so that no CPU waits for ever while
//! others pass it. EL2 runs with interrupts masked, and a vCPU's turn ends at the safe point only (`vm/schedule.rs`), so a holder is never
//! descheduled: in builds with the feature `selftest` each CPU counts the locks that it holds, and the safe point asserts that it is none.
//!
//! Whoever waits says YIELD: on hardware a hint to the other thread of a core; under QEMU's `-icount`,
//! where one host thread plays all CPUs in turn, the end of this CPU's turn.
//!
//! # The fault path
//!
//! From the moment that a fault is to be resolved until it is, no lock is asked for and nothing is allocated: EL2's own fault
//! in its window on guest memory may come while this CPU, or one that waits for it, holds any lock there is. [`fault_path`]
//! marks that stretch: for a fault of EL2's all of it; for one of the guest's in the ordinary part of RAM, on leaves, and where the
//! scratch page is shown. It does not mark those in blocks, on pages with limited permissions, or in memory that is on its way, by
//! themselves: EL2's own faults there take the same functions under the mark. In builds with the feature `selftest` its mark is a count in the CPU's block, and whoever asks for a lock
//! meanwhile, also by a try, is a panic that names the lock: a [`Lock`] by the name that it was made with, the heap's among them,
//! and those of crate `stage2` by theirs, a table's with its address (`vm/pe.rs`). In other builds it is nothing.

use core::arch::asm;

use spin::RelaxStrategy;
use spin::mutex::{TicketMutex, TicketMutexGuard};

use crate::cpu::PerCpu;

/// A ticket lock that waits with YIELD, and that no fault path may ask for.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    #[cfg(feature = "selftest")]
    name: &'static str,
    inner: Unwatched<T>,
}

/// A [`Lock`] that is held.
#[cfg(not(feature = "selftest"))]
pub(crate) type Held<'l, T> = TicketMutexGuard<'l, T, Yield>;
/// A [`Lock`] that is held, and counted.
#[cfg(feature = "selftest")]
pub(crate) use counted::Held;

/// A ticket lock for what is no part of a build for users, and that a fault path may meet there: that of a trace.
pub(crate) type Unwatched<T> = TicketMutex<T, Yield>;

impl<T> Lock<T> {
    /// A free lock. The name is what a report calls it.
    pub(crate) const fn new(_name: &'static str, value: T) -> Self {
        Self {
            #[cfg(feature = "selftest")]
            name: _name,
            inner: TicketMutex::new(value),
        }
    }

    /// Waits for the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Held<'_, T> {
        self.watch();
        held(self.inner.lock())
    }

    /// Takes the lock if it is free.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Held<'_, T>> {
        self.watch();
        self.inner.try_lock().map(held)
    }

    /// Whether somebody has it at this moment.
    #[inline]
    pub(crate) fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }

    /// What it has guarded.
    pub(crate) fn into_inner(self) -> T {
        self.inner.into_inner()
    }

    #[inline(always)]
    fn watch(&self) {
        #[cfg(feature = "selftest")]
        ask(format_args!("the lock of {}", self.name));
    }
}

#[cfg(not(feature = "selftest"))]
#[inline(always)]
fn held<T>(guard: TicketMutexGuard<'_, T, Yield>) -> Held<'_, T> {
    guard
}

#[cfg(feature = "selftest")]
fn held<T>(guard: TicketMutexGuard<'_, T, Yield>) -> Held<'_, T> {
    Held::new(guard)
}

/// Locks that know who holds them.
#[cfg(feature = "selftest")]
mod counted {
    use core::ops::{Deref, DerefMut};

    use spin::mutex::TicketMutexGuard;

    use super::Yield;
    use crate::cpu::{self, PerCpu};

    /// A [`Lock`](super::Lock) that is held, by the CPU in whose block it is counted.
    #[derive(Debug)]
    pub(crate) struct Held<'l, T> {
        guard: TicketMutexGuard<'l, T, Yield>,
        /// Nobody before it has its block.
        by: Option<&'static PerCpu>,
    }

    impl<'l, T> Held<'l, T> {
        pub(super) fn new(guard: TicketMutexGuard<'l, T, Yield>) -> Self {
            let by = cpu::try_current();
            if let Some(cpu) = by {
                cpu.held.set(cpu.held.get().wrapping_add(1));
            }
            Self { guard, by }
        }
    }

    impl<T> Drop for Held<'_, T> {
        fn drop(&mut self) {
            if let Some(cpu) = self.by {
                cpu.held.set(cpu.held.get().wrapping_sub(1));
            }
        }
    }

    impl<T> Deref for Held<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T> DerefMut for Held<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }
}

/// The way our locks wait.
#[derive(Debug)]
pub(crate) struct Yield;

impl RelaxStrategy for Yield {
    #[inline]
    fn relax() {
        relax();
    }
}

/// Lets others run for a moment.
#[inline]
pub(crate) fn relax() {
    // SAFETY: (1) a hint, without effect on registers or memory.
    unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// As long as this lives, this CPU resolves a fault, and asks for no lock. It nests.
#[must_use = "the fault path ends when it is dropped"]
pub(crate) struct FaultPath<'c> {
    #[cfg(feature = "selftest")]
    depth: &'c core::cell::Cell<u32>,
    _cpu: core::marker::PhantomData<&'c PerCpu>,
}

/// Here a fault path begins.
#[inline(always)]
pub(crate) fn fault_path(_cpu: &PerCpu) -> FaultPath<'_> {
    #[cfg(feature = "selftest")]
    _cpu.faulting.set(_cpu.faulting.get().wrapping_add(1));
    FaultPath {
        #[cfg(feature = "selftest")]
        depth: &_cpu.faulting,
        _cpu: core::marker::PhantomData,
    }
}

// In every build, so that it can be ended by hand in every build.
impl Drop for FaultPath<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(feature = "selftest")]
        self.depth.set(self.depth.get().wrapping_sub(1));
    }
}

/// Something is asked for that a fault path does without.
#[cfg(feature = "selftest")]
#[inline]
pub(crate) fn ask(what: core::fmt::Arguments<'_>) {
    // Before the CPU has its block there are no faults to resolve.
    if let Some(cpu) = crate::cpu::try_current().filter(|cpu| cpu.faulting.get() != 0) {
        asked_in_fault(cpu.number, what);
    }
}

// The panic is the check's verdict, which tests look for. Builds for use have neither.
#[cfg(feature = "selftest")]
#[cold]
#[inline(never)]
fn asked_in_fault(cpu: usize, what: core::fmt::Arguments<'_>) -> ! {
    panic!("CPU {cpu} asks for {what} while it resolves a fault");
}
