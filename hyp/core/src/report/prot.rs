//! What changes of protections took, one by one, when they were measured.

use serde::{Deserialize, Serialize};

/// One call of MEASURE, and what it took. There are many in a report: it takes nothing from the heap.
///
/// Counts are of what the VM's tables went through meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtSample {
    /// What was done: a `Way` of crate `hyp-abi`, as a word.
    pub way: u64,
    /// Pages of 4 KiB in the range.
    pub pages: u64,
    /// What it took: instructions under deterministic counting, else nanoseconds.
    pub ticks: u64,
    /// From the first change of a batch to the end of its flush, the longest, likewise.
    pub window: u64,
    /// Leaves that were changed.
    pub changed: u64,
    /// Of these, those that were invalid until the flush was over.
    pub broken: u64,
    /// TLB invalidations, in the order of [`TLBI`](Self::TLBI).
    pub tlbi: [u64; 7],
    /// Data synchronisation barriers, those of other CPUs included.
    pub dsb: u64,
    /// Stage-2 faults of the VM, of any kind.
    pub faults: u64,
    /// Of these, those that met a leaf that was invalid until a flush was over.
    pub met: u64,
}

impl ProtSample {
    /// The instructions that are counted.
    pub const TLBI: [&str; 7] = [
        "IPAS2E1IS",
        "RIPAS2E1IS",
        "IPAS2E1",
        "VMALLE1IS",
        "VMALLE1",
        "VMALLS12E1IS",
        "VMALLS12E1",
    ];
}
