//! A trace that a run has left, what `hypctl check-trace` says of it, and how a test doctors it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hypctl::machine::shell_line;
use mmu_oracle::Event;
use mmu_oracle::recorded::Recording;
use tempfile::TempDir;

use crate::bounded::{self, Ended};
use crate::hypctl;

/// Judging takes less than a second.
const BOUND: Duration = Duration::from_secs(60);

/// A trace in a file of its own.
#[derive(Debug)]
pub struct Trace {
    folder: TempDir,
}

impl Trace {
    /// No file yet, but a place for it.
    #[track_caller]
    pub fn none() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A file with this content.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let trace = Self::none();
        std::fs::write(trace.path(), text).unwrap();
        trace
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("trace.jsonl")
    }

    /// Its lines, the header first.
    #[track_caller]
    pub fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path());
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", self.path().display()));
        text.lines().map(str::to_owned).collect()
    }

    /// Its content.
    #[track_caller]
    pub fn recording(&self) -> Recording {
        let text = self.lines().join("\n");
        Recording::read(text.as_bytes(), |_| {}).unwrap()
    }

    /// Its first event for which `wanted` holds, as an index into [`lines`](Self::lines).
    #[track_caller]
    pub fn find(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> usize {
        let recording = self.recording();
        let line = recording.lines.iter().find(|line| wanted(&line.event));
        line.unwrap_or_else(|| panic!("the trace has no {what}")).number - 1
    }

    /// This trace up to where the first PE leaves its VM: what the guest did, without the take-down.
    #[track_caller]
    pub fn life(&self) -> Self {
        // VMID 0 is no VM's: a PE that had another one has left.
        let (recording, mut running) = (self.recording(), HashMap::new());
        let leaves = |event: &Event| match *event {
            Event::SetVttbr { pe, value } => {
                let (vmid, before) = (value >> 48, running.insert(pe, value >> 48));
                vmid == 0 && before.is_some_and(|before| before != 0)
            }
            _ => false,
        };
        let end = recording.lines.iter().map(|line| &line.event).position(leaves);
        // The header is a line, too; before the register is written comes a DSB.
        let end = end.expect("a PE leaves its VM") + 1;
        self.doctored(|lines| lines.truncate(end - 1))
    }

    /// This trace with its lines changed.
    #[track_caller]
    pub fn doctored(&self, change: impl FnOnce(&mut Vec<String>)) -> Self {
        let mut lines = self.lines();
        change(&mut lines);
        Self::of(&(lines.join("\n") + "\n"))
    }

    /// What `hypctl check-trace` makes of it.
    #[track_caller]
    pub fn check(&self) -> Checked {
        Checked::of(&self.path(), &[])
    }

    /// The same for programs: the JSON, and the exit code.
    #[track_caller]
    pub fn check_json(&self) -> (serde_json::Value, Option<i32>) {
        let checked = Checked::of(&self.path(), &["--json"]);
        let json = serde_json::from_str(&checked.ended.stdout);
        let json = json.unwrap_or_else(|error| panic!("{error}: {checked:?}"));
        (json, checked.code())
    }
}

/// What `hypctl check-trace` said.
#[derive(Debug)]
pub struct Checked {
    command: String,
    ended: Ended,
}

impl Checked {
    /// Checks a file.
    #[track_caller]
    pub fn of(path: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(hypctl());
        command.arg("check-trace").arg(path).args(options);
        let arguments: Vec<_> = command.get_args().map(Into::into).collect();
        let line = shell_line(command.get_program().as_ref(), &arguments);
        Self { command: line, ended: bounded::run(&mut command, b"", BOUND).unwrap() }
    }

    fn code(&self) -> Option<i32> {
        self.ended.status.and_then(|status| status.code())
    }

    /// Expects this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let Ended { stdout, stderr, .. } = &self.ended;
        assert_eq!(self.code(), Some(code), "{}\n{stdout}{stderr}", self.command);
        self
    }

    /// Expects `text` on standard output.
    #[track_caller]
    pub fn shows(self, text: &str) -> Self {
        assert!(
            self.ended.stdout.contains(text),
            "no {text:?}: {}\n{}",
            self.command,
            self.ended.stdout
        );
        self
    }

    /// Expects `text` on standard error.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.ended.stderr.contains(text),
            "no {text:?}: {}\n{}",
            self.command,
            self.ended.stderr
        );
        self
    }
}
