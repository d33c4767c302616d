//! Whether somebody wants us to end: Ctrl-C and its kin, as a question.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use hypctl::signals::Signals;

/// Asked between any two steps that take long.
#[derive(Debug)]
pub struct Stop {
    signals: Mutex<Signals>,
    seen: AtomicI32,
}

impl Stop {
    /// From here on a signal does not end the process: somebody must ask [`requested`](Self::requested).
    ///
    /// # Errors
    /// The system has no handlers to give.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { signals: Mutex::new(Signals::catch()?), seen: AtomicI32::new(0) })
    }

    /// The signal that came, if one did.
    pub fn requested(&self) -> Option<i32> {
        if let Ok(signals) = self.signals.try_lock()
            && let Some(signal) = signals.take()
        {
            self.seen.store(signal, Ordering::Relaxed);
        }
        Some(self.seen.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}
