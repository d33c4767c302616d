//! The registers of EL1 and EL0 that stay live in the hardware while a vCPU has its CPU: saved when another vCPU of the
//! CPU gets it, and loaded when it comes back.
//!
//! | registers | where they are otherwise |
//! | --- | --- |
//! | x0-x30, PC, PSTATE | [`Context`](super::context::Context): every exit moves them |
//! | EL1's control, translation, exception and thread registers, CNTKCTL_EL1 | here |
//! | V0-V31, FPCR, FPSR | here: EL2 is compiled without them |
//! | the keys of pointer authentication, where there are any | here |
//! | VDISR_EL2, which is what EL1 finds in DISR_EL1, where there is RAS | here |
//! | HCR_EL2.TVM, which is what a vCPU's caches are taken for (`caches`) | here |
//! | interrupts and timers | `interrupts` |
//! | debug, PMU, SVE, SME, MTE and what else traps or is hidden | nowhere: no vCPU can change them |
//!
//! A vCPU that is switched on begins with [`El1::reset`], whatever an earlier life of it left: so no register of a vCPU is ever
//! found by another one, or by itself started anew.
//!
//! # Order
//!
//! On PEs with erratum *speculative AT*, what leaves the VM disables EL1's walks in TCR_EL1
//! ([`Running`](stage2::vmid::Running)). So registers are saved while the VM is entered, and loaded after
//! it was entered again, TCR_EL1 last, behind a context synchronization: no walk goes by a mixture of two vCPUs' tables.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2, Readable};

use super::control;
use crate::event::trace;
use crate::sysreg;

/// `SCTLR_EL1` after reset: its RES1 bits, MMU and caches off.
const SCTLR_EL1: u64 = 0x30d0_0800;

macro_rules! registers {
    ($(#[$text:meta])* $group:ident: $($field:ident = $name:literal,)*) => {
        $(#[$text])*
        #[derive(Clone, Debug, Default)]
        struct $group {
            $($field: u64,)*
        }

        impl $group {
            fn read() -> Self {
                Self { $($field: sysreg::read!($name),)* }
            }

            fn write(&self) {
                $(sysreg::write!($name, self.$field);)*
            }
        }
    };
}

registers! {
    /// Those that every CPU has, but TCR_EL1.
    General:
    sctlr = "sctlr_el1",
    cpacr = "cpacr_el1",
    ttbr0 = "ttbr0_el1",
    ttbr1 = "ttbr1_el1",
    mair = "mair_el1",
    amair = "amair_el1",
    contextidr = "contextidr_el1",
    vbar = "vbar_el1",
    esr = "esr_el1",
    far = "far_el1",
    afsr0 = "afsr0_el1",
    afsr1 = "afsr1_el1",
    elr = "elr_el1",
    spsr = "spsr_el1",
    sp_el0 = "sp_el0",
    sp_el1 = "sp_el1",
    tpidr_el0 = "tpidr_el0",
    tpidrro_el0 = "tpidrro_el0",
    tpidr_el1 = "tpidr_el1",
    par = "par_el1",
    csselr = "csselr_el1",
    cntkctl = "cntkctl_el1",
    fpcr = "S3_3_C4_C4_0",
    fpsr = "S3_3_C4_C4_1",
}

registers! {
    /// APIAKey_EL1 to APGAKey_EL1, low half and high half.
    Keys:
    ia_low = "S3_0_C2_C1_0",
    ia_high = "S3_0_C2_C1_1",
    ib_low = "S3_0_C2_C1_2",
    ib_high = "S3_0_C2_C1_3",
    da_low = "S3_0_C2_C2_0",
    da_high = "S3_0_C2_C2_1",
    db_low = "S3_0_C2_C2_2",
    db_high = "S3_0_C2_C2_3",
    ga_low = "S3_0_C2_C3_0",
    ga_high = "S3_0_C2_C3_1",
}

/// V0-V31.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
struct Simd([u128; 32]);

/// The registers of a vCPU that does not have its CPU.
#[derive(Clone, Debug)]
pub(super) struct El1 {
    general: General,
    tcr: u64,
    /// Where the CPU has FEAT_PAuth.
    keys: Option<Keys>,
    /// VDISR_EL2, where the CPU has FEAT_RAS: HCR_EL2.AMO makes it EL1's DISR_EL1, and nothing traps that.
    deferred: Option<u64>,
    simd: Simd,
    /// Whether writes of the virtual memory registers trap.
    traps_vm_registers: bool,
}

impl El1 {
    /// Those of a vCPU that is switched on. EL2 sees its writes of the virtual memory registers if it `traps_vm_registers`.
    pub(super) fn reset(traps_vm_registers: bool) -> Self {
        Self {
            general: General { sctlr: SCTLR_EL1, ..General::default() },
            tcr: 0,
            keys: has_keys().then(Keys::default),
            deferred: has_ras().then_some(0),
            simd: Simd([0; 32]),
            traps_vm_registers,
        }
    }

    /// Saves the registers of the vCPU that has this CPU, before the VM is left.
    pub(super) fn save(&mut self) {
        self.general = General::read();
        self.tcr = sysreg::read!("tcr_el1");
        if let Some(keys) = &mut self.keys {
            *keys = Keys::read();
        }
        if let Some(deferred) = &mut self.deferred {
            *deferred = sysreg::read!("S3_4_C12_C1_1");
        }
        self.simd.save();
        self.traps_vm_registers = HCR_EL2.is_set(HCR_EL2::TVM);
    }

    /// Loads the registers of the vCPU that gets this CPU, after the VM was entered for it.
    pub(super) fn load(&self) {
        self.general.write();
        if let Some(keys) = &self.keys {
            keys.write();
        }
        if let Some(deferred) = self.deferred {
            sysreg::write!("S3_4_C12_C1_1", deferred);
        }
        self.simd.load();
        // With barriers of its own, so what is above is in effect when EL1's walks are enabled.
        control::trap_vm_registers(self.traps_vm_registers);
        sysreg::write!("tcr_el1", self.tcr);
        barrier::isb(barrier::SY);
    }
}

/// Whether this CPU has FEAT_PAuth: any algorithm will do, the registers are the same.
fn has_keys() -> bool {
    let isar1 = sysreg::read!("id_aa64isar1_el1");
    let isar2 = sysreg::read!("S3_0_C0_C6_2");
    // GPI, GPA, API, APA; APA3, GPA3.
    isar1 & 0xff00_0ff0 != 0 || isar2 & 0xff00 != 0
}

/// Whether this CPU has FEAT_RAS.
fn has_ras() -> bool {
    sysreg::read!("id_aa64pfr0_el1") >> 28 & 0xf != 0
}

impl Simd {
    fn save(&mut self) {
        // SAFETY: (1) 32 registers of 16 bytes, which are this array; (2) CPTR_EL2 lets EL2 read them.
        unsafe {
            asm!(
                ".arch_extension simd",
                "stp q0, q1, [{0}, #0]",
                "stp q2, q3, [{0}, #32]",
                "stp q4, q5, [{0}, #64]",
                "stp q6, q7, [{0}, #96]",
                "stp q8, q9, [{0}, #128]",
                "stp q10, q11, [{0}, #160]",
                "stp q12, q13, [{0}, #192]",
                "stp q14, q15, [{0}, #224]",
                "stp q16, q17, [{0}, #256]",
                "stp q18, q19, [{0}, #288]",
                "stp q20, q21, [{0}, #320]",
                "stp q22, q23, [{0}, #352]",
                "stp q24, q25, [{0}, #384]",
                "stp q26, q27, [{0}, #416]",
                "stp q28, q29, [{0}, #448]",
                "stp q30, q31, [{0}, #480]",
                in(reg) &raw mut self.0,
                options(nostack, preserves_flags)
            );
        }
    }

    fn load(&self) {
        // SAFETY: (1) 32 registers of 16 bytes, which are this array; (2) CPTR_EL2 lets EL2 write them, and EL2 is
        // compiled without: none holds anything of Rust's.
        unsafe {
            asm!(
                ".arch_extension simd",
                "ldp q0, q1, [{0}, #0]",
                "ldp q2, q3, [{0}, #32]",
                "ldp q4, q5, [{0}, #64]",
                "ldp q6, q7, [{0}, #96]",
                "ldp q8, q9, [{0}, #128]",
                "ldp q10, q11, [{0}, #160]",
                "ldp q12, q13, [{0}, #192]",
                "ldp q14, q15, [{0}, #224]",
                "ldp q16, q17, [{0}, #256]",
                "ldp q18, q19, [{0}, #288]",
                "ldp q20, q21, [{0}, #320]",
                "ldp q22, q23, [{0}, #352]",
                "ldp q24, q25, [{0}, #384]",
                "ldp q26, q27, [{0}, #416]",
                "ldp q28, q29, [{0}, #448]",
                "ldp q30, q31, [{0}, #480]",
                in(reg) &raw const self.0,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
}

/// A vCPU is switched on: nothing is left here of what it translated or fetched in an earlier life. The VM is entered.
pub(super) fn forget_translations() {
    // SAFETY: (1) local invalidations of EL1's regime under the VM's VMID: what is valid in the tables comes back by
    // walking them.
    unsafe {
        asm!("tlbi vmalle1", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
    trace::reset_el1();
}
