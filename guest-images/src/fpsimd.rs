//! FP/SIMD: whether the registers work, and whether they survive what happens between two looks.
//!
//! The compiler's target has no FP/SIMD registers, so nothing but the assembly here (and the probes
//! of `promises.rs`) ever touches them: what [`fill`] put there must be there at [`mismatches`],
//! however many exits to the hypervisor and exceptions lie between.

use core::arch::global_asm;

use crate::check_eq;

unsafe extern "C" {
    /// Fills V0-V31, both halves, FPCR and FPSR with values derived from the seed.
    safe fn fp_fill(seed: u64);
    /// Counts the registers that do not hold what `fp_fill` put there.
    safe fn fp_mismatches(seed: u64) -> u64;
    /// Counts the registers that are not zero, FPCR and FPSR included.
    safe fn fp_nonzero() -> u64;
    /// 1 x 3 in 16 lanes, summed, halved as a floating-point number.
    safe fn fp_arithmetic() -> u64;
}

/// Fills every FP/SIMD register.
pub fn fill(seed: u64) {
    fp_fill(seed);
}

/// How many registers changed since [`fill`] with the same seed.
pub fn mismatches(seed: u64) -> u64 {
    fp_mismatches(seed)
}

/// How many registers are not zero.
pub fn nonzero() -> u64 {
    fp_nonzero()
}

/// Fails unless `between` leaves every FP/SIMD register as it was.
pub fn check_kept(what: &str, seed: u64, between: impl FnOnce()) {
    fill(seed);
    between();
    check_eq!(mismatches(seed), 0, "FP/SIMD registers changed by {what}");
}

/// Fails unless the units compute.
pub fn check_arithmetic() {
    check_eq!(fp_arithmetic(), 24, "half the sum of 16 lanes of 1 x 3, by SIMD and FP");
}

global_asm!(
    r#"
.pushsection .text, "ax"
.arch_extension fp
.arch_extension simd
.global fp_fill
fp_fill:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    ins     v\n\().d[0], x1
    mvn     x1, x1
    ins     v\n\().d[1], x1
.endr
    mov     x1, #(1 << 22)
    msr     fpcr, x1
    mov     x1, #(1 << 27)
    msr     fpsr, x1
    ret

.global fp_mismatches
fp_mismatches:
    mov     x2, xzr
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    umov    x3, v\n\().d[0]
    umov    x4, v\n\().d[1]
    mvn     x4, x4
    cmp     x3, x1
    ccmp    x4, x1, #0, eq
    cinc    x2, x2, ne
.endr
    mrs     x3, fpcr
    cmp     x3, #(1 << 22)
    cinc    x2, x2, ne
    mrs     x3, fpsr
    mov     x4, #(1 << 27)
    cmp     x3, x4
    cinc    x2, x2, ne
    mov     x0, x2
    ret

.global fp_nonzero
fp_nonzero:
    mov     x0, xzr
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    umov    x1, v\n\().d[0]
    umov    x2, v\n\().d[1]
    orr     x1, x1, x2
    cmp     x1, #0
    cinc    x0, x0, ne
.endr
    mrs     x1, fpcr
    cmp     x1, #0
    cinc    x0, x0, ne
    mrs     x1, fpsr
    cmp     x1, #0
    cinc    x0, x0, ne
    ret

.global fp_arithmetic
fp_arithmetic:
    msr     fpcr, xzr
    movi    v0.16b, #1
    movi    v1.16b, #3
    mul     v0.16b, v0.16b, v1.16b
    addv    b2, v0.16b
    umov    w1, v2.b[0]
    ucvtf   d0, x1
    fmov    d1, #2.0
    fdiv    d0, d0, d1
    fcvtzu  x0, d0
    ret
.popsection
"#
);
