//! The vectors: an exception is reported and fails the VM, unless the scenario expects it.
//!
//! [`catch`] runs a closure; an exception taken meanwhile on the same vCPU is recorded and execution
//! goes on where [`Resume`] says. What is not expected prints every register in words and ends in
//! the verdict *fail*; an exception during that report ends the VM without another word.
//!
//! Handlers run on the vCPU's own stack with every exception masked, save all general registers and
//! touch no FP/SIMD register (the target has none), so an exception is invisible to the code it
//! interrupts.

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, compiler_fence};

use hyp_abi::MAX_VCPUS;

use crate::console::urgent_line;
pub use crate::fault::{
    EC_DATA_ABORT, EC_DATA_ABORT_EL0, EC_INSTRUCTION_ABORT, EC_INSTRUCTION_ABORT_EL0, EC_UNKNOWN,
    FSC_ALIGNMENT, FSC_EXTERNAL, Fault, fsc_translation,
};
use crate::{call, start};

/// What the entry code saves. Offsets are used in the assembly below.
#[repr(C)]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
    sp: u64,
}

/// Where execution goes on after an expected exception.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Resume {
    /// At the next instruction.
    Next = 1,
    /// At the address in x30: for exceptions in a leaf function that is not there or not code.
    Caller = 2,
    /// Behind the entry to EL0, with x0 as it was there.
    BackFromEl0 = 3,
}

/// One vCPU's expectation. Only that vCPU uses it, from its own context and its own vectors.
struct Expectation {
    resume: AtomicU64,
    count: AtomicU64,
    last: [AtomicU64; 5],
    reporting: AtomicBool,
}

static EXPECTED: [Expectation; MAX_VCPUS] = [const {
    Expectation {
        resume: AtomicU64::new(0),
        count: AtomicU64::new(0),
        last: [const { AtomicU64::new(0) }; 5],
        reporting: AtomicBool::new(false),
    }
}; MAX_VCPUS];

/// Runs `f` and returns the last exception taken meanwhile, if any. Calls do not nest.
pub fn catch<T>(resume: Resume, f: impl FnOnce() -> T) -> Result<T, Fault> {
    let mine = &EXPECTED[start::vcpu()];
    mine.count.store(0, Relaxed);
    mine.resume.store(resume as u64, Relaxed);
    compiler_fence(SeqCst);
    let value = f();
    compiler_fence(SeqCst);
    mine.resume.store(0, Relaxed);
    if mine.count.load(Relaxed) == 0 {
        return Ok(value);
    }
    Err(mine.fault())
}

/// Runs `f`, which enters EL0 ([`crate::el0`]), and returns how EL0 was left.
pub(crate) fn catch_el0<T>(f: impl FnOnce() -> T) -> (T, Fault) {
    let mine = &EXPECTED[start::vcpu()];
    mine.count.store(0, Relaxed);
    mine.resume.store(Resume::BackFromEl0 as u64, Relaxed);
    compiler_fence(SeqCst);
    let value = f();
    compiler_fence(SeqCst);
    mine.resume.store(0, Relaxed);
    (value, mine.fault())
}

impl Expectation {
    /// The last exception that was expected.
    fn fault(&self) -> Fault {
        let [vector, esr, elr, far, spsr] = self.last.each_ref().map(|it| it.load(Relaxed));
        Fault { vector, esr, elr, far, spsr }
    }
}

unsafe extern "C" {
    /// Where the entry to EL0 ends.
    fn el0_back();
}

/// Reads 8 bytes at any address.
pub fn probe_read(va: usize) -> Result<u64, Fault> {
    catch(Resume::Next, || {
        let value: u64;
        // SAFETY: 1. a read that faults is skipped by `catch`; 2. one that does not has no effect
        // that this program relies on.
        unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) va, options(nostack)) };
        value
    })
}

/// Writes 8 bytes at any address.
///
/// # Safety
/// Nothing else that this program uses lives there.
pub unsafe fn probe_write(va: usize, value: u64) -> Result<(), Fault> {
    catch(Resume::Next, || {
        // SAFETY: 1. a write that faults is skipped by `catch`; 2. else by the caller's promise.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) va, options(nostack)) };
    })
}

/// Calls whatever is at `va` as a function without arguments.
///
/// # Safety
/// What is there keeps to the procedure call standard and to x0-x17, or faults before it breaks it.
pub unsafe fn probe_call(va: usize) -> Result<u64, Fault> {
    catch(Resume::Caller, || {
        // SAFETY: 1. a fault at the first instruction or later returns here by `catch`; 2. the rest
        // by the caller's promise.
        unsafe {
            let function: extern "C" fn() -> u64 = core::mem::transmute(va as *const ());
            function()
        }
    })
}

/// Which of the two lines an interrupt came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Group 1.
    Irq,
    /// Group 0.
    Fiq,
}

/// What interrupts call, on any vCPU: null, or a `fn(Line)`.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has interrupts call `handler` from now on, on the interrupted vCPU's stack, with all exceptions masked. It may unmask them: what
/// is taken then is nested.
pub fn on_interrupt(handler: fn(Line)) {
    HANDLER.store(handler as *mut (), SeqCst);
}

/// Hands an interrupt to the scenario's handler, if there is one.
fn interrupt(vector: u64) -> bool {
    let line = match vector {
        VECTOR_IRQ => Line::Irq,
        VECTOR_FIQ => Line::Fiq,
        _ => return false,
    };
    let handler = HANDLER.load(SeqCst);
    if handler.is_null() {
        return false;
    }
    // SAFETY: 1. not null, so it comes from `on_interrupt`, which stores nothing else.
    let handler = unsafe { core::mem::transmute::<*mut (), fn(Line)>(handler) };
    handler(line);
    true
}

/// Every exception, on the interrupted vCPU's stack.
extern "C" fn exception(vector: u64, frame: &mut Frame) {
    if interrupt(vector) {
        return;
    }
    let &mut Frame { esr, elr, far, spsr, .. } = frame;
    let fault = Fault { vector, esr, elr, far, spsr };
    let mine = &EXPECTED[start::vcpu()];
    let resume = mine.resume.load(Relaxed);
    let from_el0 = resume == Resume::BackFromEl0 as u64;
    if resume != 0 && vector == if from_el0 { VECTOR_SYNC_EL0 } else { VECTOR_SYNC } {
        for (to, from) in mine.last.iter().zip([vector, esr, elr, far, spsr]) {
            to.store(from, Relaxed);
        }
        mine.count.store(mine.count.load(Relaxed).wrapping_add(1), Relaxed);
        if from_el0 {
            (frame.elr, frame.spsr) = (el0_back as *const () as u64, STATE);
            return;
        }
        let caller = resume == Resume::Caller as u64;
        frame.elr = if caller { frame.x[30] } else { frame.elr.wrapping_add(4) };
        return;
    }
    if mine.reporting.swap(true, Relaxed) {
        call::verdict(1);
    }
    report(&fault, frame);
    crate::fail!("unexpected exception: {fault}");
}

/// Synchronous, current EL with SP_ELx: the only vector that a scenario can expect from its own level.
const VECTOR_SYNC: u64 = 4;
/// IRQ and FIQ, current EL with SP_ELx.
const VECTOR_IRQ: u64 = 5;
const VECTOR_FIQ: u64 = 6;
/// Synchronous, from EL0.
const VECTOR_SYNC_EL0: u64 = 8;
/// EL1 with SP_EL1, everything masked: how a guest runs.
const STATE: u64 = 0x3c5;

fn report(fault: &Fault, frame: &Frame) {
    let from = ["EL1 with SP_EL0", "EL1", "EL0 (AArch64)", "EL0 (AArch32)"];
    let kind = ["synchronous exception", "IRQ", "FIQ", "SError"];
    let (group, entry) = ((fault.vector / 4) as usize % 4, (fault.vector % 4) as usize);
    urgent_line(format_args!(
        "{}: vCPU {}: {} from {}: {fault}",
        start::guest_name(),
        start::vcpu(),
        kind[entry],
        from[group]
    ));
    for (row, x) in frame.x.chunks(4).enumerate() {
        match *x {
            [a, b, c, d] => urgent_line(format_args!(
                "  x{:<2} {a:#018x} {b:#018x} {c:#018x} {d:#018x}",
                row * 4
            )),
            [a, b, c] => urgent_line(format_args!(
                "  x{:<2} {a:#018x} {b:#018x} {c:#018x} (x30 is the link register)",
                row * 4
            )),
            _ => {}
        }
    }
    urgent_line(format_args!("  sp  {:#018x} spsr {:#x}", frame.sp, frame.spsr));
}

global_asm!(
    r#"
.pushsection .text, "ax"
.macro vector number
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x0, #\number
    b       exception_entry
.endm

.balign 2048
exception_vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15

.balign 128
exception_entry:
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
    mrs     x1, elr_el1
    stp     x30, x1, [sp, #240]
    mrs     x2, spsr_el1
    mrs     x3, esr_el1
    stp     x2, x3, [sp, #256]
    mrs     x4, far_el1
    add     x5, sp, #288
    stp     x4, x5, [sp, #272]
    mov     x1, sp
    bl      {exception}
    ldp     x30, x1, [sp, #240]
    ldr     x2, [sp, #256]
    msr     elr_el1, x1
    msr     spsr_el1, x2
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
    ldp     x0, x1, [sp], #16
    add     sp, sp, #272
    eret
.popsection
"#,
    exception = sym exception,
);
