//! `hypctl bench fault`: EL2 instructions of one populate fault, from the vector to the ERET.
//!
//! The hypervisor's variant `measure` reads the cycle counter at both ends of every populate fault,
//! without the zeroing and the cleaning of the page, and reports minimum, median and maximum. Under
//! `-icount shift=0` that counter counts instructions, and the whole run is deterministic: it is
//! made twice, and both the console and the report must agree to the byte. If they do not, the
//! number means nothing, and the command fails.

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use hyp_core::report::{Measure, Report};
use serde::Serialize;

use crate::build::{BuildError, build};
use crate::cli::BenchArgs;
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::hyp_footprint;
use crate::machine::{Machine, Module, Role, shell_line};
use crate::qemu::Qemu;
use crate::run::say;
use crate::session::{self, End, Input, Outcome};
use crate::workspace::{Variant, Workspace};

/// The guest that is measured.
const GUEST: &str = "bench-fault";
/// The same mark in both runs, or they could not be the same.
const NONCE: &str = "00112233445566778899aabbccddeeff";
/// A run takes seconds; one that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Machine memory, bytes.
const MEM: u64 = 512 << 20;
/// Guest memory that holds the pages of a full run, bytes.
const GUEST_MEM: u64 = 64 << 20;

#[derive(Debug, Serialize)]
struct Numbers<'a> {
    schema: u32,
    what: &'a str,
    cpu: &'a str,
    qemu: String,
    command: String,
    measure: Measure,
    identical: bool,
}

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Before(#[from] Error),
    #[error("QEMU: {0}")]
    Start(io::Error),
    #[error("{why}; the console's end:\n{console}")]
    Run { why: String, console: String, exit: Exit },
}

/// Runs `hypctl bench fault`.
pub fn fault(arguments: &BenchArgs) -> Exit {
    match measure(arguments) {
        Ok(exit) => exit,
        Err(error) => {
            say(&error.to_string());
            match error {
                BenchError::Before(_) => Exit::USAGE,
                BenchError::Start(_) => Exit::NO_REPORT,
                BenchError::Run { exit, .. } => exit,
            }
        }
    }
}

fn measure(arguments: &BenchArgs) -> Result<Exit, BenchError> {
    let (qemu, machine, addresses) = prepare(arguments)?;
    let (first, first_console) = once(&qemu, &machine, &addresses)?;
    let (second, second_console) = once(&qemu, &machine, &addresses)?;
    let identical = first == second && first_console == second_console;
    let result = Numbers {
        schema: 1,
        what: "EL2 instructions of one populate fault, from vector to ERET",
        cpu: &arguments.cpu,
        qemu: qemu.version().to_string(),
        command: shell_line(qemu.program(), &machine.arguments(&addresses)),
        measure: first,
        identical,
    };
    if let Some(path) = &arguments.json {
        let written = serde_json::to_vec_pretty(&result)
            .map_err(io::Error::other)
            .and_then(|text| crate::atomic::write(path, &text));
        if let Err(error) = written {
            say(&format!("{}: {error}", path.display()));
            return Ok(Exit::NO_REPORT);
        }
    }
    let Measure { samples, min, median, max } = first;
    let text = format!(
        "populate fault: EL2 instructions from vector to ERET, zeroing and cleaning not counted\n\
         cpu {}, {samples} faults: min {min}, median {median}, max {max}\n",
        arguments.cpu
    );
    let _ = io::stdout().write_all(text.as_bytes());
    if identical {
        let _ = writeln!(io::stdout(), "two runs were identical");
        return Ok(Exit::OK);
    }
    say(&format!("two runs differ: {first:?} and {second:?}; the numbers mean nothing"));
    Ok(Exit::VERDICT)
}

fn prepare(arguments: &BenchArgs) -> Result<(Qemu, Machine, Vec<u64>), Error> {
    let workspace = Workspace::find()?;
    let qemu = Qemu::find()?;
    qemu.expect_cpu(&arguments.cpu)?;
    build(&workspace, Variant::Measure, arguments.quiet)?;
    let pages = if arguments.quick { 512 } else { 4096 };
    let path = workspace.guest_bin(GUEST);
    let size = std::fs::metadata(&path).map_err(|_| BuildError::NoProgram(GUEST))?.len();
    let role = Role::Kernel { bootargs: format!("pages={pages}") };
    let machine = Machine {
        cpu: arguments.cpu.clone(),
        smp: 1,
        mem: MEM,
        no_reboot: true,
        icount: true,
        kernel: workspace.hyp_bin(Variant::Measure),
        append: format!("vcpus=1 mem={}K measure report={NONCE}", GUEST_MEM >> 10),
        ram: None,
        modules: vec![Module { role, path, size }],
        extra: Vec::<OsString>::new(),
    };
    let addresses = machine.place(hyp_footprint(&machine.kernel)?, GUEST_MEM)?;
    Ok((qemu, machine, addresses))
}

/// One run: what it measured, and everything it printed.
fn once(
    qemu: &Qemu,
    machine: &Machine,
    addresses: &[u64],
) -> Result<(Measure, Vec<u8>), BenchError> {
    let mut console = Vec::new();
    let mut command = machine.command(qemu, addresses);
    let script = Input::Script(Vec::new());
    let outcome = session::run(&mut command, NONCE, script, Some(TIMEOUT), &mut console)
        .map_err(BenchError::Start)?;
    let report = outcome.reports.last().map(|line| Report::from_json(line));
    let why = match (&outcome.end, report) {
        (End::Exited(_), Some(Ok(report))) if report.exit_code == 0 => match report.measure {
            Some(measure) if measure.samples > 0 => return Ok((measure, console)),
            _ => "the report has no measurement".to_owned(),
        },
        (End::Exited(_), Some(Ok(report))) => {
            let exit = Exit::from_report(report.exit_code.into());
            return Err(failed(report.outcome.to_string(), exit, &outcome));
        }
        (End::Exited(_), Some(Err(error))) => error.to_string(),
        (End::Exited(status), None) => format!("QEMU ended without a report ({status})"),
        (End::TimedOut(after), _) => {
            let why = format!("timeout after {:.0} s", after.as_secs_f64());
            return Err(failed(why, Exit::TIMEOUT, &outcome));
        }
        (End::Signal(signal), _) => {
            let why = format!("ended by signal {signal}");
            return Err(failed(why, Exit::from_signal(*signal), &outcome));
        }
        (End::Left | End::ConsoleGone, _) => "the console closed".to_owned(),
    };
    Err(failed(why, Exit::NO_REPORT, &outcome))
}

fn failed(why: String, exit: Exit, outcome: &Outcome) -> BenchError {
    BenchError::Run { why, exit, console: outcome.console_tail.clone() }
}
