//! The same kernel, initramfs, RAM and CPUs on QEMU alone, at EL1: what running under the hypervisor is compared with.
//!
//! The machine has what the guest has, and its device tree is the guest's own, into which QEMU writes the command line and where
//! the initramfs lies: GICv3, generic timer, PL011, PSCI over HVC, and nothing else that a kernel would look for drivers for.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use hyp_abi::map::RAM_BASE;
use hyp_core::guest_dtb::{self, GuestTree};
use hyp_core::range::IpaRange;

use super::LinuxError;
use super::marks::Marks;
use crate::cli::RunArgs;
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::modules;
use crate::machine::{ICOUNT, shell_line};
use crate::qemu::Qemu;
use crate::run::{conclude, expect_folder, input, nonce, say};
use crate::session::{self, Input, Outcome, Told};
use crate::summary::Summary;
use crate::terminal::ControlC;
use crate::workspace::Workspace;

/// Runs it; with a `mark`, it is a script's run.
pub(super) fn linux(workspace: &Workspace, run: &RunArgs, mark: Option<&str>) -> Exit {
    let mut summary = Summary::of(run);
    let (qemu, words) = match prepare(workspace, run, &mut summary) {
        Ok(prepared) => prepared,
        Err(error) => {
            say(&error.to_string());
            return Exit::USAGE;
        }
    };
    if run.hyp.dry_run {
        let _ = writeln!(io::stdout(), "{}", shell_line(qemu.program(), &words));
        return Exit::OK;
    }
    play(&qemu, &words, run, mark, &mut io::stdout(), &mut summary);
    conclude(summary, run.common.json.as_deref())
}

/// What is started, and its arguments.
pub(super) fn prepare(
    workspace: &Workspace,
    run: &RunArgs,
    summary: &mut Summary,
) -> Result<(Qemu, Vec<OsString>), Error> {
    expect_folder("json", run.common.json.as_deref())?;
    let named = super::filled_in(workspace, run)?;
    let run = named.as_ref().unwrap_or(run);
    // The same sentences about files that are no kernels, and about too little memory.
    modules(run.guest.as_ref(), run)?;
    let qemu = Qemu::find()?;
    summary.qemu = Some(qemu.version().to_string());
    qemu.expect_cpu(&run.common.cpu)?;
    let words = arguments(run, &tree(workspace, run)?);
    summary.command = Some(shell_line(qemu.program(), &words));
    Ok((qemu, words))
}

/// RAM, in MiB.
fn mem(run: &RunArgs) -> u64 {
    run.guest_mem.unwrap_or(super::DEFAULT_MEM).div_ceil(1 << 20)
}

/// The guest's device tree, as a file.
fn tree(workspace: &Workspace, run: &RunArgs) -> Result<PathBuf, LinuxError> {
    let (vcpus, mem) = (run.vcpus.unwrap_or(1), mem(run));
    let bytes = mem.saturating_mul(1 << 20);
    let ram = IpaRange::from_len(RAM_BASE, bytes).ok_or(LinuxError::NoRam(bytes))?;
    let guest = GuestTree { vcpus: vcpus as usize, ram, ramdisk: None, bootargs: "", flash: false };
    super::keep(workspace, &format!("linux-{vcpus}x{mem}M.dtb"), &guest_dtb::build(&guest)?)
}

fn arguments(run: &RunArgs, tree: &Path) -> Vec<OsString> {
    let vcpus = run.vcpus.unwrap_or(1).to_string();
    let mem = format!("{}M", mem(run));
    let mut words: Vec<OsString> = Vec::new();
    words.extend(
        ["-M", "virt,gic-version=3,dtb-randomness=off", "-cpu", &run.common.cpu].map(Into::into),
    );
    words.extend(["-smp", &vcpus, "-m", &mem, "-nic", "none", "-nographic"].map(Into::into));
    words.extend(run.no_reboot.then(|| "-no-reboot".into()));
    words.extend(ICOUNT.iter().filter(|_| run.hyp.icount).map(Into::into));
    words.extend(["-kernel".into(), run.guest.clone().into()]);
    words.extend(["-dtb".into(), tree.into()]);
    words.extend(run.initrd.iter().flat_map(|path| ["-initrd".into(), path.clone().into()]));
    words.extend(run.append.iter().flat_map(|text| ["-append".into(), text.into()]));
    words.extend(run.hyp.extra.iter().cloned());
    words
}

/// Runs it to its end; how that was is in the summary.
pub(super) fn play(
    qemu: &Qemu,
    words: &[OsString],
    run: &RunArgs,
    mark: Option<&str>,
    sink: &mut dyn Write,
    summary: &mut Summary,
) {
    let mut command = Command::new(qemu.program());
    command.args(words);
    // There is no hypervisor to report.
    let nobody = nonce();
    let Some(mark) = mark else {
        let input = input(None, ControlC::GoesToTheGuest, run.common.quiet);
        let outcome = session::run(&mut command, &nobody, input, run.common.timeout, sink);
        return ended(outcome, qemu.program(), summary);
    };
    let mut marks = Marks::new(mark, sink);
    let typed = Input::Script(Vec::new());
    let outcome = session::run(&mut command, &nobody, typed, run.common.timeout, &mut marks);
    let boot = marks.finish();
    ended(outcome, qemu.program(), summary);
    let exit = Exit::from_report(summary.exit_code.into());
    super::judge(exit, boot, run.vcpus.unwrap_or(1), summary);
}

fn ended(outcome: io::Result<Outcome>, program: &Path, summary: &mut Summary) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            summary.exit_code = Exit::NO_REPORT.code();
            summary.message = Some(format!("{}: {error}", program.display()));
            return;
        }
    };
    let Told { word, exit, message } = outcome.end.told();
    summary.ended = word;
    summary.exit_code = exit.code();
    summary.message = message;
    summary.started = Some(outcome.started);
    summary.seconds = outcome.elapsed.as_secs_f64();
    summary.console_tail = (exit != Exit::OK).then_some(outcome.console_tail);
}
