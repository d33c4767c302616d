//! Data cache maintenance by address, to the point of coherency.
//!
//! Who needs it: an observer that does not look into our caches. That is a guest that runs with its
//! caches off (its accesses are Device or Non-cacheable whatever stage 2 says, unless FEAT_S2FWB forces
//! them), and a CPU that starts with its MMU off.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use hyp_core::PaRange;

use crate::sysreg;

/// The smallest data cache line of this CPU, in bytes.
fn line() -> u64 {
    // CTR_EL0.DminLine is the logarithm of the number of words.
    4 << ((sysreg::read!("ctr_el0") >> 16) & 0xf)
}

fn each_line(range: PaRange, mut operation: impl FnMut(u64)) {
    let line = line();
    let mut at = range.start & !(line - 1);
    while at < range.end {
        operation(at);
        at = at.saturating_add(line);
    }
    barrier::dsb(barrier::SY);
}

/// Writes back every line of `range` and drops it, and waits until that is done.
///
/// Dropping matters where a guest writes past the caches: a clean line left behind would hide its
/// bytes from EL2 later.
pub(crate) fn clean_and_invalidate(range: PaRange) {
    // SAFETY: (1) cleaning and invalidating changes no value that a coherent observer sees.
    each_line(range, |at| unsafe {
        asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags));
    });
}

/// Makes every CPU forget the instructions it has cached, and waits until that is done.
///
/// For frames that are about to become a guest's: whoever had the memory before may have run from it.
pub(crate) fn forget_instructions() {
    // SAFETY: (1) invalidating an instruction cache changes no value.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}
