//! A run that is over, and what a test may expect of it.
//!
//! Every expectation returns the run, so that they chain, and its failure shows the command and the
//! whole console.

use std::fmt;
use std::process::Command;

use hyp_core::report::Report;
use hypctl::machine::shell_line;

use crate::bounded::Ended;

/// A run that is over.
#[derive(Debug)]
pub struct Run {
    command: String,
    ended: Ended,
    summary: Option<serde_json::Value>,
}

impl Run {
    /// What became of `command`; `summary` is the content of the file named by `--json`.
    pub fn new(command: &Command, ended: Ended, summary: Option<String>) -> Self {
        let arguments: Vec<_> = command.get_args().map(Into::into).collect();
        Self {
            command: shell_line(command.get_program().as_ref(), &arguments),
            ended,
            summary: summary.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }

    /// Expects this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let Some(status) = self.ended.status else {
            panic!(
                "still running after {:.0?}, expected exit code {code}\n{self}",
                self.ended.elapsed
            )
        };
        assert_eq!(status.code(), Some(code), "exit code (left) is not the expected one\n{self}");
        if let Some(summary) = &self.summary {
            assert_eq!(summary["exit_code"], code, "exit code in the summary\n{self}");
            // A VM that ran and ended left nothing behind, whatever the test is about.
            if summary["report"]["lives"].as_u64().is_some_and(|lives| lives > 0) {
                let down = self.report().takedown;
                assert!(down.is_some_and(|it| it.complaint().is_none()), "a leak\n{self}");
            }
        }
        self
    }

    /// Expects `text` on the console.
    #[track_caller]
    pub fn shows(self, text: &str) -> Self {
        assert!(self.console().contains(text), "the console does not show {text:?}\n{self}");
        self
    }

    /// Expects that `text` is nowhere on the console.
    #[track_caller]
    pub fn shows_no(self, text: &str) -> Self {
        assert!(!self.console().contains(text), "the console shows {text:?}\n{self}");
        self
    }

    /// Expects `texts` on the console, one after the other.
    #[track_caller]
    pub fn shows_in_order(self, texts: &[&str]) -> Self {
        let mut rest = self.console();
        for text in texts {
            match rest.find(text) {
                Some(at) => rest = &rest[at + text.len()..],
                None => panic!("the console does not show {text:?} where it is due\n{self}"),
            }
        }
        self
    }

    /// Expects `text` on standard error, where `hypctl` and QEMU speak.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.ended.stderr.contains(text), "standard error has no {text:?}\n{self}");
        self
    }

    /// Expects that QEMU was never started.
    #[track_caller]
    pub fn never_started(self) -> Self {
        assert_eq!(self.ended_by(), "not-started", "QEMU was started\n{self}");
        self
    }

    /// Applies a check that may panic; whatever it says is followed by the run.
    #[track_caller]
    pub fn checks(self, what: &str, check: impl FnOnce(&Report) -> bool) -> Self {
        assert!(check(&self.report()), "not so: {what}\n{self}");
        self
    }

    /// The hypervisor's report.
    #[track_caller]
    pub fn report(&self) -> Report {
        let report = self.summary.as_ref().map(|summary| summary["report"].clone());
        match report.map(serde_json::from_value) {
            Some(Ok(report)) => report,
            Some(Err(error)) => panic!("no report: {error}\n{self}"),
            None => panic!("no summary was written\n{self}"),
        }
    }

    /// A part of the summary: `a/b` is `b` in `a`.
    #[track_caller]
    pub fn summary(&self, path: &str) -> &serde_json::Value {
        let part = self.summary.as_ref().and_then(|summary| summary.pointer(&format!("/{path}")));
        part.unwrap_or_else(|| panic!("the summary has no {path}\n{self}"))
    }

    /// The summary's word for the end.
    #[track_caller]
    pub fn ended_by(&self) -> &str {
        let word = self.summary.as_ref().and_then(|summary| summary["ended"].as_str());
        word.unwrap_or_else(|| panic!("no summary was written\n{self}"))
    }

    /// What the guest and the hypervisor printed.
    pub fn console(&self) -> &str {
        &self.ended.stdout
    }

    /// What `hypctl` and QEMU said.
    pub fn messages(&self) -> &str {
        &self.ended.stderr
    }

    /// Wall time of the whole call.
    pub fn elapsed(&self) -> std::time::Duration {
        self.ended.elapsed
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.ended.status {
            Some(status) => status.to_string(),
            None => "still running".to_owned(),
        };
        writeln!(f, "\ncommand: {}", self.command)?;
        writeln!(f, "ended:   {status} after {:.1?}", self.ended.elapsed)?;
        writeln!(f, "--- console")?;
        writeln!(f, "{}", self.ended.stdout.trim_end())?;
        writeln!(f, "--- standard error")?;
        writeln!(f, "{}", self.ended.stderr.trim_end())?;
        write!(f, "---")
    }
}
