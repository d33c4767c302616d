//! Several who want the one timer of a CPU: each has a time of its own, and the timer gets the earliest.
//!
//! ```text
//!  set(which, at)      its time is `at` from now on; says what the timer is to be set to, if that changes
//!  came(now)           the times that are over are gone; says what the timer is to be set to
//! ```
//!
//! A time that is over is told to nobody in particular: whoever set one looks, when the timer has interrupted the CPU, whether
//! there is something to do. So setting a time is a promise that its CPU *looks* not long after it, nothing more, and one
//! that comes too often does no harm.
//!
//! The values are cells: they belong to one CPU, which is never interrupted between two of them.

#[cfg(test)]
mod tests;

use core::cell::Cell;

/// Not before the counter's end: no time is set.
pub const NEVER: u64 = u64::MAX;

/// The times of `N` who share a timer, in ticks of its counter.
#[derive(Debug)]
pub struct Alarms<const N: usize> {
    times: [Cell<u64>; N],
    /// The earliest of them.
    earliest: Cell<u64>,
}

impl<const N: usize> Alarms<N> {
    /// None is set.
    #[must_use]
    pub const fn none() -> Self {
        Self { times: [const { Cell::new(NEVER) }; N], earliest: Cell::new(NEVER) }
    }

    /// The earliest time that is set; [`NEVER`] if none is.
    #[inline]
    #[must_use]
    pub fn earliest(&self) -> u64 {
        self.earliest.get()
    }

    /// Sets the time of `which`, whatever it was; [`NEVER`] takes it back. Returns the earliest of all if that is another one
    /// now. Does nothing for a `which` that does not exist.
    #[inline]
    pub fn set(&self, which: usize, at: u64) -> Option<u64> {
        let before = self.times.get(which)?.replace(at);
        let earliest = self.earliest.get();
        if at < earliest {
            self.earliest.set(at);
            return Some(at);
        }
        // Another one's, or no change of the earliest.
        if before != earliest || at == earliest { None } else { self.find_earliest(earliest) }
    }

    /// Takes back all times that are over at `now`; returns the earliest of the others.
    pub fn came(&self, now: u64) -> u64 {
        for time in self.times.iter().filter(|time| time.get() <= now) {
            time.set(NEVER);
        }
        let _ = self.find_earliest(NEVER);
        self.earliest.get()
    }

    /// The earliest, if it is not `before`.
    #[inline(never)]
    fn find_earliest(&self, before: u64) -> Option<u64> {
        let earliest = self.times.iter().map(Cell::get).min().unwrap_or(NEVER);
        self.earliest.set(earliest);
        (earliest != before).then_some(earliest)
    }
}
