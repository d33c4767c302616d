//! No end of `hypctl` leaves a QEMU behind, not even its own violent death.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{host, hypctl, images};
use rustix::process::{Pid, Signal, kill_process};

/// How long things that take milliseconds may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A `hypctl` with a guest that never ends by itself.
pub(crate) struct Victim {
    hypctl: Child,
    qemu: i32,
    _host: host::Hold,
}

impl Victim {
    #[track_caller]
    fn start() -> Self {
        Self::with("case=sleep")
    }

    #[track_caller]
    fn with(case: &str) -> Self {
        Self::with_options(case, &[])
    }

    /// The images that the options need are there.
    #[track_caller]
    pub(crate) fn with_options(case: &str, options: &[&str]) -> Self {
        images();
        let host = host::shared();
        let mut hypctl = Command::new(hypctl())
            .args(["run", "wild", "--append", case, "--vcpus", "1", "--no-build"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The guest's first word says that everything runs.
        let mut seen = Vec::new();
        let mut stdout = hypctl.stdout.take().unwrap();
        let mut piece = [0; 256];
        while !contains(&seen, case.as_bytes()) {
            match stdout.read(&mut piece) {
                Ok(read) if read > 0 => seen.extend_from_slice(&piece[..read]),
                end => {
                    let _ = hypctl.kill();
                    panic!("the guest did not start ({end:?}): {}", String::from_utf8_lossy(&seen))
                }
            }
        }
        hypctl.stdout = Some(stdout);
        let children = children(hypctl.id());
        let [qemu] = children[..] else {
            let _ = hypctl.kill();
            panic!("hypctl's children: {children:?}")
        };
        Self { hypctl, qemu, _host: host }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.hypctl.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Expects that QEMU goes, and returns `hypctl`'s exit code.
    #[track_caller]
    pub(crate) fn gone(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while alive(self.qemu) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = alive(self.qemu);
        if left {
            let _ = Pid::from_raw(self.qemu).map(|pid| kill_process(pid, Signal::KILL));
            let _ = self.hypctl.kill();
        }
        let status = self.hypctl.wait().unwrap();
        assert!(!left, "QEMU {} is left behind", self.qemu);
        status.code()
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// The state and the parent of a process.
fn stat(pid: i32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub(crate) fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

pub(crate) fn children(parent: u32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| stat(pid).is_some_and(|(state, of)| of == parent && state != 'Z'))
        .collect()
}

#[test]
fn an_interrupt_ends_both() {
    let victim = Victim::start();
    victim.signal(Signal::INT);
    assert_eq!(victim.gone(), Some(130));
}

#[test]
fn a_termination_ends_both() {
    let victim = Victim::start();
    victim.signal(Signal::TERM);
    assert_eq!(victim.gone(), Some(143));
}

#[test]
fn a_hang_up_ends_both() {
    let victim = Victim::start();
    victim.signal(Signal::HUP);
    assert_eq!(victim.gone(), Some(129));
}

#[test]
fn a_killed_hypctl_takes_qemu_with_it() {
    let victim = Victim::start();
    victim.signal(Signal::KILL);
    assert_eq!(victim.gone(), None);
}

#[test]
fn a_reader_that_goes_away_ends_both() {
    // As in `hypctl run | head`: noticed when something is printed.
    let mut victim = Victim::with("case=echo");
    drop(victim.hypctl.stdout.take());
    let mut keyboard = victim.hypctl.stdin.take().unwrap();
    keyboard.write_all(b"k").unwrap();
    assert_eq!(victim.gone(), Some(141));
}
