//! A recorded exception, and how to say it in words.

use core::fmt;

/// A recorded exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Which of the 16 vectors.
    pub vector: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// ELR_EL1: the instruction.
    pub elr: u64,
    /// FAR_EL1; meaningful for aborts and alignment faults only.
    pub far: u64,
    /// SPSR_EL1: the state that it interrupted.
    pub spsr: u64,
}

/// Exception class: unknown reason, which is how an UNDEFINED instruction arrives.
pub const EC_UNKNOWN: u64 = 0x00;
/// Exception class: trapped FP/SIMD access.
pub(crate) const EC_FP: u64 = 0x07;
/// Exception class: trapped MSR, MRS or system instruction.
pub(crate) const EC_SYSREG: u64 = 0x18;
/// Exception class: instruction abort from EL0.
pub const EC_INSTRUCTION_ABORT_EL0: u64 = 0x20;
/// Exception class: instruction abort from EL1.
pub const EC_INSTRUCTION_ABORT: u64 = 0x21;
/// Exception class: data abort from EL0.
pub const EC_DATA_ABORT_EL0: u64 = 0x24;
/// Exception class: data abort from EL1.
pub const EC_DATA_ABORT: u64 = 0x25;

/// Fault status: alignment.
pub const FSC_ALIGNMENT: u64 = 0x21;
/// Fault status: synchronous external abort, not on a walk.
pub const FSC_EXTERNAL: u64 = 0x10;

/// Fault status: translation fault at `level`.
pub const fn fsc_translation(level: u64) -> u64 {
    0x04 + level
}

impl Fault {
    /// The exception class, ESR_EL1\[31:26\].
    pub fn ec(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// The fault status code of an abort, ESR_EL1\[5:0\].
    pub fn fsc(&self) -> u64 {
        self.esr & 0x3f
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.ec() {
            EC_UNKNOWN => "undefined instruction",
            EC_FP => "trapped FP/SIMD access",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            EC_SYSREG => "trapped system register access",
            EC_INSTRUCTION_ABORT => "instruction abort",
            EC_INSTRUCTION_ABORT_EL0 => "instruction abort at EL0",
            EC_DATA_ABORT_EL0 => "data abort at EL0",
            0x22 => "PC alignment fault",
            EC_DATA_ABORT => "data abort",
            0x26 => "SP alignment fault",
            0x2f => "SError",
            0x3c => "BRK",
            _ => "exception",
        };
        write!(f, "{class} at {:#x} (ESR {:#010x}, FAR {:#x})", self.elr, self.esr, self.far)?;
        if matches!(self.ec(), 0x20 | 0x21 | 0x24 | 0x25) {
            let write = self.ec() & !1 == EC_DATA_ABORT_EL0 && self.esr & 1 << 6 != 0;
            let status = match self.fsc() {
                0x00..=0x03 => "address size fault",
                0x04..=0x07 => "translation fault",
                0x08..=0x0b => "access flag fault",
                0x0c..=0x0f => "permission fault",
                FSC_EXTERNAL => "external abort",
                0x14..=0x17 => "external abort on a walk",
                FSC_ALIGNMENT => "alignment fault",
                _ => "other status",
            };
            write!(f, ": {status} on a {}", if write { "write" } else { "read" })?;
        }
        Ok(())
    }
}
