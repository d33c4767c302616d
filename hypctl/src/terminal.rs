//! The terminal while a guest has the keyboard: every key goes through as it is typed.
//!
//! Output processing stays on, so that a bare line feed still starts a new line. The saved state
//! comes back when [`RawTerminal`] is dropped, which every way out of a run does; only SIGKILL
//! leaves the terminal raw, and no program can help that.

use std::io::IsTerminal;

use rustix::stdio::stdin;
use rustix::termios::{
    self, ControlModes, InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios,
};

/// What Ctrl-C means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlC {
    /// It ends the run: for guests that never read the keyboard.
    EndsTheRun,
    /// The guest gets it, as it would from a serial line: U-Boot stops a command with it.
    GoesToTheGuest,
}

/// The terminal in raw mode until dropped.
#[derive(Debug)]
pub struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// Switches the terminal on standard input. `None` when there is none, or when it is not ours
    /// to use because we run in the background.
    pub fn enter(control_c: ControlC) -> Option<Self> {
        let fd = stdin();
        if !std::io::stdin().is_terminal() || !in_foreground() {
            return None;
        }
        let saved = termios::tcgetattr(fd).ok()?;
        let raw = raw_mode(saved.clone(), control_c);
        termios::tcsetattr(fd, OptionalActions::Now, &raw).ok()?;
        Some(Self { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.saved);
    }
}

/// Whether reading standard input cannot stop us: it is no terminal, or we are in its foreground.
pub fn may_read_stdin() -> bool {
    !std::io::stdin().is_terminal() || in_foreground()
}

fn in_foreground() -> bool {
    termios::tcgetpgrp(stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn raw_mode(mut mode: Termios, control_c: ControlC) -> Termios {
    mode.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    mode.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    mode.control_modes = (mode.control_modes - ControlModes::PARENB) | ControlModes::CS8;
    mode.special_codes[SpecialCodeIndex::VMIN] = 1;
    mode.special_codes[SpecialCodeIndex::VTIME] = 0;
    match control_c {
        ControlC::GoesToTheGuest => mode.local_modes -= LocalModes::ISIG,
        ControlC::EndsTheRun => {
            // A suspended hypctl would leave the terminal raw for the shell.
            mode.special_codes[SpecialCodeIndex::VSUSP] = 0;
        }
    }
    mode
}
