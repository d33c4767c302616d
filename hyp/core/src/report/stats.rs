//! Counts over all CPUs of what was done for a VM.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::churn::Effects;

/// What was done about caches for a VM: see [`caches`](crate::caches).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStats {
    /// Frames and tables cleaned and invalidated to the point of coherency before their use.
    pub frames_cleaned: u64,
    /// Frames cleaned to the point of unification.
    pub frames_unified: u64,
    /// Invalidations of all instruction caches.
    pub instruction_flushes: u64,
    /// Trapped set/way operations.
    pub set_way: u64,
    /// Trapped writes of virtual memory registers.
    pub vm_registers: u64,
    /// Of these, those that switched the caches on or off.
    pub toggles: u64,
    /// Times that all of the VM's memory was cleaned.
    pub walks: u64,
    /// Parts in which that was done.
    pub parts: u64,
    /// Pages of 4 KiB that were cleaned by it.
    pub pages_cleaned: u64,
}

/// Scans for pages that are worth a block of 2 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanStats {
    /// Those that came to the end of RAM.
    pub passes: u64,
    /// Parts of scans that idle CPUs did.
    pub idle: u64,
    /// Spans of 2 MiB that were looked at.
    pub looked: u64,
    /// Of these, those that looked worth a block and have to do so again.
    pub waits: u64,
    /// Spans that were left alone because they were split, or could not become a block.
    pub rests: u64,
    /// Blocks made, in either way.
    pub made: u64,
    /// Spans that could not be made a block of.
    pub failed: u64,
}

/// Counts over all CPUs of what was done for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Stage-2 faults taken, of any kind.
    pub faults: u64,
    /// Pages, or blocks, that a fault installed.
    pub installed: u64,
    /// Installs that lost to another virtual CPU.
    pub lost_races: u64,
    /// Tables installed below the root.
    pub tables: u64,
    /// Tables that lost to another virtual CPU's and were given back.
    pub lost_tables: u64,
    /// Faults returned to the guest to try again.
    pub retries: u64,
    /// Faults that found a translation that permits the access.
    pub spurious: u64,
    /// Faults that gave a leaf which was there what the access needed.
    pub relaxed: u64,
    /// Accesses to RAM that its permissions do not allow: each was an abort in the guest.
    pub violations: u64,
    /// Pages that the guest has given back.
    pub released: u64,
    /// Pages at which the scratch page was installed.
    pub scratched: u64,
    /// Accesses to addresses without memory that went on, on the scratch page.
    pub recovered: u64,
    /// Accesses to addresses without memory that were an abort in the guest.
    pub injected: u64,
    /// Violations that no record was made of, because a log was full.
    pub violations_lost: u64,
    /// Emulated device accesses.
    pub mmio: u64,
    /// HVC and SMC calls.
    pub hypercalls: u64,
    /// Faults that met a slot whose translation was being taken away.
    pub drained: u64,
    /// Tables given back.
    pub tables_freed: u64,
    /// Pages moved to another frame.
    pub moved: u64,
    /// Of what faults installed, the blocks.
    pub blocks: u64,
    /// Blocks that were split into pages.
    pub split: u64,
    /// Of these, with the bit nT instead of a break (FEAT_BBM level 1).
    pub split_marked: u64,
    /// Of these, at once and with no break (FEAT_BBM level 2).
    pub split_live: u64,
    /// Blocks that were made of pages.
    pub collapsed: u64,
    /// Blocks that were made by copying pages together.
    pub copied: u64,
    /// Pages that were missing in those, and were populated.
    pub filled: u64,
    /// Scans.
    pub scan: ScanStats,
    /// What was done to its memory in the background.
    pub churn: Effects,
    /// TLB conflict aborts of the guest, of any cause.
    pub tlb_conflicts: u64,
    /// Contiguous runs of 16 pages that were made.
    pub runs: u64,
    /// Those that were dissolved, other than by a collapse or a copy.
    pub dissolved: u64,
    /// Trapped system register accesses.
    pub sysregs: u64,
    /// Caches.
    pub caches: CacheStats,
    /// TLB invalidations by instruction, such as `VMALLS12E1IS`.
    pub tlbi: BTreeMap<String, u64>,
    /// Data synchronisation barriers that wait for TLB invalidations or table updates.
    pub dsb: u64,
}
