//! Why a transaction was refused, or ended before its batch did.

use core::fmt;

use crate::addr::{Ipa, Level};
use crate::attr::AttributeError;
use crate::descriptor::Descriptor;
use crate::space::NotClaimed;

/// Why protections were not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The guard belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU holds a table's lock already, perhaps the one that this takes.
    HoldsLock,
    /// As many transactions are open as a VM can have.
    TooMany,
    /// This machine has no encoding for the permissions.
    Attributes(AttributeError),
    /// A block reaches over the edge of the claim: split it first.
    Straddles {
        /// First IPA of the block.
        ipa: Ipa,
        /// Its level.
        level: Level,
    },
    /// A contiguous run reaches over the edge of the claim: claim all of it, or dissolve it first.
    CutsRun {
        /// First IPA of the run.
        ipa: Ipa,
        /// Level of its leaves.
        level: Level,
    },
    /// A slot that the claim should have kept others away from.
    Unexpected {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Its level.
        level: Level,
        /// What it holds.
        seen: Descriptor,
    },
    /// The machine has no compare-exchange of a descriptor.
    Unsupported,
}

impl fmt::Display for ProtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the guard belongs to other epochs than the tables"),
            Self::HoldsLock => f.write_str("the CPU holds a table's lock"),
            Self::TooMany => f.write_str("as many transactions are open as a VM can have"),
            Self::Attributes(error) => error.fmt(f),
            Self::Straddles { ipa, level } => {
                write!(f, "the {level} block at {ipa} reaches over the edge of the claim")
            }
            Self::CutsRun { ipa, level } => {
                write!(f, "the run of {level} at {ipa} reaches over the edge of the claim")
            }
            Self::Unexpected { ipa, level, seen } => {
                write!(f, "the {level} slot at {ipa} holds {:#x}", seen.bits())
            }
            Self::Unsupported => {
                f.write_str("this machine has no compare-exchange of a descriptor")
            }
        }
    }
}

impl core::error::Error for ProtError {}
