//! A second copy of a range of guest RAM, kept up by what harvests of the dirty log report: migration in small.
//!
//! It exists to prove the log: a page that is written and not reported is one that differs in the end. So nothing but
//! what a harvest reports is ever copied, and the comparison looks at all pages, also at those that are not
//! mapped, or no longer: their copy has to be what the next touch would find.
//!
//! | of | frames | kept by |
//! | --- | --- | --- |
//! | the call SHADOW ([`shadow`](super::shadow)) | one for each page, from the start on | harvests that the guest asks for |
//! | the manager in the background ([`churning`](super::churning)) | one for each page that was ever reported | its own |
//!
//! What becomes of a page crate `hyp-core` decides ([`Reported`], [`is_same`]).
//!
//! # Why a copy is not too old
//!
//! A page is copied after the flush of the harvest that reported it. Whoever writes it from then on makes it dirty again,
//! before, while or after it is copied: the next harvest reports it, and a torn copy with it. The guard is open while
//! a page is copied, so its frame stays the VM's. A slot in transition tells nothing of its page: it may come back as it was,
//! and nobody would report it again. Such a page is marked, so that the next harvest does.

use alloc::format;
use alloc::string::String;

use hyp_core::PaRange;
use hyp_core::churn::{Found, Reported, is_same};
use stage2::space::Lookup;
use stage2::{Ipa, IpaRange, Owner, View};

use super::copying::copy_lines;
use super::logging::{self, By};
use super::outcome::{Part, Refused};
use super::run::Env;
use crate::mem::{PAGE, clean, frames};

/// Frames that are given back at a time.
const CLEARED: usize = 4096;

/// The copy.
#[derive(Debug)]
pub(super) struct Second {
    range: IpaRange,
    /// A frame for each page of the range, or 0.
    list: &'static mut [u64],
    /// The frames that the list is in: the first, and how many.
    place: (u64, usize),
    /// A frame to compare with.
    blank: u64,
    /// Entries of the list before this are 0 again.
    cleared: usize,
    /// There was no frame for a page that was reported.
    short: bool,
}

impl Second {
    /// Of a range of which nothing was reported yet. Pages take frames when they are.
    pub(super) fn new(range: IpaRange) -> Result<Self, Refused> {
        let pages = range.pages() as usize;
        let count = (pages * size_of::<u64>()).div_ceil(PAGE as usize).next_power_of_two();
        let blank = frames::take(1).ok_or(Refused::NoMemory)?;
        let Some(first) = frames::take(count) else {
            // SAFETY: (1) just taken; (2) nobody has seen it.
            unsafe { frames::give_back(blank, 1) };
            return Err(Refused::NoMemory);
        };
        // SAFETY: (1) just taken.
        unsafe { clean::zero(PaRange { start: first, end: first + count as u64 * PAGE }) };
        let list = core::ptr::with_exposed_provenance_mut::<u64>(first as usize);
        // SAFETY: (1) frames of the pool, mapped and zeroed, with room for so many; (2) nobody else has them until they are
        // given back, when this is dropped.
        let list = unsafe { core::slice::from_raw_parts_mut(list, pages) };
        Ok(Self { range, list, place: (first, count), blank, cleared: 0, short: false })
    }

    /// The same with a frame for each page at once, so that it is never short of any.
    pub(super) fn filled(env: Env<'_>, range: IpaRange) -> Result<Self, Refused> {
        let second = Self::new(range)?;
        // What there is goes back when the copy is dropped.
        if frames::take_batch(second.list) < second.list.len() {
            return Err(Refused::NoMemory);
        }
        for (ipa, frame) in each_page(range).zip(second.list.iter()) {
            // SAFETY: (1) just taken.
            unsafe { fill(env, ipa, *frame) };
        }
        Ok(second)
    }

    /// What it is a copy of.
    pub(super) const fn range(&self) -> IpaRange {
        self.range
    }

    /// Harvests the first part of a range, which lies in the copy's, and copies what is reported; counts pages.
    ///
    /// # Errors
    /// As [`harvest_with`](logging::harvest_with); `NoMemory`, too, if there was no frame for a page: then it proves nothing
    /// any more ([`is_short`](Self::is_short)).
    pub(super) fn harvest(
        &mut self,
        env: Env<'_>,
        by: By,
        range: IpaRange,
    ) -> Result<Part, Refused> {
        let mut count = 0;
        let mut copy = |ipa| count += u64::from(self.copy(env, ipa));
        let Part { bytes, .. } = logging::harvest_with(env, by, range, &mut copy)?;
        if self.short { Err(Refused::NoMemory) } else { Ok(Part { bytes, count }) }
    }

    /// Whether a page could not be copied for want of a frame.
    pub(super) const fn is_short(&self) -> bool {
        self.short
    }

    /// Where the frame of a page is noted.
    fn entry(&mut self, ipa: Ipa) -> Option<&mut u64> {
        let offset = ipa.get().checked_sub(self.range.start().get())?;
        self.list.get_mut((offset / PAGE) as usize)
    }

    /// Copies a page that was reported; returns whether it could. If not, the next harvest reports it again, or the copy is [short](Self::is_short).
    fn copy(&mut self, env: Env<'_>, ipa: Ipa) -> bool {
        let Some(entry) = self.entry(ipa) else { return true };
        #[cfg(feature = "selftest")]
        if *entry != 0 && crate::selftest::is_wanted("stale-copy") {
            return true;
        }
        #[cfg(feature = "selftest")]
        if crate::selftest::is_wanted("short-copy") {
            self.short = true;
            return false;
        }
        let guard = env.guards.enter();
        let found = found(env.vm.space.lookup(&guard, ipa), ipa);
        match Reported::of(found, *entry != 0) {
            Reported::Copy(from) => {
                if *entry == 0 {
                    *entry = frames::take(1).unwrap_or(0);
                }
                let to = *entry;
                if to == 0 {
                    self.short = true;
                    return false;
                }
                // The guest may have written past the caches. What it writes meanwhile is reported again.
                clean::from_guest(page(from));
                // SAFETY: (1) the guard keeps the page where it is; the other frame is this copy's.
                unsafe { copy_lines(from, to) };
            }
            // SAFETY: (1) a frame of this copy.
            Reported::Reset => unsafe { fill(env, ipa, *entry) },
            Reported::Nothing => {}
            Reported::Mark => {
                if let Ok(page) = IpaRange::new(ipa, PAGE) {
                    env.vm.space.dirty_mark(&guard, page);
                }
                return false;
            }
        }
        true
    }

    /// The first page of a part that is not what its copy is, while no vCPU runs.
    ///
    /// # Errors
    /// A slot is in transition, though everybody stands still.
    pub(super) fn compare(&mut self, env: Env<'_>, part: IpaRange) -> Result<Option<Ipa>, String> {
        let guard = env.guards.enter();
        let blank = self.blank;
        for ipa in each_page(part) {
            let copy = self.entry(ipa).map_or(0, |entry| *entry);
            let frame = match found(env.vm.space.lookup(&guard, ipa), ipa) {
                Found::Mapped(frame) => {
                    clean::from_guest(page(frame));
                    Some(frame)
                }
                Found::Untouched => None,
                Found::Unsettled => return Err(format!("{ipa} is in transition and nobody runs")),
            };
            // SAFETY: (1) whole frames that EL2 maps, and nobody writes them: no vCPU runs.
            let of = |frame: u64| unsafe { bytes(frame) };
            let first_touch = || {
                // SAFETY: (1) a frame of this copy.
                unsafe { fill(env, ipa, blank) };
                of(blank)
            };
            if !is_same(frame.map(of), (copy != 0).then(|| of(copy)), first_touch) {
                return Ok(Some(ipa));
            }
        }
        Ok(None)
    }

    /// Gives some of the frames back; returns whether those were the last.
    pub(super) fn clear(&mut self) -> bool {
        let some = self.list.iter_mut().skip(self.cleared).take(CLEARED);
        self.cleared += some.map(give_back).count();
        self.cleared == self.list.len()
    }
}

/// Gives the frame of an entry back, if it has one.
fn give_back(entry: &mut u64) {
    if *entry != 0 {
        // SAFETY: (1) taken for this copy, and forgotten here; (2) no table has ever had it.
        unsafe { frames::give_back(*entry, 1) };
        *entry = 0;
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        while !self.clear() {}
        let (first, count) = self.place;
        // SAFETY: (1) taken in `new`; (2) the list is not used any more, and no table has ever had them.
        unsafe {
            frames::give_back(first, count);
            frames::give_back(self.blank, 1);
        }
    }
}

/// The addresses of a range's pages.
fn each_page(range: IpaRange) -> impl Iterator<Item = Ipa> {
    (0..range.pages()).map(move |page| Ipa::new(range.start().get() + page * PAGE))
}

/// What a look-up of a page tells of it.
fn found(found: Option<Lookup>, ipa: Ipa) -> Found<u64> {
    let Some(found) = found else { return Found::Untouched };
    match found.view() {
        // Behind many addresses at once, and the VM's at none: a hole.
        View::Leaf(leaf) if leaf.owner() == Owner::Other => Found::Untouched,
        View::Leaf(leaf) => {
            let offset = ipa.get() & (found.level.slot_bytes() - 1);
            Found::Mapped(leaf.pa().get() + offset)
        }
        View::Empty | View::Note(_) => Found::Untouched,
        _ => Found::Unsettled,
    }
}

/// What a page's first touch finds.
///
/// # Safety
/// 1. `frame` is the caller's alone.
unsafe fn fill(env: Env<'_>, ipa: Ipa, frame: u64) {
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
unsafe fn bytes<'a>(frame: u64) -> &'a [u64; PAGE as usize / 8] {
    // SAFETY: (1) the caller's clause; frames are aligned, and any bits are words.
    unsafe { &*core::ptr::with_exposed_provenance(frame as usize) }
}

const fn page(frame: u64) -> PaRange {
    PaRange { start: frame, end: frame + PAGE }
}
