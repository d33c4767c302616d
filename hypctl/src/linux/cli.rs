//! `hypctl linux` on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hyp_core::churn::Wanted;

use crate::cli::{seconds, size, wanted};

/// Examples below `--help`.
pub const EXAMPLES: &str = "\
Without --script the keyboard is the guest's, Ctrl-C too. `poweroff` or Ctrl-D in its shell ends the machine, Ctrl-A x the run.

Exit codes: as of `run`; a script whose status is not 0, a CPU that did not come up, a kernel that complained is 1.

Examples:
  hypctl linux                                Debian's 6.12 on two vCPUs, and a shell
  hypctl linux --kernel 6.1 --cpu cortex-a53
  hypctl linux --script 'nproc; cat /proc/interrupts'
  hypctl linux --plain --script 'nproc'       the same on QEMU alone, for comparison
  hypctl linux --all                          both kernels on all tested CPU models, and a table
  hypctl linux --kernel ./Image --initrd ./initramfs.cpio.gz --append 'console=ttyAMA0'";

/// `hypctl linux`.
#[derive(Args, Clone, Debug)]
pub struct LinuxArgs {
    /// Debian's kernel 6.12 or 6.1, or a path to a raw arm64 Image
    #[arg(long, value_name = "6.12|6.1|PATH", default_value = "6.12")]
    pub kernel: String,
    /// An initramfs [default: busybox, and a shell on the console]
    #[arg(long, value_name = "FILE", conflicts_with = "script")]
    pub initrd: Option<PathBuf>,
    /// Run these commands in the guest's shell, and end with their verdict
    ///
    /// The kernel then says only what is wrong.
    #[arg(long, value_name = "COMMANDS", allow_hyphen_values = true)]
    pub script: Option<String>,
    /// The kernel's command line [default: console=ttyAMA0 panic=-1, and quiet with a script]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// On QEMU alone, at EL1, without the hypervisor: the same kernel, initramfs, RAM, CPUs
    #[arg(long, conflicts_with_all = ["hyp_append", "blocks", "scan", "churn", "recover", "smp"])]
    pub plain: bool,
    /// Each of Debian's kernels on each tested CPU model, one after the other, and a table of how that went
    ///
    /// Without --script each comes up and powers off. The exit code is the first that is not 0.
    #[arg(long, conflicts_with_all = ["kernel", "initrd", "plain", "cpu", "dry_run"])]
    pub all: bool,
    /// CPU model: max, neoverse-n2, cortex-a76, cortex-a53, or another that QEMU has
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// Virtual CPUs of the guest; if they are more than CPUs they take turns
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub vcpus: u32,
    /// CPUs of the machine [default: as many as --vcpus]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub smp: Option<u32>,
    /// RAM of the guest: a number and K, M or G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    pub mem: u64,
    /// Populate the guest's RAM by blocks of 2 MiB where that is possible, instead of by pages
    #[arg(long)]
    pub blocks: bool,
    /// Let CPUs that have nothing to run look for RAM that is worth a block of 2 MiB, and make it
    #[arg(long)]
    pub scan: bool,
    /// Change how the guest's RAM is kept, at random, for so many seconds, as `run --churn`
    #[arg(long, value_name = "SECONDS[,seed=N][,session=N]", value_parser = wanted)]
    pub churn: Option<Wanted>,
    /// What becomes of an access to an address without memory, as `run --recover`
    #[arg(long, value_name = "POLICY[@START+SIZE],...")]
    pub recover: Option<String>,
    /// More words for the hypervisor's own command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub hyp_append: Option<String>,
    /// Run the hypervisor's build with selftests
    #[arg(long, conflicts_with = "plain")]
    pub selftest: bool,
    /// Deterministic time: one virtual nanosecond an instruction
    #[arg(long)]
    pub icount: bool,
    /// End the run after this time, with exit code 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Write a summary here, whatever the end
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only the console: no progress, no hints
    #[arg(long, short)]
    pub quiet: bool,
    /// Print the QEMU command line and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Run what is built already
    #[arg(long)]
    pub no_build: bool,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "EXTRA")]
    pub extra: Vec<OsString>,
}
