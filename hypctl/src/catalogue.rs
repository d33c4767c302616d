//! The guests that have names: our own, and those that the bootstrap fetches.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::build::DEFAULT_GUEST;
use crate::workspace::Workspace;

/// The guest that the bootstrap fetches.
pub const UBOOT: &str = "u-boot";

/// The bootstrap could not bring a guest.
#[derive(Debug, thiserror::Error)]
#[error("{UBOOT} could not be fetched: {0}")]
pub struct FetchError(String);

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

/// U-Boot's file, fetched by the bootstrap if it is not in the cache yet.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf, FetchError> {
    let path = workspace.cache("guests/u-boot.bin");
    if path.is_file() {
        return Ok(path);
    }
    let mut python = Command::new("python3");
    python
        .args(["-m", "bootstrap", "fetch", UBOOT])
        .env("PYTHONPATH", workspace.root().join("hypctl"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(workspace.root())
        .stdin(Stdio::null());
    let output = python
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| FetchError(format!("python3: {error}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let path = said.lines().last().map(PathBuf::from).unwrap_or_default();
    if output.status.success() && path.is_file() {
        Ok(path)
    } else {
        Err(FetchError(format!("the set-up ended with {}; see above", output.status)))
    }
}
