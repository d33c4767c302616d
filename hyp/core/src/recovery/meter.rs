//! How many violations are recovered before a VM is stopped.
//!
//! Two words, both counted by every CPU, without a lock and without a loop: how many there have been, and in the second of the last
//! one how many. A second begins with the first violation that is counted in it; the word only grows, so it begins once.

use core::sync::atomic::{AtomicU64, Ordering};

/// How many violations a VM may have recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// In all.
    pub in_all: u64,
    /// In a second.
    pub a_second: u32,
}

impl Quota {
    /// If nothing else is asked for. The rate lets a guest go through as many pages as windows may have outside of RAM, 1 GiB, in one
    /// second, and the limit four times.
    pub const DEFAULT: Self = Self { in_all: 1 << 20, a_second: 1 << 18 };
}

/// What has been counted of them.
#[derive(Debug, Default)]
pub struct Meter {
    all: AtomicU64,
    /// Bits 63:32 are a second since boot, 31:0 the violations in it.
    second: AtomicU64,
}

/// Too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Past {
    /// In all.
    #[error("{0} violations were recovered, and no more are: see recover-limit")]
    Limit(u64),
    /// In a second.
    #[error("{0} violations were recovered within a second, and no more are: see recover-rate")]
    Rate(u32),
}

/// Of the word for the rate: the violations.
const COUNT: u64 = 0xffff_ffff;

impl Meter {
    /// Nothing has been counted.
    #[must_use]
    pub const fn new() -> Self {
        Self { all: AtomicU64::new(0), second: AtomicU64::new(0) }
    }

    /// Counts a violation in a second since boot. Lock-free, and without a loop.
    ///
    /// # Errors
    /// [`Past`], if there were as many before as there may be: this one is not to be recovered.
    #[inline]
    pub fn count(&self, quota: &Quota, second: u64) -> Result<(), Past> {
        let before = self.all.fetch_add(1, Ordering::Relaxed);
        if before >= quota.in_all {
            return Err(Past::Limit(quota.in_all));
        }
        if self.in_second(second) > u64::from(quota.a_second) {
            return Err(Past::Rate(quota.a_second));
        }
        Ok(())
    }

    /// The number of this violation within its second.
    #[inline]
    fn in_second(&self, second: u64) -> u64 {
        let old = self.second.fetch_add(1, Ordering::Relaxed);
        // Somebody whose clock was read later may have begun the next second already.
        if old >> 32 >= second { (old & COUNT).wrapping_add(1) } else { self.begin(second) }
    }

    #[cold]
    fn begin(&self, second: u64) -> u64 {
        let first = second << 32 | 1;
        if self.second.fetch_max(first, Ordering::Relaxed) < first {
            return 1;
        }
        // Another CPU has begun it.
        (self.second.fetch_add(1, Ordering::Relaxed) & COUNT).wrapping_add(1)
    }
}
