//! Options that several commands have, and what a command is without a word.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use hyp_core::churn::Wanted;

use super::{recover, seconds, wanted};

/// What every command has that runs one guest under the hypervisor: `run`, `linux`, `churn`.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// CPU model: max, neoverse-n2, cortex-a76, cortex-a53, or another that QEMU has
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// Populate the guest's RAM by blocks of 2 MiB where that is possible, instead of by pages
    #[arg(long)]
    pub blocks: bool,
    /// Run the hypervisor's build with selftests
    ///
    /// It can be made to fail on purpose, and panics where a fault handler asks for a lock or for memory.
    #[arg(long)]
    pub selftest: bool,
    /// End the run after this time, with exit code 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Write a summary here, whatever the end
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only the console: no progress, no hints
    #[arg(long, short)]
    pub quiet: bool,
    /// Run what is built already
    #[arg(long)]
    pub no_build: bool,
}

/// What `run` and `linux` have beyond that: how the hypervisor is to behave, and QEMU.
#[derive(Args, Clone, Debug)]
pub struct HypArgs {
    /// Let CPUs that have nothing to run look for RAM that is worth a block of 2 MiB, and make it
    ///
    /// Without --blocks the guest's RAM begins in pages.
    #[arg(long)]
    pub scan: bool,
    /// Change how the guest's RAM is kept, at random, for so many seconds
    ///
    /// In the background: write-protect, harvest a dirty log, age, split, collapse, copy, move, make contiguous runs. A second copy
    /// of RAM, kept by harvests alone, is compared byte for byte. On CPUs of --smp beyond --vcpus if there are any. The same seed takes the same steps. With
    /// `session=N` each dirty session takes N seconds.
    #[arg(long, value_name = "SECONDS[,seed=N][,session=N]", value_parser = wanted)]
    pub churn: Option<Wanted>,
    /// What becomes of an access to an address without memory: scratch, inject or stop [default: stop]
    ///
    /// With a place, such as scratch@0x50000000+16M, in a window; without, at every address that is neither RAM nor a device.
    /// More of them with commas between them. In RAM it applies to pages that are not mapped; the call POPULATE maps them.
    #[arg(long, value_name = "POLICY[@START+SIZE],...", value_parser = recover)]
    pub recover: Option<String>,
    /// More words for the hypervisor's own command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub hyp_append: Option<String>,
    /// Deterministic time: one virtual nanosecond an instruction
    #[arg(long)]
    pub icount: bool,
    /// Print the QEMU command line (without the mark of the report) and stop
    ///
    /// It builds first, because the line depends on the sizes of what is loaded.
    #[arg(long)]
    pub dry_run: bool,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "EXTRA")]
    pub extra: Vec<OsString>,
}

/// A command's arguments if nothing is typed: every option as its `--help` says. The command must not insist on a word.
#[must_use]
pub fn defaults<A: Args>() -> A {
    #[derive(Parser)]
    struct Only<A: Args> {
        #[command(flatten)]
        arguments: A,
    }
    Only::parse_from(["hypctl"]).arguments
}
