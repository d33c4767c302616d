//! `hypctl` at a terminal of its own: a pseudo terminal, whose other end is the test's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::{host, hypctl, images};

/// How long things that take milliseconds may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A `hypctl` at a terminal of its own. Dropped, it is killed.
#[derive(Debug)]
pub struct Session {
    keyboard: File,
    /// Our own handle of the terminal, to see its state.
    terminal: OwnedFd,
    hypctl: Child,
    seen: String,
    patience: Duration,
    _host: host::Hold,
}

impl Session {
    /// Starts it with these words.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_as(Command::new(hypctl()), arguments)
    }

    /// Below a session leader that takes no notice of the terminal's end, as a command runner does.
    #[track_caller]
    pub fn start_below_a_deaf_leader(arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' HUP; \"$@\"; exit $?", "sh"]).arg(hypctl());
        Self::start_as(shell, arguments)
    }

    #[track_caller]
    fn start_as(mut command: Command, arguments: &[&str]) -> Self {
        images();
        let host = host::shared();
        // Were it inherited, `hypctl` would hold its own terminal open.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(&*name, flags, Mode::empty()).unwrap()
        };
        let (terminal, stdin, stdout, stderr) = (open(), open(), open(), open());
        command.args(arguments).arg("--no-build");
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let own_session = || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        };
        // SAFETY: 1. setsid and ioctl are async-signal-safe system calls; 2. nothing is allocated,
        // locked or shared in the closure.
        unsafe { command.pre_exec(own_session) };
        let hypctl = command.spawn().unwrap();
        // Reads are polled: a silent program must not hang the test.
        rustix::fs::fcntl_setfl(&controller, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        Self {
            keyboard: File::from(controller),
            terminal,
            hypctl,
            seen: String::new(),
            patience: PATIENCE,
            _host: host,
        }
    }

    /// Waits so long for whatever is expected.
    pub fn wait_up_to(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn read(&mut self) {
        let mut piece = [0; 4096];
        match self.keyboard.read(&mut piece) {
            Ok(read) if read > 0 => self.seen += &String::from_utf8_lossy(&piece[..read]),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    /// Waits until the terminal shows this, after what was expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + self.patience;
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} on the terminal:\n{}", self.seen);
            self.read();
        }
        let at = self.seen.find(text).unwrap_or(0) + text.len();
        self.seen.drain(..at);
    }

    /// Presses these keys.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Whether `hypctl` has the terminal raw.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits for the end of `hypctl` and returns its exit code.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.read();
            if let Some(status) = self.hypctl.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "hypctl still runs:\n{}", self.seen);
        }
    }

    /// Closes the terminal, waits for the end of `hypctl` and returns its exit code.
    #[track_caller]
    pub fn hang_up(mut self) -> Option<i32> {
        let nothing = File::open("/dev/null").unwrap();
        // Closing the controlling side hangs the terminal up.
        drop(std::mem::replace(&mut self.keyboard, nothing));
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(status) = self.hypctl.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "hypctl still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.hypctl.kill();
        let _ = self.hypctl.wait();
    }
}
