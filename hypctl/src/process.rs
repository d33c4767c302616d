//! A child process that never outlives us.
//!
//! Three ropes, because each covers what the others cannot:
//! - an own process group, so that the terminal's Ctrl-C reaches `hypctl` alone and everything the
//!   child started can be ended in one call;
//! - the kernel's parent-death signal, for the day `hypctl` itself is killed with SIGKILL;
//! - `Drop`, for every return, `?` and panic in between.
//!
//! The parent-death signal belongs to the *thread* that spawned: spawn from a thread that lives as
//! long as the child is wanted.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How often a bounded wait looks at the child.
const TICK: Duration = Duration::from_millis(5);

/// A running child with its three pipes, ended and reaped at the latest when dropped.
#[derive(Debug)]
pub struct Leashed {
    child: Child,
    status: Option<ExitStatus>,
}

impl Leashed {
    /// Starts `command` in a process group of its own, with pipes for all three streams.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        die_with_parent(command, Signal::KILL);
        Ok(Self { child: command.spawn()?, status: None })
    }

    /// The pipes to and from the child; each is there once.
    pub fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?, self.child.stderr.take()?))
    }

    /// The child's process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's status if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for the child's end, but not longer than `bound`.
    pub fn wait(&mut self, bound: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + bound;
        loop {
            let status = self.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends the child and everything in its process group, and reaps it.
    pub fn kill(&mut self) {
        // The group's number stays taken while the unreaped child or a member exists; after the
        // reaping it might name somebody else's group.
        if self.status.is_none() {
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks the kernel to send `signal` to the command's process when the calling thread ends.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let in_child = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have ended before the line above.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(rustix::io::Errno::SRCH.into())
        }
    };
    // SAFETY: the closure runs between fork and exec.
    // 1. It makes two system calls that are async-signal-safe (prctl, getppid).
    // 2. It neither allocates nor takes a lock, and touches no memory shared with other threads;
    //    its errors are plain error numbers.
    unsafe { command.pre_exec(in_child) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z")
    }

    fn gone(pid: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while alive(pid) && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        !alive(pid)
    }

    #[test]
    fn dropping_ends_the_whole_group() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & echo $!; wait"]);
        let mut child = Leashed::spawn(&mut command).unwrap();
        let (_stdin, mut stdout, _stderr) = child.take_pipes().unwrap();
        let mut pid = [0; 16];
        let read = stdout.read(&mut pid).unwrap();
        let grandchild = String::from_utf8_lossy(&pid[..read]).trim().to_owned();
        assert!(alive(&grandchild));
        let own = child.id().to_string();
        drop(child);
        assert!(gone(&own), "the child is left");
        assert!(gone(&grandchild), "the grandchild is left");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_spawned_it() {
        let child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("100");
            Leashed::spawn(&mut command).unwrap()
        });
        let mut child = child.join().unwrap();
        assert!(child.wait(Duration::from_secs(5)).unwrap().is_some());
    }

    #[test]
    fn a_bounded_wait_gives_up() {
        let mut command = Command::new("sleep");
        command.arg("100");
        let mut child = Leashed::spawn(&mut command).unwrap();
        assert_eq!(child.wait(Duration::from_millis(20)).unwrap(), None);
    }
}
