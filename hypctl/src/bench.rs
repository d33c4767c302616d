//! `hypctl bench`: what the hypervisor's work takes, in instructions, by deterministic counting.
//!
//! The hypervisor's variant `measure` counts with the cycle counter, which advances by one an instruction under
//! `-icount shift=0`, and reports what it counted. Such a run is deterministic: it is made twice, and both the
//! console and the report must agree to the byte. If they do not, the numbers mean nothing, and the command
//! fails.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use hyp_core::report::Report;
use serde::Serialize;

use crate::build::{BuildError, build};
use crate::cli::BenchArgs;
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::hyp_footprint;
use crate::machine::{Machine, Module, Role, shell_line};
use crate::qemu::Qemu;
use crate::run::say;
use crate::session::{self, End, Input};
use crate::workspace::{Variant, Workspace};

pub mod fault;
pub mod linux;
pub mod prot;
pub mod resize;

/// The same mark in both runs, or they could not be the same.
const NONCE: &str = "00112233445566778899aabbccddeeff";
/// A run takes seconds, or minutes if it is made to measure much; one that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Before(#[from] Error),
    #[error("the parameters of the projection: {0}")]
    Parameters(String),
    #[error("QEMU: {0}")]
    Start(io::Error),
    #[error("{why}; the console's end:\n{console}")]
    Run { why: String, console: String, exit: Exit },
}

/// What is measured with.
struct Bench {
    qemu: Qemu,
    workspace: Workspace,
    cpu: String,
}

/// A guest on a machine, ready to run.
struct Setting<'b> {
    bench: &'b Bench,
    machine: Machine,
    addresses: Vec<u64>,
}

/// CPUs of a machine, all of them the guest's.
#[derive(Clone, Copy)]
struct Cpus {
    count: u32,
    /// Counted deterministically; else they run at their own speed.
    icount: bool,
}

/// What a guest asks for, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    machine: u64,
    guest: u64,
}

/// What a run came to, and everything it printed.
#[derive(PartialEq)]
struct Ran {
    report: Report,
    console: Vec<u8>,
}

/// A sentence about why there is no number, and the exit code for it.
fn told(result: Result<Exit, BenchError>) -> Exit {
    result.unwrap_or_else(|error| {
        say(&error.to_string());
        match error {
            BenchError::Before(_) | BenchError::Parameters(_) => Exit::USAGE,
            BenchError::Start(_) => Exit::NO_REPORT,
            BenchError::Run { exit, .. } => exit,
        }
    })
}

/// Prints the result and writes the numbers where they are wanted; fails if the runs differed.
fn publish(json: Option<&Path>, numbers: &impl Serialize, text: &str, identical: bool) -> Exit {
    let _ = io::stdout().write_all(text.as_bytes());
    if let Some(path) = json {
        let written = serde_json::to_vec_pretty(numbers)
            .map_err(io::Error::other)
            .and_then(|text| crate::atomic::write(path, &text));
        if let Err(error) = written {
            say(&format!("{}: {error}", path.display()));
            return Exit::NO_REPORT;
        }
    }
    if identical {
        let _ = writeln!(io::stdout(), "two runs were identical");
        return Exit::OK;
    }
    say("two runs differ; the numbers mean nothing");
    Exit::VERDICT
}

impl Bench {
    /// Builds what is needed.
    fn prepare(arguments: &BenchArgs) -> Result<Self, Error> {
        let workspace = Workspace::find()?;
        let qemu = Qemu::find()?;
        qemu.expect_cpu(&arguments.cpu)?;
        build(&workspace, Variant::Measure, arguments.quiet)?;
        Ok(Self { qemu, workspace, cpu: arguments.cpu.clone() })
    }

    /// A guest of ours with one vCPU, counted; `words` are for the hypervisor.
    fn setting(
        &self,
        guest: &'static str,
        bootargs: String,
        words: &str,
        memory: Memory,
    ) -> Result<Setting<'_>, Error> {
        self.setting_on(Cpus { count: 1, icount: true }, guest, bootargs, words, memory)
    }

    /// A guest of ours with a vCPU on each of these CPUs.
    fn setting_on(
        &self,
        cpus: Cpus,
        guest: &'static str,
        bootargs: String,
        words: &str,
        memory: Memory,
    ) -> Result<Setting<'_>, Error> {
        let path = self.workspace.guest_bin(guest);
        let size = std::fs::metadata(&path).map_err(|_| BuildError::NoProgram(guest))?.len();
        let guest_mem = memory.guest >> 10;
        let machine = Machine {
            cpu: self.cpu.clone(),
            smp: cpus.count,
            mem: memory.machine,
            more: 0,
            no_reboot: true,
            icount: cpus.icount,
            kernel: self.workspace.hyp_bin(Variant::Measure),
            append: format!(
                "vcpus={} mem={guest_mem}K manage measure {words}report={NONCE}",
                cpus.count
            ),
            ram: None,
            modules: vec![Module { role: Role::Kernel { bootargs }, path, size }],
            extra: Vec::<OsString>::new(),
        };
        let addresses = machine.place(hyp_footprint(&machine.kernel)?, memory.guest)?;
        Ok(Setting { bench: self, machine, addresses })
    }
}

impl Setting<'_> {
    /// The QEMU line, for whoever wants to repeat it.
    fn command(&self) -> String {
        shell_line(self.bench.qemu.program(), &self.machine.arguments(&self.addresses))
    }

    /// Runs it twice; says whether both came to the same.
    fn run_twice(&self) -> Result<(Ran, bool), BenchError> {
        let (first, second) = (self.run()?, self.run()?);
        let identical = first == second;
        Ok((first, identical))
    }

    fn run(&self) -> Result<Ran, BenchError> {
        let mut console = Vec::new();
        let mut command = self.machine.command(&self.bench.qemu, &self.addresses);
        let script = Input::Script(Vec::new());
        let outcome = session::run(&mut command, NONCE, script, Some(TIMEOUT), &mut console)
            .map_err(BenchError::Start)?;
        let report = outcome.reports.last().map(|line| Report::from_json(line));
        let (why, exit) = match (&outcome.end, report) {
            (End::Exited(_), Some(Ok(report))) if report.exit_code == 0 => {
                return Ok(Ran { report, console });
            }
            (End::Exited(_), Some(Ok(report))) => {
                (report.outcome.to_string(), Exit::from_report(report.exit_code.into()))
            }
            (End::Exited(_), Some(Err(error))) => (error.to_string(), Exit::NO_REPORT),
            (End::Exited(status), None) => {
                (format!("QEMU ended without a report ({status})"), Exit::NO_REPORT)
            }
            (end, _) => {
                let told = end.told();
                (told.message.unwrap_or_else(|| told.word.to_owned()), told.exit)
            }
        };
        Err(BenchError::Run { why, exit, console: outcome.console_tail })
    }
}

impl Ran {
    /// The measurement, or that there is none.
    fn measured<T>(&self, what: Option<T>) -> Result<T, BenchError> {
        what.ok_or_else(|| BenchError::Run {
            why: "the report has no measurement".to_owned(),
            exit: Exit::NO_REPORT,
            console: String::from_utf8_lossy(&self.console).into_owned(),
        })
    }
}
