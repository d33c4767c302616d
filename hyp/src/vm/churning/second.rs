//! The second copy of a range of RAM that the manager keeps, by what harvests report and nothing else.
//!
//! As that of the call `SHADOW` ([`shadow`](super::super::shadow)), but for all of RAM: a page has a frame here from the first report
//! of it on. A page that was never reported has to be what its first touch finds. Why a copy is not too old is said there.

use alloc::format;
use alloc::string::String;

use hyp_core::PaRange;
use stage2::{Ipa, IpaRange};

use crate::mem::{PAGE, clean, frames};
use crate::vm::copying::copy_lines;
use crate::vm::outcome::Refused;
use crate::vm::run::Env;
use crate::vm::shadow::{Now, bytes, fill, now, page};

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
    /// For a range of which nothing was reported yet.
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

    /// Whether a page could not be copied for want of a frame.
    pub(super) const fn is_short(&self) -> bool {
        self.short
    }

    /// Where the frame of a page is noted.
    fn entry(&mut self, ipa: Ipa) -> Option<&mut u64> {
        let offset = ipa.get().checked_sub(self.range.start().get())?;
        self.list.get_mut((offset / PAGE) as usize)
    }

    /// Copies a page that was reported; returns whether it could. If not, the next harvest reports it again.
    pub(super) fn copy(&mut self, env: Env<'_>, ipa: Ipa) -> bool {
        let Some(entry) = self.entry(ipa) else { return true };
        #[cfg(feature = "selftest")]
        if *entry != 0 && crate::selftest::is_wanted("stale-copy") {
            return true;
        }
        let guard = env.guards.enter();
        match now(env.vm.space.lookup(&guard, ipa), ipa) {
            Now::Mapped(from) => {
                if *entry == 0 {
                    *entry = frames::take(1).unwrap_or(0);
                }
                let to = *entry;
                if to == 0 {
                    self.short = true;
                    return true;
                }
                // The guest may have written past the caches. What it writes meanwhile is reported again.
                clean::from_guest(page(from));
                // SAFETY: (1) the guard keeps the page where it is; the other frame is this copy's.
                unsafe { copy_lines(from, to) };
                true
            }
            Now::Untouched => {
                if *entry != 0 {
                    // SAFETY: (1) a frame of this copy.
                    unsafe { fill(env, ipa, *entry) };
                }
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

    /// The first page of a part that is not what its copy is, while no vCPU runs.
    ///
    /// # Errors
    /// A slot is in transition, though everybody stands still.
    pub(super) fn compare(&mut self, env: Env<'_>, part: IpaRange) -> Result<Option<Ipa>, String> {
        let guard = env.guards.enter();
        for number in 0..part.pages() {
            let ipa = Ipa::new(part.start().get() + number * PAGE);
            let blank = self.blank;
            let copy = self.entry(ipa).map_or(0, |entry| *entry);
            let found = match now(env.vm.space.lookup(&guard, ipa), ipa) {
                Now::Mapped(frame) => {
                    clean::from_guest(page(frame));
                    Some(frame)
                }
                Now::Untouched => None,
                Now::Unsettled => return Err(format!("{ipa} is in transition and nobody runs")),
            };
            let (one, other) = match (found, copy) {
                (None, 0) => continue,
                (None, copy) => (blank, copy),
                (Some(frame), 0) => (frame, blank),
                (Some(frame), copy) => (frame, copy),
            };
            if one == blank || other == blank {
                // SAFETY: (1) a frame of this copy.
                unsafe { fill(env, ipa, blank) };
            }
            // SAFETY: (1) both are whole frames that EL2 maps, and nobody writes them: no vCPU runs.
            if unsafe { bytes(one) != bytes(other) } {
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
        // SAFETY: (1) taken in `copy`, and forgotten here; (2) no table has ever had it.
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
