//! The command line: what can be asked, in the words that `--help` shows.

pub mod shared;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hyp_core::churn::{self, Wanted};
use hyp_core::mask::Mask;
use hyp_core::recovery::{Asked, WANTED};
use shared::{CommonArgs, HypArgs};

use crate::churn::ChurnArgs;
use crate::linux::cli::LinuxArgs;

/// Builds an EL2 hypervisor and its guests, runs them under QEMU, and tells how it went.
#[derive(Debug, Parser)]
#[command(name = "hypctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  the guest powered off, or its verdict was pass
    1  the guest's verdict was fail, or the script's expectations were not met
    2  usage or bad input; QEMU was not started
    3  the VM was stopped with a diagnosis
    4  the hypervisor refused to start
    5  the hypervisor crashed
    6  QEMU or the hypervisor ended without a report
  124  timeout
  130  Ctrl-C, or Ctrl-A x (128+N: signal N)
  141  nobody reads the console any more";

const RUN_EXAMPLES: &str = "\
Examples:
  hypctl run                                    the default guest
  hypctl run touch --vcpus 4 --cpu cortex-a53   a test guest on a CPU without LSE atomics
  hypctl run u-boot                             Debian's U-Boot, interactive; Ctrl-A x leaves
  hypctl run u-boot --send version --send poweroff --timeout 60
  hypctl run ./guest.bin --append 'key=value' --mem 2G
  hypctl run hello --icount --trace out.jsonl   every step of table maintenance, in order
  hypctl run touch --dry-run                    the QEMU line, ready to paste
  hypctl run hello -- -d int,guest_errors       more arguments for QEMU

A script is one step a line: `expect TEXT`, `send TEXT` (and Enter), `send-raw TEXT`
(escapes \\r \\n \\t \\\\ \\xHH), `# comment`.";

const CHECK_CODES: &str = "\
Exit codes:
    0  nothing is wrong with what could be judged
    1  there are verdicts
    2  the file cannot be read, or is no trace

Example:
  hypctl run hello --vcpus 4 --icount --trace hello.jsonl
  hypctl check-trace hello.jsonl";

const RECOVER_CODES: &str = "\
Exit codes:
    0  every scenario came to what was expected of it
    1  one did not; the reasons are below the table
    2  usage or bad input; nothing was started
    6  the JSON cannot be written
  130  Ctrl-C (128+N: signal N)

Examples:
  hypctl recover                          all scenarios, on four CPU models
  hypctl recover --cpu max hole-read hole-storm
                                          two of them, on one
  hypctl recover --list                   what there is, each with the command that runs it alone";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build if needed, and run a guest under the hypervisor
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Boot Debian's Linux to a shell, or run a script in it
    #[command(after_help = crate::linux::cli::EXAMPLES)]
    Linux(Box<LinuxArgs>),
    /// Build the hypervisor's image and the guests
    Build(BuildArgs),
    /// Show what was found on this machine, and what is missing
    Doctor(DoctorArgs),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Run the recovery suite: wild accesses of every kind, and what has to come of each
    ///
    /// Each scenario is one guest under the hypervisor's build with selftests. A table says how many violations
    /// were expected and how many there were, by CPU model. Ctrl-C ends it with the table of what is done.
    #[command(after_help = RECOVER_CODES)]
    Recover(RecoverArgs),
    /// A guest verifies its memory under a manager that never lets it rest
    ///
    /// In the background EL2 write-protects, harvests, ages, splits, collapses, copies and moves the guest's RAM at random. No checksum
    /// may be wrong, no kernel may complain, and a second copy of RAM, kept by harvests alone, has to be equal to it in the end.
    #[command(after_help = crate::churn::EXAMPLES)]
    Churn(Box<ChurnArgs>),
    /// Judge a trace that `run --trace` has written
    ///
    /// The trace is put through a model of the architecture that holds every translation which any CPU may
    /// still hold, and says what could go wrong on some machine.
    #[command(name = "check-trace", after_help = CHECK_CODES)]
    CheckTrace(CheckTraceArgs),
    /// Run cargo with the flags of the bare-metal crates
    ///
    /// For example: `hypctl cargo clippy -p hyp -- -D warnings`
    Cargo(CargoArgs),
}

/// `hypctl run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A guest of ours (hello, touch, attrs, …), `u-boot`, `linux`, or a path to a raw image
    ///
    /// A path is a raw arm64 Image (Linux: arch/arm64/boot/Image, Debian's vmlinuz) or a flat
    /// binary that runs where it is put. A name with a `/` in it is always a path.
    #[arg(value_name = "GUEST|PATH", default_value = crate::build::DEFAULT_GUEST)]
    pub guest: String,
    /// Initial RAM disk for the guest
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The guest's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// CPUs of the machine [default: as many as --vcpus, else 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub smp: Option<u32>,
    /// Virtual CPUs of the guest; if they are more than CPUs they take turns [default: as many as --smp]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub vcpus: Option<u32>,
    /// Times that the guest may reset its machine and start over; the next reset ends the run [default: any number]
    #[arg(long, value_name = "N")]
    pub restarts: Option<u32>,
    /// RAM of the machine: a number and K, M or G [default: 1G, or more if the guest needs it]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub mem: Option<u64>,
    /// RAM of the guest [default: half of what is free, at most 1G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub guest_mem: Option<u64>,
    /// Let the guest make the calls that change its memory [default: for guests of ours]
    #[arg(long)]
    pub manage: bool,
    /// Refuse the guest the calls that change its memory [default: for all other guests]
    #[arg(long, conflicts_with = "manage")]
    pub no_manage: bool,
    /// Violations that are recovered in all; one more ends the run [default: 1048576]
    #[arg(long, value_name = "N")]
    pub recover_limit: Option<u64>,
    /// Violations that are recovered in a second; one more ends the run [default: 262144]
    #[arg(long, value_name = "N")]
    pub recover_rate: Option<u32>,
    /// Do without parts of the architecture that the CPU has: names with commas between them
    ///
    /// Of vmid16, hw-access, hw-dirty, tlbi-range, lse, ttl, fwb, xnx, idc, dic. Without hw-access there is no hw-dirty.
    #[arg(long, value_name = "NAMES", value_parser = mask)]
    pub mask: Option<Mask>,
    /// Play a conversation instead of the keyboard
    #[arg(long, value_name = "FILE", conflicts_with = "send")]
    pub script: Option<PathBuf>,
    /// Type this line when the prompt shows; may be repeated
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    pub send: Vec<String>,
    /// The prompt that --send waits for
    #[arg(long, value_name = "TEXT", default_value = "=> ", allow_hyphen_values = true)]
    pub prompt: String,
    /// A reset by the guest ends the run instead of starting over: --restarts 0
    #[arg(long, conflicts_with = "restarts")]
    pub no_reboot: bool,
    /// Record every step of table maintenance, and write the trace here when the run has ended
    ///
    /// Runs the hypervisor's debug build. With --icount, or one CPU, the order of the steps is total;
    /// else it is known for each CPU's own only. See `hypctl check-trace`.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub trace: Option<PathBuf>,
    /// Record at most so many steps [default: 524288, which is what the buffer holds]
    #[arg(long, value_name = "N", requires = "trace")]
    pub trace_max: Option<u64>,
    /// Run the hypervisor's build that measures: `bench` does.
    #[arg(skip)]
    pub measure: bool,
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    pub hyp: HypArgs,
}

/// `hypctl build`.
#[derive(Args, Debug)]
pub struct BuildArgs {
    /// Build the variant that measures faults
    #[arg(long, conflicts_with = "debug")]
    pub measure: bool,
    /// Build the variant that records every step of table maintenance
    #[arg(long)]
    pub debug: bool,
    /// Say nothing unless it fails
    #[arg(long, short)]
    pub quiet: bool,
}

/// `hypctl doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// As JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `hypctl bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// EL2 instructions of one populate fault, from abort to return
    ///
    /// Runs the guest `bench-fault` twice under deterministic icount and checks that the two runs
    /// agree. Zeroing and cache cleaning of the page are not counted. Likewise a write to a page that is logged, and an access
    /// without memory that is recovered.
    Fault(FaultArgs),
    /// What it takes EL2 to split 1 GiB of blocks into pages, and to make blocks of them again
    ///
    /// Instructions, TLB invalidations and flushes of the guest `bench-resize`, for each level of FEAT_BBM up to the
    /// CPU's own. Each run is made twice under deterministic icount, and the two have to agree.
    Resize(BenchArgs),
    /// What it takes EL2 to change the protections of a range, in each of the ways that there are
    ///
    /// For ranges of 1 to 65536 pages, 1, 2 and 4 CPUs, RAM in pages and in blocks: the guest `bench-prot` is run twice under
    /// deterministic icount, where both have to agree, and then at full speed, with the other vCPUs writing into the range.
    Prot(ProtArgs),
    /// What it costs Debian's Linux to come up under the hypervisor instead of on QEMU alone
    ///
    /// Wall time to the first program in pairs of runs, one of each kind, and the instructions that it takes by deterministic
    /// icount on one CPU, each counted twice. The same kernel, initramfs, command line, device tree and RAM on both sides.
    Linux(LinuxBenchArgs),
}

/// `hypctl bench fault`.
#[derive(Args, Debug)]
pub struct FaultArgs {
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Count populate faults and writes under Debian's Linux 6.12, too; worse than the bare guest's is exit code 1
    #[arg(long)]
    pub linux: bool,
}

/// `hypctl bench linux`.
#[derive(Args, Debug)]
pub struct LinuxBenchArgs {
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Pairs of runs
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// Debian's kernel 6.12 or 6.1, or a path to a raw arm64 Image
    #[arg(long, value_name = "6.12|6.1|PATH", default_value = "6.12")]
    pub kernel: String,
    /// CPUs where time is taken
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub vcpus: u32,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = crate::linux::APPEND, allow_hyphen_values = true)]
    pub append: String,
    /// Under the hypervisor, populate RAM by blocks of 2 MiB where that is possible
    #[arg(long)]
    pub blocks: bool,
}

/// `hypctl bench prot`.
#[derive(Args, Debug)]
pub struct ProtArgs {
    #[command(flatten)]
    pub bench: BenchArgs,
    /// Draw the numbers here, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Numbers of CPUs to measure with
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 2, 4],
        value_parser = clap::value_parser!(u32).range(1..=hyp_abi::MAX_VCPUS as i64))]
    pub cpus: Vec<u32>,
    /// Features of the CPU that stage 2 is to do without, such as hw-dirty or tlbi-range
    #[arg(long, value_name = "NAME,...", value_parser = mask)]
    pub mask: Option<Mask>,
}

/// What all of `hypctl bench` has.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Less memory, smaller ranges, fewer rounds
    #[arg(long)]
    pub quick: bool,
    /// CPU model
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// Write the numbers here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Say nothing but the result
    #[arg(long, short)]
    pub quiet: bool,
}

/// `hypctl recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// Scenarios, by name [default: all]
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// CPU model; may be repeated [default: max, neoverse-n2, cortex-a76, cortex-a53]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Vec<String>,
    /// Scenarios that run at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// Write the table here, with the report of each run
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Say what scenarios there are, and stop
    #[arg(long)]
    pub list: bool,
    /// Run what is built already
    #[arg(long)]
    pub no_build: bool,
    /// Say nothing but the table
    #[arg(long, short)]
    pub quiet: bool,
}

/// `hypctl check-trace`.
#[derive(Args, Debug)]
pub struct CheckTraceArgs {
    /// The trace: JSON lines
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// As JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `hypctl cargo`.
#[derive(Args, Debug)]
pub struct CargoArgs {
    /// Cargo's command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub arguments: Vec<OsString>,
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    let size = hyp_core::config::parse_size(text).filter(|&size| size != 0);
    size.ok_or_else(|| "a size is a number and K, M or G, such as 512M".to_owned())
}

fn mask(names: &str) -> Result<Mask, String> {
    let unknown = names.split(',').find(|name| Mask::parse(name).is_none());
    let wrong = || format!("{:?} is not known; known: {}", unknown.unwrap_or(names), Mask::all());
    Mask::parse(names).ok_or_else(wrong)
}

pub(crate) fn wanted(text: &str) -> Result<Wanted, String> {
    Wanted::parse(text).ok_or_else(|| churn::WANTED.to_owned())
}

fn recover(text: &str) -> Result<String, String> {
    Asked::parse(text).map(|_| text.to_owned()).ok_or_else(|| WANTED.to_owned())
}

pub(crate) fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || "a time is a positive number of seconds, such as 30 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    let time = std::time::Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if time.is_zero() { Err(wrong()) } else { Ok(time) }
}
