//! `hypctl linux`: Debian's Linux, unmodified, to a shell or through a script.
//!
//! | file | story |
//! | --- | --- |
//! | `linux/cli.rs` | what can be asked |
//! | `linux/initramfs.rs`, `linux/init.sh` | the initramfs: busybox and the guest's first program |
//! | `linux/marks.rs` | what that program tells us, between the lines of the console |
//! | `linux/plain.rs` | the same kernel on QEMU alone |
//! | `linux/all.rs` | both kernels on all tested CPU models, and a table |
//! | `linux/boots.rs` | boots to be measured, of either kind |
//!
//! The kernels and busybox are Debian's packages, which the bootstrap unpacks into the cache. Under the hypervisor it is a
//! `hypctl run` like any other: of this kernel, with this initramfs (`named` does it for `hypctl run linux`). With a script the
//! guest's first program runs it and reports its status. The verdict is that status, and that all vCPUs came up and the kernel
//! complained of nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hyp_core::guest_dtb::GuestTreeError;
use hyp_core::image::Format;
use hyp_core::range::Bytes;
use tempfile::NamedTempFile;

use crate::catalogue::{self, BUSYBOX, FetchError, KERNELS};
use crate::cli::RunArgs;
use crate::cli::shared::defaults;
use crate::error::Error;
use crate::exit::Exit;
use crate::guest;
use crate::machine::Role;
use crate::run::{conclude, nonce, unattended};
use crate::summary::Summary;
use crate::workspace::Workspace;

mod all;
pub(crate) mod boots;
pub mod cli;
pub mod initramfs;
pub mod marks;
mod plain;
#[cfg(test)]
mod tests;

use cli::LinuxArgs;
use initramfs::Told;
use marks::{Boot, Marks};

/// RAM of a guest that nobody has wishes for, bytes.
const DEFAULT_MEM: u64 = 512 << 20;
/// What Debian's kernels take to the first program beside themselves and the initramfs, bytes: 6.12 comes up on one vCPU with
/// 64 MiB and dies with 60, 6.1 comes up with 60.
const WORK: u64 = 20 << 20;
/// The console is the PL011, and a panic ends the run instead of hanging.
pub const APPEND: &str = "console=ttyAMA0 panic=-1";
/// With a script: of the kernel only what is wrong.
const QUIET: &str = "console=ttyAMA0 panic=-1 quiet";

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// The bootstrap could not bring a kernel or busybox.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A program that is no kernel.
    #[error("{}: {format}; Linux is wanted, as a raw arm64 Image", path.display())]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// A kernel that would die before it can say why.
    #[error(
        "{option} {} is too little for Linux: {} are needed (kernel and initramfs up to {}, the initramfs unpacked at least {}, to \
         work with {})",
        Bytes(*.given), Bytes(*.needed), Bytes(*.loaded), Bytes(*.unpacked), Bytes(WORK)
    )]
    TooLittle {
        /// The option that says how much RAM there is.
        option: &'static str,
        /// RAM of the guest, bytes.
        given: u64,
        /// What would do, bytes.
        needed: u64,
        /// Up to where kernel and initramfs lie, bytes from the bottom of RAM.
        loaded: u64,
        /// Size of the initramfs, bytes.
        unpacked: u64,
    },
    /// Its device tree cannot be made.
    #[error(transparent)]
    Tree(#[from] GuestTreeError),
    /// More RAM than there are addresses.
    #[error("--mem {}: no machine has as much", Bytes(*.0))]
    NoRam(u64),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs `hypctl linux`.
pub fn linux(arguments: &LinuxArgs) -> Exit {
    if arguments.all {
        return all::all(arguments);
    }
    let mark = arguments.script.as_ref().map(|_| nonce());
    let prepared = Workspace::find().map_err(Error::from).and_then(|workspace| {
        let initrd = Initrd::of(&workspace, arguments, mark.as_deref())?;
        Ok((workspace, initrd))
    });
    let (workspace, initrd) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            crate::run::say(&error.to_string());
            return Exit::USAGE;
        }
    };
    let run = run_arguments(arguments, initrd.path());
    if let Err(error) = expect_linux_of(&workspace, &run) {
        crate::run::say(&error.to_string());
        return Exit::USAGE;
    }
    if arguments.plain {
        return plain::linux(&workspace, &run, mark.as_deref());
    }
    let Some(mark) = mark.filter(|_| !arguments.hyp.dry_run) else { return crate::run::run(&run) };
    let summary = scripted(arguments, &run, &mark, &mut io::stdout());
    conclude(summary, arguments.common.json.as_deref())
}

/// Runs a script under the hypervisor, and judges; the console goes to `sink`.
///
/// # Errors
/// There is nothing to boot, or too little RAM for it.
pub(crate) fn play(arguments: &LinuxArgs, sink: &mut dyn Write) -> Result<Summary, Error> {
    let workspace = Workspace::find()?;
    let mark = nonce();
    let initrd = Initrd::of(&workspace, arguments, Some(&mark))?;
    let run = run_arguments(arguments, initrd.path());
    expect_linux_of(&workspace, &run)?;
    Ok(scripted(arguments, &run, &mark, sink))
}

/// The run of a script that reports by this mark.
fn scripted(arguments: &LinuxArgs, run: &RunArgs, mark: &str, sink: &mut dyn Write) -> Summary {
    let mut marks = Marks::new(mark, sink);
    let mut summary = unattended(run, &mut marks);
    let boot = marks.finish();
    let exit = Exit::from_report(summary.exit_code.into());
    judge(exit, boot, arguments.vcpus, &mut summary);
    summary
}

/// What a scripted run comes to: whatever ended it, else the script's verdict, else the kernel's.
fn judge(exit: Exit, boot: io::Result<Boot>, vcpus: u32, summary: &mut Summary) {
    let mut boot = boot.unwrap_or_default();
    boot.seconds = boot.at.zip(summary.started).map(|(at, started)| (at - started).as_secs_f64());
    let verdict = match (&boot.end, &boot.up) {
        _ if exit != Exit::OK => None,
        (None, _) => Some("the guest ended before its script did".to_owned()),
        (Some(end), _) if end.status != 0 => Some(format!("the script's status is {}", end.status)),
        (_, Some(up)) if up.cpus != vcpus => Some(format!("{} of {vcpus} CPUs came up", up.cpus)),
        (Some(end), _) if end.complaints != 0 => {
            Some(format!("the kernel complained: {} lines of its log", end.complaints))
        }
        _ => None,
    };
    let exit = if verdict.is_some() { Exit::VERDICT } else { exit };
    summary.exit_code = exit.code();
    summary.message = summary.message.take().or(verdict);
    summary.boot = Some(boot);
}

/// The `hypctl run` that this is.
fn run_arguments(linux: &LinuxArgs, initrd: &Path) -> RunArgs {
    let kernel =
        match KERNELS.iter().find(|name| name.strip_prefix("linux-") == Some(&linux.kernel)) {
            Some(name) => (*name).into(),
            // With a `/` it is a path, whatever else is called so.
            None => Path::new(".").join(&linux.kernel),
        };
    let append = if linux.script.is_some() { QUIET } else { APPEND };
    RunArgs {
        guest: kernel.to_string_lossy().into_owned(),
        initrd: Some(initrd.to_owned()),
        append: Some(linux.append.clone().unwrap_or_else(|| append.to_owned())),
        smp: linux.smp,
        vcpus: Some(linux.vcpus),
        guest_mem: Some(linux.mem),
        no_reboot: linux.script.is_some(),
        common: linux.common.clone(),
        hyp: linux.hyp.clone(),
        ..defaults()
    }
}

/// For `hypctl run linux`: the run with kernel, initramfs and command line filled in where nobody has wishes.
///
/// # Errors
/// What `expect_linux` refuses; nothing is wrong with another guest.
pub(crate) fn named(workspace: &Workspace, arguments: &RunArgs) -> Result<Option<RunArgs>, Error> {
    let run = filled_in(workspace, arguments)?;
    run.iter().try_for_each(|run| expect_linux(run, "--guest-mem"))?;
    Ok(run)
}

/// Likewise, not judged. None if the guest has not the name of a kernel.
fn filled_in(workspace: &Workspace, arguments: &RunArgs) -> Result<Option<RunArgs>, LinuxError> {
    let Some(kernel) = catalogue::kernel(&arguments.guest) else { return Ok(None) };
    let mut run = arguments.clone();
    run.guest = catalogue::fetch(workspace, kernel)?.to_string_lossy().into_owned();
    if run.initrd.is_none() {
        run.initrd = Some(shell_initrd(workspace)?);
    }
    run.append.get_or_insert_with(|| APPEND.to_owned());
    run.guest_mem.get_or_insert(DEFAULT_MEM);
    Ok(Some(run))
}

/// For `hypctl linux`, whose kernel may have no name: fails as `expect_linux`.
fn expect_linux_of(workspace: &Workspace, arguments: &RunArgs) -> Result<(), Error> {
    let run = filled_in(workspace, arguments)?;
    expect_linux(run.as_ref().unwrap_or(arguments), "--mem")
}

/// Fails if what is to be booted cannot come up: a file that is no kernel, less RAM than that in which Debian's kernels do; `option`
/// says how much there is. The kernel itself would only hang.
fn expect_linux(run: &RunArgs, option: &'static str) -> Result<(), Error> {
    let path = Path::new(&run.guest);
    let unlimited = RunArgs { guest_mem: None, ..run.clone() };
    let (modules, loaded) = guest::modules(path, &unlimited)?;
    let format = Format::of(&guest::open("kernel", path)?.0);
    if !matches!(format, Format::Arm64(_)) {
        return Err(LinuxError::NoKernel { path: path.to_owned(), format }.into());
    }
    let unpacked =
        modules.iter().filter(|module| module.role == Role::Initrd).map(|it| it.size).sum::<u64>();
    let needed: u64 = (loaded + unpacked + WORK).next_multiple_of(1 << 20);
    match run.guest_mem {
        Some(given) if given < needed => {
            Err(LinuxError::TooLittle { option, given, needed, loaded, unpacked }.into())
        }
        _ => Ok(()),
    }
}

/// The initramfs with a shell: always the same, so it lies among the images.
fn shell_initrd(workspace: &Workspace) -> Result<PathBuf, LinuxError> {
    keep(workspace, "linux-initramfs.cpio", &archive(workspace, Told::default())?)
}

/// An initramfs that is there as long as this is.
enum Initrd {
    Kept(PathBuf),
    Ours(NamedTempFile),
}

impl Initrd {
    fn of(
        workspace: &Workspace,
        linux: &LinuxArgs,
        mark: Option<&str>,
    ) -> Result<Self, LinuxError> {
        if let Some(path) = &linux.initrd {
            return Ok(Self::Kept(path.clone()));
        }
        let Some(script) = linux.script.as_deref() else {
            return Ok(Self::Kept(shell_initrd(workspace)?));
        };
        let content = archive(workspace, Told { mark, script: Some(script) })?;
        if linux.hyp.dry_run {
            // Whoever pastes the line wants to find the file.
            return Ok(Self::Kept(keep(workspace, "linux-initramfs-script.cpio", &content)?));
        }
        let failed = |source| LinuxError::File { path: std::env::temp_dir(), source };
        let mut file = NamedTempFile::new().map_err(failed)?;
        file.write_all(&content).map_err(failed)?;
        Ok(Self::Ours(file))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Ours(file) => file.path(),
        }
    }
}

fn archive(workspace: &Workspace, told: Told<'_>) -> Result<Vec<u8>, LinuxError> {
    let path = catalogue::fetch(workspace, BUSYBOX)?;
    let archive = std::fs::read(&path).and_then(|busybox| initramfs::archive(&busybox, told));
    archive.map_err(|source| LinuxError::File { path, source })
}

/// A file among the images, written anew only if it differs.
fn keep(workspace: &Workspace, name: &str, content: &[u8]) -> Result<PathBuf, LinuxError> {
    let path = workspace.images().join(name);
    if std::fs::read(&path).is_ok_and(|old| old == content) {
        return Ok(path);
    }
    let written = std::fs::create_dir_all(workspace.images());
    let written = written.and_then(|()| crate::atomic::write(&path, content));
    written.map_err(|source| LinuxError::File { path: path.clone(), source })?;
    Ok(path)
}
