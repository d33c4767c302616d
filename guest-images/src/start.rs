//! From the first instruction to the guest's function.
//!
//! With the MMU off every data access is to Device memory: exclusives and atomics need not work, and
//! a store goes past the caches, where a clean line left there by whoever loaded the image would hide
//! it from the same code once caches are on. So **nothing is stored before the MMU is on**: the
//! identity map is a constant of the image ([`crate::mmu::ROOT`]), `enable` works in registers only,
//! and the loader has cleaned the image to the point of coherency as the arm64 boot protocol wants.
//! The vCPUs that PSCI starts later take the same way, so that every store of the guest is cacheable
//! and no maintenance is owed.
//!
//! Each vCPU has a stack of [`STACK`] bytes outside `.bss`, first touched when it is needed, and its
//! number in `TPIDR_EL1`.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use aarch64_cpu::registers::TPIDR_EL1;
use hyp_abi::MAX_VCPUS;
use tock_registers::interfaces::{Readable, Writeable};

use crate::machine::Machine;
use crate::{call, console, mmu, smp};

/// Bytes of a vCPU's stack.
pub const STACK: usize = 64 << 10;

/// The stacks. Only start code takes their address; each vCPU uses its own.
#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_VCPUS]>);

// SAFETY: 1. no reference to the contents is ever made; 2. vCPU n's SP stays inside element n.
unsafe impl Sync for Stacks {}

#[unsafe(link_section = ".stacks")]
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_VCPUS]));

unsafe extern "Rust" {
    /// Defined by [`crate::guest!`].
    safe static GUEST_NAME: &'static str;
    /// Defined by [`crate::guest!`].
    safe fn guest_main(machine: &Machine);
}

unsafe extern "C" {
    /// Where PSCI CPU_ON sends a vCPU, its number in x0.
    fn secondary_entry();
}

/// The entry point for PSCI CPU_ON; the context argument is the vCPU's number.
pub fn secondary_entry_ipa() -> u64 {
    secondary_entry as *const () as u64
}

/// The guest's name, for messages.
pub fn guest_name() -> &'static str {
    GUEST_NAME
}

/// This vCPU's number, 0 for the one that booted.
pub fn vcpu() -> usize {
    TPIDR_EL1.get() as usize % MAX_VCPUS
}

global_asm!(
    r#"
.pushsection .text.entry, "ax"
.global _start
_start:
    mov     x19, x0
    bl      enable
    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
0:  cmp     x0, x1
    b.hs    1f
    stp     xzr, xzr, [x0], #16
    b       0b
1:  mov     x0, xzr
    bl      own_stack
    mov     x0, x19
    bl      {primary}
    b       .

.global secondary_entry
secondary_entry:
    mov     x19, x0
    bl      enable
    mov     x0, x19
    bl      own_stack
    mov     x0, x19
    bl      {secondary}
    b       .

// SP for the vCPU numbered x0; ends the chain of frames.
own_stack:
    adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    mov     x2, {stack}
    madd    x1, x0, x2, x1
    add     sp, x1, x2
    mov     x29, xzr
    ret

// Stage 1 on, FP/SIMD allowed, vectors set. Registers only; clobbers x0-x3.
enable:
    msr     daifset, #0xf
    mrs     x0, CurrentEL
    cmp     x0, #(1 << 2)
    b.ne    wrong_el
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    adrp    x0, exception_vectors
    add     x0, x0, :lo12:exception_vectors
    msr     vbar_el1, x0
    ldr     x0, ={mair}
    msr     mair_el1, x0
    // The output size is what the CPU has, at most 48 bits (more needs another table format).
    mrs     x0, id_aa64mmfr0_el1
    and     x0, x0, #0xf
    mov     x1, #5
    cmp     x0, x1
    csel    x0, x0, x1, lo
    ldr     x1, ={tcr}
    orr     x0, x1, x0, lsl #32
    msr     tcr_el1, x0
    adrp    x0, {root}
    add     x0, x0, :lo12:{root}
    msr     ttbr0_el1, x0
    msr     ttbr1_el1, xzr
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x0, ={sctlr}
    msr     sctlr_el1, x0
    isb
    ret

// Not a guest's level: nothing here is known to work, not even the console.
wrong_el:
    wfe
    b       wrong_el
.popsection
"#,
    primary = sym primary,
    secondary = sym secondary,
    stacks = sym STACKS,
    stack = const STACK,
    mair = const mmu::MAIR,
    tcr = const mmu::TCR,
    sctlr = const mmu::SCTLR,
    root = sym mmu::ROOT,
);

/// vCPU 0, stack and MMU on.
extern "C" fn primary(tree: usize) -> ! {
    TPIDR_EL1.set(0);
    console::init();
    let machine = Machine::discover(tree);
    guest_main(&machine);
    call::pass()
}

/// Another vCPU, stack and MMU on.
extern "C" fn secondary(vcpu: usize) -> ! {
    TPIDR_EL1.set(vcpu as u64);
    smp::secondary()
}
