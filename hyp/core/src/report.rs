//! What a run came to: the summary that people read, and the JSON line that programs read.
//!
//! The hypervisor fills in a [`Report`] when the VM has ended, and prints its [`Display`](fmt::Display) form.
//! When it was given a nonce it also prints one line, [`Report::to_line`], which the host command finds
//! with [`Report::from_line`]. A guest writes to the same console, but it does not know the nonce, so
//! it cannot forge a report.

mod prot;
mod spent;
mod stats;
mod summary;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use prot::ProtSample;
use serde::{Deserialize, Serialize};
pub use spent::{AllSpent, Cause, Spent};
pub use stats::{CacheStats, ScanStats, Stats};

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
    /// What EL2's instructions were spent on, likewise.
    #[serde(default)]
    pub spent: AllSpent,
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
            spent: AllSpent::new(),
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
