//! Per-CPU counters: written by their CPU with plain loads and stores, summed by whoever asks.
//!
//! An addition is not a read-modify-write: each counter has one writer, so it takes no exclusive and
//! costs a load and a store. A reader sees every count that happened before the writer's last release or
//! stop, and sums never go back.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_abi::call::Stat;

/// What is counted beyond [`Stat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// TLB conflict aborts of guests.
    Conflicts,
    /// Blocks that were split with nT instead of a break.
    SplitMarked,
    /// Blocks that were split at once, with no break.
    SplitLive,
    /// Trapped system register accesses.
    Sysregs,
    /// Data synchronisation barriers of the stage-2 protocols.
    Dsb,
    /// Frames and tables cleaned and invalidated to the point of coherency.
    FramesCleaned,
    /// Frames cleaned to the point of unification.
    FramesUnified,
    /// Invalidations of all instruction caches.
    InstructionFlushes,
    /// Trapped set/way operations.
    SetWay,
    /// Trapped writes of virtual memory registers.
    VmRegisters,
    /// Those that switched the caches on or off.
    CacheToggles,
    /// Cleanings of all of a VM's memory.
    CacheWalks,
    /// Parts of these.
    CacheParts,
    /// Pages cleaned by them.
    PagesCleaned,
    /// Parts of scans that idle CPUs did.
    IdleScans,
    /// TLB invalidations, in the order of [`TLBI_NAMES`]: the first of them.
    Tlbi,
}

/// Names of the invalidations that are counted.
pub(crate) const TLBI_NAMES: [&str; 11] = [
    "IPAS2E1IS",
    "IPAS2LE1IS",
    "RIPAS2E1IS",
    "IPAS2E1",
    "VMALLE1IS",
    "VMALLE1",
    "VMALLS12E1IS",
    "VMALLS12E1",
    "ALLE1IS",
    "VAE2IS",
    "ALLE2IS",
];

const OWN: usize = Stat::ALL.len();
const COUNT: usize = OWN + Own::Tlbi as usize + TLBI_NAMES.len();

/// One CPU's counters, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counters([AtomicU64; COUNT]);

impl Counters {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }

    /// Adds one. Only the owner calls this.
    #[inline]
    pub(crate) fn bump(&self, stat: Stat) {
        self.add_at(stat as usize, 1);
    }

    /// Adds `count`. Only the owner calls this.
    #[inline]
    pub(crate) fn add(&self, stat: Stat, count: u64) {
        self.add_at(stat as usize, count);
    }

    /// Adds one to a counter of ours. Only the owner calls this.
    #[inline]
    pub(crate) fn bump_own(&self, own: Own) {
        self.add_at(OWN + own as usize, 1);
    }

    /// Adds `count` to a counter of ours. Only the owner calls this.
    #[inline]
    pub(crate) fn add_own(&self, own: Own, count: u64) {
        self.add_at(OWN + own as usize, count);
    }

    /// Counts one TLB invalidation of this name. Only the owner calls this.
    pub(crate) fn bump_tlbi(&self, name: &str) {
        if let Some(kind) = TLBI_NAMES.iter().position(|known| *known == name) {
            self.add_at(OWN + Own::Tlbi as usize + kind, 1);
        }
    }

    /// What this CPU has counted.
    pub(crate) fn own(&self, stat: Stat) -> u64 {
        self.0.get(stat as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    #[inline]
    fn add_at(&self, index: usize, count: u64) {
        if let Some(counter) = self.0.get(index) {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(count);
            counter.store(sum, Ordering::Relaxed);
        }
    }
}

/// The sum over all CPUs.
pub(crate) fn sum(stat: Stat) -> u64 {
    total(stat as usize)
}

/// The sum over all CPUs of a counter of ours.
pub(crate) fn sum_own(own: Own) -> u64 {
    total(OWN + own as usize)
}

/// The sums over all CPUs of the invalidations that happened, by name.
pub(crate) fn sum_tlbi() -> impl Iterator<Item = (&'static str, u64)> {
    let sums = (0..).map(|kind| total(OWN + Own::Tlbi as usize + kind));
    TLBI_NAMES.into_iter().zip(sums).filter(|(_, count)| *count != 0)
}

fn total(index: usize) -> u64 {
    let of =
        |counters: &Counters| counters.0.get(index).map_or(0, |one| one.load(Ordering::Relaxed));
    crate::cpu::all().iter().fold(0, |sum, cpu| sum.wrapping_add(of(&cpu.counters)))
}
