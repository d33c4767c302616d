//! The toolchain that builds for bare metal, and how cargo is called with it.
//!
//! The bare-metal crates need a nightly with the sources of `core`. The bootstrap puts (or links)
//! the pinned one at `.cache/toolchain`; without it, the toolchain that `RUSTUP_TOOLCHAIN` names is
//! taken if it is fit. A test run started by cargo has `RUSTUP_TOOLCHAIN` set to the *host's*
//! toolchain, which is why the cache comes first and fitness is checked.
//!
//! [`BARE`] is the only place in the project that knows the flags.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::workspace::Workspace;

/// Flags of every cargo call for the bare-metal crates; the target file is added with its path.
pub const BARE: &[&str] =
    &["-Zjson-target-spec", "-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"];

/// The cargo profile of the images.
pub const PROFILE: &str = "bare";

/// Where the sources of `core` lie inside a toolchain.
const CORE_SOURCE: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// No toolchain can build the images.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// Neither place has one.
    #[error(
        "no toolchain for bare metal: looked for {} and for RUSTUP_TOOLCHAIN ({env}); \
         run `./just setup` once, or start hypctl through `./just`",
        cache.display()
    )]
    Missing {
        /// The bootstrap's toolchain.
        cache: PathBuf,
        /// What the variable holds and why it does not do.
        env: String,
    },
    /// It is there but cannot build `core`.
    #[error(
        "the toolchain {} lacks the sources of core ({CORE_SOURCE}); run `./just setup` again",
        path.display()
    )]
    NoSource {
        /// Its folder.
        path: PathBuf,
    },
}

/// A toolchain fit for the bare-metal crates.
#[derive(Clone, Debug)]
pub struct Toolchain {
    name: OsString,
}

impl Toolchain {
    /// Finds it; see the module's documentation for the order.
    pub fn find(workspace: &Workspace) -> Result<Self, ToolchainError> {
        let cache = workspace.cache("toolchain");
        if cache.is_dir() {
            return if cache.join(CORE_SOURCE).is_file() {
                Ok(Self { name: cache.into_os_string() })
            } else {
                Err(ToolchainError::NoSource { path: cache })
            };
        }
        let missing = |env| ToolchainError::Missing { cache: cache.clone(), env };
        let Some(name) = env::var_os("RUSTUP_TOOLCHAIN") else {
            return Err(missing("not set".to_owned()));
        };
        let toolchain = Self { name };
        match toolchain.unfit() {
            None => Ok(toolchain),
            Some(why) => Err(missing(format!("`{}`: {why}", toolchain.name.display()))),
        }
    }

    /// The value for `RUSTUP_TOOLCHAIN`.
    pub fn name(&self) -> &OsString {
        &self.name
    }

    /// `rustc --version` of this toolchain.
    pub fn version(&self) -> Option<String> {
        self.ask(&["--version"])
    }

    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut rustc = Command::new("rustc");
        let output = rustc.env("RUSTUP_TOOLCHAIN", &self.name).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    fn unfit(&self) -> Option<&'static str> {
        let Some(version) = self.version() else {
            return Some("no rustc there");
        };
        if !version.contains("nightly") && !version.contains("-dev") {
            return Some("not a nightly");
        }
        let Some(sysroot) = self.ask(&["--print", "sysroot"]) else {
            return Some("no sysroot");
        };
        let source = PathBuf::from(sysroot).join(CORE_SOURCE);
        (!source.is_file()).then_some("without the sources of core (component rust-src)")
    }

    /// `cargo <verb>` for bare-metal crates, in the checkout, with a clean environment.
    ///
    /// Clean: what an outer cargo or the caller's shell set for *host* builds (flags, target
    /// folder, package variables) would change fingerprints, so that a build from a test and one
    /// from the shell would evict each other.
    pub fn cargo(&self, workspace: &Workspace, verb: &str) -> Command {
        let mut cargo = Command::new("cargo");
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_host_build_setting) {
                cargo.env_remove(name);
            }
        }
        cargo
            .current_dir(workspace.root())
            .env("RUSTUP_TOOLCHAIN", &self.name)
            .arg(verb)
            .arg("--target")
            .arg(workspace.root().join("aarch64-hyp.json"))
            .arg("--target-dir")
            .arg(workspace.bare_target())
            .args(BARE)
            // What it would report lies in the library's sources: nobody here can act on it.
            .args(["--config", "future-incompat-report.frequency='never'"]);
        cargo
    }
}

fn is_host_build_setting(name: &str) -> bool {
    const KEPT: &[&str] = &["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"];
    let ours = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS"];
    ours.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|kept| name.starts_with(kept))
        && name != "CARGO_TERM_COLOR"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_build_settings_do_not_reach_the_bare_build() {
        for name in ["RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_PKG_NAME", "RUSTC_WRAPPER", "CARGO"] {
            assert!(is_host_build_setting(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "PATH", "RUSTUP_HOME", "CARGO_TERM_COLOR"] {
            assert!(!is_host_build_setting(name), "{name}");
        }
    }
}
