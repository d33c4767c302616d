//! The end of the VM.
//!
//! Whoever first has a reason claims the stop. It kicks the other CPUs by SGI, which takes them out of the
//! guest or out of WFI, and waits until each has parked: then nothing writes to the console any more and
//! the counters stand still. Then it tells the report and cuts the power. A CPU that finds the stop
//! claimed parks, whatever reason it may have had itself.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aarch64_cpu::asm;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use hyp_abi::call::Stat;
use hyp_core::diagnosis::Diagnosis;
use hyp_core::report::{CacheStats, Outcome, Report, Stats};

use super::Vm;
use crate::cpu::{self, PerCpu};
use crate::event::counters::{self, Own};
use crate::lock::relax;
use crate::platform::gic;
use crate::{end, say};

/// Seconds to wait for the others: they are in EL2 for microseconds only.
const PATIENCE: u64 = 10;

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

/// Whether the VM is being ended, and who has parked.
#[derive(Debug)]
pub(crate) struct Stop {
    claimed: AtomicBool,
    parked: AtomicUsize,
}

impl Stop {
    /// Nobody has a reason yet.
    pub(crate) const fn new() -> Self {
        Self { claimed: AtomicBool::new(false), parked: AtomicUsize::new(0) }
    }

    /// Whether the VM is being ended: park.
    #[inline]
    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// Stays here until the power goes. The caller holds no lock and no guard.
    pub(crate) fn park(&self) -> ! {
        self.parked.fetch_add(1, Ordering::Release);
        loop {
            asm::wfi();
        }
    }
}

/// Ends the VM. The caller holds no lock and no guard.
pub(crate) fn stop(vm: &Vm, cpu: &PerCpu, reason: Reason) -> ! {
    if vm.stop.claimed.swap(true, Ordering::AcqRel) {
        vm.stop.park();
    }
    for other in cpu::all().iter().take(vm.vcpus).filter(|other| other.number != cpu.number) {
        gic::kick(other.mpidr.load(Ordering::Relaxed));
    }
    let deadline = CNTPCT_EL0.get().saturating_add(PATIENCE * CNTFRQ_EL0.get());
    while vm.stop.parked.load(Ordering::Acquire) + 1 < vm.vcpus {
        if CNTPCT_EL0.get() > deadline {
            say!("not all CPUs have stopped within {PATIENCE} s");
            break;
        }
        relax();
    }
    end::finish(&report(vm, reason))
}

fn report(vm: &Vm, reason: Reason) -> Report {
    let (outcome, diagnosis) = match reason {
        Reason::PoweredOff => (Outcome::PoweredOff, None),
        Reason::Reset => (Outcome::Reset, None),
        Reason::Verdict(code) => (Outcome::Verdict(code), None),
        Reason::Diagnosis(diagnosis) => (Outcome::Stopped, Some(*diagnosis)),
    };
    let mut report = Report::new(outcome);
    report.vcpus = vm.vcpus as u32;
    report.guest_mem = vm.mem;
    report.cpu_features = format!("{}", vm.features);
    report.stats = stats();
    report.diagnosis = diagnosis;
    #[cfg(feature = "measure")]
    if vm.measure {
        report.measure = crate::event::measure::result();
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
        mmio: counters::sum(Stat::Mmio),
        hypercalls: counters::sum(Stat::Hypercalls),
        drained: counters::sum(Stat::Drained),
        tables_freed: counters::sum(Stat::TablesFreed),
        moved: counters::sum(Stat::Moved),
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
