//! Cache maintenance by address.
//!
//! A scenario that reaches the same memory through mismatched aliases uses [`clean_invalidate`] each
//! time it changes over: before it writes uncached (a dirty line must not be evicted over it), after
//! it wrote cached (the write must reach memory), and before it reads cached what was written
//! uncached (a line may have been fetched meanwhile). Code is made by [`sync_code`].

use core::arch::asm;

use aarch64_cpu::asm::barrier;

/// CTR_EL0, which gives the smallest line sizes of the system.
fn ctr() -> u64 {
    let ctr: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    ctr
}

/// Bytes of the smallest data cache line.
pub fn data_line() -> usize {
    4 << (ctr() >> 16 & 0xf)
}

/// Bytes of the smallest instruction cache line.
pub fn instruction_line() -> usize {
    4 << (ctr() & 0xf)
}

/// Bytes that DC ZVA zeroes, or `None` where it is forbidden.
pub fn zva_block() -> Option<usize> {
    let dczid: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags)) };
    (dczid & 1 << 4 == 0).then_some(4 << (dczid & 0xf))
}

/// Runs `op` for each line of `line` bytes that the range of `len` bytes at `va` touches.
fn each_line(va: usize, len: usize, line: usize, op: impl Fn(usize)) {
    let mut at = va & !(line - 1);
    while at < va + len {
        op(at);
        at += line;
    }
}

/// Cleans and invalidates `len` bytes at `va` to the point of coherency.
pub fn clean_invalidate(va: usize, len: usize) {
    barrier::dsb(barrier::SY);
    each_line(va, len, data_line(), |at| {
        // SAFETY: cleaning keeps the contents; the address is mapped by the caller or faults.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
    });
    barrier::dsb(barrier::SY);
}

/// Makes instructions that were written at `va` visible to the instruction fetch of every vCPU in
/// the inner shareable domain, and of this one from its next instruction on.
pub fn sync_code(va: usize, len: usize) {
    each_line(va, len, data_line(), |at| {
        // SAFETY: cleaning keeps the contents.
        unsafe { asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags)) };
    });
    barrier::dsb(barrier::ISH);
    each_line(va, len, instruction_line(), |at| {
        // SAFETY: invalidating an instruction cache loses nothing.
        unsafe { asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags)) };
    });
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}
