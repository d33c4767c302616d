//! The copy of the workspace that is built with all mutants in it.
//!
//! Copied are the packages that the killers belong to, the packages with mutants, and what these depend on by
//! path; at the same relative places, so that paths between them hold. A file is written only if its
//! content changed, so that cargo rebuilds only what did.
//!
//! The copy shares the workspace's target directory, for the dependencies. Cargo tells a package by its name,
//! version and path *inside the workspace*, so the copied packages get a version of their own: else
//! cargo would take the one's compiled library for the other's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use serde::Deserialize;

use crate::registry::{Registry, Seed};
use crate::source::{SourceError, seeded};
use crate::{REACHED, SWITCH};

/// The version of copied packages.
const VERSION: &str = "0.0.0-seeded";
/// The switch, as a module of each package with mutants.
const MODULE: &str = include_str!("switch/seeded.rs");
/// What precedes a package's first line: what the switch needs, and what seeded code may look like.
const PROLOGUE: &str = "#![feature(core_intrinsics, const_eval_select)] \
    #![allow(internal_features, unused, unused_must_use, unreachable_pub, unsafe_op_in_unsafe_fn)] ";

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// Cargo cannot say what the workspace is.
    #[error("cargo metadata in {}: {what}", at.display())]
    Metadata {
        /// Where it was asked.
        at: PathBuf,
        /// What it said.
        what: String,
    },
    /// A package that the registry names is not there.
    #[error("the workspace has no package `{0}`")]
    NoPackage(String),
    /// A test target that the registry names is not there.
    #[error("package `{package}` has no test target `{target}`")]
    NoTarget {
        /// The package.
        package: String,
        /// The target.
        target: String,
    },
    /// A mutant's file is in no package with a library.
    #[error("{}: not the source of a library in this workspace", .0.display())]
    NoLibrary(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A Cargo.toml is not what cargo accepted.
    #[error("{0}")]
    Manifest(String),
    /// Places of mutants are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Source(Vec<SourceError>),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WorkspaceError {
    move |source| WorkspaceError::Io { path: path.to_owned(), source }
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Target {
    fn is_library(&self) -> bool {
        self.kind.iter().any(|kind| kind == "lib")
    }
}

impl Package {
    fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new(""))
    }

    fn library(&self) -> Option<&Path> {
        self.targets.iter().find(|t| t.is_library()).map(|t| t.src_path.as_path())
    }
}

/// The workspace that the defects are seeded in.
#[derive(Debug)]
pub struct Workspace(Metadata);

impl Workspace {
    /// The workspace that `at` is inside of.
    ///
    /// # Errors
    /// [`WorkspaceError::Metadata`].
    pub fn find(at: &Path) -> Result<Self, WorkspaceError> {
        let error = |what| WorkspaceError::Metadata { at: at.to_owned(), what };
        let output = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(at)
            .output()
            .map_err(|failed| error(failed.to_string()))?;
        if !output.status.success() {
            return Err(error(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout).map(Self).map_err(|bad| error(bad.to_string()))
    }

    /// The workspace's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.workspace_root
    }

    /// Where cargo puts what it builds.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.0.target_directory
    }

    /// Where the copy is, and what runs said.
    #[must_use]
    pub fn mutants(&self) -> PathBuf {
        self.target().join("mutants")
    }

    /// The copy.
    #[must_use]
    pub fn copy(&self) -> PathBuf {
        self.mutants().join("workspace")
    }

    fn package(&self, name: &str) -> Result<&Package, WorkspaceError> {
        let found = self.0.packages.iter().find(|package| package.name == name);
        found.ok_or_else(|| WorkspaceError::NoPackage(name.into()))
    }

    /// The Cargo.toml of a package, in the copy.
    pub(crate) fn manifest_of(&self, package: &str) -> Option<PathBuf> {
        let path = &self.package(package).ok()?.manifest_path;
        Some(self.copy().join(path.strip_prefix(self.root()).ok()?))
    }

    /// The package that a source file belongs to.
    fn package_of(&self, file: &Path) -> Result<&Package, WorkspaceError> {
        let path = self.root().join(file);
        let holds = |package: &&Package| {
            package.library().and_then(Path::parent).is_some_and(|src| path.starts_with(src))
        };
        let found = self.0.packages.iter().filter(holds);
        // The innermost, where one package's folder is inside another's.
        found
            .max_by_key(|package| package.folder().components().count())
            .ok_or_else(|| WorkspaceError::NoLibrary(file.to_owned()))
    }

    /// The folders to copy: of the registry's packages, and of all that these depend on by path.
    fn needed(&self, registry: &Registry) -> Result<BTreeSet<PathBuf>, WorkspaceError> {
        let mut todo = Vec::new();
        for killer in registry.killers() {
            let package = self.package(&killer.package)?;
            let is_target = |t: &&Target| match killer.target.as_str() {
                "lib" => t.is_library(),
                name => t.name == name && t.kind.iter().any(|kind| kind == "test"),
            };
            if !package.targets.iter().any(|target| is_target(&target)) {
                let (package, target) = (killer.package.clone(), killer.target.clone());
                return Err(WorkspaceError::NoTarget { package, target });
            }
            todo.push(package.folder().to_owned());
        }
        for seed in registry.seeds() {
            todo.push(self.package_of(&seed.file)?.folder().to_owned());
        }
        let mut needed = BTreeSet::new();
        while let Some(folder) = todo.pop() {
            if needed.insert(folder.clone())
                && let Some(package) = self.0.packages.iter().find(|p| p.folder() == folder)
            {
                todo.extend(package.dependencies.iter().filter_map(|d| d.path.clone()));
            }
        }
        Ok(needed)
    }

    /// Writes the copy, with all changes of the registry in it.
    ///
    /// # Errors
    /// [`WorkspaceError`], with the file or the mutant.
    pub fn generate(&self, registry: &Registry) -> Result<(), WorkspaceError> {
        let folders = self.needed(registry)?;
        let mut seeds: BTreeMap<PathBuf, Vec<(usize, &Seed)>> = BTreeMap::new();
        let mut roots = BTreeMap::new();
        for (place, seed) in registry.seeds().enumerate() {
            seeds.entry(self.root().join(&seed.file)).or_default().push((place + 1, seed));
            if let Some(root) = self.package_of(&seed.file)?.library() {
                roots.insert(root.to_owned(), root.with_file_name("seeded.rs"));
            }
        }
        let mut files = BTreeMap::new();
        for folder in &folders {
            collect(folder, &mut files)?;
        }
        let mut errors = Vec::new();
        for (path, seeds) in &seeds {
            let text = fs::read_to_string(path).map_err(io_error(path))?;
            let name = path.strip_prefix(self.root()).unwrap_or(path).display().to_string();
            match seeded(&name, &text, seeds) {
                Ok(text) => _ = files.insert(path.clone(), text.into_bytes()),
                Err(wrong) => errors.extend(wrong),
            }
        }
        if !errors.is_empty() {
            return Err(WorkspaceError::Source(errors));
        }
        for (root, module) in roots {
            if let Some(text) = files.get_mut(&root) {
                let body = String::from_utf8_lossy(text).into_owned();
                *text = format!("{PROLOGUE}{body}\nmod seeded;\n").into_bytes();
                let switch = MODULE.replace("@SWITCH@", SWITCH).replace("@REACHED@", REACHED);
                files.insert(module, switch.into_bytes());
            }
        }
        for folder in &folders {
            let path = folder.join("Cargo.toml");
            let mut manifest = read_manifest(&path)?;
            if let Some(package) = manifest.get_mut("package").and_then(toml::Value::as_table_mut) {
                package.insert("version".into(), VERSION.into());
            }
            files.insert(path, write_manifest(&manifest)?);
        }
        let manifest = self.root().join("Cargo.toml");
        files.insert(manifest.clone(), self.manifest(&manifest, &folders)?);
        for name in ["Cargo.lock", "rustfmt.toml"] {
            let path = self.root().join(name);
            match fs::read(&path) {
                Ok(text) => _ = files.insert(path, text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path)(error)),
            }
        }
        self.write(files)
    }

    /// The root's Cargo.toml with only the copied packages as members.
    fn manifest(
        &self,
        path: &Path,
        folders: &BTreeSet<PathBuf>,
    ) -> Result<Vec<u8>, WorkspaceError> {
        let mut manifest = read_manifest(path)?;
        let workspace =
            manifest.get_mut("workspace").and_then(toml::Value::as_table_mut).ok_or_else(|| {
                WorkspaceError::Manifest(format!("{}: no [workspace]", path.display()))
            })?;
        let members: Vec<toml::Value> = folders
            .iter()
            .filter_map(|folder| folder.strip_prefix(self.root()).ok())
            .map(|member| member.display().to_string().into())
            .collect();
        workspace.insert("default-members".into(), members.clone().into());
        workspace.insert("members".into(), members.into());
        write_manifest(&manifest)
    }

    /// Makes the copy hold exactly `files`; leaves alone what is as it should be.
    fn write(&self, files: BTreeMap<PathBuf, Vec<u8>>) -> Result<(), WorkspaceError> {
        let copy = self.copy();
        fs::create_dir_all(&copy).map_err(io_error(&copy))?;
        let mut old = BTreeMap::new();
        collect(&copy, &mut old)?;
        let to = |path: &Path| copy.join(path.strip_prefix(self.root()).unwrap_or(path));
        for (path, text) in files {
            let path = to(&path);
            // Cargo's own: it takes out of the lock file what the copy does not need.
            let kept = path.ends_with("Cargo.lock") && old.contains_key(&path);
            let same = old.remove(&path).is_some_and(|before| before == text);
            if same || kept && newer(&path, &self.root().join("Cargo.lock")) {
                continue;
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(io_error(folder))?;
            }
            fs::write(&path, text).map_err(io_error(&path))?;
        }
        for path in old.keys() {
            fs::remove_file(path).map_err(io_error(path))?;
        }
        Ok(())
    }
}

fn read_manifest(path: &Path) -> Result<toml::Table, WorkspaceError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    let wrong =
        |bad: toml::de::Error| WorkspaceError::Manifest(format!("{}: {bad}", path.display()));
    text.parse().map_err(wrong)
}

fn write_manifest(manifest: &toml::Table) -> Result<Vec<u8>, WorkspaceError> {
    let text = toml::to_string(manifest);
    text.map(String::into_bytes).map_err(|bad| WorkspaceError::Manifest(bad.to_string()))
}

/// Whether `path` was written after `than`.
fn newer(path: &Path, than: &Path) -> bool {
    let time = |path| fs::metadata(path).and_then(|data: fs::Metadata| data.modified()).ok();
    time(path) > time(than)
}

/// Reads all files below `folder`, but for what builds and editors leave there.
fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<(), WorkspaceError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let entry = entry.map_err(io_error(folder))?;
        let (path, name) = (entry.path(), entry.file_name());
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            let text = fs::read(&path).map_err(io_error(&path))?;
            files.insert(path, text);
        }
    }
    Ok(())
}
