//! The abort that a guest takes instead of one that EL2 took: what is in its registers then.
//!
//! | abort at EL2 | class at EL1, from EL1 or EL0 | status | WnR, CM |
//! | --- | --- | --- | --- |
//! | a fetch | 0x21, 0x20 | synchronous external abort | none |
//! | a load, a store | 0x25, 0x24 | the same | as it was |
//! | cache maintenance | 0x25, 0x24 | the same | both set |
//! | on a stage-1 walk | that of the instruction | synchronous external abort on a walk, with the level of *stage 1* | of cache maintenance both, else none: what is reported is the walker's |
//! | misaligned for the type that stage 2 gives | 0x25, 0x24 | alignment fault | as it was |
//! | exclusive or atomic, unsupported | 0x25, 0x24 | unsupported exclusive or atomic access | none: UNKNOWN |
//!
//! FAR_EL1 is FAR_EL2: the same virtual address. What describes the instruction for EL2 (ISV and bits 23:14), S1PTW and the level
//! of stage 2 is not for EL1, where none of it exists without FEAT_LS64.
//!
//! The exception is taken as hardware takes it (J1.1, `AArch64.TakeException`): ELR_EL1 is the instruction, SPSR_EL1 its state, and
//! the vector is by where it came from. SCTLR2_EL1.EASE, which would choose the SError vector, is no guest's: HCRX_EL2.SCTLR2En is 0.

use super::{Abort, El, Status};

/// `ESR_EL1.IL`: 32 bits, and 1 for an abort without ISV.
const IL: u64 = 1 << 25;
const CM: u64 = 1 << 8;
const WNR: u64 = 1 << 6;
/// Fault status: a synchronous external abort.
const EXTERNAL: u64 = 0x10;
const ALIGNMENT: u64 = 0x21;
const UNSUPPORTED_EXCLUSIVE: u64 = 0x35;

/// N, Z, C, V and DIT, which an exception keeps; PAN, which it may set.
const KEPT: u64 = 0b1111 << 28 | 1 << 24 | PAN;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 12;
/// D, A, I, F masked, EL1 with SP_EL1.
const HANDLER: u64 = 0x3c5;
const LEVEL: u64 = 0b1100;
const STACK: u64 = 1;
/// `SCTLR_EL1.SPAN`, clear: PAN is set.
const SPAN: u64 = 1 << 23;
/// `SCTLR_EL1.DSSBS`.
const DSSBS: u64 = 1 << 44;
/// `VBAR_EL1`: bits 63:11.
const VECTORS: u64 = !0x7ff;

impl Abort {
    /// `ESR_EL1` of what a guest takes instead of this abort of its own, with `FAR_EL1` valid.
    ///
    /// If it happened on a walk of stage 1, `walk` is the level (-1 to 3) of the descriptor that could not be
    /// accessed, others taken modulo 4; `None` on a walk that can no longer be followed, too. Whether the instruction was a write is not known then.
    #[must_use]
    pub const fn injected(self, el: El, walk: Option<i8>) -> u64 {
        let class = match (self.is_instruction(), el) {
            (true, El::El0) => 0x20,
            (true, El::El1) => 0x21,
            (false, El::El0) => 0x24,
            (false, El::El1) => 0x25,
        };
        let status = match (walk, self.status()) {
            (Some(-1), _) => 0x13,
            (Some(level), _) => 0x14 | level as u64 & 3,
            (None, Status::Alignment) => ALIGNMENT,
            (None, Status::UnsupportedExclusive) => UNSUPPORTED_EXCLUSIVE,
            (None, _) => EXTERNAL,
        };
        let kept = if self.is_instruction() {
            0
        } else if self.is_cache_maintenance() {
            // WnR is set whatever the instruction.
            CM | WNR
        } else if matches!(self.kind(), super::Access::Write) {
            WNR
        } else {
            0
        };
        class << 26 | IL | kept | status
    }
}

/// Where a guest is, and where a synchronous exception to EL1 takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction of the handler.
    pub pc: u64,
    /// `SPSR_EL2` to return to it with.
    pub pstate: u64,
}

impl Entry {
    /// From `pstate`, by the guest's `VBAR_EL1` and `SCTLR_EL1`, on a machine with FEAT_PAN or without. `SPSR_EL1` becomes
    /// `pstate`.
    ///
    /// For a guest in AArch64 state, EL0 included, on a machine that shows its guests neither FEAT_MTE nor FEAT_NMI: from AArch32
    /// the vector would be another and DIT elsewhere, and TCO and ALLINT, which would be set, are clear here.
    #[must_use]
    pub const fn synchronous(pstate: u64, vbar: u64, sctlr: u64, has_pan: bool) -> Self {
        let offset = match (pstate & LEVEL, pstate & STACK) {
            (0, _) => 0x400,
            (_, 0) => 0x000,
            _ => 0x200,
        };
        let mut state = pstate & KEPT | HANDLER;
        if sctlr & SPAN == 0 && has_pan {
            state |= PAN;
        }
        if sctlr & DSSBS != 0 {
            state |= SSBS;
        }
        Self { pc: vbar & VECTORS | offset, pstate: state }
    }
}
