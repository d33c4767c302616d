//! Traces in files: written while something ran, judged later.
//!
//! A file is JSON lines. The first line is a [`Header`], each further one an [`Event`] as `serde` writes
//! it, in the order that the header names. A `Write` may carry one field more, `old`: what the descriptor
//! held before, as the instruction that wrote it saw it. Lines without anything are skipped.
//!
//! ```text
//! {"format":"mmu-trace","version":1,"order":"total","machine":{"pes":2,"start_level":1,…}}
//! {"AllocTable":{"pe":0,"table":1611661312}}
//! {"Write":{"pe":0,"slot":1611661320,"new":1611665411,"atomic":true,"relaxed":false,"old":0}}
//! {"Dsb":{"pe":0,"kind":"ish_st"}}
//! ```
//!
//! # Two orders
//!
//! *Total*: the lines are in the order in which everything took effect. One [`Model`](crate::Model) judges all of it. What
//! `old` says must fit what was written before; where it does not, but hardware may have set the access
//! flag or the dirty state, the update is put in ([`Event::HwUpdate`]); else the trace has a hole or is
//! in no total order, and is refused.
//!
//! *Per PE*: the lines of one PE are in its program order, and that is all that is known. Each PE
//! is judged alone ([`Recording::judge`] says what that leaves out).
//!
//! Nothing in a file is believed: numbers that no machine has are errors with line and column, and no
//! content makes this module panic.

mod judge;
#[cfg(test)]
mod tests;

use core::fmt;
use std::io::{self, BufRead};

pub use judge::{Found, Judgement};
use serde::{Deserialize, Serialize};

use crate::event::{Event, Pe};
use crate::model::Machine;

/// What a header calls the format.
pub const FORMAT: &str = "mmu-trace";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The longest line that is read, in bytes.
pub const LINE_MAX: usize = 64 << 10;

/// Addresses are below this.
const ADDRESS_END: u64 = 1 << 52;
const PAGE: u64 = 1 << 12;

/// What the order of the lines says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The order in which everything took effect.
    Total,
    /// Of the events of one PE: their program order. Of those of two PEs: nothing.
    PerPe,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// What the order of the lines says.
    pub order: Order,
    /// What the model must know.
    pub machine: Machine,
    /// Events that happened after the last line, because the recorder had no room.
    #[serde(default)]
    pub dropped: u64,
    /// Events that a PE had begun to record when the recording ended: the last of their PEs.
    #[serde(default)]
    pub incomplete: u64,
    /// What was recorded, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Header {
    /// A header of the present version.
    #[must_use]
    pub fn new(order: Order, machine: Machine) -> Self {
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Self { format, version, order, machine, dropped: 0, incomplete: 0, source: None }
    }

    /// As a line, without the newline.
    ///
    /// # Errors
    /// None that this type can cause; `serde_json`'s signature.
    pub fn to_line(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// One event of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands, from 1.
    pub number: usize,
    /// What happened.
    pub event: Event,
    /// Of a write: what the descriptor held before, if that is known.
    pub old: Option<u64>,
}

/// An event as a line, without the newline; `old` is what a written descriptor held before.
///
/// # Errors
/// None that these types can cause; `serde_json`'s signature.
pub fn to_line(event: &Event, old: Option<u64>) -> serde_json::Result<String> {
    let mut line = serde_json::to_string(event)?;
    if let (Event::Write { .. }, Some(old)) = (event, old) {
        // Both braces that close the line: the event's and its fields'.
        line.truncate(line.len() - 2);
        line += &format!(",\"old\":{old}}}}}");
    }
    Ok(line)
}

/// Why a file is no trace.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecordingError {
    /// It cannot be read.
    Io(io::Error),
    /// It is empty, or its first line is no header of a trace.
    NoHeader {
        /// The column, from 1.
        column: usize,
        /// Why.
        why: String,
    },
    /// Another version.
    Version(u64),
    /// A line that is none.
    Line {
        /// Which, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// Why.
        why: String,
    },
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::NoHeader { column, why } => {
                write!(f, "line 1, column {column}: no header of a trace: {why}")
            }
            Self::Version(version) => {
                write!(f, "line 1: a trace of version {version}; version {VERSION} can be read")
            }
            Self::Line { line, column, why } => write!(f, "line {line}, column {column}: {why}"),
        }
    }
}

impl core::error::Error for RecordingError {}

impl From<io::Error> for RecordingError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The first line.
    pub header: Header,
    /// The others.
    pub lines: Vec<Line>,
}

impl Recording {
    /// Reads a file. `progress` hears after each line how many bytes were read.
    ///
    /// # Errors
    /// [`RecordingError`]: not readable, not a trace of this version, or a line that is no event of
    /// the header's machine.
    pub fn read(
        mut file: impl BufRead,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, RecordingError> {
        let (mut bytes, mut lines) = (Vec::new(), Vec::new());
        let mut read = next_line(&mut file, &mut bytes, 1)?;
        let header = header(&bytes)?;
        for number in 2.. {
            progress(read);
            match next_line(&mut file, &mut bytes, number)? {
                0 => break,
                more => read += more,
            }
            if !bytes.is_empty() {
                lines.push(line(&bytes, number, &header.machine)?);
            }
        }
        Ok(Self { header, lines })
    }
}

/// Reads a line into `bytes`, without what is blank at its end; returns how long it was, 0 at the
/// end of the file.
fn next_line(
    file: &mut impl BufRead,
    bytes: &mut Vec<u8>,
    line: usize,
) -> Result<u64, RecordingError> {
    bytes.clear();
    let read = io::Read::take(&mut *file, LINE_MAX as u64).read_until(b'\n', bytes)?;
    if read == LINE_MAX {
        let why = format!("the line is longer than {LINE_MAX} bytes");
        return Err(RecordingError::Line { line, column: read, why });
    }
    bytes.truncate(bytes.trim_ascii_end().len());
    Ok(read as u64)
}

fn header(bytes: &[u8]) -> Result<Header, RecordingError> {
    /// Read first, so that another version is called that and not a missing field.
    #[derive(Deserialize)]
    struct Name {
        format: String,
        version: u64,
    }
    let no_header = |error: serde_json::Error| RecordingError::NoHeader {
        column: error.column(),
        why: words(&error),
    };
    let bad = |why: String| Err(RecordingError::NoHeader { column: 1, why });
    if bytes.is_empty() {
        return bad("there is nothing".to_owned());
    }
    let name: Name = serde_json::from_slice(bytes).map_err(no_header)?;
    if name.format != FORMAT {
        return bad(format!("the format is {:?}, not {FORMAT:?}", name.format));
    }
    if name.version != u64::from(VERSION) {
        return Err(RecordingError::Version(name.version));
    }
    let header: Header = serde_json::from_slice(bytes).map_err(no_header)?;
    let Machine { pes, start_level, root_pages, bbm, .. } = header.machine;
    for (name, value, least, most) in [
        ("pes", pes as u64, 1, 64),
        ("start_level", start_level.into(), 0, 3),
        ("root_pages", root_pages, 1, 16),
        ("bbm", bbm.into(), 0, 2),
    ] {
        if !(least..=most).contains(&value) {
            return bad(format!("machine.{name} is {value}, not {least} to {most}"));
        }
    }
    Ok(header)
}

fn line(bytes: &[u8], number: usize, machine: &Machine) -> Result<Line, RecordingError> {
    /// The field of a write that is not in [`Event`].
    #[derive(Deserialize)]
    struct WithOld {
        #[serde(rename = "Write")]
        write: Option<Old>,
    }
    #[derive(Deserialize)]
    struct Old {
        old: Option<u64>,
    }
    let at = |column, why| RecordingError::Line { line: number, column, why };
    let bad = |error: serde_json::Error| at(error.column(), words(&error));
    let event: Event = serde_json::from_slice(bytes).map_err(bad)?;
    check(&event, machine).map_err(|why| at(1, why))?;
    let old = match event {
        Event::Write { .. } => {
            let with: WithOld = serde_json::from_slice(bytes).map_err(bad)?;
            with.write.and_then(|write| write.old)
        }
        _ => None,
    };
    Ok(Line { number, event, old })
}

/// `serde_json`'s words without its line, which is always the first.
fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line").map_or(text.clone(), |(words, _)| words.to_owned())
}

/// Whether an event is one of this machine's.
fn check(event: &Event, machine: &Machine) -> Result<(), String> {
    let pe: Pe = event.pe();
    if pe >= machine.pes {
        return Err(format!("PE {pe}, and the machine has {}", machine.pes));
    }
    let aligned = |what: &str, address: u64, to: u64| {
        if address >= ADDRESS_END || !address.is_multiple_of(to) {
            return Err(format!("{what} {address:#x} is not below 2^52 and a multiple of {to}"));
        }
        Ok(())
    };
    let inside = |what: &str, start: u64, bytes: u64| match start.checked_add(bytes) {
        Some(end) if end <= ADDRESS_END => Ok(()),
        _ => Err(format!("{what} {start:#x} with {bytes:#x} bytes ends beyond 2^52")),
    };
    match *event {
        // CnP is bit 0; a root smaller than a page is not modelled.
        Event::SetVttbr { value, .. } => aligned("a root at", value & 0x0000_ffff_ffff_fffe, PAGE),
        Event::Write { slot, .. }
        | Event::HwUpdate { slot, .. }
        | Event::GuestStore { slot, .. }
        | Event::Start { slot, .. }
        | Event::Commit { slot, .. } => aligned("a descriptor at", slot, 8),
        Event::Harvested { count, .. } if count > 512 => {
            Err(format!("{count} descriptors, a table has 512"))
        }
        Event::Harvested { slot, .. } => aligned("a descriptor at", slot, 8),
        Event::AllocTable { table, .. }
        | Event::FreeTable { table, .. }
        | Event::ListTable { table, .. }
        | Event::Scribble { table, .. }
        | Event::Lock { table, .. }
        | Event::El2Root { root: table, .. }
        | Event::Unlock { table, .. } => aligned("a table at", table, PAGE),
        Event::FreeFrame { frame, bytes, .. } => inside("a frame at", frame, bytes),
        Event::Flushed { span: Some(span), .. } => inside("IPAs from", span.ipa, span.bytes),
        Event::Flushed { span: None, .. }
        | Event::Published { .. }
        | Event::Isb { .. }
        | Event::Dsb { .. }
        | Event::Tlbi { .. }
        | Event::El2Flushed { .. }
        | Event::ReuseVmid { .. } => Ok(()),
    }
}
