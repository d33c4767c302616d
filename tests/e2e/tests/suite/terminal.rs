//! The keyboard, on a pseudo terminal: raw while a guest runs, as before when it has ended.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use e2e::{host, hypctl, images};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// How long things that take milliseconds may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A `hypctl` at a terminal of its own.
struct Session {
    keyboard: File,
    /// Our own handle of the terminal, to see its state.
    terminal: OwnedFd,
    hypctl: Child,
    seen: String,
    _host: host::Hold,
}

impl Session {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        Self::start_as(Command::new(hypctl()), arguments)
    }

    /// Below a session leader that takes no notice of the terminal's end, as a command runner does.
    #[track_caller]
    fn start_below_a_deaf_leader(arguments: &[&str]) -> Self {
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
        command.arg("run").args(arguments).arg("--no-build");
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
            _host: host,
        }
    }

    fn read(&mut self) {
        let mut piece = [0; 4096];
        match self.keyboard.read(&mut piece) {
            Ok(read) if read > 0 => self.seen += &String::from_utf8_lossy(&piece[..read]),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    #[track_caller]
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} on the terminal:\n{}", self.seen);
            self.read();
        }
        let at = self.seen.find(text).unwrap_or(0) + text.len();
        self.seen.drain(..at);
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits for the end of `hypctl` and returns its exit code.
    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.read();
            if let Some(status) = self.hypctl.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "hypctl still runs:\n{}", self.seen);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.hypctl.kill();
        let _ = self.hypctl.wait();
    }
}

#[test]
fn keys_reach_the_guest_and_the_terminal_is_restored() {
    let mut session = Session::start(&["wild", "--append", "case=echo", "--vcpus", "1"]);
    assert!(!session.is_raw());
    session.expect("echo");
    assert!(session.is_raw());
    session.press(b"k");
    session.expect("key 'k'");
    session.press(b"q");
    assert_eq!(session.end(), Some(0));
    assert!(!session.is_raw(), "the terminal is left raw");
}

#[test]
fn control_c_ends_a_guest_of_ours() {
    let mut session = Session::start(&["wild", "--append", "case=sleep", "--vcpus", "1"]);
    session.expect("Ctrl-C ends the run");
    session.expect("case=sleep");
    session.press(b"\x03");
    assert_eq!(session.end(), Some(130));
    assert!(!session.is_raw(), "the terminal is left raw");
}

#[test]
fn control_c_goes_to_a_guest_from_elsewhere_and_control_a_x_leaves() {
    let path = images().guest_bin("wild").display().to_string();
    let mut session = Session::start(&[&path, "--append", "case=echo", "--vcpus", "1"]);
    session.expect("Ctrl-A x ends the run");
    session.expect("case=echo");
    session.press(b"\x03");
    session.expect("0x03");
    session.press(b"\x01x");
    assert_eq!(session.end(), Some(130));
    assert!(!session.is_raw(), "the terminal is left raw");
}

/// A guest that never writes, at a terminal that is closed.
#[track_caller]
fn hang_up(mut session: Session) -> Option<i32> {
    session.expect("case=sleep");
    let nothing = File::open("/dev/null").unwrap();
    // Closing the controlling side hangs the terminal up.
    drop(std::mem::replace(&mut session.keyboard, nothing));
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = session.hypctl.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "hypctl still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SILENT: &[&str] = &["wild", "--append", "case=sleep", "--vcpus", "1"];

#[test]
fn a_closed_terminal_ends_everything() {
    assert_eq!(hang_up(Session::start(SILENT)), Some(129));
}

#[test]
fn a_closed_terminal_ends_everything_even_if_only_the_parent_is_told() {
    assert_eq!(hang_up(Session::start_below_a_deaf_leader(SILENT)), Some(141));
}
