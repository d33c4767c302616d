//! Why an operation on a VM's tables was refused.

use core::fmt;

use crate::addr::{Ipa, IpaRange, Level, Pa, Vmid};
use crate::descriptor::{Descriptor, DescriptorError, Note};

/// Why nothing was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The address is beyond the VM's IPA size.
    BeyondIpaSize {
        /// The address.
        ipa: Ipa,
        /// Bits of the VM's IPAs.
        bits: u32,
    },
    /// The guard belongs to other epochs than the tables do.
    ForeignGuard,
    /// The mapping was made for tables of another shape: of another start level, or on another machine. Or the scratch page
    /// is another VM's.
    ForeignMapping,
    /// No frame at hand: refill where waiting is allowed, then let the guest fault again.
    OutOfFrames,
    /// No table page at hand: likewise.
    OutOfTables,
    /// A slot on the way is being changed (Busy, Drain or Dead): let the guest fault again.
    Retry {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// A note stands there: what happens next is for its owner to say.
    Note {
        /// Level of the slot.
        level: Level,
        /// The payload.
        note: Note,
    },
    /// A table stands where a block was to go, or bits that this crate never wrote.
    Occupied {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// The machine has no atomic install: the fault cannot be recovered here.
    Unsupported,
    /// The frame's address does not fit into a descriptor.
    Descriptor(DescriptorError),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondIpaSize { ipa, bits } => write!(f, "{ipa} needs more than {bits} IPA bits"),
            Self::ForeignGuard => f.write_str("the guard belongs to other epochs than the tables"),
            Self::ForeignMapping => {
                f.write_str("the mapping or the scratch page was made for other tables")
            }
            Self::OutOfFrames => f.write_str("no frame at hand"),
            Self::OutOfTables => f.write_str("no table page at hand"),
            Self::Retry { level, seen } => {
                write!(f, "the {level} slot is being changed: {:#x}", seen.bits())
            }
            Self::Note { level, note } => {
                write!(f, "the {level} slot holds note {:#x}", note.get())
            }
            Self::Occupied { level, seen } => {
                write!(f, "the {level} slot holds {:#x}", seen.bits())
            }
            Self::Unsupported => f.write_str("this machine has no atomic install"),
            Self::Descriptor(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for InstallError {}

impl From<DescriptorError> for InstallError {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}

/// Why a kind of leaf cannot be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingError {
    /// The VM's walks start below this level.
    Level {
        /// Level asked for.
        level: Level,
        /// Level at which this VM's walks start.
        start: Level,
    },
    /// A single member of a contiguous run: its neighbours would be translated too \[IPGVGZ\].
    Contiguous,
    /// A leaf of memory that is not the VM's, which is not accessed yet or writable-clean: nothing changes such a leaf
    /// afterwards, so that the first access would fault for good.
    Unsettled,
    /// No descriptor says that.
    Descriptor(DescriptorError),
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level { level, start } => {
                write!(f, "no leaf can be at {level}: this VM's walks start at {start}")
            }
            Self::Contiguous => f.write_str("a contiguous run is installed as a whole"),
            Self::Unsettled => {
                f.write_str("what is not the VM's is mapped accessed, and not writable-clean")
            }
            Self::Descriptor(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MappingError {}

impl From<DescriptorError> for MappingError {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}

/// Why a range was not mapped, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The memory is not page aligned, or ends beyond the machine's physical addresses.
    Pa {
        /// Where it begins.
        pa: Pa,
        /// Its bytes.
        bytes: u64,
        /// Physical address bits of the machine.
        bits: u32,
    },
    /// Something is there already.
    Occupied {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Its level.
        level: Level,
        /// What it holds.
        seen: Descriptor,
    },
    /// Another operation, on other pages of the same slot, is about to link a table there: repeat.
    Retry {
        /// First IPA that could not be mapped.
        ipa: Ipa,
        /// Level of the slot.
        level: Level,
        /// What it holds: Busy.
        seen: Descriptor,
    },
    /// No table page at hand: refill where waiting is allowed, and repeat.
    OutOfTables,
    /// The machine has no atomic install.
    Unsupported,
    /// There is no such leaf.
    Mapping(MappingError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::Pa { pa, bytes, bits } => {
                write!(f, "{bytes:#x} bytes at {pa} are unaligned or beyond {bits} bits")
            }
            Self::Occupied { ipa, level, seen } => {
                write!(f, "the {level} slot at {ipa} holds {:#x}", seen.bits())
            }
            Self::Retry { ipa, level, seen } => {
                write!(f, "the {level} slot at {ipa} is being changed: {:#x}", seen.bits())
            }
            Self::OutOfTables => f.write_str("no table page at hand"),
            Self::Unsupported => f.write_str("this machine has no atomic install"),
            Self::Mapping(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MapError {}

/// Why a VM's tables could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSpaceError {
    /// No memory for the root.
    OutOfTables {
        /// Pages that the root needs, side by side.
        pages: usize,
    },
    /// The machine would ignore the upper bits of this VMID.
    VmidTooWide {
        /// The VMID.
        vmid: Vmid,
        /// Bits that the machine has.
        bits: u32,
    },
}

impl fmt::Display for NewSpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTables { pages } => {
                write!(f, "no {pages} adjacent pages for the root of the stage-2 tables")
            }
            Self::VmidTooWide { vmid, bits } => {
                write!(f, "VMID {} does not fit in {bits} bits", vmid.get())
            }
        }
    }
}

impl core::error::Error for NewSpaceError {}

/// Why an operation on a range was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotClaimed {
    /// The claim is another VM's.
    ForeignClaim,
    /// The place to begin at is no page of the claimed range.
    From {
        /// Where to begin.
        from: Ipa,
        /// What is claimed.
        range: IpaRange,
    },
}

impl fmt::Display for NotClaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignClaim => f.write_str("the claim is another VM's"),
            Self::From { from, range } => write!(f, "{from} is no page of the claimed {range}"),
        }
    }
}

impl core::error::Error for NotClaimed {}

/// Why a range was not unmapped, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapError {
    /// The claim does not cover it.
    Claim(NotClaimed),
    /// The CPU belongs to other epochs than the tables do.
    ForeignGuard,
    /// The CPU is inside a guard or holds a lock: it could not wait for others.
    NotQuiescent,
    /// A block reaches over the edge of the range: split it first.
    Straddles {
        /// First IPA of the block.
        ipa: Ipa,
        /// Its level.
        level: Level,
    },
    /// A part of a contiguous run would go and the rest stay: dissolve it first, or take all of it.
    CutsRun {
        /// First IPA of the run.
        ipa: Ipa,
        /// Level of its leaves.
        level: Level,
    },
    /// A slot is in a state that the claim should have kept away.
    Unexpected {
        /// First IPA of the slot.
        ipa: Ipa,
        /// Its level.
        level: Level,
        /// What it holds.
        seen: Descriptor,
    },
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(error) => error.fmt(f),
            Self::ForeignGuard => f.write_str("the CPU belongs to other epochs than the tables"),
            Self::NotQuiescent => f.write_str("the CPU is inside a guard or holds a table's lock"),
            Self::Straddles { ipa, level } => {
                write!(f, "the {level} block at {ipa} reaches over the edge of the range")
            }
            Self::CutsRun { ipa, level } => {
                write!(f, "the run of {level} at {ipa} reaches over the edge of the range or batch")
            }
            Self::Unexpected { ipa, level, seen } => {
                write!(f, "the {level} slot at {ipa} holds {:#x}", seen.bits())
            }
        }
    }
}

impl core::error::Error for UnmapError {}
