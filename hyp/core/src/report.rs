//! What a run came to: the summary that people read, and the JSON line that programs read.
//!
//! The hypervisor fills in a [`Report`] when the VM has ended, and prints its [`Display`](fmt::Display) form.
//! When it was given a nonce it also prints one line, [`Report::to_line`], which the host command finds
//! with [`Report::from_line`]. A guest writes to the same console, but it does not know the nonce, so
//! it cannot forge a report.

mod prot;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use prot::ProtSample;
use serde::{Deserialize, Serialize};

use crate::churn::{self, Effects};
use crate::config::Nonce;
use crate::diagnosis::Diagnosis;
use crate::range::{Bytes, Count};
use crate::violation;

/// The format that [`Report::version`] names.
pub const VERSION: u32 = 1;

/// Starts a report line: ASCII record separator.
pub const MARK: char = '\x1e';

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest gave a verdict: 0 is a pass.
    Verdict(u64),
    /// The VM was stopped: see the diagnosis.
    Stopped,
    /// Nothing was started: see the reason.
    Refused,
    /// EL2 crashed: see the reason.
    Crashed,
}

impl Outcome {
    /// The exit code that the host command ends with.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::PoweredOff | Self::Reset | Self::Verdict(0) => 0,
            Self::Verdict(_) => 1,
            Self::Stopped => 3,
            Self::Refused => 4,
            Self::Crashed => 5,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Verdict(0) => f.write_str("the guest's verdict is pass"),
            Self::Verdict(code) => write!(f, "the guest's verdict is fail, code {code}"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::Refused => f.write_str("nothing was started"),
            Self::Crashed => f.write_str("the hypervisor crashed"),
        }
    }
}

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

/// How long faults of one kind took, from the vector to the return; zeroing and cleaning not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// How many were timed.
    pub samples: u64,
    /// The fastest, in instructions.
    pub min: u64,
    /// The median, in instructions.
    pub median: u64,
    /// The slowest, in instructions.
    pub max: u64,
}

/// What it took to change the size of mappings, when that was measured: the sums over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resizing {
    /// Blocks that were split into pages.
    pub split: Work,
    /// Blocks that were made of pages.
    pub collapse: Work,
    /// Blocks that were made of copies.
    #[serde(default)]
    pub copy: Work,
}

/// A kind of calls, and what they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Calls.
    pub calls: u64,
    /// Blocks of 2 MiB that changed.
    pub blocks: u64,
    /// EL2 instructions.
    pub instructions: u64,
    /// TLB invalidations; one of a range form is one.
    pub tlbis: u64,
    /// Flushes: the invalidations of a batch, and the wait for them.
    pub flushes: u64,
}

/// How the VM was taken down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takedown {
    /// Frames of guest RAM that went back to the pool.
    pub frames: u64,
    /// Table pages that stage 2 has given back in this life, the root not counted.
    pub tables: u64,
    /// Frames that the pool has less (or more) than before the first life.
    pub leaked_frames: u64,
    /// Bytes that the heap has less (or more) than before the first life.
    pub leaked_heap: u64,
    /// What stage 2 found wrong, in words.
    #[serde(default)]
    pub wrong: Option<String>,
}

impl Takedown {
    /// What is not as it should be, in one sentence; `None` if all is.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let Self { leaked_frames, leaked_heap, wrong, .. } = self;
        if let Some(wrong) = wrong {
            return Some(format!("the VM could not be taken down: {wrong}"));
        }
        let leaked = (*leaked_frames, *leaked_heap) != (0, 0);
        leaked.then(|| {
            let frames = Count(*leaked_frames, "frame");
            format!(
                "after the VM's end {frames} and {} of the heap are missing",
                Bytes(*leaked_heap)
            )
        })
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Format of this report: [`VERSION`].
    pub version: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// What the host command exits with.
    pub exit_code: u8,
    /// Why nothing was started or why EL2 crashed, in one sentence.
    #[serde(default)]
    pub reason: Option<String>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub guest_mem: u64,
    /// Times that the guest was started.
    #[serde(default)]
    pub lives: u32,
    /// What the physical counter read when it was started the last time: there its virtual counter is 0.
    #[serde(default)]
    pub began: u64,
    /// The CPU features that stage 2 used, for people.
    #[serde(default)]
    pub cpu_features: String,
    /// Counts.
    #[serde(default)]
    pub stats: Stats,
    /// Why the VM was stopped.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
    /// How its memory came back, the last time; nothing if that was not tried.
    #[serde(default)]
    pub takedown: Option<Takedown>,
    /// Times of populate faults, when they were measured.
    #[serde(default)]
    pub measure: Option<Measure>,
    /// Times of faults that gave a leaf what a write needed, likewise.
    #[serde(default)]
    pub relaxing: Option<Measure>,
    /// Times of faults that were recovered by the scratch page, likewise.
    #[serde(default)]
    pub recovering: Option<Measure>,
    /// Work on the size of mappings, when it was measured.
    #[serde(default)]
    pub resizing: Option<Resizing>,
    /// Changes of protections, in the order in which they were measured.
    #[serde(default)]
    pub prot: Vec<ProtSample>,
    /// Who reached for what is not there.
    #[serde(default)]
    pub violation_log: violation::Summary,
}

/// Why a report line cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Not JSON, or not of this form.
    #[error("the report cannot be read: {0}")]
    Json(serde_json::Error),
    /// A format of another version.
    #[error("the report has version {0}, wanted is {VERSION}")]
    Version(u32),
}

impl Report {
    /// A report of this outcome, with nothing else filled in.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            version: VERSION,
            outcome,
            exit_code: outcome.exit_code(),
            reason: None,
            vcpus: 0,
            guest_mem: 0,
            lives: 0,
            began: 0,
            cpu_features: String::new(),
            stats: Stats::default(),
            diagnosis: None,
            takedown: None,
            measure: None,
            relaxing: None,
            recovering: None,
            resizing: None,
            prot: Vec::new(),
            violation_log: violation::Summary::default(),
        }
    }

    /// Notes how the VM was taken down. If that went wrong the hypervisor is at fault, whatever the guest's
    /// outcome: the exit code says so.
    pub fn taken_down(&mut self, down: Takedown) {
        if let Some(complaint) = down.complaint() {
            self.exit_code = Outcome::Crashed.exit_code();
            self.reason = Some(complaint);
        }
        self.takedown = Some(down);
    }

    /// As JSON, without a newline anywhere.
    ///
    /// # Errors
    /// [`ReportError::Json`]; not for any value that this type can hold.
    pub fn to_json(&self) -> Result<String, ReportError> {
        serde_json::to_string(self).map_err(ReportError::Json)
    }

    /// From JSON.
    ///
    /// # Errors
    /// [`ReportError`]: not a report, or one of another version.
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        /// Read first, so that another version is called that and not a missing field.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(ReportError::Json)?;
        if version != VERSION {
            return Err(ReportError::Version(version));
        }
        serde_json::from_str(text).map_err(ReportError::Json)
    }

    /// The line for the host command: mark, nonce, JSON; without the newline.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    pub fn to_line(&self, nonce: &Nonce) -> Result<String, ReportError> {
        Ok(format!("{MARK}{nonce}{}", self.to_json()?))
    }

    /// The report in a console line, if the line carries one with this nonce. Output that the guest left
    /// without a newline may stand before the mark.
    #[must_use]
    pub fn from_line(line: &str, nonce: &Nonce) -> Option<Result<Self, ReportError>> {
        let (_, rest) = line.rsplit_once(MARK)?;
        let json = rest.strip_prefix(nonce.as_str())?;
        json.starts_with('{').then(|| Self::from_json(json.trim_end()))
    }
}

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
