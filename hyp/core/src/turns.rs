//! Which of a CPU's vCPUs runs, and for how long: round robin, with a time slice.
//!
//! ```text
//!  next        who runs next: the first that is ready after the one that had the CPU last, that one itself if no other is
//!  begin       it has the CPU; its slice begins
//!  verdict     at an interrupt: does it go on, and must the CPU look again, or is it another one's turn
//! ```
//!
//! A slice is a promise to the others and no limit: who is alone keeps the CPU, and the timer is not set for it. It is counted
//! from the moment that a vCPU gets the CPU. So one that has had the CPU for long gives it up as soon as another one is
//! ready, and one that has just got it is left alone for a slice.
//!
//! From that follows the bound: of *n* vCPUs of a CPU, one that is ready waits no longer than *n* - 1 slices, plus what
//! the others' exits take at EL2, and plus the time until the CPU looks.
//!
//! Times are ticks of a counter that does not wrap.

#[cfg(test)]
mod tests;

/// The turns of the vCPUs of one CPU, which are numbered from 0 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    vcpus: usize,
    /// Who has the CPU, or had it last.
    current: usize,
    /// When its slice is over.
    end: u64,
}

/// What becomes of the vCPU that has the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, until something else happens.
    GoOn,
    /// It goes on, and the CPU is to look again at this time.
    Until(u64),
    /// Its time is over, and another one is ready.
    Over,
}

impl Turns {
    /// The turns of `vcpus` vCPUs. The first has the CPU, and its slice is over.
    #[must_use]
    pub const fn new(vcpus: usize) -> Self {
        Self { vcpus, current: 0, end: 0 }
    }

    /// Who has the CPU, or had it last.
    #[must_use]
    pub const fn current(&self) -> usize {
        self.current
    }

    /// Whether there is nobody else who could run.
    #[inline]
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.vcpus <= 1
    }

    /// All others, in the order of their turns.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let Self { vcpus, current, .. } = *self;
        let after = current.saturating_add(1);
        (after..vcpus).chain(0..current.min(vcpus))
    }

    /// Who runs next, of those that are ready: the current one only if no other is. `None` if nobody is.
    pub fn next(&self, mut is_ready: impl FnMut(usize) -> bool) -> Option<usize> {
        let last = (self.current < self.vcpus).then_some(self.current);
        self.others().chain(last).find(|&vcpu| is_ready(vcpu))
    }

    /// `vcpu` gets the CPU at `now`, for `slice` ticks if others are ready.
    pub const fn begin(&mut self, vcpu: usize, now: u64, slice: u64) {
        self.current = vcpu;
        self.end = now.saturating_add(slice);
    }

    /// What becomes of the current vCPU at `now`, if another one `is_wanted`, which is: ready to run.
    #[must_use]
    pub const fn verdict(&self, now: u64, is_wanted: bool) -> Verdict {
        match is_wanted {
            false => Verdict::GoOn,
            true if now < self.end => Verdict::Until(self.end),
            true => Verdict::Over,
        }
    }
}
