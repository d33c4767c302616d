//! The summary file of `--json`: what is known about a run, whatever its end.
//!
//! A program that reads it should look at `exit_code` first, then at `ended`; `report` is the
//! hypervisor's own ([`hyp_core::report::Report`]) and `null` if none came.

use std::io;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::cli::RunArgs;

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// What happened.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The guest as it was asked for.
    pub guest: String,
    /// CPU model.
    pub cpu: String,
    /// CPUs of the machine.
    pub smp: u32,
    /// The emulator's version, if it was found.
    pub qemu: Option<String>,
    /// The emulator's command line, ready for a shell, without the mark of the report and without
    /// the trace.
    pub command: Option<String>,
    /// What `hypctl` exits with.
    pub exit_code: u8,
    /// `report`, `no-report`, `timeout`, `signal`, `left`, `console-gone`, `not-started`; `exited` where there is no hypervisor to report.
    pub ended: &'static str,
    /// What went wrong, in words.
    pub message: Option<String>,
    /// When the emulator was started.
    #[serde(skip)]
    pub started: Option<Instant>,
    /// Wall time of the emulator in seconds.
    pub seconds: f64,
    /// The hypervisor's report.
    pub report: Option<serde_json::Value>,
    /// The trace, if one was written.
    pub trace: Option<crate::trace::Written>,
    /// What a scripted Linux guest told of its boot and its end.
    pub boot: Option<crate::linux::marks::Boot>,
    /// The last of the console, for runs that did not end well.
    pub console_tail: Option<String>,
}

impl Summary {
    /// Of a run that has not begun.
    pub fn of(arguments: &RunArgs) -> Self {
        Self {
            schema: SCHEMA,
            guest: arguments.guest.clone(),
            cpu: arguments.common.cpu.clone(),
            smp: crate::run::smp(arguments),
            ended: "not-started",
            ..Self::default()
        }
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        crate::atomic::write(path, &text)
    }
}
