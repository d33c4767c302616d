//! A manager of guest memory that never rests: what it is asked for, what it does next, and what came of it.
//!
//! The word `churn=SECONDS[,seed=N][,session=N]` has the hypervisor change how the guest's RAM is kept, at random and under a guest that
//! knows nothing of it. Here is what is decided, in plain values: [`Dice`] say what is done next, and where; [`Course`], when dirty sessions
//! begin, are compared and end; [`Workers`], which CPUs do it, and how often; [`Reported`] and [`is_same`], what becomes of the second copy
//! of RAM; [`Tally`], what came of it.
//!
//! | kind | what it does to a guest that is none of its business |
//! | --- | --- |
//! | `write-protect` | the next write of each page faults, and is allowed |
//! | `harvest` | the next write of each page faults, or is recorded by hardware |
//! | `age` | the next access of each page faults, or is recorded by hardware |
//! | `split`, `collapse` | 2 MiB are translated by another number of TLB entries |
//! | `copy` | pages are copied into a block, and what was missing there is populated |
//! | `move` | pages are copied to other frames |
//! | `run`, `dissolve` | 16 pages may be one TLB entry, or may not |
//! | `session` | the next write of each page faults, or is recorded by hardware; blocks may be split for it, and no runs are made meanwhile |
//! | `compare` | a second copy of RAM, kept by harvests alone, is compared byte for byte |

mod copy;
mod course;
mod dice;
mod tally;
#[cfg(test)]
mod tests;
mod workers;

use core::fmt;

pub use copy::{Found, Reported, is_same};
pub use course::{Course, Next};
pub use dice::{BLOCK, Dice, Step};
use serde::{Deserialize, Serialize};
pub(crate) use tally::rows;
pub use tally::{Effect, Effects, Tally};
pub use workers::{NEVER, Workers};

/// The longest time, in seconds: a day.
pub const MAX_SECONDS: u32 = 86_400;
/// What a value of the word may be, in words.
pub const WANTED: &str =
    "a number of seconds from 1 to 86400, and perhaps \",seed=N\" and \",session=SECONDS\"";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For how long, from the start of each life of the VM on, in seconds.
    pub seconds: u32,
    /// What the order of all steps follows from.
    pub seed: u64,
    /// How long a dirty session goes on before it is compared, in seconds; as the dice say if it is not asked for.
    pub session: Option<u32>,
}

impl Wanted {
    /// Reads `SECONDS[,seed=N][,session=SECONDS]`; `None` if it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(',');
        let mut wanted = Self { seconds: time(words.next()?)?, seed: 0, session: None };
        let mut word = words.next();
        if let Some(seed) = word.and_then(|word| word.strip_prefix("seed=")) {
            wanted.seed = decimal(seed)?;
            word = words.next();
        }
        if let Some(session) = word.and_then(|word| word.strip_prefix("session=")) {
            wanted.session = Some(time(session)?);
            word = words.next();
        }
        word.is_none().then_some(wanted)
    }
}

impl fmt::Display for Wanted {
    /// As [`Wanted::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seconds)?;
        if self.seed != 0 {
            write!(f, ",seed={}", self.seed)?;
        }
        self.session.map_or(Ok(()), |session| write!(f, ",session={session}"))
    }
}

/// A time that may be asked for, in seconds.
fn time(text: &str) -> Option<u32> {
    let seconds = u32::try_from(decimal(text)?).ok()?;
    (1..=MAX_SECONDS).contains(&seconds).then_some(seconds)
}

/// Digits and nothing else.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// What the manager does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Takes the permission to write from leaves; the next write gives it back.
    WriteProtect,
    /// Asks the dirty log what was written, and copies that.
    Harvest,
    /// Takes the accessed state of leaves.
    Age,
    /// Makes pages of blocks.
    Split,
    /// Makes blocks of pages where they lie.
    Collapse,
    /// Makes blocks of pages that lie anywhere, by copying them.
    Copy,
    /// Moves pages to other frames.
    Move,
    /// Makes contiguous runs.
    Run,
    /// Dissolves them.
    Dissolve,
    /// Begins a dirty session, which is to be compared before it ends.
    Session,
    /// Compares the second copy with what it is a copy of.
    Compare,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::WriteProtect,
        Self::Harvest,
        Self::Age,
        Self::Split,
        Self::Collapse,
        Self::Copy,
        Self::Move,
        Self::Run,
        Self::Dissolve,
        Self::Session,
        Self::Compare,
    ];

    /// Its name in a report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write-protect",
            Self::Harvest => "harvest",
            Self::Age => "age",
            Self::Split => "split",
            Self::Collapse => "collapse",
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Run => "run",
            Self::Dissolve => "dissolve",
            Self::Session => "session",
            Self::Compare => "compare",
        }
    }

    /// What its [`Effect::changed`] counts, one of them.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::WriteProtect => "mapping",
            Self::Harvest | Self::Age | Self::Move | Self::Compare => "page",
            Self::Split | Self::Collapse | Self::Copy => "block",
            Self::Run | Self::Dissolve => "run",
            Self::Session => "session",
        }
    }
}
