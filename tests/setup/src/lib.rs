//! Machines that lack something, made of a folder.
//!
//! A [`Machine`] is a temporary folder with a copy of the bootstrap, an empty cache, a home, and a
//! `PATH` of two folders: `bin` with fake programs (from `fakes/`), `tools` with links to the few
//! real ones that scripts need. So a test decides what is installed, and nothing on the real
//! machine is touched or downloaded. Switches change how a fake behaves; each fake notes its calls.
//!
//! `pip` is reached as `python3 -m pip`, so `python3` is a fake that passes everything else on.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::{fs, io};

mod machine;

pub use machine::Machine;

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code.
    pub code: i32,
    /// What it printed for other programs.
    pub stdout: String,
    /// What it printed for people.
    pub stderr: String,
}

impl Outcome {
    /// Checks the exit code, and that each piece stands in the message.
    #[track_caller]
    pub fn expect(&self, code: i32, pieces: &[&str]) {
        assert_eq!(self.code, code, "{}", self.stderr);
        for piece in pieces {
            assert!(self.stderr.contains(piece), "no `{piece}` in:\n{}", self.stderr);
        }
        // A traceback is a failure that nobody thought of.
        assert!(!self.stderr.contains("Traceback"), "{}", self.stderr);
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// The real checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A value of `toolchain.pin`.
pub fn pin(key: &str) -> String {
    let file = checkout().join("hypctl/bootstrap/toolchain.pin");
    let text =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut pairs = text.lines().filter_map(|line| line.split_once('='));
    let found = pairs.find(|(name, _)| name.trim() == key);
    found.unwrap_or_else(|| panic!("no {key} in {}", file.display())).1.trim().to_owned()
}

/// Everything under a folder: path, mode, time and content, sorted.
pub fn listing(folder: &Path) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let content = if meta.is_file() { fs::read(&path)? } else { Vec::new() };
            let (mode, time) = (meta.permissions().mode(), meta.modified()?);
            lines.push(format!("{} {mode:o} {time:?} {content:?}", path.display()));
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    lines.sort();
    Ok(lines)
}
