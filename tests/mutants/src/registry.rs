//! The registry: which defects are seeded, and who must notice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How a test program is built.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Build {
    /// As `cargo test` does.
    #[default]
    Host,
    /// With `--cfg loom` and profile `models`.
    Loom,
    /// With `--cfg shuttle` and profile `models`.
    Shuttle,
}

/// A test, by where cargo has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Killer {
    /// The package.
    pub package: String,
    /// The test target; `lib` for the unit tests of the library.
    pub target: String,
    /// The test's full path in that target.
    pub test: String,
    /// Which build it is part of.
    #[serde(default)]
    pub build: Build,
}

impl std::fmt::Display for Killer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { package, target, test, build } = self;
        match build {
            Build::Host => write!(f, "{package}/{target}: {test}"),
            Build::Loom => write!(f, "{package}/{target} (loom): {test}"),
            Build::Shuttle => write!(f, "{package}/{target} (shuttle): {test}"),
        }
    }
}

/// Where a line is changed, and to what.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Seed {
    /// What is wrong, as a name: unique, lower case, words joined by `-`.
    pub name: String,
    /// The source file, from the root of the workspace.
    pub file: PathBuf,
    /// The function: `name`, `Type::name` or `module::name`.
    pub function: String,
    /// The fragment of one line that is replaced: a whole expression, or a whole statement with its
    /// semicolon.
    pub find: String,
    /// Which of the places where the fragment stands in the function, from 1; needed if there are several.
    pub nth: Option<usize>,
    /// What stands there instead. Empty: the statement is left out.
    pub with: String,
    /// The rule that is broken.
    pub rule: String,
}

/// A defect that a test must notice.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mutant {
    /// The change.
    #[serde(flatten)]
    pub seed: Seed,
    /// A key of the registry's `tests`.
    pub killed_by: String,
    /// What the message of the failing assertion contains.
    pub says: String,
}

/// A change that no test can notice, because it breaks nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Equivalent {
    /// The change.
    #[serde(flatten)]
    pub seed: Seed,
    /// Why nothing is broken.
    pub proof: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    tests: BTreeMap<String, Killer>,
    #[serde(default)]
    mutant: Vec<Mutant>,
    #[serde(default)]
    equivalent: Vec<Equivalent>,
}

/// The registry, checked: names are unique, every killer exists in it and is used.
#[derive(Clone, Debug)]
pub struct Registry {
    killers: BTreeMap<String, Killer>,
    mutants: Vec<Mutant>,
    equivalent: Vec<Equivalent>,
}

/// What is wrong with a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or a field is missing.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: toml::de::Error,
    },
    /// An entry contradicts itself or another.
    #[error("mutant `{name}`: {what}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A test that no mutant names.
    #[error("test `{0}` kills nothing: take it out")]
    IdleKiller(String),
}

/// An assertion's text shorter than this says too little: it might stand in any message.
const SHORTEST_TEXT: usize = 8;

impl Registry {
    /// Reads the registry at `path`.
    ///
    /// # Errors
    /// [`RegistryError`], with the entry's name.
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RegistryError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, RegistryError> {
        let File { tests, mutant, equivalent } = toml::from_str(text)
            .map_err(|source| RegistryError::Parse { path: path.to_owned(), source })?;
        let registry = Self { killers: tests, mutants: mutant, equivalent };
        registry.check()?;
        Ok(registry)
    }

    fn check(&self) -> Result<(), RegistryError> {
        let mut names = BTreeSet::new();
        for seed in self.seeds() {
            let wrong =
                |what: &str| RegistryError::Entry { name: seed.name.clone(), what: what.into() };
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if seed.name.is_empty() || !seed.name.chars().all(word) {
                return Err(wrong("a name is lower case words joined by `-`"));
            }
            if !names.insert(&seed.name) {
                return Err(wrong("there are two of this name"));
            }
            if seed.find.trim().is_empty() || seed.find.contains('\n') || seed.with.contains('\n') {
                return Err(wrong("a fragment and what replaces it stand on one line"));
            }
            if seed.rule.trim().is_empty() {
                return Err(wrong("which rule is broken?"));
            }
        }
        let mut idle: BTreeSet<&String> = self.killers.keys().collect();
        for mutant in &self.mutants {
            let name = mutant.seed.name.clone();
            if !self.killers.contains_key(&mutant.killed_by) {
                let what = format!("there is no test `{}`", mutant.killed_by);
                return Err(RegistryError::Entry { name, what });
            }
            if mutant.says.len() < SHORTEST_TEXT {
                let what =
                    format!("`says` needs {SHORTEST_TEXT} letters, or it could mean anything");
                return Err(RegistryError::Entry { name, what });
            }
            idle.remove(&mutant.killed_by);
        }
        match idle.first() {
            Some(idle) => Err(RegistryError::IdleKiller((*idle).clone())),
            None => Ok(()),
        }
    }

    /// The defects that must be noticed.
    #[must_use]
    pub fn mutants(&self) -> &[Mutant] {
        &self.mutants
    }

    /// The changes that cannot be.
    #[must_use]
    pub fn equivalent(&self) -> &[Equivalent] {
        &self.equivalent
    }

    /// Every change, mutants first. The place in this order, from 1, is the change's number.
    pub fn seeds(&self) -> impl Iterator<Item = &Seed> {
        let equivalent = self.equivalent.iter().map(|entry| &entry.seed);
        self.mutants.iter().map(|mutant| &mutant.seed).chain(equivalent)
    }

    /// The number of the change of this name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<usize> {
        self.seeds().position(|seed| seed.name == name).map(|place| place + 1)
    }

    /// Who must notice a mutant.
    ///
    /// # Panics
    /// Never for a mutant of this registry: its killers were checked.
    #[must_use]
    pub fn killer(&self, mutant: &Mutant) -> &Killer {
        &self.killers[&mutant.killed_by]
    }

    /// All tests that must notice something.
    pub fn killers(&self) -> impl Iterator<Item = &Killer> {
        self.killers.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [tests.t]
        package = "p"
        target = "lib"
        test = "tests::t"

        [[mutant]]
        name = "one"
        file = "p/src/lib.rs"
        function = "f"
        find = "1"
        with = "2"
        rule = "R"
        killed-by = "t"
        says = "assertion"
    "#;

    fn error(text: &str) -> String {
        Registry::parse(text, Path::new("r.toml")).unwrap_err().to_string()
    }

    #[test]
    fn mutants_are_numbered_from_one_and_before_the_equivalent() {
        let text = format!(
            "{GOOD}\n[[equivalent]]\nname = 'same'\nfile = 'f'\nfunction = 'f'\nfind = 'x'\n\
             with = 'y'\nrule = 'R'\nproof = 'p'"
        );
        let registry = Registry::parse(&text, Path::new("r")).unwrap();
        assert_eq!((registry.number("one"), registry.number("same")), (Some(1), Some(2)));
        assert_eq!(registry.number("none"), None);
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let with = |from: &str, to: &str| error(&GOOD.replace(from, to));
        assert!(with("\"one\"", "\"One\"").contains("`One`: a name is lower case"));
        assert!(with("killed-by = \"t\"", "killed-by = \"u\"").contains("there is no test `u`"));
        assert!(with("\"assertion\"", "\"failed\"").contains("`one`: `says` needs 8 letters"));
        assert!(with("rule = \"R\"", "rule = ''").contains("`one`: which rule"));
        assert!(with("find = \"1\"", "find = ' '").contains("`one`: a fragment"));
        assert!(with("find = \"1\"", "find = '''a\nb'''").contains("on one line"));
        let twice = GOOD.to_owned() + &GOOD[GOOD.find("[[mutant]]").unwrap()..];
        assert!(error(&twice).contains("two of this name"));
        let idle = "[tests.u]\npackage = 'p'\ntarget = 'lib'\ntest = 'x'\n".to_owned() + GOOD;
        assert_eq!(error(&idle), "test `u` kills nothing: take it out");
        assert!(with("find", "fnid").contains("r.toml"));
    }
}
