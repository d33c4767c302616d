//! The routines that reach a VM's memory, and where a fault of each goes if it cannot be resolved.
//!
//! They are the only instructions of EL2 that may fault and go on. Each is a leaf function that uses nothing on the stack, and only
//! registers that a call does not keep; the exception's frame gives them back. So it can be repeated from the instruction that faulted, and ended from any by a return.
//!
//! | routine | what | bytes |
//! | --- | --- | --- |
//! | `window_copy` | both ways; which side is the VM's the addresses say | 8 at once where both sides are aligned, else one by one |
//! | `window_probe` | reads a byte and forgets it | |
//!
//! Which bytes of a copy were done before it ended is not told. A naturally aligned word that is copied alone is copied by one
//! load and one store.

use core::arch::global_asm;

global_asm!(
    r#"
    .text
    .global window_copy                 // x0 = to, x1 = from, x2 = bytes
window_copy:
    orr     x3, x0, x1
    tst     x3, #7
    b.ne    2f
1:  subs    x4, x2, #8
    b.lo    2f
    ldr     x3, [x1], #8
    str     x3, [x0], #8
    mov     x2, x4
    b       1b
2:  cbz     x2, 3f
    ldrb    w3, [x1], #1
    strb    w3, [x0], #1
    sub     x2, x2, #1
    b       2b
3:  mov     x0, #0
    ret
window_copy_end:

    .global window_probe                // x0 = at
window_probe:
    ldrb    w1, [x0]
    mov     x0, #0
    ret
window_probe_end:

window_given_up:                        // x0 = why
    ret

    .section .rodata.window_fixups, "a"
    .balign 8
    .global window_fixups
window_fixups:
    .quad   window_copy, window_copy_end, window_given_up
    .quad   window_probe, window_probe_end, window_given_up
    .text
    "#
);

unsafe extern "C" {
    /// Copies `bytes` bytes. Returns 0, or the number that the fix-up was entered with.
    ///
    /// # Safety
    /// 1. One side is in EL2's window, all of it, while a fault there is resolved.
    /// 2. The other side is memory of EL2's that is read, or written, by nobody else meanwhile.
    pub(super) fn window_copy(to: u64, from: u64, bytes: u64) -> u64;

    /// Reads a byte. Returns as [`window_copy`].
    ///
    /// # Safety
    /// 1. As of [`window_copy`].
    pub(super) fn window_probe(at: u64) -> u64;

    static window_fixups: [Fixup; 2];
}

/// From the first to before the second address a fault may be given up at the third.
#[repr(C)]
struct Fixup {
    start: u64,
    end: u64,
    to: u64,
}

/// Where the routine that has the instruction at `pc` is given up; `None` if it is none of them.
pub(super) fn fixup(pc: u64) -> Option<u64> {
    // SAFETY: (1) made above, constant, of this many rows.
    let rows = unsafe { &window_fixups };
    rows.iter().find(|row| (row.start..row.end).contains(&pc)).map(|row| row.to)
}
