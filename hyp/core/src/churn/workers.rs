//! Which CPUs do the manager's work, and how often.
//!
//! | CPUs | who works | how often |
//! | --- | --- | --- |
//! | some have no vCPU | those | 500 parts a second, all together; up to four blocks in a step |
//! | all have vCPUs | each, when a timer takes it out of its guest | 100 parts a second, all together; one block in a step |
//!
//! One CPU works at a time: who finds another one at it looks again later.

/// Not before the counter's end.
pub const NEVER: u64 = u64::MAX;
/// Parts a second, where CPUs without a vCPU work.
const RATE: u64 = 500;
/// Parts a second, where CPUs work that have vCPUs.
const SHARED_RATE: u64 = 100;
/// Blocks of a step, at the most, on a CPU without a vCPU.
const MOST: u64 = 4;

/// The CPUs of a machine, of which the first have vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// How many there are.
    pub cpus: usize,
    /// How many have vCPUs, if there are as many.
    pub vcpus: usize,
}

impl Workers {
    /// Whether a CPU does parts.
    #[must_use]
    pub const fn works(&self, cpu: usize) -> bool {
        self.is_shared() || !self.has_vcpu(cpu)
    }

    /// Whether a CPU has a vCPU.
    #[must_use]
    pub const fn has_vcpu(&self, cpu: usize) -> bool {
        cpu < self.vcpus
    }

    /// Whether CPUs work that have vCPUs.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.cpus <= self.vcpus
    }

    /// Blocks of a step, at the most.
    #[must_use]
    pub const fn most(&self) -> u64 {
        if self.is_shared() { 1 } else { MOST }
    }

    /// When the next part is due, `now` that one has come to an end.
    #[must_use]
    pub fn due(&self, now: u64, frequency: u64) -> u64 {
        now.saturating_add(self.ticks(frequency))
    }

    /// When a CPU that works is to look again: when the next part is `due`. If it is due already another CPU is doing it.
    #[must_use]
    pub fn look(&self, due: u64, now: u64, frequency: u64) -> u64 {
        if due < now { self.due(now, frequency) } else { due }
    }

    /// From one part to the next.
    fn ticks(&self, frequency: u64) -> u64 {
        let rate = if self.is_shared() { SHARED_RATE } else { RATE };
        frequency.checked_div(rate).unwrap_or(0)
    }
}
