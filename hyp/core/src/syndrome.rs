//! ESR_EL2, decoded: as fields for the exit handlers, and in words for people.
//!
//! The word forms name the field values as the Arm ARM does (D24.2, ESR_EL2), so that a reader can look
//! them up. Nothing here fails: a class or status that is not known is shown as its number.

use core::fmt;

/// A value of ESR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Syndrome(pub u64);

/// Exception class, ESR_EL2.EC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// 0x00: nothing more specific applies; most often an undefined instruction.
    Unknown,
    /// 0x01: WFI or WFE (or the forms with a timeout).
    WaitForEvent,
    /// 0x07: FP, SIMD or SVE access, trapped.
    FpSimd,
    /// 0x09: pointer authentication, trapped.
    PointerAuth,
    /// 0x0a: LD64B, ST64B, ST64BV, ST64BV0, trapped.
    Ls64,
    /// 0x0d: branch target.
    BranchTarget,
    /// 0x0e: illegal execution state.
    IllegalState,
    /// 0x15: SVC from AArch64.
    Svc64,
    /// 0x16: HVC from AArch64.
    Hvc64,
    /// 0x17: SMC from AArch64, trapped.
    Smc64,
    /// 0x18: MSR, MRS or a system instruction, trapped.
    SystemRegister,
    /// 0x19: SVE access, trapped.
    Sve,
    /// 0x1a: ERET, trapped.
    Eret,
    /// 0x1c: pointer authentication failure.
    PointerAuthFailure,
    /// 0x1d: SME access, trapped.
    Sme,
    /// 0x20: instruction abort from a lower Exception level.
    InstructionAbortLower,
    /// 0x21: instruction abort taken without a change of Exception level.
    InstructionAbortSame,
    /// 0x22: PC alignment.
    PcAlignment,
    /// 0x24: data abort from a lower Exception level.
    DataAbortLower,
    /// 0x25: data abort taken without a change of Exception level.
    DataAbortSame,
    /// 0x26: SP alignment.
    SpAlignment,
    /// 0x27: memory copy and set instructions.
    MemoryOperation,
    /// 0x2c: floating point exception from AArch64.
    FpException64,
    /// 0x2f: SError.
    SError,
    /// 0x30 and 0x31: breakpoint.
    Breakpoint,
    /// 0x32 and 0x33: software step.
    SoftwareStep,
    /// 0x34 and 0x35: watchpoint.
    Watchpoint,
    /// 0x3c: BRK from AArch64.
    Brk64,
    /// Anything else: the number.
    Other(u8),
}

impl Class {
    /// The class with this number (6 bits).
    #[must_use]
    pub const fn new(ec: u8) -> Self {
        match ec {
            0x00 => Self::Unknown,
            0x01 => Self::WaitForEvent,
            0x07 => Self::FpSimd,
            0x09 => Self::PointerAuth,
            0x0a => Self::Ls64,
            0x0d => Self::BranchTarget,
            0x0e => Self::IllegalState,
            0x15 => Self::Svc64,
            0x16 => Self::Hvc64,
            0x17 => Self::Smc64,
            0x18 => Self::SystemRegister,
            0x19 => Self::Sve,
            0x1a => Self::Eret,
            0x1c => Self::PointerAuthFailure,
            0x1d => Self::Sme,
            0x20 => Self::InstructionAbortLower,
            0x21 => Self::InstructionAbortSame,
            0x22 => Self::PcAlignment,
            0x24 => Self::DataAbortLower,
            0x25 => Self::DataAbortSame,
            0x26 => Self::SpAlignment,
            0x27 => Self::MemoryOperation,
            0x2c => Self::FpException64,
            0x2f => Self::SError,
            0x30 | 0x31 => Self::Breakpoint,
            0x32 | 0x33 => Self::SoftwareStep,
            0x34 | 0x35 => Self::Watchpoint,
            0x3c => Self::Brk64,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown reason (most often an undefined instruction)",
            Self::WaitForEvent => "WFI or WFE",
            Self::FpSimd => "FP, SIMD or SVE access",
            Self::PointerAuth => "pointer authentication instruction",
            Self::Ls64 => "64-byte load or store",
            Self::BranchTarget => "branch target exception",
            Self::IllegalState => "illegal execution state",
            Self::Svc64 => "SVC",
            Self::Hvc64 => "HVC",
            Self::Smc64 => "SMC",
            Self::SystemRegister => "system register access",
            Self::Sve => "SVE access",
            Self::Eret => "ERET",
            Self::PointerAuthFailure => "pointer authentication failure",
            Self::Sme => "SME access",
            Self::InstructionAbortLower => "instruction abort from the guest",
            Self::InstructionAbortSame => "instruction abort in EL2",
            Self::PcAlignment => "PC alignment fault",
            Self::DataAbortLower => "data abort from the guest",
            Self::DataAbortSame => "data abort in EL2",
            Self::SpAlignment => "SP alignment fault",
            Self::MemoryOperation => "memory copy or set exception",
            Self::FpException64 => "floating-point exception",
            Self::SError => "SError",
            Self::Breakpoint => "breakpoint",
            Self::SoftwareStep => "software step",
            Self::Watchpoint => "watchpoint",
            Self::Brk64 => "BRK",
            Self::Other(ec) => return write!(f, "exception class {ec:#04x}"),
        })
    }
}

impl Syndrome {
    /// Exception class.
    #[must_use]
    pub const fn class(self) -> Class {
        Class::new(((self.0 >> 26) & 0x3f) as u8)
    }

    /// Instruction specific syndrome, bits 24:0.
    #[must_use]
    pub const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// Whether the instruction has 32 bits (AArch64 instructions do, and IL is also set where it says nothing).
    #[must_use]
    pub const fn is_32_bit(self) -> bool {
        self.0 & (1 << 25) != 0
    }

    /// The immediate of an HVC, SMC, SVC or BRK.
    #[must_use]
    pub const fn immediate(self) -> u16 {
        (self.iss() & 0xffff) as u16
    }

    /// The abort fields, for an instruction or data abort.
    #[must_use]
    pub const fn abort(self) -> Option<Abort> {
        let is_instruction = match self.class() {
            Class::InstructionAbortLower | Class::InstructionAbortSame => true,
            Class::DataAbortLower | Class::DataAbortSame => false,
            _ => return None,
        };
        Some(Abort {
            iss: self.iss(),
            is_instruction,
        })
    }

    /// The register and direction, for a trapped MSR, MRS or system instruction.
    #[must_use]
    pub const fn system_register(self) -> Option<SystemRegister> {
        match self.class() {
            Class::SystemRegister => Some(SystemRegister(self.iss())),
            _ => None,
        }
    }
}

impl fmt::Display for Syndrome {
    /// One line: `0x93810007: data abort from the guest: write of 4 bytes from w1, translation fault, level 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}: {}", self.0, self.class())?;
        if let Some(abort) = self.abort() {
            return write!(f, ": {abort}");
        }
        if let Some(register) = self.system_register() {
            return write!(f, ": {register}");
        }
        match self.class() {
            Class::Svc64 | Class::Hvc64 | Class::Smc64 | Class::Brk64 => {
                write!(f, " #{:#x}", self.immediate())
            }
            Class::Unknown => Ok(()),
            _ => write!(f, ", ISS {:#x}", self.iss()),
        }
    }
}

/// The syndrome of an instruction or data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    iss: u32,
    is_instruction: bool,
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
        if self.is_64_bit {
            value
        } else {
            value & 0xffff_ffff
        }
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
        let (what, way) = if self.is_write {
            ("write", "from")
        } else {
            ("read", "to")
        };
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

/// Fault status of an abort, DFSC or IFSC. Levels are -1 to 3.
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
            0x13 => Self::ExternalOnWalk(-1),
            0x14..=0x17 => Self::ExternalOnWalk(level),
            0x18 => Self::Parity,
            0x1b => Self::ParityOnWalk(-1),
            0x1c..=0x1f => Self::ParityOnWalk(level),
            0x21 => Self::Alignment,
            0x29 => Self::AddressSize(-1),
            0x2b => Self::Translation(-1),
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
                write!(
                    f,
                    "synchronous external abort on a table walk, level {level}"
                )
            }
            Self::Parity => f.write_str("synchronous parity or ECC error"),
            Self::ParityOnWalk(level) => {
                write!(
                    f,
                    "synchronous parity or ECC error on a table walk, level {level}"
                )
            }
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

/// A trapped MSR, MRS or system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemRegister(u32);

impl SystemRegister {
    const fn field(self, shift: u32, mask: u32) -> u8 {
        (self.0.wrapping_shr(shift) & mask) as u8
    }

    /// (op0, op1, CRn, CRm, op2): the register's name in numbers.
    #[must_use]
    pub const fn encoding(self) -> (u8, u8, u8, u8, u8) {
        let (op0, op1) = (self.field(20, 3), self.field(14, 7));
        (
            op0,
            op1,
            self.field(10, 15),
            self.field(1, 15),
            self.field(17, 7),
        )
    }

    /// The general register that takes or gives the value; 31 is the zero register.
    #[must_use]
    pub const fn register(self) -> u8 {
        self.field(5, 31)
    }

    /// Whether it is a read (MRS).
    #[must_use]
    pub const fn is_read(self) -> bool {
        self.0 & 1 != 0
    }
}

impl fmt::Display for SystemRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op0, op1, crn, crm, op2) = self.encoding();
        let what = if self.is_read() { "read" } else { "write" };
        write!(f, "{what} of S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}
