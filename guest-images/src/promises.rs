//! What the ID registers promise must work.
//!
//! A hypervisor that shows a feature in an ID register and traps the feature's instructions or
//! registers breaks every guest that believes the register. Each row of [`PROMISES`] names an ID
//! register's field, the least value that promises something, and a probe that uses it; [`check`]
//! runs the probes of the fields that promise. A probe that is UNDEFINED lands in the guest's
//! vectors and is a broken promise; one that the hypervisor does not know ends the VM with a
//! diagnosis. Hiding a feature is always right, so nothing is expected of fields that promise nothing.

use core::arch::asm;

use crate::exception::{Fault, Resume, catch};

/// An ID register, S3_0_C0_Cm_op2.
macro_rules! id {
    ($crm:literal, $op2:literal) => {
        || {
            let value: u64;
            // SAFETY: the whole block S3_0_C0_C1-7 reads as an ID register or zero.
            unsafe {
                asm!(concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2), out(reg) value,
                     options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

/// 256 bytes that a probe may use, its address in x11.
#[repr(align(256))]
struct Scratch([u64; 32]);

/// Runs the lines with x9 = x10 = 0 and x11 = scratch memory; x9-x15 are theirs.
macro_rules! probe {
    ($($line:expr),+) => {
        || {
            let mut scratch = Scratch([0; 32]);
            // SAFETY: 1. the lines keep to x9-x15, FP/SIMD registers and the scratch memory;
            // 2. what they change in system registers they put back.
            unsafe {
                asm!($($line,)+ inout("x9") 0u64 => _, inout("x10") 0u64 => _,
                     inout("x11") scratch.0.as_mut_ptr() => _, out("x12") _, out("x13") _,
                     out("x14") _, out("x15") _, options(nostack));
            }
        }
    };
}

/// Reads one system register.
macro_rules! reads {
    ($name:literal) => {
        probe!(concat!("mrs x9, ", $name))
    };
}

/// One promise.
pub struct Promise {
    /// What is promised.
    pub feature: &'static str,
    id: fn() -> u64,
    shift: u32,
    least: u64,
    probe: fn(),
}

impl Promise {
    /// Whether this CPU's ID registers make it. 0xf means "absent" in every field used here.
    pub fn is_made(&self) -> bool {
        let field = (self.id)() >> self.shift & 0xf;
        field >= self.least && field != 0xf
    }

    /// Uses the feature.
    pub fn keep(&self) -> Result<(), Fault> {
        catch(Resume::Next, self.probe)
    }
}

/// How many promises are made; fails on the first that is not kept.
pub fn check() -> usize {
    let made = PROMISES.iter().filter(|promise| promise.is_made());
    made.map(|promise| {
        if let Err(fault) = promise.keep() {
            crate::fail!("ID registers promise {}, but: {fault}", promise.feature);
        }
    })
    .count()
}

const ISAR0: fn() -> u64 = id!(6, 0);
const ISAR1: fn() -> u64 = id!(6, 1);
const ISAR2: fn() -> u64 = id!(6, 2);
const PFR0: fn() -> u64 = id!(4, 0);
const PFR1: fn() -> u64 = id!(4, 1);
const PFR2: fn() -> u64 = id!(4, 2);
const DFR0: fn() -> u64 = id!(5, 0);
const MMFR1: fn() -> u64 = id!(7, 1);
const MMFR2: fn() -> u64 = id!(7, 2);
const MMFR3: fn() -> u64 = id!(7, 3);

const fn row(
    feature: &'static str,
    id: fn() -> u64,
    shift: u32,
    least: u64,
    probe: fn(),
) -> Promise {
    Promise { feature, id, shift, least, probe }
}

/// The promises and their probes. Fields as in the Arm ARM, D24.2.
#[rustfmt::skip]
pub static PROMISES: &[Promise] = &[
    // Instructions.
    row("AES", ISAR0, 4, 1, probe!(".arch_extension aes", "aese v0.16b, v1.16b")),
    row("SHA-1", ISAR0, 8, 1, probe!(".arch_extension sha2", "sha1h s0, s1")),
    row("SHA-256", ISAR0, 12, 1, probe!(".arch_extension sha2", "sha256h q0, q1, v2.4s")),
    row("CRC32", ISAR0, 16, 1, probe!(".arch_extension crc", "crc32b w9, w9, w10")),
    row("LSE atomics", ISAR0, 20, 2, probe!(".arch_extension lse", "ldadd x9, x10, [x11]")),
    row("rounding multiply", ISAR0, 28, 1,
        probe!(".arch_extension simd", ".arch_extension rdm", "sqrdmlah v0.4s, v1.4s, v2.4s")),
    row("dot product", ISAR0, 44, 1,
        probe!(".arch_extension simd", ".arch_extension dotprod", "udot v0.4s, v1.16b, v2.16b")),
    row("flag manipulation", ISAR0, 52, 1, probe!(".arch_extension flagm", "cfinv")),
    row("outer shareable TLBI", ISAR0, 56, 1, probe!("sys #0, c8, c1, #0", "dsb sy")),
    row("TLBI by range", ISAR0, 56, 2, probe!("sys #0, c8, c2, #1, x9", "dsb sy")),
    row("random numbers", ISAR0, 60, 1, reads!("S3_3_C2_C4_0")),
    row("DC CVAP", ISAR1, 0, 1, probe!("sys #3, c7, c12, #1, x11")),
    row("pointer authentication (QARMA5)", ISAR1, 4, 1, POINTER_AUTH),
    row("pointer authentication (own algorithm)", ISAR1, 8, 1, POINTER_AUTH),
    row("JavaScript conversion", ISAR1, 12, 1,
        probe!(".arch_extension fp", ".arch_extension jscvt", "fjcvtzs w9, d0")),
    row("complex numbers", ISAR1, 16, 1,
        probe!(".arch_extension simd", ".arch_extension fcma", "fcadd v0.4s, v1.4s, v2.4s, #90")),
    row("LDAPR", ISAR1, 20, 1, probe!(".arch_extension rcpc", "ldaprb w9, [x11]")),
    row("SB", ISAR1, 36, 1, probe!(".arch_extension sb", "sb")),
    row("prediction restriction", ISAR1, 40, 1, probe!("sys #3, c7, c3, #4, x9")),
    row("BFloat16", ISAR1, 44, 1,
        probe!(".arch_extension simd", ".arch_extension bf16", "bfdot v0.4s, v1.8h, v2.8h")),
    row("Int8 matrices", ISAR1, 52, 1,
        probe!(".arch_extension simd", ".arch_extension i8mm", "smmla v0.4s, v1.16b, v2.16b")),
    row("WFET and WFIT", ISAR2, 0, 2, probe!(".arch_extension wfxt", "wfet x9", "wfit x9")),
    row("memory copy and set", ISAR2, 16, 1,
        probe!(".arch_extension mops", "mov x10, #64", "setp [x11]!, x10!, x9", "setm [x11]!, x10!, x9",
               "sete [x11]!, x10!, x9")),
    row("common short sequences", ISAR2, 52, 1, probe!(".arch_extension cssc", "abs x9, x9")),
    row("half precision", PFR0, 16, 1,
        probe!(".arch_extension fp", ".arch_extension fp16", "fadd h0, h1, h2")),
    row("SVE", PFR0, 32, 1,
        probe!("mrs x12, cpacr_el1", "orr x13, x12, #0x30000", "msr cpacr_el1, x13", "isb",
               ".arch_extension sve", "rdvl x9, #1", "msr cpacr_el1, x12", "isb")),
    row("SME", PFR1, 24, 1,
        probe!("mrs x12, cpacr_el1", "orr x13, x12, #0x3000000", "msr cpacr_el1, x13", "isb",
               "mrs x9, S3_3_C4_C2_2", "msr cpacr_el1, x12", "isb")),
    row("memory tags", PFR1, 8, 1, probe!(".arch_extension memtag", "irg x9, x11")),
    // Registers.
    row("memory tag control", PFR1, 8, 2, reads!("S3_0_C1_C0_6")),
    row("GIC system registers", PFR0, 24, 1, reads!("S3_0_C12_C12_5")),
    row("RAS", PFR0, 28, 1, reads!("S3_0_C5_C3_0")),
    row("MPAM", PFR0, 40, 1, reads!("S3_0_C10_C5_0")),
    row("activity monitors", PFR0, 44, 1, reads!("S3_3_C13_C2_0")),
    row("DIT", PFR0, 48, 1, reads!("S3_3_C4_C2_5")),
    row("SCXTNUM", PFR0, 56, 2, reads!("S3_0_C13_C0_7")),
    row("SSBS", PFR1, 4, 2, reads!("S3_3_C4_C2_6")),
    row("non-maskable interrupts", PFR1, 36, 1, reads!("S3_0_C4_C3_0")),
    row("guarded control stack", PFR1, 44, 1, reads!("S3_0_C2_C5_0")),
    row("translation hardening", PFR1, 48, 1, reads!("S3_0_C13_C0_6")),
    row("FPMR", PFR2, 32, 1, reads!("S3_3_C4_C4_2")),
    row("breakpoints", DFR0, 0, 6, reads!("S2_0_C0_C0_5")),
    row("watchpoints", DFR0, 0, 6, reads!("S2_0_C0_C0_7")),
    row("performance monitors", DFR0, 8, 1, reads!("S3_3_C9_C12_0")),
    row("statistical profiling", DFR0, 32, 1, reads!("S3_0_C9_C9_7")),
    row("trace filter", DFR0, 40, 1, reads!("S3_0_C1_C2_1")),
    row("trace buffer", DFR0, 44, 1, reads!("S3_0_C9_C11_7")),
    row("limited ordering regions", MMFR1, 16, 1, reads!("S3_0_C10_C4_7")),
    row("PAN", MMFR1, 20, 1, reads!("S3_0_C4_C2_3")),
    row("AT with PAN", MMFR1, 20, 2, probe!("sys #0, c7, c9, #0, x11")),
    row("UAO", MMFR2, 4, 1, reads!("S3_0_C4_C2_4")),
    row("TCR2_EL1", MMFR3, 0, 1, reads!("S3_0_C2_C0_3")),
    row("SCTLR2_EL1", MMFR3, 4, 1, reads!("S3_0_C1_C0_3")),
    row("permission indirection", MMFR3, 8, 1, reads!("S3_0_C10_C2_3")),
    row("permission overlays", MMFR3, 16, 1, reads!("S3_0_C10_C2_4")),
    row("MAIR2_EL1", MMFR3, 24, 1, reads!("S3_0_C10_C2_1")),
];

/// Signs and authenticates a pointer with a key of its own.
const POINTER_AUTH: fn() = probe!(
    ".arch_extension pauth",
    "mov x14, #0x5a5a",
    "msr S3_0_C2_C1_0, x14",
    "msr S3_0_C2_C1_1, x14",
    "mrs x12, sctlr_el1",
    "orr x13, x12, #(1 << 31)",
    "msr sctlr_el1, x13",
    "isb",
    "mov x9, x11",
    "pacia x9, x10",
    "autia x9, x10",
    "msr sctlr_el1, x12",
    "isb",
    "ldr x9, [x9]"
);
