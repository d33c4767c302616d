//! ESR_EL2, decoded: as fields for the exit handlers, and in words for people.
//!
//! The word forms name the field values as the Arm ARM does (D24.2, ESR_EL2), so that a reader can look
//! them up. Aborts are decoded by crate `stage2`. Nothing here fails: a class or status that is not known is shown as its number.

#[cfg(test)]
mod tests;

use core::fmt;

pub use stage2::fault::{Abort, LoadStore, Status};

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
    /// 0x03 to 0x06, 0x08, 0x0c: a coprocessor access from AArch32.
    Coprocessor32,
    /// 0x07: FP, SIMD or SVE access, trapped.
    FpSimd,
    /// 0x09: pointer authentication, trapped.
    PointerAuth,
    /// 0x0a: an instruction that no other class covers (LD64B, ST64B), trapped.
    OtherInstruction,
    /// 0x0d: branch target.
    BranchTarget,
    /// 0x0e: illegal execution state.
    IllegalState,
    /// 0x11, 0x12, 0x13: SVC, HVC or SMC from AArch32.
    Call32,
    /// 0x14: a 128-bit system register access or system instruction, trapped.
    SystemRegister128,
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
    /// 0x2d: guarded control stack.
    Gcs,
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
            0x03..=0x06 | 0x08 | 0x0c => Self::Coprocessor32,
            0x07 => Self::FpSimd,
            0x09 => Self::PointerAuth,
            0x0a => Self::OtherInstruction,
            0x0d => Self::BranchTarget,
            0x0e => Self::IllegalState,
            0x11..=0x13 => Self::Call32,
            0x14 => Self::SystemRegister128,
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
            0x2d => Self::Gcs,
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
            Self::Coprocessor32 => "coprocessor access from AArch32",
            Self::FpSimd => "FP, SIMD or SVE access",
            Self::PointerAuth => "pointer authentication instruction",
            Self::OtherInstruction => "trapped instruction (64-byte load or store and the like)",
            Self::BranchTarget => "branch target exception",
            Self::IllegalState => "illegal execution state",
            Self::Call32 => "SVC, HVC or SMC from AArch32",
            Self::SystemRegister128 => "128-bit system register access",
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
            Self::Gcs => "guarded control stack exception",
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

    /// Whether the instruction has 32 bits (all AArch64 ones do, and IL is set
    /// where it says nothing).
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
        Abort::new(self.0)
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
        (op0, op1, self.field(10, 15), self.field(1, 15), self.field(17, 7))
    }

    /// Of a read in the [ID register space](crate::idreg::is_id_register): its number there, `CRm * 8 + op2`, 8 to 63.
    ///
    /// The same as [`encoding`](Self::encoding) says, by one comparison: no register is read more often.
    #[must_use]
    pub const fn id_register(self) -> Option<usize> {
        // Op0, CRn, Op1 and the direction: those of `MRS <Xt>, S3_0_C0_C<m>_<op2>`.
        let of_space = self.0 & (0b11 << 20 | 0b1111 << 10 | 0b111 << 14 | 1) == 0b11 << 20 | 1;
        let number = (self.field(1, 0xf) << 3 | self.field(17, 7)) as usize;
        if of_space && matches!(number, 8..64) { Some(number) } else { None }
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
