//! Where things are: the checkout, the cache, the build products.
//!
//! | path | what |
//! | --- | --- |
//! | `<cache>/` | what the bootstrap brought: toolchain, guests, `setup.json` |
//! | `<target>/bare/` | cargo's folder for the bare-metal crates |
//! | `<target>/bare/images/` | `hyp.bin`, `hyp.elf`, `<guest>.bin`: what QEMU gets |
//!
//! `<cache>` is `HYP_CACHE` if set, else `.cache` in the checkout; `<target>` is `CARGO_TARGET_DIR` if
//! set, else `target` in the checkout.

use std::env;
use std::path::{Path, PathBuf};

/// The file that marks the checkout's root: nothing can be built without it.
const MARKER: &str = "aarch64-hyp.json";

/// There is no checkout to work on.
#[derive(Debug, thiserror::Error)]
#[error("no checkout: {MARKER} was looked for in {} and above it, and in {}", .from.display(), .built.display())]
pub struct NoCheckout {
    from: PathBuf,
    built: PathBuf,
}

/// The checkout's paths.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    cache: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Looks upwards from the current folder, then where this program was built.
    pub fn find() -> Result<Self, NoCheckout> {
        let from = env::current_dir().unwrap_or_default();
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = from
            .ancestors()
            .find(|folder| folder.join(MARKER).is_file())
            .map(Path::to_path_buf)
            .or_else(|| built.canonicalize().ok().filter(|root| root.join(MARKER).is_file()));
        match root {
            Some(root) => {
                let setting = |name, default: &str| match env::var_os(name) {
                    Some(folder) if !folder.is_empty() => from.join(folder),
                    _ => root.join(default),
                };
                let cache = setting("HYP_CACHE", ".cache");
                let target = setting("CARGO_TARGET_DIR", "target");
                Ok(Self { root, cache, target })
            }
            None => Err(NoCheckout { from, built }),
        }
    }

    /// The checkout itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the cache of the bootstrap.
    pub fn cache(&self, path: &str) -> PathBuf {
        self.cache.join(path)
    }

    /// Cargo's target folder for the bare-metal crates: apart from the host's, so that neither
    /// waits for the other's lock.
    pub fn bare_target(&self) -> PathBuf {
        self.target.join("bare")
    }

    /// The images QEMU gets.
    pub fn images(&self) -> PathBuf {
        self.bare_target().join("images")
    }

    /// The hypervisor as a raw arm64 Image.
    pub fn hyp_bin(&self, variant: Variant) -> PathBuf {
        self.images().join(format!("{}.bin", variant.stem()))
    }

    /// The hypervisor with its symbols.
    pub fn hyp_elf(&self, variant: Variant) -> PathBuf {
        self.images().join(format!("{}.elf", variant.stem()))
    }

    /// A guest of ours, flat.
    pub fn guest_bin(&self, name: &str) -> PathBuf {
        self.images().join(format!("{name}.bin"))
    }
}

/// Which hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// What users run.
    #[default]
    Plain,
    /// With the cycle counter read around every fault.
    Measure,
    /// With selftests: it can be made to fail on purpose, and has the call PROBE.
    Selftest,
    /// With every step of table maintenance recorded, and selftests.
    Debug,
}

impl Variant {
    fn stem(self) -> &'static str {
        match self {
            Self::Plain => "hyp",
            Self::Measure => "hyp-measure",
            Self::Selftest => "hyp-selftest",
            Self::Debug => "hyp-debug",
        }
    }

    /// Cargo features of the `hyp` crate.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Measure => &["--features", "measure"],
            Self::Selftest => &["--features", "selftest"],
            Self::Debug => &["--features", "trace,selftest"],
        }
    }
}
