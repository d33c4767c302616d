//! Why a dirty session was refused, or a write of EL2's.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level};
use crate::descriptor::Descriptor;
use crate::space::{CollapseError, NotClaimed, ProtError};

/// Why a dirty session was not started, harvested or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU is inside a guard or holds a lock: it could not wait for others.
    NotQuiescent,
    /// The CPU belongs to other epochs than the tables: whoever marks pages would not be waited for.
    ForeignCpu,
    /// There is a session already.
    Running {
        /// What it covers.
        range: IpaRange,
    },
    /// There is none.
    NoSession,
    /// It is being stopped, or a call that stopped it was left: another one ends it.
    Stopping {
        /// What it covers.
        range: IpaRange,
    },
    /// The bitmap of pages has another size than the range asks for.
    PageWords {
        /// Words that it has.
        words: usize,
        /// Words that it has to have.
        wanted: usize,
    },
    /// The bitmap of spans has another size than the range asks for.
    SpanWords {
        /// Words that it has.
        words: usize,
        /// Words that it has to have.
        wanted: usize,
    },
    /// The claim is not on a part of the session's range.
    Outside {
        /// What is claimed.
        claimed: IpaRange,
        /// What the session covers.
        session: IpaRange,
    },
    /// A stop claims all of the session's range.
    NotAll {
        /// What is claimed.
        claimed: IpaRange,
        /// What the session covers.
        session: IpaRange,
    },
    /// What a leaf has recorded could not be taken.
    Prot(ProtError),
    /// What was split could not be collapsed.
    Collapse(CollapseError),
}

impl fmt::Display for DirtyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::ForeignCpu => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::Running { range } => write!(f, "a dirty session covers {range} already"),
            Self::NoSession => f.write_str("there is no dirty session"),
            Self::Stopping { range } => {
                write!(f, "the dirty session that covers {range} is being stopped")
            }
            Self::PageWords { words, wanted } => {
                write!(f, "the bitmap of pages has {words} words, and the range asks for {wanted}")
            }
            Self::SpanWords { words, wanted } => {
                write!(f, "the bitmap of spans has {words} words, and the range asks for {wanted}")
            }
            Self::Outside { claimed, session } => {
                write!(f, "{claimed} is no part of {session}, which the dirty session covers")
            }
            Self::NotAll { claimed, session } => {
                write!(f, "{claimed} is not all of {session}, which the dirty session covers")
            }
            Self::Prot(error) => error.fmt(f),
            Self::Collapse(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DirtyError {}

/// Why EL2 could not write to a guest's memory, or not record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Nothing is mapped there, for good as far as can be seen: Empty, a note, or bits that are not this crate's; or
    /// the address is beyond the IPA size. Nothing was written.
    NotMapped {
        /// The address.
        ipa: Ipa,
    },
    /// A guest may not write there, whosever the memory is. Nothing was written.
    ReadOnly {
        /// The address.
        ipa: Ipa,
    },
    /// A guest may write there, but the memory is not the VM's: scratch, above all. Nothing was written.
    NotOwned {
        /// The address.
        ipa: Ipa,
    },
    /// What translates the address is being changed, or was meanwhile. What was written may be lost: close the guard,
    /// and repeat all of it.
    Again {
        /// Level of the slot.
        level: Level,
        /// What it holds.
        seen: Descriptor,
    },
    /// The guard belongs to other epochs than the tables do. Nothing was written.
    ForeignGuard,
    /// The machine has no compare-exchange of a descriptor. What was written is recorded in no leaf.
    Unsupported,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped { ipa } => write!(f, "nothing is mapped at {ipa}"),
            Self::ReadOnly { ipa } => write!(f, "what is mapped at {ipa} is not writable"),
            Self::NotOwned { ipa } => write!(f, "what is mapped at {ipa} is not the VM's"),
            Self::Again { level, seen } => {
                write!(f, "the {level} slot is being changed: {:#x}", seen.bits())
            }
            Self::ForeignGuard => f.write_str("the guard belongs to other epochs than the tables"),
            Self::Unsupported => {
                f.write_str("this machine has no compare-exchange of a descriptor")
            }
        }
    }
}

impl core::error::Error for WriteError {}
