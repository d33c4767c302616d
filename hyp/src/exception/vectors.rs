//! The vector table and the way into and out of the guest.
//!
//! # Sixteen entries
//!
//! | from | what happens |
//! | --- | --- |
//! | lower level, AArch64 (4) | the guest's registers are saved and `guest_enter` returns the kind of exit |
//! | lower level, AArch32 (4) | the same, with a kind that stops the VM: `HCR_EL2.RW` forbids it at EL1, and at EL0 the ID registers do not offer it |
//! | this level, SP_ELx (4) | every register goes into a frame on the stack. A synchronous exception may be an access to guest memory that is resolved, or ends otherwise, and EL2 goes on (`same_level`); anything else is a crash dump: EL2 runs with everything masked and expects nothing |
//! | this level, SP_EL0 (4) | crash dump: EL2 never selects SP_EL0 |
//!
//! # Registers across an exit
//!
//! [`guest_enter`] calls a routine that pushes the context's address, where to return to (x30) and the two registers which the compiler may not be told are lost
//! (x19, x29), loads the guest's registers and leaves by `ERET`. All others it is told of: what the caller wants to keep it keeps on
//! its stack, and loads again when it needs it, which is less than twelve registers at each exit. An exit lands on the
//! same stack, so the context is found without any per-CPU lookup. Only the general registers,
//! `ELR_EL2` and `SPSR_EL2` move: EL1 registers stay live in the hardware until another vCPU gets the CPU
//! (`vm/schedule.rs`), and EL2 is compiled without FP, so that file is the guest's, too.
//!
//! No speculation runs past the `ERET`: a DSB and an ISB follow it.
//!
//! # An exception at EL2
//!
//! The exception may be the stack's end, so before anything is stored one bit of the stack pointer tells whether the frame
//! would still lie on the stack (`boot/stack.rs`). There is no register to spare for the test: adding `x0` to the stack pointer,
//! and taking one from the other, exchanges the two without any, and the same again undoes it. Nothing of the guest's
//! is used, and nothing is lost: EL2 can go on where it was, with an `ERET` from the frame. EL1's registers and the
//! FP file are not touched; ESR_EL2, FAR_EL2 and HPFAR_EL2 hold the new exception, so who needs the guest's has saved them
//! (`window`).
//!
//! If it is the stack's end, or the stack pointer is not aligned, the CPU continues on its emergency stack, found from
//! `TPIDR_EL2`. From there it never returns, so two of the guest's thread registers serve as scratch.
//!
//! The frame that is built is `same_level::Frame`.

use core::arch::{asm, global_asm};

use super::same_level::Frame;
use crate::boot::stack::ON_STACK_BIT;
use crate::cpu::PerCpu;
use crate::vm::context::Context;

/// Why `guest_enter` returned. The values are known to the assembly below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Exit {
    /// A synchronous exception: `ESR_EL2` says which.
    Sync = 0,
    /// A physical interrupt.
    Irq = 1,
    /// A fast interrupt: not expected, group 0 is not ours.
    Fiq = 2,
    /// A system error.
    SError = 3,
    /// Anything from AArch32.
    AArch32 = 4,
}

impl Exit {
    /// The kind for the number that the assembly hands over.
    pub(crate) const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => Self::Sync,
            1 => Self::Irq,
            2 => Self::Fiq,
            3 => Self::SError,
            _ => Self::AArch32,
        }
    }
}

#[cfg(feature = "measure")]
macro_rules! measured {
    ($text:literal) => {
        $text
    };
}
#[cfg(not(feature = "measure"))]
macro_rules! measured {
    ($text:literal) => {
        ""
    };
}

global_asm!(
    r#"
    .macro  el2_vector kind
    .balign 0x80
    sub     sp, sp, #{frame}
    add     sp, sp, x0                  // sp = stack + x0
    sub     x0, sp, x0                  // x0 = stack
    tbz     x0, #{on_stack}, 0f
    tbnz    x0, #0, 0f
    tbnz    x0, #1, 0f
    tbnz    x0, #2, 0f
    tbnz    x0, #3, 0f
    sub     x0, sp, x0                  // x0 again
    sub     sp, sp, x0                  // sp = stack
    stp     x0, x1, [sp]
    mov     x1, #\kind
    b       el2_on_stack
0:  sub     x0, sp, x0
    sub     sp, sp, x0
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x1
    mov     x1, #\kind
    b       el2_off_stack
    .endm

    .macro  guest_vector kind
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    "#,
    measured!("mrs     x1, pmccntr_el0"),
    r#"
    ldr     x0, [sp, #16]               // the context
    stp     x2, x3, [x0, #16]
    mov     x2, #\kind
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    ldp     x4, x5, [sp], #16
    stp     x4, x5, [x0]
    mrs     x6, elr_el2
    mrs     x7, spsr_el2
    stp     x30, x6, [x0, #{x30}]
    str     x7, [x0, #{pstate}]
    "#,
    measured!("str     x1, [x0, #{pstate} + 8]"),
    r#"
    ldp     x19, x29, [sp, #16]
    ldp     x0, x30, [sp], #32
    ret                                 // x2 = kind; x19, x29 as they were
    .endm

    .text
    .balign 0x800
    .global el2_vectors
el2_vectors:
    el2_vector 0                      // this level, SP_EL0: sync, IRQ, FIQ, SError
    el2_vector 1
    el2_vector 2
    el2_vector 3
    el2_vector 4                      // this level, SP_EL2
    el2_vector 5
    el2_vector 6
    el2_vector 7
    guest_vector 0                      // lower level, AArch64
    guest_vector 1
    guest_vector 2
    guest_vector 3
    guest_vector 4                      // lower level, AArch32
    guest_vector 4
    guest_vector 4
    guest_vector 4
    .balign 0x80
    .org    el2_vectors + 0x800         // or an entry is longer than there is room for

    .global guest_enter_and_exit
guest_enter_and_exit:                   // x0 = context
    stp     x0, x30, [sp, #-32]!
    stp     x19, x29, [sp, #16]
    ldp     x30, x6, [x0, #{x30}]
    ldr     x7, [x0, #{pstate}]
    msr     elr_el2, x6
    msr     spsr_el2, x7
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    "#,
    measured!("mrs     x1, pmccntr_el0"),
    measured!("str     x1, [x0, #{pstate} + 16]"),
    r#"
    ldp     x0, x1, [x0]
    eret
    dsb     nsh
    isb

    // x1 = kind; sp = the frame, with x0 and x1; every other register as it was.
el2_on_stack:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    add     x2, sp, #{frame}
    stp     x30, x2, [sp, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [sp, #256]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [sp, #272]
    mrs     x2, hpfar_el2
    stp     x2, x1, [sp, #288]
    mov     x0, sp
    mov     x29, xzr
    bl      el2_exception               // returns if EL2 can go on
    ldp     x2, x3, [sp, #256]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #{frame}
    eret
    dsb     nsh
    isb

    // x1 = kind; the old x0, x1 in TPIDR_EL0, TPIDRRO_EL0; sp below where it was by a frame; every other register as
    // it was.
el2_off_stack:
    mrs     x0, tpidr_el2               // to the emergency stack
    cbz     x0, 1f                      // too early for one: nobody could be told
    ldr     x0, [x0, #{emergency}]
    sub     x0, x0, #{frame}
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    add     x2, sp, #{frame}
    stp     x30, x2, [x0, #240]
    mrs     x2, tpidr_el0
    mrs     x3, tpidrro_el0
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #256]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [x0, #272]
    mrs     x2, hpfar_el2
    stp     x2, x1, [x0, #288]
    mov     sp, x0
    mov     x29, xzr
    bl      el2_crashed
1:  wfe
    b       1b
    "#,
    x30 = const core::mem::offset_of!(Context, x) + 30 * 8,
    pstate = const core::mem::offset_of!(Context, pstate),
    on_stack = const ON_STACK_BIT,
    emergency = const core::mem::offset_of!(PerCpu, emergency_top),
    frame = const core::mem::size_of::<Frame>(),
);

const _: () = {
    assert!(core::mem::offset_of!(Context, entered) == core::mem::offset_of!(Context, pstate) + 8);
    assert!(core::mem::offset_of!(Context, left) == core::mem::offset_of!(Context, pstate) + 16);
    assert!(core::mem::size_of::<Frame>() == 304);
};

unsafe extern "C" {
    /// Above; called with the context in x0 it returns with the kind in x2, and has lost all registers but x19, x29 and the stack pointer.
    fn guest_enter_and_exit();
}

/// Runs the guest until its next exit; returns the kind, see [`Exit::from_raw`].
///
/// # Safety
/// 1. Stage 2, `HCR_EL2` and the EL1 registers of this CPU belong to the vCPU of `context`, which nobody else reaches.
/// 2. `context.pstate` names EL1 or EL0, AArch64.
#[inline(always)]
pub(crate) unsafe fn guest_enter(context: *mut Context) -> u64 {
    let kind;
    // SAFETY: (1) the caller's clauses; (2) every register that the routine loses is named, memory and flags are by default.
    unsafe {
        asm!(
            "bl {run}",
            run = sym guest_enter_and_exit,
            inout("x0") context => _,
            out("x1") _,
            out("x2") kind,
            out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
            out("x16") _, out("x17") _, out("x18") _, out("x20") _, out("x21") _, out("x22") _,
            out("x23") _, out("x24") _, out("x25") _, out("x26") _, out("x27") _, out("x28") _,
            out("x30") _,
        );
    }
    kind
}
