//! Exit codes: what a shell, a CI job or a test learns from one number.
//!
//! The hypervisor decides the codes 0, 1, 3, 4 and 5 and reports them; `hypctl` adds what only the
//! host can know. Nothing else is ever returned, so each code has one meaning.

use std::fmt;
use std::process::ExitCode;

/// How a run ended, as the number that the process exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exit(u8);

impl Exit {
    /// The guest powered off, or its verdict was "pass".
    pub const OK: Self = Self(0);
    /// The guest's verdict was "fail", or the script's expectations were not met.
    pub const VERDICT: Self = Self(1);
    /// Usage or bad input; QEMU was never started.
    pub const USAGE: Self = Self(2);
    /// The hypervisor stopped the VM with a diagnosis.
    pub const STOPPED: Self = Self(3);
    /// The hypervisor refused to start: device tree, modules, configuration, exception level.
    pub const REFUSED: Self = Self(4);
    /// The hypervisor itself crashed at EL2.
    pub const CRASHED: Self = Self(5);
    /// QEMU or the hypervisor ended without a report.
    pub const NO_REPORT: Self = Self(6);
    /// The time given with `--timeout` passed.
    pub const TIMEOUT: Self = Self(124);
    /// The person at the keyboard ended the run: Ctrl-C, or Ctrl-A x.
    pub const INTERRUPTED: Self = Self(130);
    /// Nobody reads our standard output any more (the shell's number for SIGPIPE).
    pub const CONSOLE_GONE: Self = Self(141);

    /// The code that a report names. One outside a byte can only be a broken report.
    pub fn from_report(code: u32) -> Self {
        u8::try_from(code).map_or(Self::NO_REPORT, Self)
    }

    /// The shell's convention for a process that a signal ended.
    pub fn from_signal(signal: i32) -> Self {
        u8::try_from(signal).map_or(Self::INTERRUPTED, |signal| Self(128 | signal))
    }

    /// The number itself.
    pub fn code(self) -> u8 {
        self.0
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match *self {
            Self::OK => "ok",
            Self::VERDICT => "the guest's verdict was fail, or the script failed",
            Self::USAGE => "usage or bad input",
            Self::STOPPED => "the VM was stopped with a diagnosis",
            Self::REFUSED => "the hypervisor refused to start",
            Self::CRASHED => "the hypervisor crashed",
            Self::NO_REPORT => "ended without a report",
            Self::TIMEOUT => "timed out",
            Self::INTERRUPTED => "interrupted",
            Self::CONSOLE_GONE => "nobody reads the console",
            _ => "ended by a signal",
        };
        write!(f, "{words} (exit code {})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_follow_the_shell() {
        assert_eq!(Exit::from_signal(2), Exit::INTERRUPTED);
        assert_eq!(Exit::from_signal(1).code(), 129);
        assert_eq!(Exit::from_signal(15).code(), 143);
    }

    #[test]
    fn a_code_beyond_a_byte_is_no_report() {
        assert_eq!(Exit::from_report(3), Exit::STOPPED);
        assert_eq!(Exit::from_report(256), Exit::NO_REPORT);
    }
}
