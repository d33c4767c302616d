//! The course of the manager's dirty sessions: when one begins, is compared, and ends.
//!
//! ```text
//!  between     steps at random, without a log: contiguous runs are made only now             1 to 3 s ─┐
//!  running     steps at random; harvests among them, a part after the other, are copied      1 to 5 s  │
//!  comparing   a part after the other: all vCPUs stand still; harvest; copy; compare                   │
//!  stopping    the log is taken down, a part after the other                                           │
//!  clearing    the second copy is given back ──────────────────────────────────────────────────────────┘
//! ```
//!
//! When the manager's time is over the session that runs is compared at once, and none begins. One whose copy is short of frames proves
//! nothing any more: it is stopped without a comparison, as only the counts of [`Kind::Session`](super::Kind::Session) and
//! [`Kind::Compare`](super::Kind::Compare) tell.
//!
//! Times are ticks of a counter that does not wrap.

use super::{Dice, Wanted};
use crate::range::IpaRange;

/// Seconds of a session before it is compared: from the first on, less than the second.
const SESSION: (u64, u64) = (1, 5);
/// Seconds between two sessions, likewise.
const BETWEEN: (u64, u64) = (1, 3);

/// What the manager is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A step, as the dice say.
    Step,
    /// A session is to begin: [`Course::begun`] says that it has.
    Begin,
    /// This is left of the session that is to be compared, from its first page on: [`Course::compared`] says how far it came.
    Compare(IpaRange),
    /// The session is to be stopped: [`Course::stopped`] says that it is.
    Stop,
    /// Its copy is to be given back: [`Course::cleared`] says that it is.
    Clear,
    /// Nothing, for good.
    Over,
}

/// Where the sessions are.
#[derive(Clone, Debug)]
pub struct Course {
    /// Ticks a second.
    frequency: u64,
    /// When no session begins any more.
    until: u64,
    /// How long a session runs, in ticks, if that is no matter of the dice.
    length: Option<u64>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no session, until then.
    Between { until: u64 },
    /// One runs until then. The next harvest begins at an address of it.
    Running { session: IpaRange, until: u64, at: u64 },
    /// All of it before an address has been compared.
    Comparing { session: IpaRange, at: u64 },
    /// Its log is being stopped.
    Stopping,
    /// Its copy is being given back.
    Clearing,
}

impl Course {
    /// For a life of the VM that begins `now`; the counter has `frequency` ticks a second. The first session begins at once.
    #[must_use]
    pub fn new(wanted: &Wanted, now: u64, frequency: u64) -> Self {
        let ticks = |seconds| u64::from(seconds).saturating_mul(frequency);
        Self {
            frequency,
            until: now.saturating_add(ticks(wanted.seconds)),
            length: wanted.session.map(ticks),
            phase: Phase::Between { until: 0 },
        }
    }

    /// What is to be done `now`.
    pub fn next(&mut self, now: u64) -> Next {
        match self.phase {
            Phase::Between { .. } if now >= self.until => Next::Over,
            Phase::Between { until } if now < until => Next::Step,
            Phase::Between { .. } => Next::Begin,
            Phase::Running { until, .. } if now < until.min(self.until) => Next::Step,
            Phase::Running { session, .. } => Next::Compare(self.rest(session, session.start)),
            Phase::Comparing { session, at } => Next::Compare(self.rest(session, at)),
            Phase::Stopping => Next::Stop,
            Phase::Clearing => Next::Clear,
        }
    }

    /// What is left to be compared when no vCPU runs any more, and none will: of a session that runs, all.
    pub fn at_the_end(&mut self) -> Option<IpaRange> {
        match self.phase {
            Phase::Running { session, .. } => Some(self.rest(session, session.start)),
            Phase::Comparing { session, at } => Some(self.rest(session, at)),
            Phase::Between { .. } | Phase::Stopping | Phase::Clearing => None,
        }
    }

    /// A session is compared, from an address on.
    fn rest(&mut self, session: IpaRange, at: u64) -> IpaRange {
        self.phase = Phase::Comparing { session, at };
        IpaRange { start: at, end: session.end }
    }

    /// A session has begun, of a range that is not empty.
    pub fn begun(&mut self, session: IpaRange, now: u64, dice: &mut Dice) {
        let length = self.length.unwrap_or_else(|| self.some(SESSION, dice));
        let until = now.saturating_add(length);
        self.phase = Phase::Running { session, until, at: session.start };
    }

    /// The rest of the session from where the next harvest begins; `None` if none runs.
    #[must_use]
    pub fn harvest(&self) -> Option<IpaRange> {
        match self.phase {
            Phase::Running { session, at, .. } => Some(IpaRange { start: at, end: session.end }),
            _ => None,
        }
    }

    /// So many bytes of [`harvest`](Self::harvest) were harvested, from its first on. Behind the session's end comes its start.
    pub fn harvested(&mut self, bytes: u64) {
        if let Phase::Running { session, at, .. } = &mut self.phase {
            let next = at.saturating_add(bytes);
            *at = if session.contains(next) { next } else { session.start };
        }
    }

    /// So many bytes of what was left were compared; returns whether those were the last.
    pub fn compared(&mut self, bytes: u64) -> bool {
        let Phase::Comparing { session, at } = self.phase else { return false };
        let at = at.saturating_add(bytes);
        let is_last = at >= session.end;
        self.phase = if is_last { Phase::Stopping } else { Phase::Comparing { session, at } };
        is_last
    }

    /// The session proves nothing any more.
    pub fn gave_up(&mut self) {
        if matches!(self.phase, Phase::Running { .. } | Phase::Comparing { .. }) {
            self.phase = Phase::Stopping;
        }
    }

    /// The log is stopped.
    pub fn stopped(&mut self) {
        self.phase = Phase::Clearing;
    }

    /// The copy is given back.
    pub fn cleared(&mut self, now: u64, dice: &mut Dice) {
        let until = now.saturating_add(self.some(BETWEEN, dice));
        self.phase = Phase::Between { until };
    }

    /// Some time, in ticks: at least so many seconds, and less than so many.
    fn some(&self, (least, most): (u64, u64), dice: &mut Dice) -> u64 {
        let [least, most] = [least, most].map(|seconds| seconds.saturating_mul(self.frequency));
        least.saturating_add(dice.below(most.saturating_sub(least)))
    }
}
