//! Cache maintenance, and zeroing.
//!
//! | who is about to look | what it needs | here |
//! | --- | --- | --- |
//! | a CPU that starts with its MMU off | clean to the point of coherency | [`clean_and_invalidate`] |
//! | a guest, at a frame that it did not have | what [`Coherency`] says | [`for_guest`], then [`instructions_for_guest`] |
//! | EL2, at a frame that a guest had | likewise | [`from_guest`] |
//! | a guest that has switched its caches | all of its memory cleaned and invalidated | [`lines`] of each page, then [`complete`] |
//!
//! Only `DC CIVAC` and `DC CVAU` are used, by address and never by set/way. `DC CVAC` is not: on early
//! Cortex-A53 it may lose data (errata 819472, 824069, 826319, 827319).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use hyp_core::PaRange;
use spin::Once;
use stage2::coherency::{Coherency, DataCache, Upkeep};
use stage2::{Attributes, MemType, Prot};

use super::PAGE;
use crate::event::counters::Own;
use crate::{cpu, sysreg};

/// What guest RAM needs on this machine; what is in nobody's way costs nothing.
#[derive(Clone, Copy, Debug)]
struct Needs {
    before_guest: Upkeep,
    before_el2: DataCache,
}

/// Before the machine is known, everything.
const EVERYTHING: Needs = Needs {
    before_guest: Upkeep { data: DataCache::CleanAndInvalidateToCoherency, instructions: true },
    before_el2: DataCache::CleanAndInvalidateToCoherency,
};

static NEEDS: Once<Needs> = Once::new();

/// From here on only what the machine needs is done, for RAM that guests may execute. The first call counts: all VMs
/// have the machine's encoding.
pub(crate) fn agree(coherency: Coherency) {
    NEEDS.call_once(|| Needs {
        before_guest: coherency.before_guest(&Attributes::new(Prot::RWX, MemType::Normal)),
        before_el2: coherency.before_hypervisor(MemType::Normal),
    });
}

fn needs() -> Needs {
    NEEDS.get().copied().unwrap_or(EVERYTHING)
}

/// The smallest data cache line of the CPUs that have come up, in bytes.
static SMALLEST_LINE: AtomicU64 = AtomicU64::new(PAGE);

/// The smallest data cache line of this CPU, in bytes.
fn own_line() -> u64 {
    // CTR_EL0.DminLine is the logarithm of the number of words.
    4 << ((sysreg::read!("ctr_el0") >> 16) & 0xf)
}

/// This CPU takes part from here on: maintenance by others reaches its caches too, and where CPUs are unlike each
/// other its lines may be the smallest.
pub(crate) fn join() {
    SMALLEST_LINE.fetch_min(own_line(), Ordering::Relaxed);
}

/// Bytes from one operation to the next.
fn line() -> u64 {
    SMALLEST_LINE.load(Ordering::Relaxed).min(own_line())
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

/// Something for each line of `range`; the caller waits for it.
fn each_line(range: PaRange, mut operation: impl FnMut(u64)) {
    let line = line();
    let mut at = range.start & !(line - 1);
    while at < range.end {
        operation(at);
        // RAM does not reach the end of the address space.
        at = at.wrapping_add(line);
    }
}

/// Writes back every line of `range` and drops it, once [`complete`] has returned.
pub(crate) fn lines(range: PaRange) {
    // SAFETY: (1) cleaning and invalidating changes no value that a coherent observer sees.
    each_line(range, |at| unsafe {
        asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags));
    });
}

/// Waits until the maintenance before it is done.
pub(crate) fn complete() {
    barrier::dsb(barrier::SY);
}

/// Writes back every line of `range` and drops it, and waits until that is done.
///
/// Dropping matters where a guest writes past the caches: a clean line left behind would hide its
/// bytes from EL2 later.
pub(crate) fn clean_and_invalidate(range: PaRange) {
    lines(range);
    complete();
}

fn data(range: PaRange, wanted: DataCache) {
    let counters = &cpu::current().counters;
    let pages = range.len().div_ceil(PAGE);
    match wanted {
        DataCache::Nothing => {}
        DataCache::CleanToUnification => {
            counters.add_own(Own::FramesUnified, pages);
            // SAFETY: (1) cleaning changes no value.
            each_line(range, |at| unsafe {
                asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags));
            });
            complete();
        }
        DataCache::CleanAndInvalidateToCoherency => {
            counters.add_own(Own::FramesCleaned, pages);
            clean_and_invalidate(range);
        }
    }
}

/// Makes the bytes that EL2 has written what a guest sees, however it looks: data, walks, instructions once
/// [`instructions_for_guest`] has followed.
pub(crate) fn for_guest(range: PaRange) {
    data(range, needs().before_guest.data);
}

/// Makes EL2 see what a guest wrote, past the caches or through them. What a vCPU writes there meanwhile may be missed.
pub(crate) fn from_guest(range: PaRange) {
    data(range, needs().before_el2);
}

/// Makes every CPU forget the instructions of frames that change hands, if it does not do so by itself. After
/// their last byte, before a guest has them; once for many.
pub(crate) fn instructions_for_guest() {
    if needs().before_guest.instructions {
        cpu::current().counters.bump_own(Own::InstructionFlushes);
        forget_instructions();
    }
}

/// Makes every CPU forget the instructions it has cached, and waits until that is done.
///
/// Once at boot; whoever had the machine before may have run from any of its memory.
pub(crate) fn forget_instructions() {
    // SAFETY: (1) invalidating an instruction cache changes no value.
    unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}
