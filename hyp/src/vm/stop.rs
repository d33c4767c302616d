//! Why a VM ends, and the report that says so.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use hyp_abi::call::Stat;
use hyp_core::diagnosis::Diagnosis;
use hyp_core::report::{CacheStats, Outcome, Report, ScanStats, Stats, Takedown};

use super::churning;
use super::create::Plan;
use crate::event::counters::{self, Own};
use crate::event::violations;

/// Why the VM ends.
#[derive(Debug)]
pub(crate) enum Reason {
    /// PSCI SYSTEM_OFF.
    PoweredOff,
    /// PSCI SYSTEM_RESET.
    Reset,
    /// The guest's verdict.
    Verdict(u64),
    /// The guest did what cannot be answered.
    Diagnosis(Box<Diagnosis>),
}

/// What the run came to: after so many lives, of which the last began at a counter's value. `down` is how the VM was taken down,
/// if it could be.
pub(super) fn report(
    plan: &Plan,
    reason: Reason,
    (lives, began): (u32, u64),
    down: Option<Takedown>,
) -> Report {
    let (outcome, diagnosis) = match reason {
        Reason::PoweredOff => (Outcome::PoweredOff, None),
        Reason::Reset => (Outcome::Reset, None),
        Reason::Verdict(code) => (Outcome::Verdict(code), None),
        Reason::Diagnosis(diagnosis) => (Outcome::Stopped, Some(*diagnosis)),
    };
    let mut report = Report::new(outcome);
    report.vcpus = plan.vcpus as u32;
    report.guest_mem = plan.mem;
    report.lives = lives;
    report.began = began;
    report.cpu_features = format!("{}", plan.features);
    report.stats = stats();
    report.diagnosis = diagnosis;
    report.violation_log = violations::end();
    if let Some(down) = down {
        report.taken_down(down);
    }
    #[cfg(feature = "measure")]
    if plan.measure {
        let [populate, relax, recover] = crate::event::measure::result();
        (report.measure, report.relaxing, report.recovering) = (populate, relax, recover);
        report.spent = crate::event::measure::spent();
        report.resizing = crate::event::resizing::result();
        report.prot = super::measuring::result();
    }
    report
}

fn stats() -> Stats {
    Stats {
        faults: counters::sum(Stat::Faults),
        installed: counters::sum(Stat::Installed),
        lost_races: counters::sum(Stat::LostRaces),
        tables: counters::sum(Stat::Tables),
        lost_tables: counters::sum(Stat::LostTables),
        retries: counters::sum(Stat::Retries),
        spurious: counters::sum(Stat::Spurious),
        relaxed: counters::sum(Stat::Relaxed),
        violations: counters::sum(Stat::Violations),
        released: counters::sum(Stat::Released),
        scratched: counters::sum(Stat::Scratched),
        recovered: counters::sum(Stat::Recovered),
        injected: counters::sum(Stat::Injected),
        violations_lost: counters::sum(Stat::ViolationsLost),
        mmio: counters::sum(Stat::Mmio),
        hypercalls: counters::sum(Stat::Hypercalls),
        drained: counters::sum(Stat::Drained),
        tables_freed: counters::sum(Stat::TablesFreed),
        moved: counters::sum(Stat::Moved),
        blocks: counters::sum(Stat::Blocks),
        split: counters::sum(Stat::Split),
        split_marked: counters::sum_own(Own::SplitMarked),
        split_live: counters::sum_own(Own::SplitLive),
        collapsed: counters::sum(Stat::Collapsed),
        copied: counters::sum(Stat::Copied),
        filled: counters::sum(Stat::Filled),
        scan: ScanStats {
            passes: counters::sum(Stat::ScanPasses),
            idle: counters::sum_own(Own::IdleScans),
            looked: counters::sum(Stat::Scanned),
            waits: counters::sum(Stat::ScanWaits),
            rests: counters::sum(Stat::ScanRests),
            made: counters::sum(Stat::ScanMade),
            failed: counters::sum(Stat::ScanFailed),
        },
        churn: churning::effects(),
        tlb_conflicts: counters::sum_own(Own::Conflicts),
        runs: counters::sum(Stat::Runs),
        dissolved: counters::sum(Stat::Dissolved),
        sysregs: counters::sum_own(Own::Sysregs),
        caches: CacheStats {
            frames_cleaned: counters::sum_own(Own::FramesCleaned),
            frames_unified: counters::sum_own(Own::FramesUnified),
            instruction_flushes: counters::sum_own(Own::InstructionFlushes),
            set_way: counters::sum_own(Own::SetWay),
            vm_registers: counters::sum_own(Own::VmRegisters),
            toggles: counters::sum_own(Own::CacheToggles),
            walks: counters::sum_own(Own::CacheWalks),
            parts: counters::sum_own(Own::CacheParts),
            pages_cleaned: counters::sum_own(Own::PagesCleaned),
        },
        tlbi: counters::sum_tlbi().map(|(name, count)| (String::from(name), count)).collect(),
        dsb: counters::sum_own(Own::Dsb),
    }
}
