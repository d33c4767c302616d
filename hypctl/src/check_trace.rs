//! `hypctl check-trace`: a recorded trace, judged by the oracle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use mmu_oracle::event::{Aim, Event, Scope};
use mmu_oracle::recorded::{Judgement, Order, Recording, RecordingError};
use serde::Serialize;

use crate::cli::CheckTraceArgs;
use crate::exit::Exit;
use crate::run::say;

/// Verdicts that people are shown: one mistake often makes hundreds.
const SHOWN: usize = 20;
/// How long nothing is said of the progress.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is said, on a terminal and elsewhere.
const OFTEN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// What a trace comes to.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    file: String,
    source: Option<String>,
    order: Order,
    /// PEs of the machine, and of those the ones that did something.
    pes: usize,
    active_pes: usize,
    events: usize,
    /// Events that the recorder had no room for: the trace is judged up to there.
    dropped: u64,
    incomplete: u64,
    tables_allocated: usize,
    tables_freed: usize,
    writes: usize,
    hw_updates: usize,
    tlbi: BTreeMap<String, usize>,
    dsb: BTreeMap<String, usize>,
    flushes_of_a_range: usize,
    flushes_of_a_vm: usize,
    unjudged: Vec<String>,
    verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    line: usize,
    defect: String,
    rule: String,
    what: String,
    /// What led to it: lines, and events as people read them.
    trace: Vec<(Option<usize>, String)>,
}

/// Runs `hypctl check-trace`.
pub fn check(arguments: &CheckTraceArgs) -> Exit {
    let report = match judge(&arguments.file) {
        Ok(report) => report,
        Err(error) => {
            say(&format!("{}: {error}", arguments.file.display()));
            return Exit::USAGE;
        }
    };
    let text = if arguments.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_or_else(|error| error.to_string(), |json| json + "\n")
    } else {
        report.text()
    };
    if io::stdout().write_all(text.as_bytes()).is_err() {
        return Exit::CONSOLE_GONE;
    }
    if report.verdicts.is_empty() { Exit::OK } else { Exit::VERDICT }
}

fn judge(path: &Path) -> Result<Report, RecordingError> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("this is a folder; a trace is a file").into());
    }
    let size = file.metadata()?.len();
    let mut progress = Progress::new();
    let recording =
        Recording::read(BufReader::new(file), |read| progress.tell("reading", read, size))?;
    let judgement =
        recording.judge(|done, all| progress.tell("judging", done as u64, all as u64))?;
    progress.end();
    Ok(Report::new(path, &recording, judgement))
}

impl Report {
    fn new(path: &Path, recording: &Recording, judgement: Judgement) -> Self {
        let header = &recording.header;
        let verdict = |found: mmu_oracle::recorded::Found| Verdict {
            line: found.line,
            defect: found.verdict.defect.to_string(),
            rule: found.verdict.defect.rule().to_owned(),
            what: found.verdict.what,
            trace: found.trace.iter().map(|(line, event)| (*line, event.to_string())).collect(),
        };
        let mut report = Self {
            schema: 1,
            file: path.display().to_string(),
            source: header.source.clone(),
            order: header.order,
            pes: header.machine.pes,
            active_pes: 0,
            events: recording.lines.len(),
            dropped: header.dropped,
            incomplete: header.incomplete,
            tables_allocated: 0,
            tables_freed: 0,
            writes: 0,
            hw_updates: judgement.hw_updates,
            tlbi: BTreeMap::new(),
            dsb: BTreeMap::new(),
            flushes_of_a_range: 0,
            flushes_of_a_vm: 0,
            unjudged: judgement.unjudged,
            verdicts: judgement.found.into_iter().map(verdict).collect(),
        };
        let mut active = vec![false; header.machine.pes];
        for line in &recording.lines {
            active[line.event.pe()] = true;
            report.count(&line.event);
        }
        report.active_pes = active.into_iter().filter(|active| *active).count();
        report
    }

    fn count(&mut self, event: &Event) {
        match *event {
            Event::Write { .. } => self.writes += 1,
            Event::HwUpdate { .. } => self.hw_updates += 1,
            Event::AllocTable { .. } => self.tables_allocated += 1,
            Event::FreeTable { .. } => self.tables_freed += 1,
            Event::Flushed { span: Some(_), .. } => self.flushes_of_a_range += 1,
            Event::Flushed { span: None, .. } => self.flushes_of_a_vm += 1,
            Event::Tlbi { scope, aim, .. } => {
                *self.tlbi.entry(instruction(scope, aim)).or_default() += 1;
            }
            Event::Dsb { kind, .. } => {
                let name = format!("{kind:?}").to_uppercase();
                *self.dsb.entry(name).or_default() += 1;
            }
            _ => {}
        }
    }

    fn text(&self) -> String {
        let order = match self.order {
            Order::Total => "in total order",
            Order::PerPe => "in each PE's own order only",
        };
        let mut rows = vec![
            ("events", format!("{} of {} PEs, {order}", self.events, self.active_pes)),
            (
                "tables",
                format!("{} allocated, {} given back", self.tables_allocated, self.tables_freed),
            ),
            ("descriptor writes", self.writes.to_string()),
            ("hardware updates", self.hw_updates.to_string()),
            ("TLBIs", counts(&self.tlbi)),
            ("DSBs", counts(&self.dsb)),
            (
                "flushes relied on",
                format!(
                    "{} of a range, {} of a whole VM",
                    self.flushes_of_a_range, self.flushes_of_a_vm
                ),
            ),
        ];
        if let Some(source) = &self.source {
            rows.insert(0, ("source", source.clone()));
        }
        if self.dropped != 0 {
            let dropped = format!("after the last line; {} events are missing", self.dropped);
            rows.push(("truncated", dropped));
        }
        if self.incomplete != 0 {
            rows.push(("incomplete", format!("{} events, the last of their PEs", self.incomplete)));
        }
        rows.extend(self.unjudged.iter().map(|what| ("not judged", what.clone())));
        let verdicts = match self.verdicts.len() {
            0 => "none".to_owned(),
            count => count.to_string(),
        };
        rows.push(("verdicts", verdicts));
        let mut text: String =
            rows.into_iter().map(|(label, value)| format!("{label:20} {value}\n")).collect();
        for verdict in self.verdicts.iter().take(SHOWN) {
            let Verdict { line, defect, rule, what, trace } = verdict;
            text += &format!("\n{}:{line}: {defect}: {what}\n    {rule}\n", self.file);
            for (at, event) in trace {
                let mark = if *at == Some(*line) { '>' } else { ' ' };
                let at = at.map_or_else(|| "-".to_owned(), |at| at.to_string());
                text += &format!("  {mark} {at:>7}  {event}\n");
            }
        }
        if let Some(more @ 1..) = self.verdicts.len().checked_sub(SHOWN) {
            text += &format!("\n{more} more; --json has all\n");
        }
        text
    }
}

fn counts(counts: &BTreeMap<String, usize>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    words.join(", ")
}

/// The instruction's name.
fn instruction(scope: Scope, aim: Aim) -> String {
    let name = match aim {
        Aim::Ipa(_) => "IPAS2E1",
        Aim::IpaLast(_) => "IPAS2LE1",
        Aim::IpaRange(_) => "RIPAS2E1",
        Aim::IpaRangeLast(_) => "RIPAS2LE1",
        Aim::VmStage1 => "VMALLE1",
        Aim::Vm => "VMALLS12E1",
        Aim::All => "ALLE1",
        Aim::El2Va(_) => "VAE2",
        Aim::El2All => "ALLE2",
    };
    let suffix = match scope {
        Scope::Is => "IS",
        Scope::Local => "",
    };
    format!("{name}{suffix}")
}

/// Says on standard error how far a long check is.
struct Progress {
    terminal: bool,
    next: Instant,
    said: bool,
}

impl Progress {
    fn new() -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, next: Instant::now() + PATIENCE, said: false }
    }

    fn tell(&mut self, what: &str, done: u64, all: u64) {
        // The clock costs more than most events.
        if !done.is_multiple_of(64) || Instant::now() < self.next {
            return;
        }
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(0).min(100);
        let (start, end) = if self.terminal { ("\r", "") } else { ("", "\n") };
        let _ = write!(io::stderr(), "{start}hypctl: {what}: {percent} %{end}");
        self.next = Instant::now() + OFTEN[usize::from(!self.terminal)];
        self.said = true;
    }

    fn end(&self) {
        if self.said && self.terminal {
            let _ = write!(io::stderr(), "\r{:30}\r", "");
        }
    }
}
