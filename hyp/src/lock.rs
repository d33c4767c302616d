//! Locks and waiting.
//!
//! Locks are ticket locks (crate `spin`): first come, first served, so that no CPU waits for ever while
//! others pass it. None is taken on the populate path. EL2 runs with interrupts masked, so a holder is
//! never descheduled.
//!
//! Whoever waits says YIELD: on hardware a hint to the other thread of a core; under QEMU's `-icount`,
//! where one host thread plays all CPUs in turn, the end of this CPU's turn.

use core::arch::asm;

use spin::RelaxStrategy;
use spin::mutex::TicketMutex;

/// A ticket lock that waits with YIELD.
pub(crate) type Lock<T> = TicketMutex<T, Yield>;

/// The way our locks wait.
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
