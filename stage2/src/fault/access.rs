//! What the guest was about when it faulted.

use core::fmt;

use super::{Abort, Status};
use crate::attr::Prot;

/// The Exception level that an abort came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum El {
    /// EL0.
    El0,
    /// EL1.
    El1,
}

impl El {
    /// That of a value of SPSR_EL2: M\[3:2\].
    #[must_use]
    pub const fn of_spsr(spsr: u64) -> Self {
        if spsr & 0b1100 == 0 { Self::El0 } else { Self::El1 }
    }
}

/// What kind of access aborted, as far as the syndrome tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A walk of the guest's own tables (S1PTW), whatever the instruction was: also one of its `AT` instructions.
    Walk,
    /// The fetch of an instruction.
    Fetch,
    /// Cache maintenance by address (CM). DC ZVA is a store \[IXQZJB\].
    Maintenance,
    /// A load.
    Read,
    /// A store; of an atomic instruction, what could have been read.
    Write,
    /// A load or store, and WnR is UNKNOWN: unsupported exclusive or atomic accesses and updates.
    Data,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Walk => "stage-1 walk",
            Self::Fetch => "fetch",
            Self::Maintenance => "cache maintenance",
            Self::Read => "load",
            Self::Write => "store",
            Self::Data => "load or store",
        })
    }
}

impl Abort {
    /// What kind of access aborted.
    #[must_use]
    pub const fn kind(self) -> Access {
        if self.is_stage1_walk() {
            return Access::Walk;
        }
        if self.is_instruction() {
            return Access::Fetch;
        }
        if self.is_cache_maintenance() {
            return Access::Maintenance;
        }
        match self.status() {
            Status::UnsupportedExclusive | Status::UnsupportedAtomicUpdate => Access::Data,
            _ if self.is_write() => Access::Write,
            _ => Access::Read,
        }
    }

    /// Whether it cannot be told if the access was a read or a write: WnR of a walk is the walker's, and may be clear
    /// even for its writes; of cache maintenance it is always set (D24.2.46, WnR).
    #[must_use]
    pub const fn is_unclear(self) -> bool {
        matches!(self.kind(), Access::Walk | Access::Maintenance | Access::Data)
    }

    /// What a leaf must allow, where the policy allows `allowed`, for an access from `el`.
    ///
    /// What may be read or write counts as what is allowed of the two after a Permission fault: hardware updates of the
    /// guest's own tables are writes to the pages that hold them \[RBDJJL\]. An Access flag fault says nothing of
    /// permissions, and then it counts as a read.
    #[must_use]
    pub const fn needs(self, el: El, allowed: Prot) -> Prot {
        match self.kind() {
            Access::Walk | Access::Maintenance | Access::Data => match self.status() {
                Status::Permission(_) => Prot::READ.union(allowed.intersection(Prot::WRITE)),
                _ => Prot::READ,
            },
            Access::Fetch => match el {
                El::El0 => Prot::EXEC_EL0,
                El::El1 => Prot::EXEC_EL1,
            },
            Access::Read => Prot::READ,
            Access::Write => Prot::WRITE,
        }
    }
}
