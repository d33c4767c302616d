//! The emulator that is there: where, which version, which CPU models.
//!
//! `HYPCTL_QEMU` names another binary than the `qemu-system-aarch64` of `PATH`; tests use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, io};

/// The binary's name.
pub const PROGRAM: &str = "qemu-system-aarch64";

/// The oldest version that the image runs on: older ones randomise the device tree.
pub const OLDEST: Version = Version(7, 2, 0);

/// The CPU models that every test runs on; together they cover every fallback path.
pub const TESTED_CPUS: [&str; 4] = ["max", "neoverse-n2", "cortex-a76", "cortex-a53"];

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Why there is no emulator to use.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// Nothing to start.
    #[error(
        "{program} cannot be started ({source}); `./just setup` installs it \
         (Debian: package qemu-system-arm, {OLDEST} or newer)"
    )]
    Missing {
        /// What was tried.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It does not say a version.
    #[error("{program} --version says nothing that reads as a version: {said:?}")]
    Silent {
        /// What was started.
        program: String,
        /// What it printed.
        said: String,
    },
    /// Too old.
    #[error(
        "{program} is version {found}; {OLDEST} or newer is needed (`./just setup` brings one)"
    )]
    TooOld {
        /// What was started.
        program: String,
        /// Its version.
        found: Version,
    },
    /// It does not emulate this CPU.
    #[error(
        "{program} {version} has no CPU model `{model}`; the project is tested on {}",
        TESTED_CPUS.join(", ")
    )]
    NoCpu {
        /// What was asked.
        program: String,
        /// Its version.
        version: Version,
        /// The model that was wanted.
        model: String,
    },
}

/// An emulator that can run the image.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    version: Version,
    cpus: BTreeSet<String>,
}

impl Qemu {
    /// Finds the emulator and asks it for its version and CPU models.
    pub fn find() -> Result<Self, QemuError> {
        let program = env::var_os("HYPCTL_QEMU").filter(|program| !program.is_empty());
        Self::at(&program.map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from))
    }

    fn at(program: &Path) -> Result<Self, QemuError> {
        let name = program.display().to_string();
        let banner = ask(program, &["--version"])
            .map_err(|source| QemuError::Missing { program: name.clone(), source })?;
        let Some(version) = parse_version(&banner) else {
            let said = banner.lines().next().unwrap_or_default().to_owned();
            return Err(QemuError::Silent { program: name, said });
        };
        if version < OLDEST {
            return Err(QemuError::TooOld { program: name, found: version });
        }
        let help = ask(program, &["-cpu", "help"])
            .map_err(|source| QemuError::Missing { program: name, source })?;
        Ok(Self { program: program.to_owned(), version, cpus: parse_cpus(&help) })
    }

    /// What to start.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether it has a CPU model.
    pub fn has_cpu(&self, model: &str) -> bool {
        self.cpus.contains(model)
    }

    /// Fails by name if it does not have `cpu`, a model with or without `,feature=…` options.
    pub fn expect_cpu(&self, cpu: &str) -> Result<(), QemuError> {
        let model = cpu.split(',').next().unwrap_or(cpu);
        if self.has_cpu(model) {
            return Ok(());
        }
        Err(QemuError::NoCpu {
            program: self.program.display().to_string(),
            version: self.version,
            model: model.to_owned(),
        })
    }
}

fn ask(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2…)`.
fn parse_version(banner: &str) -> Option<Version> {
    let rest = banner.split_once("version ")?.1;
    let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    let major = parts.next()??;
    let minor = parts.next()??;
    Some(Version(major, minor, parts.next().flatten().unwrap_or(0)))
}

/// The models of `-cpu help`: one a line, indented, under a heading; newer versions add a list of
/// CPU flags under a heading of its own.
fn parse_cpus(help: &str) -> BTreeSet<String> {
    help.lines()
        .skip(1)
        .take_while(|line| line.starts_with(char::is_whitespace))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_every_banner() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(debian), Some(Version(10, 0, 2)));
        assert_eq!(parse_version("QEMU emulator version 9.1\n"), Some(Version(9, 1, 0)));
        assert_eq!(parse_version("QEMU emulator version 8.2.91-rc1"), Some(Version(8, 2, 91)));
        assert_eq!(parse_version("no such thing"), None);
        assert!(Version(7, 1, 9) < OLDEST && Version(10, 0, 0) > OLDEST);
    }

    #[test]
    fn cpu_models_are_the_indented_words() {
        let help = "Available CPUs:\n  cortex-a53\n  max (best)\n\nRecognized features:\n  sve\n";
        let cpus = parse_cpus(help);
        assert!(cpus.contains("cortex-a53") && cpus.contains("max") && !cpus.contains("sve"));
    }

    #[test]
    fn a_missing_emulator_says_how_to_get_one() {
        let error = Qemu::at(Path::new("/nonexistent/qemu")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/qemu") && error.contains("./just setup"), "{error}");
    }
}
