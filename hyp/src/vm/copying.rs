//! Pages of RAM that lie anywhere move into blocks of 2 MiB, while the guest runs.
//!
//! What `COLLAPSE` leaves behind, `COPY` makes blocks of: pages that faults have populated one by one, or that MOVE
//! has moved, and spans that the guest has touched in part. The order of it all is that of
//! [`Space::copy_collapse`](stage2::Space::copy_collapse); here is where the block comes from, and the bytes:
//!
//! | step | here |
//! | --- | --- |
//! | block | 512 frames side by side from the pool, with whatever they hold |
//! | each page | cleaned from the guest's eyes to EL2's, copied |
//! | each hole | what its first touch would have found: zeros, or bytes of the payload |
//! | block complete | cleaned for the guest, as far as the machine needs it; instruction caches |
//! | block live | old pages poisoned, and back to the pool |
//!
//! A vCPU that needs the span meanwhile is sent back and comes again. Nobody else waits: while bytes are copied
//! neither a lock of the tables nor a guard is held.

use alloc::format;
use core::arch::asm;

use hyp_abi::call::Stat;
use hyp_core::PaRange;
use stage2::space::{Batch, Blocks, CopyCollapse, CopyObstacle, Progress, Release};
use stage2::{Flushed, Former, Ipa, IpaRange, Pa};

use super::blocks::wanted;
use super::outcome::{Part, Refused};
use super::payload::Payload;
use super::run::Env;
use crate::event::trace;
use crate::lock::relax;
use crate::mem::cache::{BLOCK, BLOCK_FRAMES};
use crate::mem::{PAGE, clean, frames};

/// What an old frame is filled with, word by word.
const POISON: u64 = 0x5a5a_dead_5a5a_dead;

/// Where blocks come from, and how they are filled.
struct Copier<'a, H> {
    payload: &'a Payload,
    heard: H,
}

/// Moves the pages of the first blocks of a range, and gives as many bytes as that were. Called at a safe point.
///
/// `holes` pages of a block may be missing, at the most.
pub(crate) fn copy(env: Env<'_>, start: u64, bytes: u64, holes: u64) -> Result<Part, Refused> {
    let range = wanted(env, start, bytes)?;
    let holes = usize::try_from(holes).map_err(|_| Refused::Invalid)?;
    if holes >= BLOCK_FRAMES {
        return Err(Refused::Invalid);
    }
    let Some(_turn) = env.vm.moving.try_lock() else { return Err(Refused::Busy) };
    let (mut blocks, mut short) = (0, false);
    let mut heard = |_, what| match what {
        CopyCollapse::Made { .. } => blocks += 1,
        CopyCollapse::Stays(why) => short |= why == CopyObstacle::NoBlock,
    };
    let progress = copy_spans(env, range, holes, &mut heard)?;
    if blocks == 0 && short {
        return Err(Refused::NoMemory);
    }
    Ok(Part::of(range, progress, blocks))
}

/// The same for a range of whole blocks of RAM; `heard` is told what became of each table that was looked at. The
/// caller has the turn ([`Vm::moving`](super::Vm)).
// With a stack frame of its own, which the other calls of a guest need not pay for.
#[inline(never)]
pub(super) fn copy_spans(
    env: Env<'_>,
    range: IpaRange,
    holes: usize,
    heard: &mut impl FnMut(Ipa, CopyCollapse),
) -> Result<Progress, Refused> {
    let Env { vm, cpu, guards } = env;
    let whole = {
        let guard = guards.enter();
        vm.policy(&guard).whole_spans(range)
    };
    let Some(spans) = whole else {
        // A page that is filled in would need other permissions than its neighbours.
        let ipa = range.start();
        heard(ipa, CopyCollapse::Stays(CopyObstacle::Unlike { ipa }));
        let next = Ipa::new(ipa.get() + BLOCK);
        return Ok(if next < range.end() { Progress::Until(next) } else { Progress::Done });
    };
    let mut claim = vm.space.claim(spans).map_err(|_| Refused::Busy)?;
    let (mut made, mut filled) = (0, 0);
    let mut copier = Copier {
        payload: &vm.plan.payload,
        heard: |ipa, what| {
            if let CopyCollapse::Made { filled: holes } = what {
                made += 1;
                filled += holes as u64;
            }
            heard(ipa, what);
        },
    };
    let all = Batch::all_of(&claim);
    let progress = vm.space.copy_collapse(guards, &mut claim, all, holes, &mut copier, relax);
    cpu.counters.add(Stat::Copied, made);
    cpu.counters.add(Stat::Filled, filled);
    cpu.counters.add(Stat::TablesFreed, made);
    match progress {
        Ok(Progress::Done) if spans != range => Ok(Progress::Until(spans.end())),
        Ok(progress) => Ok(progress),
        Err(error) => Err(Refused::Broken(format!("cannot copy: {error}"))),
    }
}

// SAFETY: (1) a block from the pool is aligned RAM that is nobody else's, and comes back to the pool only against a
// completed flush; (2) what is copied is cleaned before it is read, and the block when it is complete, with its DSB.
unsafe impl<H: FnMut(Ipa, CopyCollapse)> Blocks for Copier<'_, H> {
    fn take(&mut self) -> Option<Pa> {
        frames::take(BLOCK_FRAMES).map(Pa::new)
    }

    fn give_back(&mut self, block: Pa) {
        trace::frame_given_back(block.get(), BLOCK);
        // SAFETY: (1) taken above; (2) it was never mapped.
        unsafe { frames::give_back(block.get(), BLOCK_FRAMES) };
    }

    fn copy(&mut self, _ipa: Ipa, from: Pa, to: Pa) {
        // SAFETY: (1) a page of RAM that no PE can write, and one of a block that was just taken.
        unsafe { copy_page(from.get(), to.get()) };
    }

    fn fill(&mut self, ipa: Ipa, to: Pa) {
        // SAFETY: (1) of a block that was just taken: nobody else reaches it.
        unsafe {
            clean::zero(page(to.get()));
            self.payload.fill(ipa.get(), to.get());
        }
    }

    fn finish(&mut self, _ipa: Ipa, block: Pa) {
        clean::for_guest(PaRange { start: block.get(), end: block.get() + BLOCK });
        // The guest may fetch instructions from it.
        clean::instructions_for_guest();
        #[cfg(feature = "selftest")]
        crate::selftest::hold_up_copy();
    }

    fn heard(&mut self, ipa: Ipa, what: CopyCollapse) {
        (self.heard)(ipa, what);
    }
}

impl<H> Release for Copier<'_, H> {
    fn frame(&mut self, _ipa: Ipa, former: &Former, _flushed: &Flushed) {
        // SAFETY: (1) a page of guest RAM came from the pool; (2) it was flushed, the grace period is over, and
        // nobody maps it.
        unsafe { retire_page(former.pa().get()) };
    }
}

const fn page(frame: u64) -> PaRange {
    PaRange { start: frame, end: frame + PAGE }
}

/// Copies a frame that a guest had: for a trace, its life with the guest ends here. The caller makes the new one ready for a guest.
///
/// # Safety
/// 1. Both are whole frames that EL2 maps; nobody writes the old one any more, and the new one is the caller's alone.
pub(super) unsafe fn copy_page(old: u64, new: u64) {
    // The guest may have written past the caches, behind a line that EL2 has fetched.
    clean::from_guest(page(old));
    // From here on whoever could still write there would write what nobody reads.
    trace::frame_given_back(old, PAGE);
    // SAFETY: (1) the caller's clause: nobody writes either meanwhile, and both are whole frames.
    unsafe { copy_lines(old, new) };
}

/// Bytes that are copied or written at once: two pairs of registers, twice.
const LINE: u64 = 64;

/// Copies a page by pairs of registers. A vCPU may be waiting: without vector registers, which hold the guest's, the
/// compiler's own copy goes word by word.
///
/// # Safety
/// 1. Both are whole pages that EL2 maps, the old one readable, the new one the caller's alone. A guest may write the old
///    one meanwhile: then there is no telling which of its bytes are copied.
pub(super) unsafe fn copy_lines(old: u64, new: u64) {
    // SAFETY: (1) the loop reads `old..old + PAGE` and writes `new..new + PAGE`, in lines, which divide a page.
    unsafe {
        asm!(
            "2:",
            "ldp {a}, {b}, [{from}]",
            "ldp {c}, {d}, [{from}, #16]",
            "stp {a}, {b}, [{to}]",
            "stp {c}, {d}, [{to}, #16]",
            "ldp {a}, {b}, [{from}, #32]",
            "ldp {c}, {d}, [{from}, #48]",
            "stp {a}, {b}, [{to}, #32]",
            "stp {c}, {d}, [{to}, #48]",
            "add {from}, {from}, #{line}",
            "add {to}, {to}, #{line}",
            "cmp {from}, {end}",
            "b.ne 2b",
            from = inout(reg) old => _,
            to = inout(reg) new => _,
            end = in(reg) old + PAGE,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            line = const LINE,
            options(nostack),
        );
    }
}

/// Fills a frame with [`POISON`], likewise.
///
/// # Safety
/// 1. It is a whole frame that EL2 maps, and the caller's alone.
unsafe fn poison(frame: u64) {
    // SAFETY: (1) the loop writes `frame..frame + PAGE`, in lines, which divide a page.
    unsafe {
        asm!(
            "2:",
            "stp {word}, {word}, [{to}]",
            "stp {word}, {word}, [{to}, #16]",
            "stp {word}, {word}, [{to}, #32]",
            "stp {word}, {word}, [{to}, #48]",
            "add {to}, {to}, #{line}",
            "cmp {to}, {end}",
            "b.ne 2b",
            to = inout(reg) frame => _,
            end = in(reg) frame + PAGE,
            word = in(reg) POISON,
            line = const LINE,
            options(nostack),
        );
    }
}

/// Poisons a frame that a guest had, and gives it back to the pool.
///
/// # Safety
/// 1. It came from the pool, and is given back once.
/// 2. Nobody reaches it any more: no table, no TLB, no CPU.
pub(super) unsafe fn retire_page(old: u64) {
    // SAFETY: (1) the caller's clause 2, and EL2 maps every frame of the pool.
    unsafe { poison(old) };
    // Whoever translates by an old entry, with caches off too, is to see the poison.
    clean::for_guest(page(old));
    // SAFETY: (1, 2) the caller's clauses.
    unsafe { frames::give_back(old, 1) };
}
