//! The host command: from a name to a guest's console, an exit code, and a summary.
//!
//! ```text
//! cli ─ run ─┬─ guest ──── what was typed → files, checked before anything starts
//!            │  catalogue  the guests that have names
//!            ├─ qemu ───── the emulator that is there
//!            ├─ build ──── toolchain, flatten: cargo for bare metal, ELF → raw image
//!            ├─ machine ── QEMU's command line; where modules lie in memory
//!            ├─ session ── one run: process, signals, terminal, console, script
//!            └─ trace ──── what the hypervisor's debug build recorded
//! ```
//!
//! `linux`, `bench`, `recover`, `check_trace` and `doctor` stand beside `run` on the same parts. Nothing here parses what the guest
//! prints; what a program needs to know comes in the hypervisor's report (`console`), and in lines of that form from the first
//! program of a Linux guest.

pub mod atomic;
pub mod bench;
pub mod build;
pub mod catalogue;
pub mod check_trace;
pub mod churn;
pub mod cli;
pub mod columns;
pub mod console;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod flatten;
pub mod guest;
pub mod linux;
pub mod machine;
pub mod process;
pub mod progress;
pub mod qemu;
pub mod recover;
pub mod run;
pub mod script;
pub mod session;
pub mod signals;
pub mod summary;
pub mod terminal;
pub mod toolchain;
pub mod trace;
pub mod workspace;

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Bench, BuildArgs, CargoArgs, Cli};
use crate::error::Error;
use crate::exit::Exit;
use crate::toolchain::Toolchain;
use crate::workspace::{Variant, Workspace};

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { Exit::OK } else { Exit::USAGE }.into();
        }
    };
    match cli.command {
        cli::Command::Run(arguments) => run::run(&arguments),
        cli::Command::Linux(arguments) => linux::linux(&arguments),
        cli::Command::Build(arguments) => or_usage(build_images(&arguments)),
        cli::Command::Doctor(arguments) => doctor::doctor(arguments.json),
        cli::Command::Bench(Bench::Fault(arguments)) => bench::fault::fault(&arguments),
        cli::Command::Bench(Bench::Resize(arguments)) => bench::resize::resize(&arguments),
        cli::Command::Bench(Bench::Prot(arguments)) => bench::prot::prot(&arguments),
        cli::Command::Bench(Bench::Linux(arguments)) => bench::linux::linux(&arguments),
        cli::Command::Recover(arguments) => recover::recover(&arguments),
        cli::Command::Churn(arguments) => churn::churn(&arguments),
        cli::Command::CheckTrace(arguments) => check_trace::check(&arguments),
        cli::Command::Cargo(arguments) => or_usage(cargo(&arguments)),
    }
    .into()
}

fn or_usage(result: Result<Exit, Error>) -> Exit {
    result.unwrap_or_else(|error| {
        run::say(&error.to_string());
        Exit::USAGE
    })
}

fn build_images(arguments: &BuildArgs) -> Result<Exit, Error> {
    let workspace = Workspace::find()?;
    let variant = match (arguments.measure, arguments.debug) {
        (true, _) => Variant::Measure,
        (_, true) => Variant::Debug,
        _ => Variant::Plain,
    };
    build::build(&workspace, variant, arguments.quiet)?;
    if !arguments.quiet {
        let _ = writeln!(io::stdout(), "{}", workspace.hyp_bin(variant).display());
    }
    Ok(Exit::OK)
}

/// `hypctl cargo`: cargo's own exit code is ours.
fn cargo(arguments: &CargoArgs) -> Result<Exit, Error> {
    let workspace = Workspace::find()?;
    let toolchain = Toolchain::find(&workspace)?;
    let mut words = arguments.arguments.iter();
    let verb = words.next().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    let mut cargo: Command = toolchain.cargo(&workspace, &verb);
    let status = cargo.args(words).status().map_err(build::BuildError::NoCargo)?;
    Ok(match status.code() {
        Some(code) => Exit::from_report(code.unsigned_abs()),
        None => {
            Exit::from_signal(std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0))
        }
    })
}
