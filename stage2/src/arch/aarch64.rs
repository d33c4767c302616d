//! [`Arch`] on AArch64 at EL2: each primitive is one instruction.
//!
//! The atomics are an `LDAXR`/`STLXR` loop on the Armv8.0 baseline and one `CASAL`, `SWPAL` or `LDCLRAL` where
//! every PE has FEAT_LSE. The choice is a field, tested by one predictable branch, because a single
//! image runs on both; an exclusive loop may go on for ever under contention, one instruction not.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{SCTLR_EL1, TCR_EL1, VTTBR_EL2};
use tock_registers::interfaces::{Readable, Writeable};

use super::{Alteration, Altered, Arch, Dsb, HeldWalks};
use crate::errata::Errata;
use crate::features::{Caps, Features, IdRegisters};
use crate::slot::{Slot, alter, native};
use crate::tlbi::{Sys, Tlbi};

/// The executing PE.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64 {
    lse: bool,
    errata: Errata,
}

impl Aarch64 {
    /// # Safety
    /// 1. This code runs at EL2.
    /// 2. `features` are those of every PE that will use the value (the AND over them).
    /// 3. HCR_EL2.TGE is 0 whenever a method invalidates, so that `VMALL*` and `IPAS2*` act on the
    ///    EL1&0 regime of the current VMID.
    #[must_use]
    pub const unsafe fn new(features: &Features) -> Self {
        Self { lse: features.has(Caps::LSE), errata: features.errata }
    }

    /// Reads the ID registers of the executing PE.
    #[must_use]
    pub fn id_registers() -> IdRegisters {
        macro_rules! read {
            ($name:literal) => {{
                let value: u64;
                // SAFETY: (1) reading an ID register has no effect and is allowed at EL1 and EL2.
                unsafe {
                    asm!(concat!("mrs {}, ", $name), out(reg) value,
                         options(nomem, nostack, preserves_flags));
                }
                value
            }};
        }
        IdRegisters {
            mmfr0: read!("ID_AA64MMFR0_EL1"),
            mmfr1: read!("ID_AA64MMFR1_EL1"),
            // Its name is newer than the baseline that the assembler is told of.
            mmfr2: read!("S3_0_C0_C7_2"),
            isar0: read!("ID_AA64ISAR0_EL1"),
            ctr: read!("CTR_EL0"),
            clidr: read!("CLIDR_EL1"),
            midr: read!("MIDR_EL1"),
        }
    }
}

/// One TLBI as the `SYS` that it is, which also names those that the baseline's assembler does not know.
macro_rules! tlbi {
    ($sys:expr, $operand:expr) => {
        // SAFETY: (1) invalidating a TLB entry never changes what a correct table translates to.
        // (2) No `nomem`: accesses on both sides keep their order with it.
        unsafe {
            asm!("sys #{op1}, c8, c{crm}, #{op2}, {operand}", op1 = const $sys.op1,
                 crm = const $sys.crm, op2 = const $sys.op2, operand = in(reg) $operand,
                 options(nostack, preserves_flags))
        }
    };
    ($sys:expr) => {
        // SAFETY: as above.
        unsafe {
            asm!("sys #{op1}, c8, c{crm}, #{op2}", op1 = const $sys.op1, crm = const $sys.crm,
                 op2 = const $sys.op2, options(nostack, preserves_flags))
        }
    };
}

// SAFETY: each method is the instruction that it is documented to be; the caller of `new` vouches
// for EL2 and for FEAT_LSE.
unsafe impl Arch for Aarch64 {
    #[inline]
    fn load(&self, slot: &Slot) -> u64 {
        native::load(slot)
    }

    #[inline]
    unsafe fn store(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store(slot, bits) };
    }

    #[inline]
    unsafe fn store_detached(&self, slot: &Slot, bits: u64) {
        // SAFETY: the caller's clauses.
        unsafe { native::store_detached(slot, bits) };
    }

    #[inline]
    unsafe fn swap(&self, slot: &Slot, bits: u64) -> u64 {
        // SAFETY: the caller's clauses; `lse` is set only where every PE has FEAT_LSE.
        unsafe { if self.lse { native::swap_lse(slot, bits) } else { native::swap(slot, bits) } }
    }

    #[inline]
    unsafe fn compare_exchange(&self, slot: &Slot, old: u64, new: u64) -> Option<Result<u64, u64>> {
        // SAFETY: the caller's clause; `lse` is set only where every PE has FEAT_LSE.
        Some(unsafe {
            if self.lse {
                native::compare_exchange_lse(slot, old, new)
            } else {
                native::compare_exchange(slot, old, new)
            }
        })
    }

    #[inline]
    unsafe fn clear_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause; `lse` is set only where every PE has FEAT_LSE.
        Some(unsafe {
            if self.lse {
                native::clear_bits_lse(slot, bits)
            } else {
                native::clear_bits(slot, bits)
            }
        })
    }

    #[inline]
    unsafe fn set_bits(&self, slot: &Slot, bits: u64) -> Option<u64> {
        // SAFETY: the caller's clause; `lse` is set only where every PE has FEAT_LSE.
        Some(unsafe {
            if self.lse { native::set_bits_lse(slot, bits) } else { native::set_bits(slot, bits) }
        })
    }

    #[inline]
    unsafe fn alter_while(&self, slots: &[Slot], how: &Alteration) -> Option<Altered> {
        // SAFETY: the caller's clauses; `lse` is set only where every PE has FEAT_LSE.
        Some(unsafe {
            if self.lse {
                alter::alter_while_lse(slots, how)
            } else {
                alter::alter_while(slots, how)
            }
        })
    }

    #[inline]
    fn dsb(&self, kind: Dsb) {
        match kind {
            Dsb::IshSt => barrier::dsb(barrier::ISHST),
            Dsb::Ish => barrier::dsb(barrier::ISH),
            Dsb::Nsh => barrier::dsb(barrier::NSH),
        }
    }

    #[inline]
    fn isb(&self) {
        barrier::isb(barrier::SY);
    }

    fn tlbi(&self, op: Tlbi) {
        match op {
            Tlbi::Ipas2e1Is(operand) => tlbi!(Sys::IPAS2E1IS, operand.bits()),
            Tlbi::Ripas2e1Is(operand) => tlbi!(Sys::RIPAS2E1IS, operand.bits()),
            Tlbi::Ipas2e1(operand) => tlbi!(Sys::IPAS2E1, operand.bits()),
            Tlbi::Vmalle1Is => tlbi!(Sys::VMALLE1IS),
            Tlbi::Vmalle1 => tlbi!(Sys::VMALLE1),
            Tlbi::Vmalls12e1Is => tlbi!(Sys::VMALLS12E1IS),
            Tlbi::Vmalls12e1 => tlbi!(Sys::VMALLS12E1),
            Tlbi::Alle1Is => tlbi!(Sys::ALLE1IS),
            Tlbi::Vae2Is(operand) => tlbi!(Sys::VAE2IS, operand.bits()),
            Tlbi::Alle2Is => tlbi!(Sys::ALLE2IS),
        }
    }

    #[inline]
    fn vttbr(&self) -> u64 {
        VTTBR_EL2.get()
    }

    #[inline]
    unsafe fn set_vttbr(&self, value: u64) {
        // `set` writes all 64 bits; the crate's `set_baddr` would zero the VMID.
        VTTBR_EL2.set(value);
    }

    #[inline]
    fn errata(&self) -> Errata {
        self.errata
    }

    // Not in line, so that the order can be read in the machine code.
    #[inline(never)]
    fn hold_walks(&self) -> HeldWalks {
        let held = HeldWalks { tcr: TCR_EL1.get(), sctlr: SCTLR_EL1.get() };
        TCR_EL1.set(
            held.tcr | (TCR_EL1::EPD0::DisableTTBR0Walks + TCR_EL1::EPD1::DisableTTBR1Walks).value,
        );
        // Stage 1 must not be on for a moment with walks enabled.
        barrier::isb(barrier::SY);
        SCTLR_EL1.set(held.sctlr | SCTLR_EL1::M::Enable.value);
        barrier::isb(barrier::SY);
        held
    }

    #[inline(never)]
    unsafe fn release_walks(&self, held: HeldWalks) {
        SCTLR_EL1.set(held.sctlr);
        // Walks must not be enabled for a moment with stage 1 on that the guest has off.
        barrier::isb(barrier::SY);
        TCR_EL1.set(held.tcr);
        barrier::isb(barrier::SY);
    }
}
