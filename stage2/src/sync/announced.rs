//! Loom's atomic, with loads that loom cannot overlook.
//!
//! Loom 0.7 reorders an access only against the *last* dependent access to the same atomic. A PE's
//! own load before its store therefore hides the loads that others made earlier, and executions in
//! which these come after the store are never explored:
//!
//! ```text
//! PE 0: load                       PE 1: load, compare-exchange
//! ```
//!
//! Loads are independent of each other, so nothing moves PE 0's behind PE 1's two. Here a load first
//! stores to a second atomic, which nobody ever reads. That orders nothing in the memory model, but
//! two stores are dependent, so loom tries the loads in both orders, and with them the rest.

use loom::sync::atomic::{AtomicU64 as Inner, Ordering};

/// 64 bits.
#[derive(Debug, Default)]
pub struct AtomicU64 {
    value: Inner,
    announced: Inner,
}

impl AtomicU64 {
    /// An atomic that holds `value`.
    #[must_use]
    #[track_caller]
    pub fn new(value: u64) -> Self {
        Self { value: Inner::new(value), announced: Inner::new(0) }
    }

    /// Reads: any value that the memory model permits.
    #[track_caller]
    pub fn load(&self, order: Ordering) -> u64 {
        self.announced.store(0, Ordering::Relaxed);
        self.value.load(order)
    }

    /// Writes.
    #[track_caller]
    pub fn store(&self, value: u64, order: Ordering) {
        self.value.store(value, order);
    }

    /// Writes and returns what it held.
    #[track_caller]
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.value.swap(value, order)
    }

    /// Sets bits and returns what it held.
    #[track_caller]
    pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.value.fetch_or(bits, order)
    }

    /// Keeps bits and returns what it held.
    #[track_caller]
    pub fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.value.fetch_and(bits, order)
    }

    /// Adds and returns what it held.
    #[track_caller]
    pub fn fetch_add(&self, number: u64, order: Ordering) -> u64 {
        self.value.fetch_add(number, order)
    }

    /// Subtracts and returns what it held.
    #[track_caller]
    pub fn fetch_sub(&self, number: u64, order: Ordering) -> u64 {
        self.value.fetch_sub(number, order)
    }

    /// Writes `new` if it holds `old`.
    ///
    /// # Errors
    /// What it held otherwise.
    #[track_caller]
    pub fn compare_exchange(
        &self,
        old: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.value.compare_exchange(old, new, success, failure)
    }
}
