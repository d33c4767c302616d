//! How many violations are recovered before a VM is stopped.
//!
//! One word is counted up by every CPU, without a lock and without a loop. Another says which second it is, and where the count was when
//! that began: for whoever counts first in it, by one exchange. So a violation takes one atomic addition. Of those that are
//! counted at the moment at which a second begins, as many as there are CPUs may be missing in its rate; none is in the sum.

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
    /// Bits 63:32 are a second since boot, 31:0 those of the count when it began.
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
        let seen = self.second.load(Ordering::Relaxed);
        // Somebody whose clock was read later may have begun the next second already.
        let began = if seen >> 32 >= second { seen } else { self.begin(seen, second, before) };
        // Less than none, for one that came before him who began it.
        let so_far = (before as u32).wrapping_sub(began as u32).cast_signed();
        if i64::from(so_far) >= i64::from(quota.a_second) {
            return Err(Past::Rate(quota.a_second));
        }
        Ok(())
    }

    /// Begins a second with a violation of this number, unless somebody else has; returns what began it.
    #[cold]
    fn begin(&self, seen: u64, second: u64, before: u64) -> u64 {
        let mine = second << 32 | before & 0xffff_ffff;
        match self.second.compare_exchange(seen, mine, Ordering::Relaxed, Ordering::Relaxed) {
            Err(other) if other >> 32 >= second => other,
            // Or one before it was begun just now, and the next violation begins this one.
            _ => mine,
        }
    }
}
