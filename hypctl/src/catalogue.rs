//! The guests that have names: our own, and those that the bootstrap fetches.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::build::DEFAULT_GUEST;
use crate::workspace::Workspace;

/// Debian's U-Boot.
pub const UBOOT: &str = "u-boot";
/// Debian's kernels, the newest first.
pub const KERNELS: [&str; 2] = ["linux-6.12", "linux-6.1"];
/// Debian's static busybox, which is no guest by itself.
pub const BUSYBOX: &str = "busybox";

/// The bootstrap could not bring a file.
#[derive(Debug, thiserror::Error)]
#[error("{name} could not be fetched: {why}")]
pub struct FetchError {
    name: &'static str,
    why: String,
}

/// The kernel that a guest's name stands for; plain `linux` is the newest.
pub fn kernel(guest: &str) -> Option<&'static str> {
    let named = |name: &&str| *name == guest || guest == "linux";
    KERNELS.into_iter().find(named)
}

/// The names of our guests: the programs of the package `guest-images`, as cargo knows them. It is asked once.
pub fn ours(workspace: &Workspace) -> Vec<String> {
    static ASKED: OnceLock<Vec<String>> = OnceLock::new();
    ASKED.get_or_init(|| ask(workspace)).clone()
}

fn ask(workspace: &Workspace) -> Vec<String> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(workspace.root().join("guest-images/Cargo.toml"))
        .stderr(Stdio::null());
    let metadata = cargo.output().map(|output| output.stdout).unwrap_or_default();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap_or_default();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == "guest-images")
        .filter_map(|package| package["targets"].as_array())
        .flatten();
    let mut names: Vec<_> = targets
        .filter(|target| {
            target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"bin".into()))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    // Without cargo there is still what was built before; the default guest always is ours.
    if names.is_empty() {
        names.push(DEFAULT_GUEST.to_owned());
    }
    names
}

/// Where a file of the distribution lies once it is fetched.
#[must_use]
pub fn cached(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.cache("guests").join(match name {
        UBOOT => "u-boot.bin",
        BUSYBOX => "busybox-arm64",
        kernel => kernel,
    })
}

/// A file of the distribution, fetched by the bootstrap if it is not in the cache yet.
///
/// # Errors
/// [`FetchError`]: the set-up has said why.
pub fn fetch(workspace: &Workspace, name: &'static str) -> Result<PathBuf, FetchError> {
    let failed = |why| FetchError { name, why };
    let path = cached(workspace, name);
    if path.is_file() {
        return Ok(path);
    }
    let mut python = Command::new("python3");
    python
        .args(["-m", "bootstrap", "fetch", name])
        .env("PYTHONPATH", workspace.root().join("hypctl"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(workspace.root())
        .stdin(Stdio::null());
    let output = python
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(format!("python3: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let path = said.lines().last().map(PathBuf::from).unwrap_or_default();
    if output.status.success() && path.is_file() {
        Ok(path)
    } else {
        Err(failed(format!("the set-up ended with {}; see above", output.status)))
    }
}
