//! A workspace with one small library, and defects for every way in which a test can end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const MANIFEST: &str = r#"
[workspace]
members = ["victim", "bystander"]
resolver = "3"
"#;

const VICTIM: &str = r#"
[package]
name = "victim"
version = "0.1.0"
edition = "2024"
"#;

/// A package that no mutant needs: it would not even compile.
const BYSTANDER: &str = r#"
[package]
name = "bystander"
version = "0.1.0"
edition = "2024"
"#;

const LIBRARY: &str = r#"//! Adds.
#![no_std]
#![deny(missing_docs)]

/// Twice `n`.
pub const fn twice(n: u64) -> u64 {
    n + n
}

/// At compile time no defect is on.
pub const FOUR: u64 = twice(2);

/// The sum up to `n`.
pub fn sum(n: u64) -> u64 {
    let mut at = 0;
    let mut sum = 0;
    while at < n {
        at += 1;
        sum += at;
    }
    sum
}

/// Not tested.
pub fn idle() -> u64 {
    7
}
"#;

const TESTS: &str = r#"
#[test]
fn twice_is_twice() {
    assert_eq!(victim::FOUR, 4, "a constant changed");
    assert_eq!(victim::twice(3), 6, "twice three");
}

#[test]
fn sums() {
    assert_eq!(victim::sum(3), 6, "the sum to three");
}
"#;

const REGISTRY: &str = r#"
[tests.twice]
package = "victim"
target = "adding"
test = "twice_is_twice"

[tests.sums]
package = "victim"
target = "adding"
test = "sums"
"#;

/// The fixture, in a folder that ends with it.
pub(crate) struct Fixture(TempDir);

impl Fixture {
    pub(crate) fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        fixture.write("Cargo.toml", MANIFEST);
        fixture.write("victim/Cargo.toml", VICTIM);
        fixture.write("victim/src/lib.rs", LIBRARY);
        fixture.write("victim/tests/adding.rs", TESTS);
        fixture.write("bystander/Cargo.toml", BYSTANDER);
        fixture.write("bystander/src/lib.rs", "compile_error!(\"nobody needs this\");");
        fixture
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.root().join("target")
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The registry: name, function, fragment, what replaces it, test, text.
    pub(crate) fn seed(&self, mutants: &[[&str; 6]]) {
        let mut text = REGISTRY.to_owned();
        for test in ["twice", "sums"] {
            if mutants.iter().all(|mutant| mutant[4] != test) {
                let from = text.find(&format!("[tests.{test}]")).unwrap();
                let to = text[from..].find("\n\n").map_or(text.len(), |end| from + end);
                text.replace_range(from..to, "");
            }
        }
        for [name, function, find, with, test, says] in mutants {
            text += &format!(
                "\n[[mutant]]\nname = '{name}'\nfile = 'victim/src/lib.rs'\nfunction = '{function}'\n\
                 find = '{find}'\nwith = '{with}'\nrule = 'arithmetic'\nkilled-by = '{test}'\n\
                 says = '{says}'\n"
            );
        }
        self.write("mutants.toml", &text);
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mutants"));
        command.args(["--registry", "mutants.toml"]).args(words).current_dir(self.root());
        command.env("CARGO_TARGET_DIR", self.target()).env_remove("RUSTFLAGS");
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }
}
