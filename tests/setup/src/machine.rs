//! The machine itself: its folders, its fakes, its commands.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io, thread};

use crate::{Outcome, checkout, pin};

/// Real programs that the scripts may use.
const TOOLS: &[&str] = &[
    "sh", "env", "dirname", "uname", "cat", "mkdir", "cp", "rm", "head", "sleep", "chmod", "mount",
    "find", "true",
];

/// What a machine that needs nothing has.
const EQUIPMENT: &[&str] = &["cc", "cargo", "rustup", "just", "qemu-system-aarch64"];

/// A user that is not root and may not become it.
const NOBODY: u32 = 65534;

/// A machine in a folder.
pub struct Machine {
    root: tempfile::TempDir,
    user: Option<u32>,
}

impl Machine {
    /// A machine with the checkout and Python, and nothing else.
    pub fn bare() -> io::Result<Self> {
        let machine = Self { root: tempfile::tempdir()?, user: None };
        fs::set_permissions(machine.path(""), fs::Permissions::from_mode(0o755))?;
        for folder in ["bin", "tools", "switch", "home", "checkout/hypctl"] {
            fs::create_dir_all(machine.path(folder))?;
        }
        copy_folder(
            &checkout().join("hypctl/bootstrap"),
            &machine.path("checkout/hypctl/bootstrap"),
        )?;
        copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fakes"), &machine.path("fakes"))?;
        for file in ["just", "justfile"] {
            fs::copy(checkout().join(file), machine.path("checkout").join(file))?;
        }
        for tool in TOOLS {
            symlink(real(tool), machine.path("tools").join(tool))?;
        }
        machine.switch("python", &python("import sys; print(sys.executable)")?)?;
        machine.install("python3")?;
        Ok(machine)
    }

    /// A machine that lacks nothing but the toolchain, which its rustup can download.
    pub fn equipped() -> io::Result<Self> {
        let machine = Self::bare()?;
        for program in EQUIPMENT {
            machine.install(program)?;
        }
        Ok(machine)
    }

    /// A path inside the machine's folder.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    /// A path inside its cache.
    pub fn cache(&self, inside: &str) -> PathBuf {
        self.path("cache").join(inside)
    }

    /// Sets a switch that the fakes look at.
    pub fn switch(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.path("switch").join(name), value)
    }

    /// Puts a fake on the PATH.
    pub fn install(&self, program: &str) -> io::Result<()> {
        fs::copy(self.path("fakes").join(program), self.path("bin").join(program)).map(drop)
    }

    /// Takes a program off the PATH.
    pub fn remove(&self, program: &str) -> io::Result<()> {
        fs::remove_file(self.path("bin").join(program))
    }

    /// Gives the machine apt, and a mirror with these `(package, version, suite)`.
    pub fn apt(&self, offers: &[(&str, &str, &str)]) -> io::Result<()> {
        let row = |(package, version, suite): &(&str, &str, &str)| {
            format!("{package} | {version} | http://mirror.test {suite}/main all Packages\n")
        };
        self.switch("offers", &offers.iter().map(row).collect::<String>())?;
        ["apt-get", "apt-cache", "dpkg"].iter().try_for_each(|program| self.install(program))
    }

    /// Makes apt's installation of a package bring this fake.
    pub fn apt_installs(&self, program: &str) -> io::Result<()> {
        let fake = self.path("fakes").join(program);
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
        fs::copy(fake, self.path("switch").join(format!("installs-{program}"))).map(drop)
    }

    /// Puts a toolchain into the user's rustup home; returns its folder.
    pub fn toolchain(&self, name: &str, rustc: &str, with_source: bool) -> io::Result<PathBuf> {
        let place = self.path("home/.rustup/toolchains").join(name);
        let script = ". \"$MACHINE/fakes/lib.sh\"; make_toolchain \"$@\"";
        let source: &[&str] = if with_source { &["source"] } else { &[] };
        let mut shell = self.command(&["sh", "-euc", script, "sh"]);
        let outcome = Outcome::from(shell.arg(&place).arg(rustc).args(source).output()?);
        outcome.expect(0, &[]);
        self.forget_calls()?;
        Ok(place)
    }

    /// From here on, programs run as a user that is not root.
    pub fn as_plain_user(mut self) -> io::Result<Self> {
        if python("import os; print(os.geteuid())")? != "0" {
            return Ok(self);
        }
        // A Python under root's home is out of that user's reach.
        let reachable = [python("import sys; print(sys.executable)")?, "/usr/bin/python3".into()]
            .into_iter()
            .find(|path| {
                let mut command = Command::new(path);
                command.args(["-c", ""]).uid(NOBODY).gid(NOBODY).current_dir("/");
                command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
            });
        let reachable = reachable.unwrap_or_else(|| panic!("no python3 that uid {NOBODY} may run"));
        self.switch("python", &reachable)?;
        fs::create_dir_all(self.path("cache"))?;
        self.forget_calls()?;
        // `bin` too, so that the fake sudo can "install" there.
        for path in ["bin", "cache", "calls", "home", ""] {
            chown(self.path(path), Some(NOBODY), Some(NOBODY))?;
        }
        self.user = Some(NOBODY);
        Ok(self)
    }

    /// A command inside the machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let path = format!("{}:{}", self.path("bin").display(), self.path("tools").display());
        let mut command = Command::new(self.path("tools/env"));
        command
            .args(words)
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("HYP_CACHE", self.path("cache"))
            .env("PYTHONPATH", self.path("checkout/hypctl"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("CALLS", self.path("calls"))
            .env("MACHINE", self.root.path())
            .env("PIN_RUSTC", pin("rustc"))
            .current_dir(self.path("checkout"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs the bootstrap with this command line to its end.
    pub fn bootstrap(&self, words: &[&str]) -> io::Result<Outcome> {
        Ok(self.command(&[&["python3", "-S", "-m", "bootstrap"], words].concat()).output()?.into())
    }

    /// Brings everything in.
    pub fn ensure(&self) -> io::Result<Outcome> {
        self.bootstrap(&["ensure"])
    }

    /// Starts to bring everything in; returns once rustup is half-way.
    pub fn ensure_until_rustup_is_half_way(&self) -> io::Result<Child> {
        self.switch("rustup-slow", "60")?;
        let child = self.command(&["python3", "-S", "-m", "bootstrap", "ensure"]).spawn()?;
        for _ in 0..1000 {
            if fs::read_to_string(self.path("rustup-process")).is_ok_and(|id| id.ends_with('\n')) {
                return Ok(child);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("rustup was not called within 10 s"))
    }

    /// Runs shell lines with the cache on a file system of `size` (as mount(8) takes it).
    ///
    /// It is mounted in a namespace of that shell, and goes with it.
    pub fn on_small_disk(&self, size: &str, lines: &str) -> io::Result<Outcome> {
        fs::create_dir_all(self.path("cache"))?;
        let root = python("import os; print(os.geteuid())")? == "0";
        let script =
            format!("mount -t tmpfs -o size={size} tmpfs \"$HYP_CACHE\" || exit 99\n{lines}");
        let mut command = self.command(&[]);
        command.arg(real("unshare")).arg(if root { "-m" } else { "-rm" });
        let outcome = Outcome::from(command.args(["sh", "-c", &script]).output()?);
        assert_ne!(outcome.code, 99, "no tmpfs for the test of a full disk: {}", outcome.stderr);
        Ok(outcome)
    }

    /// The calls of the fakes so far, a line each.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// How many calls hold these words.
    pub fn count(&self, words: &str) -> usize {
        self.calls().iter().filter(|call| call.contains(words)).count()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) -> io::Result<()> {
        fs::write(self.path("calls"), "")
    }
}

/// Copies the files of a folder, as files that may be run.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let copy = to.join(entry.file_name());
            fs::copy(entry.path(), &copy)?;
            fs::set_permissions(copy, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

fn real(program: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files = env::split_paths(&path).map(|folder| folder.join(program));
    files.find(|file| file.is_file()).unwrap_or_else(|| panic!("these tests need `{program}`"))
}

fn python(line: &str) -> io::Result<String> {
    let output = Command::new("python3").args(["-c", line]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
