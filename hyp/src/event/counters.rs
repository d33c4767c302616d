//! Per-CPU counters: written by their CPU with plain loads and stores, summed by whoever asks.
//!
//! An addition is not a read-modify-write: each counter has one writer, so it takes no exclusive and
//! costs a load and a store. A reader sees every count that happened before the writer's last release or
//! stop, and sums never go back.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_abi::call::Stat;

/// How many counters there are: those of [`Stat`], then ours.
const COUNT: usize = Stat::ALL.len() + 3;

/// What is counted beyond [`Stat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// Trapped system register accesses.
    Sysregs,
    /// Cache maintenance by set and way, which is ignored.
    SetWay,
    /// Pages installed that carry bytes of the image, the device tree or the ramdisk.
    Payload,
}

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
        self.add_at(Stat::ALL.len() + own as usize, 1);
    }

    #[inline]
    fn add_at(&self, index: usize, count: u64) {
        if let Some(counter) = self.0.get(index) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        }
    }

    fn get_at(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The sum over all CPUs.
pub(crate) fn sum(stat: Stat) -> u64 {
    total(stat as usize)
}

/// The sum over all CPUs of a counter of ours.
pub(crate) fn sum_own(own: Own) -> u64 {
    total(Stat::ALL.len() + own as usize)
}

fn total(index: usize) -> u64 {
    crate::cpu::all().iter().fold(0, |sum, cpu| sum.wrapping_add(cpu.counters.get_at(index)))
}
