//! A run, described.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use hypctl::workspace::{Variant, Workspace};

use crate::run::Run;
use crate::{bounded, host};

/// How long a run may take unless the scenario says otherwise. Generous: a slow host is no failure.
const TIMEOUT: u64 = 60;
/// How much longer the harness waits than `hypctl`'s own timeout.
const GRACE: Duration = Duration::from_secs(20);

/// One call of `hypctl run` or `hypctl linux`, and what is typed meanwhile.
#[derive(Debug)]
#[must_use = "a scenario does nothing until it is run"]
pub struct Scenario {
    words: Vec<OsString>,
    options: Vec<(String, Option<OsString>)>,
    extra: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    script: Option<String>,
    timeout: u64,
    needs_images: bool,
    needs_debug: bool,
    needs_selftest: bool,
    alone: bool,
}

impl Scenario {
    /// A run of a guest: a name or a path.
    pub fn of(guest: impl Into<OsString>) -> Self {
        Self::call(vec!["run".into(), guest.into()])
    }

    /// A run of Linux; what it is to do there is `--script`.
    pub fn linux() -> Self {
        Self::call(vec!["linux".into()])
    }

    fn call(words: Vec<OsString>) -> Self {
        Self {
            words,
            options: Vec::new(),
            extra: Vec::new(),
            environment: Vec::new(),
            script: None,
            timeout: TIMEOUT,
            needs_images: true,
            needs_debug: false,
            needs_selftest: false,
            alone: false,
        }
    }

    /// A run that must fail before anything is built: the images are not made for it.
    pub fn before_the_build(mut self) -> Self {
        self.needs_images = false;
        self
    }

    /// Sets an option with a value; an earlier value of it is replaced.
    pub fn with(mut self, option: &str, value: impl ToString) -> Self {
        self.options.retain(|(name, _)| name != option);
        self.options.push((option.to_owned(), Some(value.to_string().into())));
        self
    }

    /// Adds an option without a value.
    pub fn flag(mut self, option: &str) -> Self {
        self.options.push((option.to_owned(), None));
        self
    }

    /// The CPU model.
    pub fn cpu(self, model: &str) -> Self {
        self.with("--cpu", model)
    }

    /// The number of virtual CPUs, and of CPUs.
    pub fn vcpus(self, count: u32) -> Self {
        self.with("--vcpus", count)
    }

    /// The guest's command line.
    pub fn append(self, words: &str) -> Self {
        self.with("--append", words)
    }

    /// More words for the hypervisor's own command line.
    pub fn hypervisor(self, words: &str) -> Self {
        self.with("--hyp-append", words)
    }

    /// Writes a trace there: the hypervisor's debug build runs.
    pub fn trace(mut self, path: &Path) -> Self {
        self.needs_debug = true;
        self.with("--trace", path.display())
    }

    /// The hypervisor's build with selftests runs: it asserts that nothing is held at its safe points.
    pub fn selftest(mut self) -> Self {
        self.needs_selftest = true;
        self.flag("--selftest")
    }

    /// What is typed, in the language of `hypctl run --script`.
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Another program in QEMU's place.
    pub fn emulator(mut self, program: impl Into<OsString>) -> Self {
        self.environment.push(("HYPCTL_QEMU".to_owned(), program.into()));
        self
    }

    /// More arguments for QEMU.
    pub fn qemu(mut self, words: &[&str]) -> Self {
        self.extra.extend(words.iter().map(OsString::from));
        self
    }

    /// No other run at the same time: for guests whose vCPUs must run at the same moment.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// How long the run may take.
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }

    /// Runs it. Fails only if `hypctl` cannot be started or does not keep its own timeout; what
    /// the run came to is for the caller to judge.
    #[track_caller]
    pub fn run(self) -> Run {
        if self.needs_images {
            images();
        }
        if self.needs_debug {
            debug_images();
        }
        if self.needs_selftest {
            selftest_images();
        }
        let folder = tempfile::tempdir().unwrap();
        let summary = folder.path().join("summary.json");
        let mut command = Command::new(hypctl());
        command.args(&self.words);
        for (option, value) in &self.options {
            command.arg(option).args(value);
        }
        command.arg("--timeout").arg(self.timeout.to_string()).arg("--json").arg(&summary);
        if self.needs_images {
            command.arg("--no-build");
        }
        if let Some(script) = &self.script {
            let path = folder.path().join("script");
            std::fs::write(&path, script).unwrap();
            command.arg("--script").arg(path);
        }
        if !self.extra.is_empty() {
            command.arg("--").args(&self.extra);
        }
        command.envs(self.environment);
        let bound = Duration::from_secs(self.timeout) + GRACE;
        let _host = if self.alone { host::alone() } else { host::shared() };
        let ended = bounded::run(&mut command, b"", bound).unwrap();
        Run::new(&command, ended, std::fs::read_to_string(summary).ok())
    }

    /// Runs it and expects a guest that passes.
    #[track_caller]
    pub fn passes(self) -> Run {
        self.run().exits(0)
    }
}

/// The `hypctl` that was built with the tests: beside the folder of the test program.
pub fn hypctl() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("e2e-hypctl")
}

/// Builds hypervisor and guests once, and says where things are.
#[track_caller]
pub fn images() -> &'static Workspace {
    static BUILT: OnceLock<Result<Workspace, String>> = OnceLock::new();
    built(&BUILT, Variant::Plain)
}

/// Builds the hypervisor's debug build once, and says where things are.
#[track_caller]
pub fn debug_images() -> &'static Workspace {
    static BUILT: OnceLock<Result<Workspace, String>> = OnceLock::new();
    built(&BUILT, Variant::Debug)
}

/// Builds the hypervisor with its selftests once, and says where things are.
#[track_caller]
pub fn selftest_images() -> &'static Workspace {
    static BUILT: OnceLock<Result<Workspace, String>> = OnceLock::new();
    built(&BUILT, Variant::Selftest)
}

/// A build that failed is not tried again by every test.
#[track_caller]
fn built(
    once: &'static OnceLock<Result<Workspace, String>>,
    variant: Variant,
) -> &'static Workspace {
    let built = once.get_or_init(|| {
        let workspace = Workspace::find().map_err(|error| error.to_string())?;
        let built = hypctl::build::build(&workspace, variant, true);
        built.map(|()| workspace).map_err(|error| error.to_string())
    });
    match built {
        Ok(workspace) => workspace,
        Err(error) => panic!("the images cannot be built: {error}"),
    }
}

/// The hypervisor's raw image.
#[track_caller]
pub fn image() -> PathBuf {
    images().hyp_bin(Variant::Plain)
}
