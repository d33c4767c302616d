//! What kind of fault an abort reports.

use core::fmt;

/// Fault status of an abort, DFSC or IFSC. Levels are -2 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The address is larger than what is configured or implemented.
    AddressSize(i8),
    /// No valid descriptor.
    Translation(i8),
    /// The access flag is clear.
    AccessFlag(i8),
    /// Not permitted.
    Permission(i8),
    /// A synchronous external abort that is not on a table walk.
    External,
    /// A synchronous external abort on a table walk.
    ExternalOnWalk(i8),
    /// A synchronous parity or ECC error that is not on a table walk.
    Parity,
    /// A synchronous parity or ECC error on a table walk.
    ParityOnWalk(i8),
    /// The granule protection check failed on a table walk.
    GranuleProtectionOnWalk(i8),
    /// The granule protection check failed.
    GranuleProtection,
    /// A synchronous tag check.
    TagCheck,
    /// Misaligned.
    Alignment,
    /// Two TLB entries for one address.
    TlbConflict,
    /// Hardware could not update a descriptor atomically.
    UnsupportedAtomicUpdate,
    /// Lockdown, implementation defined.
    Lockdown,
    /// An exclusive or atomic access to memory that does not take it.
    UnsupportedExclusive,
    /// Anything else: the number.
    Other(u8),
}

impl Status {
    /// The status with this number (6 bits).
    #[must_use]
    pub const fn new(code: u8) -> Self {
        let level = (code & 3) as i8;
        match code & 0x3f {
            0x00..=0x03 => Self::AddressSize(level),
            0x04..=0x07 => Self::Translation(level),
            0x08..=0x0b => Self::AccessFlag(level),
            0x0c..=0x0f => Self::Permission(level),
            0x10 => Self::External,
            0x11 => Self::TagCheck,
            0x12 => Self::ExternalOnWalk(-2),
            0x13 => Self::ExternalOnWalk(-1),
            0x14..=0x17 => Self::ExternalOnWalk(level),
            0x18 => Self::Parity,
            0x1b => Self::ParityOnWalk(-1),
            0x1c..=0x1f => Self::ParityOnWalk(level),
            0x21 => Self::Alignment,
            0x22 => Self::GranuleProtectionOnWalk(-2),
            0x23 => Self::GranuleProtectionOnWalk(-1),
            0x24..=0x27 => Self::GranuleProtectionOnWalk(level),
            0x28 => Self::GranuleProtection,
            0x29 => Self::AddressSize(-1),
            0x2a => Self::Translation(-2),
            0x2b => Self::Translation(-1),
            0x2c => Self::AddressSize(-2),
            0x30 => Self::TlbConflict,
            0x31 => Self::UnsupportedAtomicUpdate,
            0x34 => Self::Lockdown,
            0x35 => Self::UnsupportedExclusive,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSize(level) => write!(f, "address size fault, level {level}"),
            Self::Translation(level) => write!(f, "translation fault, level {level}"),
            Self::AccessFlag(level) => write!(f, "access flag fault, level {level}"),
            Self::Permission(level) => write!(f, "permission fault, level {level}"),
            Self::External => f.write_str("synchronous external abort"),
            Self::ExternalOnWalk(level) => {
                write!(f, "synchronous external abort on a table walk, level {level}")
            }
            Self::Parity => f.write_str("synchronous parity or ECC error"),
            Self::ParityOnWalk(level) => {
                write!(f, "synchronous parity or ECC error on a table walk, level {level}")
            }
            Self::GranuleProtectionOnWalk(level) => {
                write!(f, "granule protection fault on a table walk, level {level}")
            }
            Self::GranuleProtection => f.write_str("granule protection fault"),
            Self::TagCheck => f.write_str("synchronous tag check fault"),
            Self::Alignment => f.write_str("alignment fault"),
            Self::TlbConflict => f.write_str("TLB conflict abort"),
            Self::UnsupportedAtomicUpdate => {
                f.write_str("unsupported atomic hardware update fault")
            }
            Self::Lockdown => f.write_str("lockdown fault"),
            Self::UnsupportedExclusive => f.write_str("unsupported exclusive or atomic access"),
            Self::Other(code) => write!(f, "fault status {code:#04x}"),
        }
    }
}
