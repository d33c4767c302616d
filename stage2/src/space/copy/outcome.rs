//! How a copy-collapse ends.

use core::fmt;

use crate::addr::Ipa;
use crate::descriptor::Descriptor;
use crate::space::NotClaimed;

/// Why a copy-collapse could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock: it could not wait for others. Or [`Blocks::take`](crate::space::Blocks::take) left one open.
    NotQuiescent,
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
        }
    }
}

impl core::error::Error for CopyError {}

/// Why a table stays. What names a slot names the first in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyObstacle {
    /// More of it is empty than the caller allows.
    Holes {
        /// Slots where nothing is mapped.
        holes: usize,
        /// How many may be, at the most. One page there must be, whatever the caller says.
        allowed: usize,
    },
    /// A note stands there.
    Note {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// No page: a slot that is being changed.
    NoPage {
        /// First IPA of the slot.
        ipa: Ipa,
        /// What it holds.
        seen: Descriptor,
    },
    /// The page belongs to somebody else ([`Owner::Other`](crate::Owner::Other)): it does not move with the VM's.
    NotOwned {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// It allows something else than the first page.
    Unlike {
        /// First IPA of the slot.
        ipa: Ipa,
    },
    /// [`Blocks::take`](crate::space::Blocks::take) had no block for it.
    NoBlock,
}

impl fmt::Display for CopyObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holes { holes, allowed } => {
                write!(f, "{holes} of its slots are empty, and {allowed} may be")
            }
            Self::Note { ipa } => write!(f, "a note stands at {ipa}"),
            Self::NoPage { ipa, seen } => write!(f, "the slot at {ipa} holds {:#x}", seen.bits()),
            Self::NotOwned { ipa } => write!(f, "the page at {ipa} is somebody else's"),
            Self::Unlike { ipa } => write!(f, "the page at {ipa} is unlike the first"),
            Self::NoBlock => f.write_str("there is no block for it"),
        }
    }
}

/// What became of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCollapse {
    /// It is a block now.
    Made {
        /// Pages of the block that were not there before.
        filled: usize,
    },
    /// It stays.
    Stays(CopyObstacle),
}
