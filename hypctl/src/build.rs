//! Builds what QEMU runs: the guests, then the hypervisor with the default guest inside.
//!
//! 1. `cargo build` of `guest-images`; each program is flattened to `<guest>.bin`.
//! 2. `cargo build` of `hyp` with `HYP_GUEST` naming the flat default guest; the result is kept as
//!    `hyp.elf` and flattened to `hyp.bin`, a raw arm64 Image.
//!
//! One file lock spans both, so that parallel test runs and a person at the keyboard do not collide.
//! Files are replaced by a rename, and only when their content changed: a QEMU that is starting
//! reads the old file or the new one, and nothing downstream is rebuilt for a new date.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::flatten::{FlattenError, flatten};
use crate::process::die_with_parent;
use crate::toolchain::{PROFILE, Toolchain, ToolchainError};
use crate::workspace::{Variant, Workspace};

/// The guest inside the hypervisor's image.
pub const DEFAULT_GUEST: &str = "hello";

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No toolchain.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// Cargo cannot be started.
    #[error("cannot start cargo: {0}; is Rust installed (https://rustup.rs)?")]
    NoCargo(io::Error),
    /// Cargo failed; it has said why.
    #[error("the build of `{0}` failed; cargo's messages are above")]
    Failed(&'static str),
    /// Cargo ended well but there is no program.
    #[error("cargo built no program `{0}`")]
    NoProgram(&'static str),
    /// A program cannot be flattened.
    #[error("{}: {source}", path.display())]
    Flatten {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        source: FlattenError,
    },
    /// Reading or writing failed: a full disk, a read-only checkout.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `--no-build`, but it was never built.
    #[error("{} is missing: run `hypctl build` first, or leave out --no-build", .0.display())]
    NotBuilt(PathBuf),
}

/// Builds everything that `variant` needs; does nothing that is already done.
///
/// With `quiet`, cargo's progress is shown only if the build fails.
pub fn build(workspace: &Workspace, variant: Variant, quiet: bool) -> Result<(), BuildError> {
    let toolchain = Toolchain::find(workspace)?;
    let images = workspace.images();
    fs::create_dir_all(&images).map_err(|source| io_error(&images, source))?;
    let _lock = lock(&images.join(".lock"))?;

    let guests = cargo_build(workspace, &toolchain, "guest-images", quiet, |cargo| {
        cargo.arg("--bins");
    })?;
    for guest in &guests {
        let flat = flatten_file(&guest.path)?;
        replace(&workspace.guest_bin(&guest.name), &flat)?;
    }
    if !guests.iter().any(|guest| guest.name == DEFAULT_GUEST) {
        return Err(BuildError::NoProgram(DEFAULT_GUEST));
    }
    let programs = cargo_build(workspace, &toolchain, "hyp", quiet, |cargo| {
        cargo.args(variant.features());
        if variant == Variant::Debug {
            // The order of locks, among others.
            cargo.env("CARGO_PROFILE_BARE_DEBUG_ASSERTIONS", "true");
        }
        cargo.env("HYP_GUEST", workspace.guest_bin(DEFAULT_GUEST));
    })?;
    let hyp = programs.iter().find(|program| program.name == "hyp");
    let hyp = hyp.ok_or(BuildError::NoProgram("hyp"))?;
    replace(&workspace.hyp_bin(variant), &flatten_file(&hyp.path)?)?;
    replace(&workspace.hyp_elf(variant), &read(&hyp.path)?)
}

/// Checks that `--no-build` has something to run.
pub fn expect_built(workspace: &Workspace, variant: Variant) -> Result<(), BuildError> {
    let image = workspace.hyp_bin(variant);
    if image.is_file() { Ok(()) } else { Err(BuildError::NotBuilt(image)) }
}

/// A program that cargo built.
struct Program {
    name: String,
    path: PathBuf,
}

fn cargo_build(
    workspace: &Workspace,
    toolchain: &Toolchain,
    package: &'static str,
    quiet: bool,
    adjust: impl FnOnce(&mut Command),
) -> Result<Vec<Program>, BuildError> {
    let mut cargo = toolchain.cargo(workspace, "build");
    let colour = if io::stderr().is_terminal() { "always" } else { "never" };
    cargo
        .args(["--package", package, "--profile", PROFILE, "--color", colour])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    adjust(&mut cargo);
    die_with_parent(&mut cargo, Signal::TERM);
    let mut child = cargo.spawn().map_err(BuildError::NoCargo)?;
    let (messages, diagnostics) = (child.stdout.take(), child.stderr.take());
    let (programs, said) = std::thread::scope(|scope| {
        let said = scope.spawn(|| diagnostics.map(|pipe| forward(pipe, quiet)).unwrap_or_default());
        let programs = messages.map(programs).unwrap_or_default();
        (programs, said.join().unwrap_or_default())
    });
    let status = child.wait().map_err(BuildError::NoCargo)?;
    if status.success() {
        return Ok(programs);
    }
    if quiet {
        let _ = io::stderr().write_all(said.as_bytes());
    }
    Err(BuildError::Failed(package))
}

/// Passes on what cargo says as it says it, without the line that it prints even when there was
/// nothing to do. Returns all of it.
fn forward(pipe: impl io::Read, quiet: bool) -> String {
    let mut said = String::new();
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("Finished") && line.contains("profile") {
            continue;
        }
        if !quiet {
            let _ = writeln!(io::stderr(), "{line}");
        }
        said.push_str(&line);
        said.push('\n');
    }
    said
}

/// The programs among cargo's messages.
fn programs(pipe: impl io::Read) -> Vec<Program> {
    BufReader::new(pipe)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(&line).ok()?;
            let path = message.get("executable")?.as_str()?.into();
            let name = message.get("target")?.get("name")?.as_str()?.to_owned();
            Some(Program { name, path })
        })
        .collect()
}

fn lock(path: &Path) -> Result<File, BuildError> {
    let file = File::create(path).map_err(|source| io_error(path, source))?;
    file.lock().map_err(|source| io_error(path, source))?;
    Ok(file)
}

fn flatten_file(path: &Path) -> Result<Vec<u8>, BuildError> {
    flatten(&read(path)?).map_err(|source| BuildError::Flatten { path: path.into(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| io_error(path, source))
}

fn replace(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    crate::atomic::write(path, content).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> BuildError {
    BuildError::Io { path: path.into(), source }
}
