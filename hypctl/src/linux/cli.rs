//! `hypctl linux` on the command line.

use std::path::PathBuf;

use clap::Args;

use crate::cli::shared::{CommonArgs, HypArgs};
use crate::cli::size;

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
    #[arg(long, conflicts_with_all = ["hyp_append", "blocks", "scan", "churn", "recover", "smp", "selftest"])]
    pub plain: bool,
    /// Each of Debian's kernels on each tested CPU model, one after the other, and a table of how that went
    ///
    /// Without --script each comes up and powers off. The exit code is the first that is not 0.
    #[arg(long, conflicts_with_all = ["kernel", "initrd", "plain", "cpu", "dry_run"])]
    pub all: bool,
    /// Virtual CPUs of the guest; if they are more than CPUs they take turns
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub vcpus: u32,
    /// CPUs of the machine [default: as many as --vcpus]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub smp: Option<u32>,
    /// RAM of the guest: a number and K, M or G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    pub mem: u64,
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub hyp: HypArgs,
}
