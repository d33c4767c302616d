//! One run of QEMU, from spawn to reaping: a single-threaded event loop over seven descriptors.
//!
//! | descriptor | event | action |
//! | --- | --- | --- |
//! | QEMU's stdout | bytes | [`Console`] takes the report out; text goes to the sink and the script |
//! | QEMU's stderr | bytes | to our stderr; the tail is kept for the error message |
//! | QEMU's stdin | room | typed bytes that are pending |
//! | our stdin | keys | to QEMU, if the keyboard is the input |
//! | our stdin | a terminal's end | the run ends: whoever closed it may have told only our parent |
//! | our stdout | nobody reads it | the run ends, even if the guest never writes |
//! | signals | SIGINT, SIGTERM, SIGHUP, SIGQUIT | the run ends |
//! | (clock) | deadline, QEMU's end | the run ends |
//!
//! No step waits for QEMU, so the deadline and the signals always get their turn. Whatever the
//! end, QEMU is gone when [`run`] returns.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::console::Console;
use crate::exit::Exit;
use crate::process::Leashed;
use crate::script::{Player, Step, quote_mux};
use crate::signals::Signals;
use crate::terminal::{self, ControlC, RawTerminal};

/// How long a poll may last before QEMU's end is looked for.
const TICK: Duration = Duration::from_millis(100);
/// How much of the console and of QEMU's messages is kept for errors and summaries, in bytes.
const TAIL: usize = 8 * 1024;
/// QEMU says so whenever all CPUs of a counted run wait at once.
const HARMLESS: &[u8] = b"qemu-system-aarch64: warning: icount sleep disabled";
/// Typed bytes that may wait for the guest before the keyboard is no longer read.
const PENDING_MAX: usize = 64 * 1024;

/// Who types.
#[derive(Debug)]
pub enum Input {
    /// Standard input, raw if it is a terminal.
    Keyboard(ControlC),
    /// A script.
    Script(Vec<Step>),
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// QEMU ended by itself.
    Exited(ExitStatus),
    /// The time was up.
    TimedOut(Duration),
    /// This signal came.
    Signal(i32),
    /// Ctrl-A x at the keyboard.
    Left,
    /// Nobody reads our output.
    ConsoleGone,
}

/// An end in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// The summary's word for it.
    pub word: &'static str,
    /// What `hypctl` exits with.
    pub exit: Exit,
    /// What went wrong, if anything did.
    pub message: Option<String>,
}

impl End {
    /// What an end comes to that nobody reported on.
    #[must_use]
    pub fn told(&self) -> Told {
        let (word, exit, message) = match self {
            Self::Exited(status) if status.success() => ("exited", Exit::OK, None),
            Self::Exited(status) => {
                ("exited", Exit::NO_REPORT, Some(format!("QEMU ended with {status}")))
            }
            Self::TimedOut(after) => {
                let message = format!("timeout after {:.1} s", after.as_secs_f64());
                ("timeout", Exit::TIMEOUT, Some(message))
            }
            Self::Signal(signal) => {
                let message = format!("ended by signal {signal}; QEMU is gone");
                ("signal", Exit::from_signal(*signal), Some(message))
            }
            Self::Left => ("left", Exit::INTERRUPTED, None),
            Self::ConsoleGone => ("console-gone", Exit::CONSOLE_GONE, None),
        };
        Told { word, exit, message }
    }
}

/// What is known after a run.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The report lines, oldest first.
    pub reports: Vec<String>,
    /// The last of what the guest and the hypervisor printed.
    pub console_tail: String,
    /// The last of what QEMU itself said.
    pub qemu_tail: String,
    /// The script's step that was never reached.
    pub waiting_for: Option<String>,
    /// When QEMU was started.
    pub started: Instant,
    /// Wall time.
    pub elapsed: Duration,
}

/// Runs `qemu` to its end. Console text goes to `sink` as it comes.
pub fn run(
    qemu: &mut Command,
    nonce: &str,
    input: Input,
    timeout: Option<Duration>,
    sink: &mut dyn Write,
) -> io::Result<Outcome> {
    let signals = Signals::catch()?;
    let started = Instant::now();
    let mut child = Leashed::spawn(qemu)?;
    let pipes = child.take_pipes().ok_or_else(|| io::Error::other("QEMU has no pipes"))?;
    let (keyboard, player) = match input {
        Input::Keyboard(control_c) => (Some(control_c), Player::new(Vec::new())),
        Input::Script(steps) => (None, Player::new(steps)),
    };
    let _raw = keyboard.and_then(RawTerminal::enter);
    let mut session = Session::new(pipes, Console::new(nonce), player, sink)?;
    session.keyboard = keyboard.is_some() && terminal::may_read_stdin();
    session.play(&[]);
    let deadline = timeout.and_then(|timeout| started.checked_add(timeout));
    let end = loop {
        if let Some(status) = child.try_wait()? {
            session.drain()?;
            break if session.left { End::Left } else { End::Exited(status) };
        }
        let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        {
            Some(Duration::ZERO) => break End::TimedOut(started.elapsed()),
            Some(left) => left.min(TICK),
            None => TICK,
        };
        session.turn(&signals, left)?;
        if let Some(signal) = signals.take() {
            break End::Signal(signal);
        }
        if session.sink_gone {
            break End::ConsoleGone;
        }
    };
    child.kill();
    Ok(session.outcome(end, started))
}

struct Session<'a> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    console: Console,
    player: Player,
    sink: &'a mut dyn Write,
    sink_gone: bool,
    keyboard: bool,
    /// The keyboard was a terminal when the run began.
    terminal: bool,
    pending: Vec<u8>,
    after_control_a: bool,
    left: bool,
    console_tail: Vec<u8>,
    qemu_tail: Vec<u8>,
    /// The beginning of a line of QEMU's: it writes them word by word.
    message: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(
        (stdin, stdout, stderr): (ChildStdin, ChildStdout, ChildStderr),
        console: Console,
        player: Player,
        sink: &'a mut dyn Write,
    ) -> io::Result<Self> {
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Self {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            console,
            player,
            sink,
            sink_gone: false,
            keyboard: false,
            terminal: io::stdin().is_terminal(),
            pending: Vec::new(),
            after_control_a: false,
            left: false,
            console_tail: Vec::new(),
            qemu_tail: Vec::new(),
            message: Vec::new(),
        })
    }

    /// Waits for something to do, at most `left`, and does all of it.
    fn turn(&mut self, signals: &Signals, left: Duration) -> io::Result<()> {
        let own_stdin = rustix::stdio::stdin();
        let mut fds = vec![PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
        if let Some(fd) = &self.stdout {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        if let Some(fd) = &self.stderr {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        if let Some(fd) = self.stdin.as_ref().filter(|_| !self.pending.is_empty()) {
            fds.push(PollFd::new(fd, PollFlags::OUT));
        }
        let listening = self.keyboard && self.pending.len() < PENDING_MAX;
        if listening {
            fds.push(PollFd::from_borrowed_fd(own_stdin, PollFlags::IN));
        }
        // Asked for nothing, it still tells of errors and hang-ups: no terminal, no reader.
        let own_stdout = fds.len();
        fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::empty()));
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let typed = listening && !fds[own_stdout - 1].revents().is_empty();
        self.sink_gone |= fds[own_stdout].revents().intersects(PollFlags::ERR | PollFlags::HUP);
        drop(fds);
        if typed {
            self.read_keyboard();
        }
        self.drain()?;
        self.type_pending();
        Ok(())
    }

    /// Takes what QEMU has written so far.
    fn drain(&mut self) -> io::Result<()> {
        let output = read_available(&mut self.stdout)?;
        if !output.is_empty() {
            let text = self.console.feed(&output);
            self.show(&text);
            self.play(&text);
        }
        let messages = read_available(&mut self.stderr)?;
        if !messages.is_empty() {
            keep_tail(&mut self.qemu_tail, &messages);
            let shown = whole_lines(&mut self.message, &messages);
            let _ = io::stderr().write_all(&shown);
        }
        Ok(())
    }

    fn show(&mut self, text: &[u8]) {
        keep_tail(&mut self.console_tail, text);
        if !self.sink_gone && self.sink.write_all(text).and_then(|()| self.sink.flush()).is_err() {
            self.sink_gone = true;
        }
    }

    fn play(&mut self, text: &[u8]) {
        let typed = self.player.feed(text);
        self.pending.extend(quote_mux(&typed));
    }

    fn read_keyboard(&mut self) {
        let mut keys = [0; 1024];
        match rustix::io::read(rustix::stdio::stdin(), &mut keys) {
            Ok(0) => self.keyboard_gone(),
            Ok(read) => {
                for &key in &keys[..read] {
                    self.left |= self.after_control_a && key == b'x';
                    self.after_control_a = !self.after_control_a && key == 1;
                }
                self.pending.extend_from_slice(&keys[..read]);
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.keyboard_gone(),
        }
    }

    /// The end of a file only ends the typing; a terminal does not end, it is taken away.
    fn keyboard_gone(&mut self) {
        self.keyboard = false;
        self.sink_gone |= self.terminal;
    }

    fn type_pending(&mut self) {
        let Some(stdin) = self.stdin.as_mut() else {
            return;
        };
        while !self.pending.is_empty() {
            match stdin.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.stdin = None;
                    self.pending.clear();
                    return;
                }
            }
        }
    }

    fn outcome(mut self, end: End, started: Instant) -> Outcome {
        let elapsed = started.elapsed();
        let rest = self.console.finish();
        self.show(&rest);
        let _ = io::stderr().write_all(&self.message);
        Outcome {
            end,
            reports: self.console.reports().to_vec(),
            console_tail: String::from_utf8_lossy(&self.console_tail).into_owned(),
            qemu_tail: String::from_utf8_lossy(&self.qemu_tail).into_owned(),
            waiting_for: self.player.waiting_for(),
            started,
            elapsed,
        }
    }
}

/// Reads until there is nothing more for now; at the end of the stream the pipe is closed.
fn read_available<R: Read>(pipe: &mut Option<R>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut buffer = [0; 16 * 1024];
    // Bounded, so that a guest that floods the console cannot keep us from clock and signals.
    for _ in 0..64 {
        let Some(reader) = pipe.as_mut() else { break };
        match reader.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(read) => out.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(out)
}

/// Adds to a line that has begun; what is complete then is returned, without what is harmless.
fn whole_lines(begun: &mut Vec<u8>, more: &[u8]) -> Vec<u8> {
    begun.extend_from_slice(more);
    let end = begun.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let rest = begun.split_off(end);
    let whole = std::mem::replace(begun, rest);
    let lines = whole.split_inclusive(|&byte| byte == b'\n');
    lines.filter(|line| !line.starts_with(HARMLESS)).flatten().copied().collect()
}

fn keep_tail(tail: &mut Vec<u8>, more: &[u8]) {
    tail.extend_from_slice(more);
    if tail.len() > TAIL {
        tail.drain(..tail.len() - TAIL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harmless_line_is_not_shown_however_it_is_cut() {
        let text = [HARMLESS, b" and no active timers\nqemu: no such device\nand"].concat();
        for cut in 0..text.len() {
            let (mut begun, (first, second)) = (Vec::new(), text.split_at(cut));
            let shown = [whole_lines(&mut begun, first), whole_lines(&mut begun, second)].concat();
            assert_eq!(shown, b"qemu: no such device\n", "cut at {cut}");
            assert_eq!(begun, b"and", "the rest waits for its end");
        }
    }
}
