//! How an access and its event come to stand at the same place of the trace, in each of three builds.
//!
//! * **Plain threads** (and *shuttle*): one lock is held around the access and its event. Shuttle may
//!   switch threads before *and after* each atomic access, so the lock must be one of its own: a
//!   thread that waits for it lets the others run.
//! * **Loom** (`--cfg loom`): the access comes first, without a lock, and its event right after. Loom
//!   switches threads before an atomic access only (`rt::Atomic` calls `branch`, then acts), so
//!   nothing comes between. A lock of loom's would be a synchronization that the code under test does
//!   not have, and hide its missing orders; a lock of the standard library's, held across a switch,
//!   would never be given back. So the oracle's own state is behind a plain lock that is never held
//!   while loom is called, and adds no happens-before.
//!
//! Loom knows nothing of barriers and invalidations. A `DSB ISH` is its sequentially consistent fence,
//! a `DSB ISHST` a release fence (a little more than the architecture promises for loads), a
//! `DSB NSH` nothing, since it orders nothing for other PEs.

use core::cell::Cell;
#[cfg(not(shuttle))]
pub(super) use std::sync::{Mutex, MutexGuard as Guard};

#[cfg(loom)]
use loom::thread_local;
#[cfg(shuttle)]
pub(super) use shuttle::sync::{Mutex, MutexGuard as Guard};
#[cfg(shuttle)]
use shuttle::thread_local;

use crate::event::{Dsb, Pe};

#[cfg(not(loom))]
thread_local! {
    static PE: Cell<Pe> = const { Cell::new(0) };
}

// Loom's macro wants a plain expression.
#[cfg(loom)]
thread_local! {
    static PE: Cell<Pe> = Cell::new(0);
}

/// The PE that the executing thread is.
pub(super) fn pe() -> Pe {
    PE.with(Cell::get)
}

/// Makes the executing thread another PE; returns which it was.
pub(super) fn become_pe(pe: Pe) -> Pe {
    PE.with(|cell| cell.replace(pe))
}

/// What a barrier orders among the program's own accesses.
pub(super) fn fence(kind: Dsb) {
    #[cfg(loom)]
    match kind {
        Dsb::Ish => loom::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst),
        Dsb::IshSt => loom::sync::atomic::fence(core::sync::atomic::Ordering::Release),
        Dsb::IshLd => loom::sync::atomic::fence(core::sync::atomic::Ordering::Acquire),
        Dsb::Nsh | Dsb::NshSt | Dsb::NshLd => {}
    }
    #[cfg(not(loom))]
    match kind {
        Dsb::Ish | Dsb::IshSt | Dsb::IshLd => {
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        }
        Dsb::Nsh | Dsb::NshSt | Dsb::NshLd => {}
    }
}
