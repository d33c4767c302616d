//! One instruction at EL0, for scenarios that want to know what comes of it.
//!
//! EL0 has no memory of its own: it runs code of the image through an alias that it may fetch from, and accesses data through
//! another. It has no stack, and comes back by SVC, or by whatever exception its instruction takes.

use core::arch::global_asm;

use crate::GIB;
use crate::exception::{Fault, catch_el0};
use crate::mmu::{self, ALIAS_SLOT, Attr, Size};

/// Root slots of the aliases, behind those that scenarios use.
const DATA: usize = ALIAS_SLOT + 100;
const CODE: usize = ALIAS_SLOT + 101;
/// AP\[1\]: EL0, too.
const EL0: u64 = 1 << 6;
/// AP\[2\]: read-only.
const READ_ONLY: u64 = 1 << 7;
/// ESR_EL1.EC of SVC.
const EC_SVC: u64 = 0x15;

unsafe extern "C" {
    fn el0_read();
    fn el0_write();
    fn el0_call();
    fn el0_enter(code: usize, first: usize, second: u64) -> u64;
}

/// Gives EL0 the first GiB of RAM, for data and for code.
pub fn prepare() {
    let data = mmu::leaf(GIB, Size::Block1G, Attr::WriteBack, false) | EL0;
    let code = mmu::leaf(GIB, Size::Block1G, Attr::WriteBack, true) | EL0 | READ_ONLY;
    mmu::ROOT.set(DATA, data);
    mmu::ROOT.set(CODE, code);
    mmu::publish();
}

/// Where EL0 finds the data at an address of RAM.
pub fn data(ipa: usize) -> usize {
    mmu::slot_va(DATA) + ipa % GIB
}

/// Where it finds code.
pub fn code(ipa: usize) -> usize {
    mmu::slot_va(CODE) + ipa % GIB
}

fn run(stub: unsafe extern "C" fn(), first: usize, second: u64) -> Result<u64, Fault> {
    let (value, fault) = catch_el0(|| {
        // SAFETY: 1. `prepare` has made the alias; 2. the stub uses x0 and x1 only, and ends in an exception, which
        // `catch_el0` turns into a return.
        unsafe { el0_enter(code(stub as *const () as usize), first, second) }
    });
    if fault.ec() == EC_SVC { Ok(value) } else { Err(fault) }
}

/// Reads 8 bytes.
pub fn read(va: usize) -> Result<u64, Fault> {
    run(el0_read, va, 0)
}

/// Writes 8 bytes.
///
/// # Safety
/// Nothing else that this program uses lives there.
pub unsafe fn write(va: usize, value: u64) -> Result<(), Fault> {
    run(el0_write, va, value).map(|_| ())
}

/// Branches to `va`.
///
/// # Safety
/// What is there is SVC, or faults.
pub unsafe fn call(va: usize) -> Result<(), Fault> {
    run(el0_call, va, 0).map(|_| ())
}

global_asm!(
    r#"
.pushsection .text, "ax"
el0_read:
    ldr     x0, [x0]
    svc     #0
el0_write:
    str     x1, [x0]
    svc     #0
el0_call:
    br      x0

// x0: code at EL0; x1, x2: its x0 and x1. Returns what it left in x0.
el0_enter:
    stp     x29, x30, [sp, #-16]!
    msr     elr_el1, x0
    mov     x3, #0x3c0
    msr     spsr_el1, x3
    mov     x0, x1
    mov     x1, x2
    eret
.global el0_back
el0_back:
    ldp     x29, x30, [sp], #16
    ret
.popsection
"#
);
