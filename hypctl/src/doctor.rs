//! `hypctl doctor`: what was found on this machine, what is missing, and what to do about it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::catalogue::{self, BUSYBOX, KERNELS, UBOOT};
use crate::exit::Exit;
use crate::qemu::{Qemu, TESTED_CPUS};
use crate::toolchain::Toolchain;
use crate::workspace::{Variant, Workspace};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What.
    what: &'static str,
    /// How it stands.
    state: State,
    /// What was found, or why it is missing and what to do.
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It is there.
    Ok,
    /// It comes when it is needed.
    Later,
    /// Nothing runs without it.
    Missing,
}

/// What Linux is booted with: its name here and in the catalogue, and what brings it.
const LINUX: [(&str, &str, &str); 3] = [
    ("Linux 6.12", KERNELS[0], "`hypctl linux` fetches it"),
    ("Linux 6.1", KERNELS[1], "`hypctl linux --kernel 6.1` fetches it"),
    ("busybox", BUSYBOX, "`hypctl linux` fetches it"),
];

#[derive(Debug, Serialize)]
struct Findings {
    findings: Vec<Finding>,
    /// The set-up's own record.
    setup: Option<serde_json::Value>,
}

/// Runs `hypctl doctor`. The exit code is 0 if everything that a run needs is there, else 2.
pub fn doctor(as_json: bool) -> Exit {
    let workspace = match Workspace::find() {
        Ok(workspace) => workspace,
        Err(error) => {
            crate::run::say(&error.to_string());
            return Exit::USAGE;
        }
    };
    let findings = Findings { findings: look(&workspace), setup: setup_record(&workspace) };
    let text = if as_json {
        serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n"
    } else {
        render(&findings)
    };
    let _ = io::stdout().write_all(text.as_bytes());
    let missing = findings.findings.iter().any(|finding| finding.state == State::Missing);
    if missing { Exit::USAGE } else { Exit::OK }
}

fn look(workspace: &Workspace) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |what, state, detail: String| found.push(Finding { what, state, detail });
    add("checkout", State::Ok, workspace.root().display().to_string());

    match Toolchain::find(workspace) {
        Ok(toolchain) => {
            let version = toolchain.version().unwrap_or_else(|| "rustc does not start".to_owned());
            let detail = format!("{version} ({})", toolchain.name().display());
            add("toolchain", State::Ok, detail);
        }
        Err(error) => add("toolchain", State::Missing, error.to_string()),
    }
    match version_of("cargo") {
        Some(version) => add("cargo", State::Ok, version),
        None => add("cargo", State::Missing, "not found: install Rust (https://rustup.rs)".into()),
    }
    match Qemu::find() {
        Ok(qemu) => {
            let program = qemu.program().display();
            add("QEMU", State::Ok, format!("{} ({program})", qemu.version()));
            let (has, lacks): (Vec<_>, Vec<_>) =
                TESTED_CPUS.iter().copied().partition(|cpu| qemu.has_cpu(cpu));
            add("CPU models", State::Ok, has.join(", "));
            if !lacks.is_empty() {
                let detail = format!(
                    "this QEMU lacks {}: tests on them fail; `./just setup` brings a newer one",
                    lacks.join(", ")
                );
                add("CPU models", State::Missing, detail);
            }
        }
        Err(error) => add("QEMU", State::Missing, error.to_string()),
    }
    match version_of("just") {
        Some(version) => add("just", State::Ok, version),
        None => add("just", State::Later, "not on the PATH; `./just` brings its own".into()),
    }
    let hypervisor = workspace.hyp_bin(Variant::Plain);
    let mut files = vec![("hypervisor", hypervisor, "`hypctl build` makes it")];
    files.push(("U-Boot", catalogue::cached(workspace, UBOOT), "`hypctl run u-boot` fetches it"));
    for (what, name, how) in LINUX {
        files.push((what, catalogue::cached(workspace, name), how));
    }
    for (what, path, how) in files {
        match size_of(&path) {
            Some(size) => add(what, State::Ok, format!("{} ({size} bytes)", path.display())),
            None => add(what, State::Later, how.to_owned()),
        }
    }
    found
}

fn render(findings: &Findings) -> String {
    let mut out = String::new();
    for finding in &findings.findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Later => "later",
            State::Missing => "MISSING",
        };
        let _ = writeln!(out, "{state:>8}  {:12} {}", finding.what, finding.detail);
    }
    let records = findings.setup.as_ref().and_then(|setup| setup.as_object());
    for (name, record) in records.into_iter().flatten() {
        let _ = writeln!(out, "{:>8}  {name:12} {}", "set-up", in_words(record));
    }
    out
}

/// A record of the set-up: which version, how it came, where it is.
fn in_words(record: &serde_json::Value) -> String {
    let fields = ["version", "how", "path"].iter().filter_map(|key| record[key].as_str());
    fields.collect::<Vec<_>>().join(", ")
}

fn setup_record(workspace: &Workspace) -> Option<serde_json::Value> {
    let text = std::fs::read_to_string(workspace.cache("setup.json")).ok()?;
    serde_json::from_str(&text).ok()
}

fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn size_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(|meta| meta.is_file()).map(|meta| meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_is_called_by_its_own_release() {
        for (what, name, _) in LINUX {
            assert_eq!(what.to_lowercase().replace(' ', "-"), name);
        }
        assert!(KERNELS.iter().all(|kernel| LINUX.iter().any(|(_, name, _)| name == kernel)));
    }

    #[test]
    fn what_is_fetched_when_it_is_wanted_is_named_and_nothing_is_missing_for_it() {
        let found = look(&Workspace::find().unwrap());
        for what in ["hypervisor", "U-Boot", "Linux 6.12", "Linux 6.1", "busybox"] {
            let finding = found.iter().find(|finding| finding.what == what).unwrap();
            let there = finding.detail.ends_with("bytes)");
            assert_eq!(finding.state, if there { State::Ok } else { State::Later }, "{what}");
            assert!(there || finding.detail.contains("`hypctl "), "{}", finding.detail);
        }
    }
}
