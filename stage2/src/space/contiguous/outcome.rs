//! What becomes of runs, and why nothing did.

use core::fmt;

use crate::addr::{Ipa, Level};
use crate::space::{NotClaimed, Obstacle};

/// Why runs were not made or dissolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContiguousError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock, perhaps the one that this takes.
    NotQuiescent,
    /// Runs are of pages (level 3) or of blocks of 2 MiB (level 2).
    Level {
        /// The level asked for.
        level: Level,
    },
    /// A run that is to be dissolved reaches over the edge of the claim: claim all of it.
    Straddles {
        /// First IPA of the run.
        ipa: Ipa,
        /// Level of its leaves.
        level: Level,
    },
}

impl fmt::Display for ContiguousError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::Level { level } => write!(f, "runs are of leaves of L2 or L3, not of {level}"),
            Self::Straddles { ipa, level } => {
                write!(f, "the run of {level} at {ipa} reaches over the edge of the claim")
            }
        }
    }
}

impl core::error::Error for ContiguousError {}

/// What became of 16 leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contiguous {
    /// They are a run now.
    Made,
    /// They stay as they are.
    Stays(Obstacle),
}
