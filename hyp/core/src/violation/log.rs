//! The violations of a run: the first that differ are kept, the rest are counted.
//!
//! | a violation | kept | on the console |
//! | --- | --- | --- |
//! | is new, and there is room | with its first time | a line of its own, unless [`LINES`] were told at this drain |
//! | is one that is kept, again | its count goes up | in the line of the rest |
//! | is new, and there is no room | counted in [`Summary::others`] | likewise |
//! | was lost in a full ring | counted in [`Summary::lost`] | likewise |
//!
//! The line of the rest says how many violations were not told since the last such line. It comes at most once a
//! [second](PERIOD), so however many violations a guest makes it gets [`KEPT`] lines and one a second.

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::Violation;
use crate::range::Count;

/// Violations that differ, and are kept.
pub const KEPT: usize = 64;
/// Lines of single violations that a drain tells at the most.
pub const LINES: usize = 8;
/// From one line of the rest to the next, in nanoseconds.
pub const PERIOD: u64 = 1_000_000_000;

/// What became of a violation in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// It is the first of its kind, and kept.
    New,
    /// One of its kind is kept, and counts more now.
    Again,
    /// There is no room: it is counted with the others.
    NotKept,
}

/// What is worth telling of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told([Option<Violation>; LINES]);

impl Told {
    /// The violations, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter().flatten()
    }
}

/// Violations that were not told one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Those that were logged.
    pub more: u64,
    /// Those that found a full ring.
    pub lost: u64,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} more", self.more)?;
        match self.lost {
            0 => Ok(()),
            lost => write!(f, ", and {lost} that found the log full"),
        }
    }
}

/// The violations of a run.
#[derive(Clone, Debug)]
pub struct Log {
    kept: [Option<Violation>; KEPT],
    others: u64,
    /// Logged and not told yet.
    untold: u64,
    /// Of those that were lost, as many were told.
    lost_told: u64,
    /// When the next line of the rest may come.
    next: u64,
}

impl Log {
    /// An empty one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "kilobytes: for statics only")]
    pub const fn new() -> Self {
        Self { kept: [None; KEPT], others: 0, untold: 0, lost_told: 0, next: 0 }
    }

    /// Notes what came out of a ring; what is new in it is to be told.
    pub fn add(&mut self, violations: impl IntoIterator<Item = Violation>) -> Told {
        let mut told = Told::default();
        let mut room = told.0.iter_mut();
        for violation in violations {
            let line = if self.note(&violation) == Note::New { room.next() } else { None };
            match line {
                Some(line) => *line = Some(violation),
                None => self.untold = self.untold.saturating_add(violation.count),
            }
        }
        told
    }

    /// Notes one violation.
    fn note(&mut self, violation: &Violation) -> Note {
        for place in &mut self.kept {
            match place {
                Some(kept) if kept.is_again(violation) => {
                    kept.count = kept.count.saturating_add(violation.count);
                    return Note::Again;
                }
                Some(_) => {}
                None => {
                    *place = Some(*violation);
                    return Note::New;
                }
            }
        }
        self.others = self.others.saturating_add(violation.count);
        Note::NotKept
    }

    /// What was not told one by one, if it is time for that: at `now` (nanoseconds), and with so many `lost` so far. At the
    /// end of a VM it is time.
    pub fn rest(&mut self, now: u64, lost: u64, is_end: bool) -> Option<Rest> {
        let rest = Rest { more: self.untold, lost: lost.saturating_sub(self.lost_told) };
        if (rest.more, rest.lost) == (0, 0) || now < self.next && !is_end {
            return None;
        }
        (self.untold, self.lost_told) = (0, lost);
        self.next = now.saturating_add(PERIOD);
        Some(rest)
    }

    /// What the report says, with so many lost. Without memory for the list all are others.
    #[must_use]
    pub fn summary(&self, lost: u64) -> Summary {
        let kept = || self.kept.iter().flatten();
        let mut list = Vec::new();
        if list.try_reserve_exact(kept().count()).is_ok() {
            list.extend(kept().copied());
            return Summary { list, others: self.others, lost };
        }
        let others = kept().fold(self.others, |sum, one| sum.saturating_add(one.count));
        Summary { list, others, lost }
    }
}

/// The violations of a run, as its report has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The first that differ, in the order in which they were logged, each with its count.
    pub list: Vec<Violation>,
    /// Further ones that differ from all of these: counted, not kept.
    pub others: u64,
    /// Those that found the log of their CPU full: nothing else is known of them.
    pub lost: u64,
}

impl Summary {
    /// All that happened.
    #[must_use]
    pub fn total(&self) -> u64 {
        let listed = self.list.iter().fold(0_u64, |sum, one| sum.saturating_add(one.count));
        listed.saturating_add(self.others).saturating_add(self.lost)
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }
}

impl fmt::Display for Summary {
    /// One line: `14 (12 listed in 3 rows, 1 not listed, 1 lost)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { list, others, lost } = self;
        let listed = list.iter().fold(0_u64, |sum, one| sum.saturating_add(one.count));
        write!(f, "{} ({listed} listed in {}", self.total(), Count(list.len() as u64, "row"))?;
        for (count, what) in [(others, "not listed"), (lost, "lost")] {
            if *count != 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        f.write_str(")")
    }
}
