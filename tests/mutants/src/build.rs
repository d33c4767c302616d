//! Builds the copy's test programs: once for the host, and once for each other cfg that is needed.
//!
//! The dependencies are those of the workspace itself: the same lock file, flags and target directory, so
//! they are compiled once for both.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hypctl::process::Leashed;
use serde::Deserialize;

use crate::registry::{Build, Killer, Registry};
use crate::stop::Stop;
use crate::workspace::Workspace;

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo cannot be started.
    #[error("cannot start cargo: {0}")]
    NoCargo(io::Error),
    /// Cargo failed. A mutant that does not compile is named in the comment beside its number.
    #[error("the build of the mutants failed:\n{0}")]
    Failed(String),
    /// Cargo ended well, but a program is not there.
    #[error("cargo built no test program for {0}")]
    NoProgram(String),
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

/// A test program, by build, package and target.
pub type Key = (Build, String, String);

/// The test programs.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<Key, PathBuf>);

impl Programs {
    /// The program that holds a test.
    ///
    /// # Panics
    /// Never for a killer of the registry that was built.
    #[must_use]
    pub fn of(&self, killer: &Killer) -> &Path {
        &self.0[&key(killer)]
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Path)> {
        self.0.iter().map(|(key, path)| (key, path.as_path()))
    }
}

fn key(killer: &Killer) -> Key {
    (killer.build, killer.package.clone(), killer.target.clone())
}

/// One line of cargo's messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds every program that a killer of the registry is in.
///
/// # Errors
/// [`BuildError`]; cargo's own words are in it.
pub fn build(
    workspace: &Workspace,
    registry: &Registry,
    stop: &Stop,
) -> Result<Programs, BuildError> {
    let wanted: BTreeSet<Key> = registry.killers().map(key).collect();
    let mut programs = Programs::default();
    for kind in [Build::Host, Build::Loom, Build::Shuttle] {
        let keys: Vec<&Key> = wanted.iter().filter(|key| key.0 == kind).collect();
        if keys.is_empty() {
            continue;
        }
        let output = run(cargo(workspace, kind, &keys), stop)?;
        for line in output.lines() {
            let Ok(message) = serde_json::from_str::<Message>(line) else { continue };
            if message.reason != "compiler-artifact" || !message.profile.is_some_and(|p| p.test) {
                continue;
            }
            let (Some(target), Some(program)) = (message.target, message.executable) else {
                continue;
            };
            let library = target.kind.iter().any(|kind| kind == "lib");
            let name = if library { "lib".into() } else { target.name };
            let of = |key: &&&Key| {
                let manifest = workspace.manifest_of(&key.1);
                key.2 == name && manifest.is_some() && manifest == message.manifest_path
            };
            if let Some(key) = keys.iter().find(of) {
                programs.0.insert((*key).clone(), program);
            }
        }
        if let Some(missing) = keys.iter().find(|key| !programs.0.contains_key(**key)) {
            return Err(BuildError::NoProgram(format!("{}/{}", missing.1, missing.2)));
        }
    }
    Ok(programs)
}

fn cargo(workspace: &Workspace, kind: Build, keys: &[&Key]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace.copy()).args([
        "test",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let (cfg, folder) = match kind {
        Build::Host => (None, workspace.target().to_owned()),
        Build::Loom => (Some("loom"), workspace.target().join("loom")),
        Build::Shuttle => (Some("shuttle"), workspace.target().join("shuttle")),
    };
    cargo.arg("--target-dir").arg(folder);
    if let Some(cfg) = cfg {
        cargo.args(["--profile", "models"]).env("RUSTFLAGS", format!("--cfg {cfg}"));
    }
    let packages: BTreeSet<&String> = keys.iter().map(|key| &key.1).collect();
    packages.into_iter().for_each(|package| _ = cargo.args(["-p", package]));
    let targets: BTreeSet<&String> = keys.iter().map(|key| &key.2).collect();
    for target in targets {
        match target.as_str() {
            "lib" => cargo.arg("--lib"),
            name => cargo.args(["--test", name]),
        };
    }
    cargo
}

/// Runs cargo; what it says to people is shown as it comes on a terminal, and else only if it fails.
fn run(mut command: Command, stop: &Stop) -> Result<String, BuildError> {
    let shown = io::stderr().is_terminal();
    let mut cargo = Leashed::spawn(&mut command).map_err(BuildError::NoCargo)?;
    let Some((stdin, mut stdout, mut stderr)) = cargo.take_pipes() else {
        return Err(BuildError::NoCargo(io::ErrorKind::BrokenPipe.into()));
    };
    drop(stdin);
    let messages = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        text
    });
    let words = std::thread::spawn(move || {
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stderr.read(&mut piece) {
            text.extend_from_slice(&piece[..count]);
            if shown {
                let _ = io::stderr().write_all(&piece[..count]);
            }
        }
        text
    });
    let status = loop {
        if stop.requested().is_some() {
            cargo.kill();
            return Err(BuildError::Interrupted);
        }
        if let Some(status) = cargo.wait(Duration::from_millis(50)).map_err(BuildError::NoCargo)? {
            break status;
        }
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    let (messages, words) = (text(messages), text(words));
    if status.success() { Ok(messages) } else { Err(BuildError::Failed(words)) }
}
