//! Data cache operations by address: zeroing, and maintenance to the point of coherency.
//!
//! Who needs it: an observer that does not look into our caches. That is a guest that runs with its
//! caches off (its accesses are Device or Non-cacheable whatever stage 2 says, unless FEAT_S2FWB forces
//! them), and a CPU that starts with its MMU off.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use hyp_core::PaRange;

use super::PAGE;
use crate::sysreg;

/// The smallest data cache line of this CPU, in bytes.
fn line() -> u64 {
    // CTR_EL0.DminLine is the logarithm of the number of words.
    4 << ((sysreg::read!("ctr_el0") >> 16) & 0xf)
}

/// Bytes that `DC ZVA` zeroes at once, at most a page; `None` where it may not be used.
fn zeroed_at_once() -> Option<u64> {
    // DCZID_EL0: DZP prohibits, BS is the logarithm of the number of words.
    let id = sysreg::read!("dczid_el0");
    (id >> 4 & 1 == 0).then(|| 4 << (id & 0xf)).filter(|block| *block <= PAGE)
}

/// Zeroes whole pages.
///
/// # Safety
/// 1. `pages` is writable Normal memory, whole pages, and the caller's alone.
pub(crate) unsafe fn zero(pages: PaRange) {
    let Some(block) = zeroed_at_once() else {
        let start = core::ptr::with_exposed_provenance_mut::<u8>(pages.start as usize);
        // SAFETY: (1) the caller's clause 1.
        unsafe { start.write_bytes(0, pages.len() as usize) };
        return;
    };
    let mut at = pages.start;
    while at < pages.end {
        // SAFETY: (1) the caller's clause 1; blocks divide a page, so none reaches over the end.
        unsafe { asm!("dc zva, {}", in(reg) at, options(nostack, preserves_flags)) };
        at = at.wrapping_add(block);
    }
}

fn each_line(range: PaRange, mut operation: impl FnMut(u64)) {
    let line = line();
    let mut at = range.start & !(line - 1);
    while at < range.end {
        operation(at);
        // RAM does not reach the end of the address space.
        at = at.wrapping_add(line);
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
