//! Aborts: what access, of what kind of fault.
//!
//! Bits 24:14 describe the access and mean that only while ISV is set; FEAT_RASv2 and others reuse them
//! otherwise. So they are reachable only through [`Abort::access`].

use core::fmt;

/// The syndrome of an instruction or data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    pub(super) iss: u32,
    pub(super) is_instruction: bool,
}

impl Abort {
    const fn bit(self, bit: u32) -> bool {
        self.iss.wrapping_shr(bit) & 1 != 0
    }

    /// Whether an instruction fetch aborted.
    #[must_use]
    pub const fn is_instruction(self) -> bool {
        self.is_instruction
    }

    /// ISV: whether the access is decoded. Without it there is no [`access`](Self::access).
    #[must_use]
    pub const fn isv(self) -> bool {
        !self.is_instruction && self.bit(24)
    }

    /// FnV: FAR_EL2 holds no address (possible for a synchronous external abort only).
    #[must_use]
    pub const fn far_not_valid(self) -> bool {
        self.bit(10)
    }

    /// CM: a cache maintenance or address translation instruction, not a load or store.
    #[must_use]
    pub const fn is_cache_maintenance(self) -> bool {
        !self.is_instruction && self.bit(8)
    }

    /// S1PTW: a stage-2 fault on a stage-1 translation table walk.
    #[must_use]
    pub const fn is_stage1_walk(self) -> bool {
        self.bit(7)
    }

    /// WnR: a write. For cache maintenance it is set whatever the instruction; for a stage-1 walk it says
    /// whether hardware was updating the descriptor, not what the instruction was.
    #[must_use]
    pub const fn is_write(self) -> bool {
        !self.is_instruction && self.bit(6)
    }

    /// What kind of fault.
    #[must_use]
    pub const fn status(self) -> Status {
        Status::new((self.iss & 0x3f) as u8)
    }

    /// `ESR_EL1` of a synchronous external abort, which a guest is to take instead of this abort of its own: the same
    /// kind of access, from `el0` or from EL1, with `FAR_EL1` valid.
    ///
    /// If it happened on a walk of stage 1, `walk` is the level (-1 to 3) of the descriptor that could not be
    /// accessed. Whether the instruction was a write is not known then.
    #[must_use]
    pub const fn as_external(self, el0: bool, walk: Option<i8>) -> u64 {
        // Instruction length: 32 bits, and 1 for an abort without ISV.
        const IL: u64 = 1 << 25;
        const CM: u32 = 1 << 8;
        const WNR: u32 = 1 << 6;
        let class = match (self.is_instruction, el0) {
            (true, true) => 0x20,
            (true, false) => 0x21,
            (false, true) => 0x24,
            (false, false) => 0x25,
        };
        let status = match walk {
            None => 0x10,
            Some(-1) => 0x13,
            Some(level) => 0x14 | level as u64 & 3,
        };
        let kept = match (self.is_instruction, walk) {
            (false, None) => self.iss & (CM | WNR),
            // For maintenance it is set whatever the instruction.
            (false, Some(_)) if self.is_cache_maintenance() => CM | WNR,
            (false, Some(_)) => 0,
            (true, _) => 0,
        };
        class << 26 | IL | kept as u64 | status
    }

    /// The decoded load or store, when hardware gives it (ISV).
    #[must_use]
    pub const fn access(self) -> Option<LoadStore> {
        if !self.isv() {
            return None;
        }
        Some(LoadStore {
            size: 1_u8.wrapping_shl((self.iss >> 22) & 3),
            sign_extend: self.bit(21),
            register: ((self.iss >> 16) & 31) as u8,
            is_64_bit: self.bit(15),
            acquire_release: self.bit(14),
            is_write: self.bit(6),
        })
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_instruction {
            write!(f, "fetch")?;
        } else if self.is_cache_maintenance() {
            write!(f, "cache maintenance")?;
        } else if let Some(access) = self.access() {
            write!(f, "{access}")?;
        } else {
            let what = if self.is_write() { "write" } else { "read" };
            write!(f, "{what} (not decoded, ISV=0)")?;
        }
        write!(f, ", {}", self.status())?;
        if self.is_stage1_walk() {
            write!(f, ", on a stage-1 table walk (S1PTW)")?;
        }
        if self.far_not_valid() {
            write!(f, ", FAR not valid (FnV)")?;
        }
        Ok(())
    }
}

/// A load or store of one general register, as an abort's syndrome decodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadStore {
    /// SAS: bytes accessed, 1, 2, 4 or 8.
    pub size: u8,
    /// SSE: a load extends the sign.
    pub sign_extend: bool,
    /// SRT: the register; 31 is the zero register.
    pub register: u8,
    /// SF: the register is the 64-bit one.
    pub is_64_bit: bool,
    /// AR: acquire or release.
    pub acquire_release: bool,
    /// WnR: a store.
    pub is_write: bool,
}

impl LoadStore {
    /// What a load puts into its 64-bit register for the `size` bytes that the device gave.
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let spare = 64_u32.wrapping_sub((self.size as u32).wrapping_mul(8)) & 63;
        let top = value.wrapping_shl(spare);
        let value = if self.sign_extend {
            (top as i64).wrapping_shr(spare) as u64
        } else {
            top.wrapping_shr(spare)
        };
        if self.is_64_bit { value } else { value & 0xffff_ffff }
    }

    /// What a store gives the device: the low `size` bytes of its register.
    #[must_use]
    pub const fn truncate(self, register: u64) -> u64 {
        let spare = 64_u32.wrapping_sub((self.size as u32).wrapping_mul(8)) & 63;
        register.wrapping_shl(spare).wrapping_shr(spare)
    }
}

impl fmt::Display for LoadStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, way) = if self.is_write { ("write", "from") } else { ("read", "to") };
        let unit = if self.size == 1 { "byte" } else { "bytes" };
        let width = if self.is_64_bit { 'x' } else { 'w' };
        write!(f, "{what} of {} {unit} {way} ", self.size)?;
        if self.register == 31 {
            write!(f, "{width}zr")?;
        } else {
            write!(f, "{width}{}", self.register)?;
        }
        if self.sign_extend {
            write!(f, ", sign-extended")?;
        }
        if self.acquire_release {
            write!(f, ", acquire/release")?;
        }
        Ok(())
    }
}

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
