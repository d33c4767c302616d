//! A second copy of a range of guest RAM, kept up by what harvests of the dirty log report: migration in small.
//!
//! ```text
//!  BEGIN   a frame for each page, with what the page's first touch would find
//!  ROUND   harvest a part; what it reports is copied, while the guest writes on           ─┐ as often
//!  END     all other CPUs stand still (`pause`); harvest; copy; compare every byte        ◀┘ as one likes
//! ```
//!
//! It exists to prove the log: a page that is written and not reported is one that differs in the end. So nothing but
//! what a harvest reports is ever copied, and the comparison looks at all pages, also at those that are not
//! mapped, or no longer: their shadow has to be what the next touch would find.
//!
//! The guest begins and ends the log itself, by DIRTY_START and DIRTY_STOP; SHADOW takes the place of DIRTY_HARVEST. What
//! was harvested otherwise the shadow does not hear of.
//!
//! # Why a copy is not too old
//!
//! A page is copied after the flush of the harvest that reported it. Whoever writes it from then on makes it dirty again,
//! before, while or after it is copied: the next harvest reports it, and a torn copy with it. The guard is open while
//! a page is copied, so its frame stays the VM's. A slot in transition tells nothing of its page: it may come back as it was,
//! and nobody would report it again. Such a page is marked, so that the next harvest does.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hyp_abi::call::{self, SHADOW_MAX, SHADOW_UNIT};
use hyp_core::PaRange;
use stage2::space::Lookup;
use stage2::{Ipa, IpaRange, Owner, View};

use super::copying::copy_lines;
use super::logging::By;
use super::outcome::{Part, Refused};
use super::run::Env;
use super::{logging, pause};
use crate::mem::{PAGE, clean, frames};

/// Harvests that are tried for one END: what one leaves over the next takes, and each takes 16 MiB.
const TRIES: usize = 8;

/// The second copy of a range.
#[derive(Debug)]
pub(super) struct Shadow {
    range: IpaRange,
    /// A frame for each page, and one to compare with.
    frames: Vec<u64>,
}

/// What a page is now.
pub(super) enum Now {
    /// It lies in this frame.
    Mapped(u64),
    /// Its next touch finds what the first one found.
    Untouched,
    /// Somebody changes its slot.
    Unsettled,
}

/// Answers SHADOW: `operation` on `bytes` bytes from `start`. Returns `x1` and `x2`. Called at a safe point.
pub(crate) fn call(
    env: Env<'_>,
    operation: u64,
    start: u64,
    bytes: u64,
) -> Result<[u64; 2], Refused> {
    let Some(mut held) = env.vm.shadow.try_lock() else { return Err(Refused::Busy) };
    let range = || {
        let aligned = (start | bytes).is_multiple_of(SHADOW_UNIT);
        let range = IpaRange::new(Ipa::new(start), bytes).map_err(|_| Refused::Invalid)?;
        if aligned { Ok(range) } else { Err(Refused::Invalid) }
    };
    match (operation, &mut *held) {
        (call::SHADOW_BEGIN, none @ None) => {
            *none = Some(Shadow::begin(env, range()?)?);
            Ok([bytes, 0])
        }
        (call::SHADOW_ROUND, Some(shadow)) => {
            let Part { bytes, count } = shadow.round(env, range()?)?;
            Ok([bytes, count])
        }
        (call::SHADOW_END, Some(shadow)) => {
            let ended = shadow.end(env)?;
            *held = None;
            Ok(ended)
        }
        (call::SHADOW_DROP, some @ Some(_)) => {
            *some = None;
            Ok([0; 2])
        }
        _ => Err(Refused::Invalid),
    }
}

impl Shadow {
    /// Takes the frames for a copy of a range that is logged.
    fn begin(env: Env<'_>, range: IpaRange) -> Result<Self, Refused> {
        if range.bytes() > SHADOW_MAX || !logging::asked(env)?.covers(&range) {
            return Err(Refused::Invalid);
        }
        let wanted = range.pages() as usize + 1;
        let mut shadow = Self { range, frames: Vec::new() };
        shadow.frames.try_reserve_exact(wanted).map_err(|_| Refused::NoMemory)?;
        shadow.frames.resize(wanted, 0);
        let taken = frames::take_batch(&mut shadow.frames);
        // What there is goes back when the shadow is dropped.
        shadow.frames.truncate(taken);
        if taken < wanted {
            return Err(Refused::NoMemory);
        }
        for (ipa, frame) in each_page(range).zip(&shadow.frames) {
            // SAFETY: (1) just taken.
            unsafe { fill(env, ipa, *frame) };
        }
        Ok(shadow)
    }

    /// Harvests the first part of a range, and copies what is reported.
    fn round(&self, env: Env<'_>, range: IpaRange) -> Result<Part, Refused> {
        if !self.range.covers(&range) {
            return Err(Refused::Invalid);
        }
        let mut copied = 0;
        let mut copy = |ipa| copied += u64::from(self.copy(env, ipa));
        let Part { bytes, .. } = logging::harvest_with(env, By::Guest, range, &mut copy)?;
        Ok(Part { bytes, count: copied })
    }

    /// Stops the guest, copies what is left, and compares.
    fn end(&self, env: Env<'_>) -> Result<[u64; 2], Refused> {
        let Some(pause) = pause::pause(env) else { return Err(Refused::Busy) };
        let mut copied = 0;
        let mut rest = self.range;
        let mut tries = 0..TRIES;
        loop {
            let part = self.round(env, rest)?;
            copied += part.count;
            let from = Ipa::new(rest.start().get() + part.bytes);
            match IpaRange::new(from, rest.bytes() - part.bytes) {
                Ok(more) if tries.next().is_some() => rest = more,
                Ok(_) => return Err(Refused::Busy),
                Err(_) => break,
            }
        }
        let differs = self.compare(env);
        drop(pause);
        Ok([copied, differs.map_err(Refused::Broken)?.map_or(0, Ipa::get)])
    }

    /// The shadow of a page.
    fn frame(&self, ipa: Ipa) -> Option<u64> {
        let offset = ipa.get().checked_sub(self.range.start().get())?;
        self.frames.get((offset / PAGE) as usize).copied()
    }

    /// Copies a page that was reported; returns whether it could. If not, the next harvest reports it again.
    fn copy(&self, env: Env<'_>, ipa: Ipa) -> bool {
        let Some(to) = self.frame(ipa) else { return true };
        let guard = env.guards.enter();
        match now(env.vm.space.lookup(&guard, ipa), ipa) {
            Now::Mapped(from) => {
                // The guest may have written past the caches. What it writes meanwhile is reported again.
                clean::from_guest(page(from));
                // SAFETY: (1) the guard keeps the page where it is; the other frame is this shadow's.
                unsafe { copy_lines(from, to) };
                true
            }
            Now::Untouched => {
                // SAFETY: (1) a frame of this shadow.
                unsafe { fill(env, ipa, to) };
                true
            }
            Now::Unsettled => {
                if let Ok(page) = IpaRange::new(ipa, PAGE) {
                    env.vm.space.dirty_mark(&guard, page);
                }
                false
            }
        }
    }

    /// The first page that is not what its shadow is, while no other CPU runs the VM.
    ///
    /// # Errors
    /// A slot is in transition, though everybody stands still.
    fn compare(&self, env: Env<'_>) -> Result<Option<Ipa>, String> {
        let Some((&scratch, frames)) = self.frames.split_last() else { return Ok(None) };
        let guard = env.guards.enter();
        for (ipa, &shadow) in each_page(self.range).zip(frames) {
            let frame = match now(env.vm.space.lookup(&guard, ipa), ipa) {
                Now::Mapped(frame) => {
                    clean::from_guest(page(frame));
                    frame
                }
                Now::Untouched => {
                    // SAFETY: (1) a frame of this shadow.
                    unsafe { fill(env, ipa, scratch) };
                    scratch
                }
                Now::Unsettled => return Err(format!("{ipa} is in transition and nobody runs")),
            };
            // SAFETY: (1) both are whole frames that EL2 maps, and nobody writes them: no vCPU runs.
            if unsafe { bytes(frame) != bytes(shadow) } {
                return Ok(Some(ipa));
            }
        }
        Ok(None)
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        for frame in self.frames.drain(..) {
            // SAFETY: (1) taken in `begin`; (2) no table has ever had it.
            unsafe { frames::give_back(frame, 1) };
        }
    }
}

/// The addresses of a range's pages.
fn each_page(range: IpaRange) -> impl Iterator<Item = Ipa> {
    (0..range.pages()).map(move |page| Ipa::new(range.start().get() + page * PAGE))
}

/// What a look-up of a page tells of it.
pub(super) fn now(found: Option<Lookup>, ipa: Ipa) -> Now {
    let Some(found) = found else { return Now::Untouched };
    match found.view() {
        // Behind many addresses at once, and the VM's at none: a hole.
        View::Leaf(leaf) if leaf.owner() == Owner::Other => Now::Untouched,
        View::Leaf(leaf) => {
            let offset = ipa.get() & (found.level.slot_bytes() - 1);
            Now::Mapped(leaf.pa().get() + offset)
        }
        View::Empty | View::Note(_) => Now::Untouched,
        _ => Now::Unsettled,
    }
}

/// What a page's first touch finds.
///
/// # Safety
/// 1. `frame` is the caller's alone.
pub(super) unsafe fn fill(env: Env<'_>, ipa: Ipa, frame: u64) {
    // SAFETY: (1) the caller's clause.
    unsafe {
        clean::zero(page(frame));
        env.vm.plan.payload.fill(ipa.get(), frame);
    }
}

/// The bytes of a frame, by words.
///
/// # Safety
/// 1. It is a whole frame that EL2 maps, and nobody writes it as long as the words are used.
pub(super) unsafe fn bytes<'a>(frame: u64) -> &'a [u64; PAGE as usize / 8] {
    // SAFETY: (1) the caller's clause; frames are aligned, and any bits are words.
    unsafe { &*core::ptr::with_exposed_provenance(frame as usize) }
}

pub(super) const fn page(frame: u64) -> PaRange {
    PaRange { start: frame, end: frame + PAGE }
}
