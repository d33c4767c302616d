//! The first instructions: image header, primary and secondary entry, the MMU switch.
//!
//! # What the loader promises
//!
//! The arm64 boot protocol: MMU off, data cache off or clean over the image, `x0` = the device
//! tree. An ELF loader promises less: `x0` is 0, and `early::find_tree` looks at the bottom of
//! RAM. Whatever the level, `DAIF` and the stack pointer are ours from the first instruction on.
//!
//! # Order of the primary's way in
//!
//! 1. Am I where I was linked? The image holds absolute addresses; elsewhere it can only say so.
//! 2. `early_map` builds a small identity map with the MMU off: stores go to memory, so the lines
//!    that a cache may hold over those tables are invalidated afterwards and not before.
//! 3. MMU and caches on, at EL2 or, for the refusal, at EL1. From here on Rust may use atomics:
//!    exclusives on Device memory, which is what the MMU-off machine has, are not architected.
//! 4. `.bss` is cleared, with caches on.
//! 5. `hyp_main(tree, level)`.
//!
//! A secondary comes from PSCI `CPU_ON` with `x0` = its `SecondaryArgs` (physical address), MMU off;
//! it reads them uncached, so the primary cleaned them to the point of coherency; it goes straight
//! to the final tables.
//!
//! # `el2_mmu_switch`
//!
//! Replaces EL2's translation tables as a whole. New and old map the same addresses with different
//! sizes and permissions, which needs break-before-make \[RWHZWS\]; turning the MMU off between them
//! is the one way that needs no third table. Nothing touches memory while it is off: the
//! code is identity-mapped and uses registers only.

use core::arch::global_asm;

use super::early::{EARLY_TABLES, MAIR};
use super::stack::{SLOT, STACKS};

/// `SCTLR_EL2` with M, C, I, SA and the bits that are RES1 without VHE.
pub(crate) const SCTLR_EL2_ON: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12;
/// The same with WXN: what is writable is never executable.
pub(crate) const SCTLR_EL2_WXN: u64 = SCTLR_EL2_ON | 1 << 19;
/// `SCTLR_EL2` as a secondary sets it first: MMU off, RES1 bits set.
const SCTLR_EL2_OFF: u64 = 0x30c5_0830;
/// `SCTLR_EL1` for the refusal: M, C, I and its RES1 bits.
const SCTLR_EL1_ON: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12;

global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    b       primary                     // code0
    .long   0                           // code1
    .quad   0                           // text_offset: QEMU then adds 2 MiB
    .quad   __image_size          // image_size, .bss and stacks included
    .quad   0b0010                      // little-endian, 4 KiB pages, near the bottom of RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .text
primary:
    msr     daifset, #0xf
    msr     spsel, #1
    mov     x19, x0

    adr     x0, primary                 // 1. where am I?
    ldr     x1, =primary
    cmp     x0, x1
    b.ne    misplaced

    ldr     x0, ={stacks} + {slot}      // the first CPU's stack
    mov     sp, x0
    mrs     x20, CurrentEL
    lsr     x20, x20, #2
    cmp     x20, #2
    b.ne    0f
    msr     tpidr_el2, xzr              // no per-CPU block yet: a crash asks
    mov     x0, #(1 << 31)              // HCR_EL2: RW, and E2H = 0 where it is writable
    msr     hcr_el2, x0
    ldr     x0, ={sctlr_el2_off}
    msr     sctlr_el2, x0
    adr     x0, el2_vectors
    msr     vbar_el2, x0
0:  isb

    mov     x0, x19                     // 2. the early map
    bl      early_map
    mov     x19, x0
    dsb     sy
    ldr     x0, ={tables}
    ldr     x1, ={tables} + {tables_size}
    bl      invalidate_to_poc

    mov     x0, #5                      // 3. physical size: at most 48 bits with a 4 KiB granule
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    cmp     x1, x0
    csel    x1, x1, x0, lo
    ldr     x0, ={tables}
    ldr     x2, ={mair}
    cmp     x20, #2
    b.ne    el1_mmu_on
    mov     x3, x1
    ldr     x1, =0x80803519             // TCR_EL2: RES1, 39 bits, inner shareable, write-back
    orr     x1, x1, x3, lsl #16
    ldr     x3, ={sctlr_el2_on}
    bl      el2_mmu_switch

clear_bss:
    ldr     x0, =__bss_start            // 4.
    ldr     x1, =__bss_end
0:  cmp     x0, x1
    b.hs    1f
    stp     xzr, xzr, [x0], #16
    b       0b
1:  mov     x0, x19                     // 5.
    mov     x1, x20
    mov     x29, xzr
    mov     x30, xzr
    bl      hyp_main
    b       halt

el1_mmu_on:
    // At EL3 there is nobody to ask for the power to be cut and no PSCI: stop.
    cmp     x20, #1
    b.ne    halt
    ldr     x3, =0x00803519             // TCR_EL1: EPD1, 39 bits, inner shareable, write-back
    orr     x3, x3, x1, lsl #32
    msr     mair_el1, x2
    msr     tcr_el1, x3
    msr     ttbr0_el1, x0
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    ldr     x3, ={sctlr_el1_on}
    msr     sctlr_el1, x3
    isb
    b       clear_bss

halt:
    wfe
    b       halt

    .global secondary_entry
secondary_entry:                        // x0 = SecondaryArgs
    msr     daifset, #0xf
    msr     spsel, #1
    msr     tpidr_el2, xzr
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    ldr     x1, ={sctlr_el2_off}
    msr     sctlr_el2, x1
    adr     x1, el2_vectors
    msr     vbar_el2, x1
    isb
    mov     x19, x0
    ldp     x0, x1, [x19]               // TTBR0_EL2, TCR_EL2
    ldp     x2, x3, [x19, #16]          // MAIR_EL2, SCTLR_EL2
    ldp     x20, x21, [x19, #32]        // stack top, per-CPU block
    bl      el2_mmu_switch
    mov     sp, x20
    mov     x0, x21
    mov     x29, xzr
    mov     x30, xzr
    bl      hyp_secondary
    b       halt

    // x0 = TTBR0_EL2, x1 = TCR_EL2, x2 = MAIR_EL2, x3 = SCTLR_EL2 with M set.
    .global el2_mmu_switch
el2_mmu_switch:
    dsb     ish                         // the new tables are written
    mrs     x4, sctlr_el2
    bic     x4, x4, #1
    msr     sctlr_el2, x4
    isb
    tlbi    alle2
    dsb     nsh                         // local: this CPU's own view changes [RPSMWS]
    isb
    msr     mair_el2, x2
    msr     tcr_el2, x1
    msr     ttbr0_el2, x0
    isb
    ic      iallu                       // what was fetched under the old attributes
    dsb     nsh
    msr     sctlr_el2, x3
    isb
    ret

    // Invalidates [x0, x1) to the point of coherency, line by line.
invalidate_to_poc:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
0:  dc      ivac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    0b
    dsb     sy
    ret

    // Not where we were linked. Position independent, no stack; the console of QEMU's virt is the
    // only one that can be guessed at.
misplaced:
    mov     x1, #0x09000000
    adr     x2, misplaced_text
0:  ldrb    w3, [x2], #1
    cbz     w3, halt
    str     w3, [x1]
    b       0b
misplaced_text:
    .asciz  "hyp: refused: the image does not run where it was linked (0x40200000): start it with QEMU's -kernel on -M virt\r\n"
    .balign 4
    "#,
    stacks = sym STACKS,
    slot = const SLOT,
    tables = sym EARLY_TABLES,
    tables_size = const core::mem::size_of_val(&EARLY_TABLES),
    mair = const MAIR,
    sctlr_el2_on = const SCTLR_EL2_ON,
    sctlr_el2_off = const SCTLR_EL2_OFF,
    sctlr_el1_on = const SCTLR_EL1_ON,
);

unsafe extern "C" {
    /// Where PSCI starts the other CPUs.
    pub(crate) safe fn secondary_entry();

    /// Replaces EL2's translation tables and turns the MMU on.
    ///
    /// # Safety
    /// 1. `ttbr`, `tcr` and `mair` describe tables that identity-map all code, data and stacks in
    ///    use, and stay allocated for ever.
    /// 2. `sctlr` has M set.
    pub(crate) fn el2_mmu_switch(ttbr: u64, tcr: u64, mair: u64, sctlr: u64);
}
