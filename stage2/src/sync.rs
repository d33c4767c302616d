//! Atomics and locks, from the machine or from a model checker.
//!
//! With `--cfg loom` or `--cfg shuttle` in RUSTFLAGS the same code runs under that checker, which
//! takes over every access here as a point where threads may interleave. These are cfgs, as the
//! checkers' own convention is, not features: a dependent cannot turn one on by accident. In such a
//! build the module is public, so that models are made of the same atomics.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub use announced::AtomicU64;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(all(shuttle, not(loom)))]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(loom)]
mod announced;
#[cfg(any(loom, shuttle))]
mod in_turn;
#[cfg(any(loom, shuttle))]
pub use in_turn::InTurn;

#[cfg(not(any(loom, shuttle)))]
mod lock {
    use spin::RelaxStrategy;
    use spin::mutex::{TicketMutex, TicketMutexGuard};

    /// A ticket lock: first come, first served.
    #[derive(Debug)]
    pub(crate) struct Lock<T>(TicketMutex<T, Yield>);
    pub(crate) type LockGuard<'l, T> = TicketMutexGuard<'l, T, Yield>;

    impl<T> Lock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(TicketMutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockGuard<'_, T> {
            self.0.lock()
        }
    }

    /// Waits with YIELD, which lets the other thread of a core run, and under an emulator the other CPUs.
    #[derive(Debug)]
    pub(crate) struct Yield;

    impl RelaxStrategy for Yield {
        #[inline]
        fn relax() {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: (1) a hint, without effect on registers or memory.
            unsafe {
                core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "aarch64"))]
            core::hint::spin_loop();
        }
    }
}

#[cfg(any(loom, shuttle))]
mod lock {
    #[cfg(loom)]
    use loom::sync::{Mutex, MutexGuard};
    #[cfg(all(shuttle, not(loom)))]
    use shuttle::sync::{Mutex, MutexGuard};

    /// The checker's own lock: a spinning one would be an endless model.
    #[derive(Debug)]
    pub(crate) struct Lock<T>(Mutex<T>);
    pub(crate) type LockGuard<'l, T> = MutexGuard<'l, T>;

    impl<T> Lock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }
}

pub(crate) use lock::{Lock, LockGuard};

/// Makes a function `const`, except under a model checker: what it watches registers itself as it is made.
macro_rules! const_fn {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(any(loom, shuttle)))]
        $(#[$meta])* $vis const fn $($rest)*
        #[cfg(any(loom, shuttle))]
        $(#[$meta])* $vis fn $($rest)*
    };
}
pub(crate) use const_fn;

/// An array of things with atomics in them, made at compile time where that is possible.
#[cfg(not(any(loom, shuttle)))]
macro_rules! array {
    ($new:expr; $len:expr) => {
        [const { $new }; $len]
    };
}
#[cfg(any(loom, shuttle))]
macro_rules! array {
    ($new:expr; $len:expr) => {
        core::array::from_fn::<_, { $len }, _>(|_| $new)
    };
}
pub(crate) use array;
