//! Signals as something that can be polled.
//!
//! SIGINT, SIGTERM, SIGHUP and SIGQUIT end a run in an orderly way: QEMU is ended, the terminal
//! restored, the summary written. The handler only notes the number and wakes the event loop
//! through a socket. A signal that was ignored when we started stays ignored: `nohup` and shells'
//! background jobs mean it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Catches the signals that end a run for as long as it lives.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    last: Arc<AtomicUsize>,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Installs the handlers. Before this the default holds: the process ends at once, which is
    /// right as long as nothing was started.
    pub fn catch() -> io::Result<Self> {
        let ignored = ignored_signals();
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        let mut handlers = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            if ignored & (1 << (signal - 1)) != 0 {
                continue;
            }
            let number = signal.unsigned_abs() as usize;
            // Actions run in the order of their registration: the number is there before the wake.
            handlers.push(signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?);
            handlers.push(signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?);
        }
        Ok(Self { wake, last, handlers })
    }

    /// Readable when a signal has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The last signal that came since the previous call.
    pub fn take(&self) -> Option<i32> {
        let mut drain = [0; 64];
        while matches!((&self.wake).read(&mut drain), Ok(read) if read > 0) {}
        match self.last.swap(0, Ordering::SeqCst) {
            0 => None,
            number => i32::try_from(number).ok(),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}

/// The process's mask of ignored signals; bit n-1 is signal n.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
