//! The summary that people read: what a report says, a fact a line; what did not happen is mostly left out.

use alloc::format;
use core::fmt;

use super::{CacheStats, Measure, Report, Resizing, ScanStats, Stats, Takedown, Work};
use crate::churn;
use crate::range::{Bytes, Count};

impl fmt::Display for Report {
    /// The summary: several lines, one fact a line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:LABEL$} {}", "outcome", self.outcome)?;
        if let Some(reason) = &self.reason {
            write!(f, "\n{:LABEL$} {reason}", "reason")?;
        }
        if self.vcpus != 0 {
            let vcpus = Count(u64::from(self.vcpus), "vCPU");
            let memory = Bytes(self.guest_mem);
            write!(f, "\n{:LABEL$} {vcpus}, {memory} of RAM", "guest")?;
            if !self.cpu_features.is_empty() {
                write!(f, "\n{:LABEL$} {}", "stage-2 features", self.cpu_features)?;
            }
            if self.lives > 1 {
                row(f, "starts", u64::from(self.lives))?;
            }
            self.stats.rows(f)?;
            if let Some(Takedown { frames, tables, .. }) = &self.takedown {
                row(f, "frames back at end", *frames)?;
                row(f, "tables back in all", *tables)?;
            }
        }
        for (measure, label) in [
            (&self.measure, "populate fault"),
            (&self.relaxing, "fault on a leaf"),
            (&self.recovering, "recovered fault"),
        ] {
            let Some(Measure { samples, min, median, max }) = measure else { continue };
            row(f, label, *median)?;
            write!(f, " instructions (median of {samples}, {min} to {max})")?;
        }
        super::spent::rows(&self.spent, f, LABEL)?;
        if let Some(Resizing { split, collapse, copy }) = &self.resizing {
            for (work, label) in [(split, "splitting"), (collapse, "collapsing"), (copy, "copying")]
            {
                work.row(f, label)?;
            }
        }
        if !self.prot.is_empty() {
            row(f, "changes measured", self.prot.len() as u64)?;
        }
        if !self.violation_log.is_empty() {
            write!(f, "\n{:LABEL$} {}", "violation log", self.violation_log)?;
            for violation in self.violation_log.list.iter().take(VIOLATIONS) {
                write!(f, "\n  {violation}")?;
            }
            match self.violation_log.list.len().saturating_sub(VIOLATIONS) {
                0 => {}
                more => write!(f, "\n  and {}, in the report line", Count(more as u64, "row"))?,
            }
        }
        if let Some(diagnosis) = &self.diagnosis {
            write!(f, "\n{diagnosis}")?;
        }
        Ok(())
    }
}

/// Width of a line's label.
const LABEL: usize = 20;
/// Rows of the violation log that people are shown.
const VIOLATIONS: usize = 16;

impl Work {
    fn row(&self, f: &mut fmt::Formatter<'_>, label: &str) -> fmt::Result {
        let Self { calls, blocks, instructions, tlbis, flushes } = *self;
        if calls == 0 {
            return Ok(());
        }
        row(f, label, instructions)?;
        write!(f, " instructions ({}, ", Count(blocks, "block"))?;
        write!(f, "{}, {}, ", Count(calls, "call"), Count(tlbis, "TLBI"))?;
        write!(f, "flushed {})", Count(flushes, "time"))
    }
}

impl Stats {
    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "faults taken", self.faults)?;
        row(f, "pages installed", self.installed)?;
        row(f, "page races lost", self.lost_races)?;
        row(f, "tables allocated", self.tables)?;
        row(f, "table races lost", self.lost_tables)?;
        row(f, "faults retried", self.retries)?;
        row(f, "spurious faults", self.spurious)?;
        if self.relaxed != 0 {
            row(f, "leaves relaxed", self.relaxed)?;
        }
        if self.violations != 0 {
            row(f, "violations", self.violations)?;
        }
        if self.released != 0 {
            row(f, "pages released", self.released)?;
        }
        let of_windows = [
            ("recovered", self.recovered),
            ("scratch pages", self.scratched),
            ("injected", self.injected),
            ("violations lost", self.violations_lost),
        ];
        for (label, count) in of_windows.into_iter().filter(|(_, count)| *count != 0) {
            row(f, label, count)?;
        }
        row(f, "device accesses", self.mmio)?;
        row(f, "hypercalls", self.hypercalls)?;
        row(f, "register traps", self.sysregs)?;
        if self.moved != 0 {
            row(f, "pages moved", self.moved)?;
            row(f, "faults met in Drain", self.drained)?;
        }
        if (self.blocks, self.split, self.collapsed) != (0, 0, 0) {
            row(f, "blocks installed", self.blocks)?;
            row(f, "blocks split", self.split)?;
            row(f, "  by nT", self.split_marked)?;
            row(f, "  at once", self.split_live)?;
            row(f, "blocks made", self.collapsed)?;
        }
        if self.copied != 0 {
            row(f, "blocks copied", self.copied)?;
            row(f, "holes filled", self.filled)?;
        }
        self.scan.rows(f)?;
        churn::rows(&self.churn, f, LABEL)?;
        if self.runs != 0 {
            row(f, "runs made", self.runs)?;
            row(f, "runs dissolved", self.dissolved)?;
        }
        if self.tlb_conflicts != 0 {
            row(f, "TLB conflicts", self.tlb_conflicts)?;
        }
        self.caches.rows(f)?;
        if self.tlbi.is_empty() {
            row(f, "TLBIs", 0)?;
        }
        for (kind, count) in &self.tlbi {
            row(f, &format!("TLBI {kind}"), *count)?;
        }
        row(f, "DSBs", self.dsb)
    }
}

impl ScanStats {
    /// What there was, if anything was scanned.
    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.looked == 0 {
            return Ok(());
        }
        row(f, "scans of all RAM", self.passes)?;
        row(f, "idle CPUs' parts", self.idle)?;
        row(f, "spans looked at", self.looked)?;
        row(f, "spans to wait", self.waits)?;
        row(f, "spans to rest", self.rests)?;
        row(f, "blocks by scans", self.made)?;
        row(f, "spans that stay", self.failed)
    }
}

impl CacheStats {
    /// What there was.
    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("frames cleaned", self.frames_cleaned),
            ("frames unified", self.frames_unified),
            ("I-cache flushes", self.instruction_flushes),
            ("set/way traps", self.set_way),
            ("cache toggles", self.toggles),
            ("cleanings of the VM", self.walks),
            ("pages cleaned then", self.pages_cleaned),
        ];
        rows.into_iter()
            .filter(|(_, count)| *count != 0)
            .try_for_each(|(label, count)| row(f, label, count))
    }
}

fn row(f: &mut fmt::Formatter<'_>, label: &str, count: u64) -> fmt::Result {
    write!(f, "\n{label:LABEL$} {count}")
}
