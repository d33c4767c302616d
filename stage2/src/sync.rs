//! The atomics, from the machine or from a model checker.
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

/// Makes a function `const`, except under loom: its atomics register themselves as they are made.
macro_rules! const_fn {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$meta])* $vis fn $($rest)*
    };
}
pub(crate) use const_fn;

/// An array of things with atomics in them, made at compile time where that is possible.
#[cfg(not(loom))]
macro_rules! array {
    ($new:expr; $len:expr) => {
        [const { $new }; $len]
    };
}
#[cfg(loom)]
macro_rules! array {
    ($new:expr; $len:expr) => {
        core::array::from_fn::<_, { $len }, _>(|_| $new)
    };
}
pub(crate) use array;
