//! The lock-free walk that populates.
//!
//! A translation fault ends in [`Space::install`]. It walks from the root with acquire loads, and
//! where it meets an Empty slot it fills it by [`Slot::try_set`](crate::Slot::try_set): above the
//! wanted level with a fresh table page, at the wanted level with the frame. Each slot has one
//! winner; a loser gives its page back and goes on with what the winner put there:
//!
//! ```text
//!  guard ── region map ── walk ──┬─ Table ──────────── descend
//!                                ├─ Empty ─ try_set ─┬ won ── descend, or installed
//!                                │                   └ lost ─ give back, look at the winner's
//!                                ├─ leaf ───────────── present: resume the guest
//!                                ├─ Busy, Drain, Dead ─ Retry: return to the guest, fault again
//!                                └─ Note ───────────── Note: what the note says
//! ```
//!
//! Nothing here takes a lock, waits, or flushes. Table pages and frames come from the caller, who
//! keeps some at hand for each CPU; when there are none, the walk unwinds, and nothing was changed
//! but tables that stay useful. Remote PEs see an installed translation as soon as their walks do;
//! a PE that faulted before merely finds it present.
//!
//! What this PE linked or mapped is guaranteed to be observable only after a DSB of this PE \[RSPVBD\]:
//! whoever wins a compare-exchange executes one at once, however the rest of the walk goes. The guest's
//! next instruction fetch sees the translation because the return to the guest is a context
//! synchronization \[IWZCBG\].
//!
//! The walk never descends through Busy, Drain or Dead, and tries each slot once, so it is bounded by
//! the depth of the tree.

use core::ops::ControlFlow::{Break, Continue};

use super::{InstallError, Mapping, Space};
use crate::addr::{Ipa, Level, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Descriptor, Leaf, LeafTemplate, View};
use crate::epoch::Guard;
use crate::memory::Memory;
use crate::slot::{Slot, TrySetError};

/// Where [`Space::install`] gets the page that it maps.
///
/// # Safety
/// An implementation promises of each page that `take` gives
/// 1. that it is the VM's to use (or, for [`Owner::Other`](crate::Owner::Other), meant to be), as large as the level of the
///    [`Mapping`] and aligned to that, below the machine's physical address size, and stays so until
///    a flush has completed after it was taken out of the tables again;
/// 2. that its content is what the guest may see, and visible to the guest whatever its caches:
///    [`Coherency`](crate::Coherency) says what that takes. Cache maintenance is completed by a DSB before `take` returns, because the install's release order
///    does not complete it.
pub unsafe trait Frames {
    /// A page of the wanted size. `None` when none is at hand.
    fn take(&mut self) -> Option<Pa>;

    /// A page that lost its race. It was never mapped.
    fn give_back(&mut self, frame: Pa);
}

/// What an install did on its way, for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leaves installed.
    pub installed: u64,
    /// Frames given back because another PE had installed one.
    pub lost_races: u64,
    /// Table pages linked.
    pub tables: u64,
    /// Table pages given back because another PE had linked one.
    pub lost_tables: u64,
}

/// How an install ended well. The guest may resume, if what is there permits its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// This frame is now mapped.
    Installed(Pa),
    /// Something was mapped there already, or a moment earlier by another PE.
    Present(Leaf),
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Maps a fresh frame at the slot that translates `ipa`, unless something is there.
    ///
    /// The guard is the one under which the caller decided that this address may be populated.
    /// `tally` counts what happened, errors included.
    ///
    /// # Errors
    /// [`InstallError`]. No frame is lost in any case; tables linked on the way stay.
    // In one piece with its caller, however many callers there are: an exchange waits for every store
    // before it, and of calls most stores would be spills. What is rare is out of line.
    #[inline(always)]
    pub fn install(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        mapping: &Mapping,
        frames: &mut impl Frames,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        if !self.domain.owns(guard) {
            return Err(InstallError::ForeignGuard);
        }
        if !self.geometry.contains(ipa) {
            return Err(InstallError::BeyondIpaSize { ipa, bits: self.geometry.ipa_bits() });
        }
        let Mapping { template, shape } = *mapping;
        if shape != self.shape {
            return Err(InstallError::ForeignMapping);
        }
        // Pages and blocks apart: for pages the level is a constant then, and with it shifts and masks.
        match template.level() {
            Level::L3 => self.walk(guard, ipa, Level::L3, template, frames, tally),
            level => self.walk(guard, ipa, level, template, frames, tally),
        }
    }

    /// Walks to the slot of `level`, links tables where they are missing, and fills the slot.
    #[inline(always)]
    fn walk(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        level: Level,
        template: LeafTemplate,
        frames: &mut impl Frames,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        let link = |slot: &Slot, level, _| match self.link(guard, slot, level, tally) {
            Ok(Step::Table(table)) => Continue(table),
            Ok(Step::Leaf(leaf)) => Break(Ok(Install::Present(leaf))),
            Err(error) => Break(Err(error)),
        };
        match self.descend(guard, ipa, level, link) {
            Continue(slot) => self.populate(guard, slot, template, frames, tally),
            Break(end) => end,
        }
    }

    /// Where a slot leads that held no table a moment ago: to a fresh one, if it is Empty.
    #[cold]
    pub(super) fn link(
        &self,
        guard: &Guard<'_>,
        slot: &Slot,
        level: Level,
        tally: &mut Tally,
    ) -> Result<Step, InstallError> {
        let seen = slot.load(&self.arch);
        if seen != Descriptor::EMPTY {
            return step(seen, level);
        }
        let page = self.memory.alloc_table(1).ok_or(InstallError::OutOfTables)?;
        let lost = match Descriptor::table(level, page) {
            Ok(table) => self.try_set(guard, slot, table),
            Err(error) => Err(Lost::Error(error.into())),
        };
        match lost {
            Ok(()) => {
                tally.tables = tally.tables.saturating_add(1);
                Ok(Step::Table(page))
            }
            Err(lost) => {
                // SAFETY: (1) allocated above, and in no tree: the install failed. (2) Never linked.
                // (3) Nothing was written to it.
                unsafe { self.memory.free_table(page, 1) };
                let seen = lost.to(&mut tally.lost_tables)?;
                step(seen, level)
            }
        }
    }

    /// Maps a frame in the slot if it is Empty.
    #[inline(always)]
    fn populate(
        &self,
        guard: &Guard<'_>,
        slot: &Slot,
        template: LeafTemplate,
        frames: &mut impl Frames,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        let seen = slot.load(&self.arch);
        if seen != Descriptor::EMPTY {
            return Ok(Install::Present(present(seen, template.level())?));
        }
        let frame = frames.take().ok_or(InstallError::OutOfFrames)?;
        let lost = match template.at(frame) {
            Ok(leaf) => self.try_set(guard, slot, leaf),
            Err(error) => Err(Lost::Error(error.into())),
        };
        match lost {
            Ok(()) => {
                tally.installed = tally.installed.wrapping_add(1);
                Ok(Install::Installed(frame))
            }
            Err(lost) => {
                frames.give_back(frame);
                let seen = lost.to(&mut tally.lost_races)?;
                Ok(Install::Present(present(seen, template.level())?))
            }
        }
    }

    /// Tries the slot; whoever wins it makes that observable.
    #[inline(always)]
    pub(super) fn try_set(
        &self,
        guard: &Guard<'_>,
        slot: &Slot,
        new: Descriptor,
    ) -> Result<(), Lost> {
        // SAFETY: (1) the slot was found under this guard. (2) The descriptor was made for its level,
        // from a table page fresh from `Memory` or a frame fresh from `Frames`, which promise the rest; or it
        // is the scratch leaf of [`Space::scratch`] of these tables, whose caller promised it.
        match unsafe { slot.try_set(&self.arch, guard, new) } {
            Ok(()) => {
                self.arch.dsb(Dsb::IshSt);
                Ok(())
            }
            Err(TrySetError::Occupied(seen)) => Err(Lost::Race(seen)),
            Err(TrySetError::Unsupported) => Err(Lost::Error(InstallError::Unsupported)),
        }
    }
}

/// Why a page that was at hand did not go into the slot.
pub(super) enum Lost {
    /// Another PE was first; this is what the slot held.
    Race(Descriptor),
    /// It could not be.
    Error(InstallError),
}

impl Lost {
    /// Counts a lost race and hands on what stood there.
    #[inline(always)]
    fn to(self, races: &mut u64) -> Result<Descriptor, InstallError> {
        match self {
            Self::Race(seen) => {
                *races = races.saturating_add(1);
                Ok(seen)
            }
            Self::Error(error) => Err(error),
        }
    }
}

/// Where a slot above the wanted level leads.
pub(super) enum Step {
    Table(Pa),
    Leaf(Leaf),
}

/// What a non-empty slot above the wanted level means for an install.
#[cold]
fn step(seen: Descriptor, level: Level) -> Result<Step, InstallError> {
    match seen.view(level) {
        View::Table(pa) => Ok(Step::Table(pa)),
        View::Leaf(leaf) => Ok(Step::Leaf(leaf)),
        other => Err(obstacle(other, seen, level)),
    }
}

/// What a non-empty slot at the wanted level means for an install.
#[cold]
pub(super) fn present(seen: Descriptor, level: Level) -> Result<Leaf, InstallError> {
    match seen.view(level) {
        View::Leaf(leaf) => Ok(leaf),
        other => Err(obstacle(other, seen, level)),
    }
}

#[cold]
fn obstacle(view: View, seen: Descriptor, level: Level) -> InstallError {
    match view {
        View::Busy(_) | View::Drain(_) | View::Dead => InstallError::Retry { level, seen },
        View::Note(note) => InstallError::Note { level, note },
        View::Empty | View::Leaf(_) | View::Table(_) | View::Foreign(_) => {
            InstallError::Occupied { level, seen }
        }
    }
}
