//! What runs with the MMU and the caches off.
//!
//! Memory is Device then: no atomics, nothing unaligned, and so no console and no lock. The code keeps to volatile
//! accesses of aligned words and puts what it found into its [`Job`], on this vCPU's stack, which is judged
//! afterwards.

use core::arch::{asm, global_asm};
use core::ptr;

use aarch64_cpu::asm::barrier;
use guest_rt::PAGE;

/// Registers that [`Job::registers`] tries.
pub(crate) const REGISTERS: usize = 8;

const RET: u32 = 0xd65f_03c0;

/// What is done with caches off, and what came of it.
#[repr(C)]
pub(crate) struct Job {
    code: usize,
    answer: u64,
    wrong: u64,
    ran: u64,
    lost: u64,
}

global_asm!(
    r#"
.pushsection .text.uncached, "ax"
// x0 = function, x1, x2 = its arguments. Calls it with SCTLR_EL1.M, C and I clear.
.global call_without_caches
call_without_caches:
    stp     x29, x30, [sp, #-32]!
    mov     x29, sp
    str     x19, [sp, #16]
    mrs     x19, sctlr_el1
    mov     x3, #(1 << 12 | 1 << 2 | 1)
    bic     x3, x19, x3
    msr     sctlr_el1, x3
    isb
    mov     x3, x0
    mov     x0, x1
    mov     x1, x2
    blr     x3
    dsb     sy
    msr     sctlr_el1, x19
    isb
    ldr     x19, [sp, #16]
    ldp     x29, x30, [sp], #32
    ret
.popsection
"#
);

unsafe extern "C" {
    fn call_without_caches(
        function: extern "C" fn(*mut Job, *const ()),
        job: *mut Job,
        argument: *const (),
    );
}

/// Runs `work` on `job` with the MMU and the caches of this vCPU off.
///
/// What lies in its caches must be clean: a set/way loop has gone before, and the hypervisor sees the switch.
pub(crate) fn without_caches<F: Fn(&mut Job)>(job: &mut Job, work: F) {
    extern "C" fn call<F: Fn(&mut Job)>(job: *mut Job, work: *const ()) {
        // SAFETY: 1. both come from the call below and outlive it; 2. nobody else uses the job.
        unsafe { (*work.cast::<F>())(&mut *job) }
    }
    barrier::dsb(barrier::SY);
    // SAFETY: 1. addresses are the same with the MMU off; 2. `work` keeps to this file's rules.
    unsafe { call_without_caches(call::<F>, job, (&raw const work).cast()) };
}

impl Job {
    /// Nothing done yet; the code at `code` will give `answer`.
    pub(crate) const fn new(code: usize, answer: u64) -> Self {
        Self { code, answer, wrong: 0, ran: 0, lost: 0 }
    }

    /// Words that were not what they should have been.
    pub(crate) const fn wrong(&self) -> u64 {
        self.wrong
    }

    /// What the code returned.
    pub(crate) const fn ran(&self) -> u64 {
        self.ran
    }

    /// Registers that did not keep their value, one bit each.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Compares the page at `at` with `old`, and writes `new`.
    pub(crate) fn exchange(&mut self, at: usize, old: u64, new: u64) {
        for word in 0..PAGE / 8 {
            let slot = (at + 8 * word) as *mut u64;
            // SAFETY: 1. the caller's page; 2. aligned.
            unsafe {
                self.wrong += u64::from(ptr::read_volatile(slot) != old ^ word as u64);
                ptr::write_volatile(slot, new ^ word as u64);
            }
        }
    }

    /// Writes a function that returns the answer.
    pub(crate) fn write_code(&mut self) {
        let code = self.code as *mut u32;
        // SAFETY: 1. the caller's page, which nobody runs from now; 2. aligned.
        unsafe {
            // MOVZ X0, #answer
            ptr::write_volatile(code, 0xd280_0000 | (self.answer as u32 & 0xffff) << 5);
            ptr::write_volatile(code.add(1), RET);
        }
        barrier::dsb(barrier::SY);
        // The store has gone to memory; what is left are the instruction caches.
        // SAFETY: invalidating them loses nothing.
        unsafe { asm!("ic iallu", "dsb sy", "isb", options(nostack, preserves_flags)) };
    }

    /// Runs it.
    pub(crate) fn run_code(&mut self) {
        // SAFETY: 1. `write_code` has put a function of this type there and made it visible to fetches.
        let code: extern "C" fn() -> u64 = unsafe { core::mem::transmute(self.code) };
        self.ran = code();
    }

    /// Writes registers whose writes a hypervisor traps while the caches are off, reads them, and puts back what was
    /// there. Of AFSR0, AFSR1 and AMAIR the contents are IMPLEMENTATION DEFINED; they are written as they are.
    pub(crate) fn registers(&mut self) {
        macro_rules! keeps {
            ($bit:literal, $name:literal, $value:expr) => {{
                let (before, after): (u64, u64);
                // SAFETY: stage 1 is off, every exception is masked and none is being handled, so nothing depends on these
                // registers until they are put back.
                unsafe {
                    asm!(
                        concat!("mrs {before}, ", $name),
                        concat!("msr ", $name, ", {value}"),
                        "isb",
                        concat!("mrs {after}, ", $name),
                        concat!("msr ", $name, ", {before}"),
                        "isb",
                        before = out(reg) before, value = in(reg) $value, after = out(reg) after,
                        options(nostack, preserves_flags)
                    );
                }
                if after != $value || before == $value {
                    self.lost |= 1 << $bit;
                }
            }};
        }
        keeps!(0, "ttbr0_el1", 0x0001_0000_4000_0000_u64);
        keeps!(1, "ttbr1_el1", 0x0002_0000_4000_1000_u64);
        keeps!(2, "tcr_el1", 0x19_u64 | 1 << 23);
        keeps!(3, "esr_el1", 0x5600_1234_u64);
        keeps!(4, "far_el1", 0x0000_5eed_0bad_f00d_u64);
        keeps!(5, "mair_el1", 0x4400_ff04_u64);
        keeps!(6, "contextidr_el1", 0x0000_beef_u64);
        keeps!(7, "sctlr_el1", 0x30d0_0800_u64 | 1 << 3 | 1 << 4);
        // SAFETY: as above.
        unsafe {
            asm!("mrs {0}, afsr0_el1", "msr afsr0_el1, {0}", "mrs {0}, afsr1_el1", "msr afsr1_el1, {0}",
                 "mrs {0}, amair_el1", "msr amair_el1, {0}", out(reg) _, options(nostack, preserves_flags));
        }
    }
}
