//! The lock of one table page, and the order in which locks are taken.
//!
//! Each table page has a lock of its own, kept in the metadata of its frame and not in the page, which
//! holds descriptors only (Linux: split page-table locks). It owns every slot that is not Empty; an
//! Empty slot belongs to whoever wins the compare-exchange, so a lock holder must expect one to
//! become populated under its feet.
//!
//! Locks are taken **parent before child, and siblings by ascending IPA**: otherwise two PEs that each
//! hold what the other wants wait for ever. Fault handlers take none. Debug builds check the order at
//! every acquisition; a CPU's held locks are counted beside its guard depth, because whoever waits for a
//! grace period must hold neither.

use crate::addr::{Ipa, Level};
use crate::epoch::Cpu;
use crate::sync::{Lock, LockGuard, const_fn};

/// What the hypervisor keeps for each table page, outside the page.
#[derive(Debug)]
pub struct TableMeta {
    lock: Lock<()>,
}

impl TableMeta {
    const_fn! {
        /// Unlocked.
        #[must_use]
        pub const fn new() -> Self {
            Self { lock: Lock::new(()) }
        }
    }
}

impl Default for TableMeta {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a table stands in the order of locks: by level, then by IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(u64);

impl Rank {
    /// Nothing is held.
    pub(crate) const NONE: Self = Self(0);

    /// Of the table of `level` whose first address is `start`.
    pub(crate) const fn new(level: Level, start: Ipa) -> Self {
        // An IPA has at most 48 bits; 1 keeps the root at address 0 above NONE.
        Self((level as u64) << 60 | start.get() << 1 | 1)
    }
}

/// A table's lock, held by this CPU.
#[derive(Debug)]
pub(crate) struct Held<'g> {
    cpu: &'g Cpu<'g>,
    _lock: LockGuard<'g, ()>,
}

impl<'g> Held<'g> {
    /// Waits for the lock: a ticket lock, first come, first served.
    pub(crate) fn take(meta: &'g TableMeta, cpu: &'g Cpu<'g>, rank: Rank) -> Self {
        cpu.note_lock(rank);
        Self { cpu, _lock: meta.lock.lock() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.cpu.note_unlock();
    }
}
