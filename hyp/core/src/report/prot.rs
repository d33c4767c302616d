//! What changes of protections took, one by one, when they were measured.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

/// One call of MEASURE, and what it took. Counts are of what the VM's tables went through meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// TLB invalidations by instruction.
    pub tlbi: BTreeMap<String, u64>,
    /// Data synchronisation barriers, those of other CPUs included.
    pub dsb: u64,
    /// Stage-2 faults of the VM, of any kind.
    pub faults: u64,
    /// Of these, those that met a leaf that was invalid until a flush was over.
    pub met: u64,
}
