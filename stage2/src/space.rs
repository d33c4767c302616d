//! One VM's stage-2 tables, and the lock-free walk that populates them.
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
//! The walk never descends through Busy, Drain or Dead, and a level is retried at most once, so it
//! is bounded by the depth of the tree.

use core::fmt;

use crate::addr::{Ipa, Level, Pa, Vmid};
use crate::arch::{Arch, Dsb};
use crate::attr::{Attributes, Encoding};
use crate::descriptor::{Descriptor, DescriptorError, Leaf, Note, View};
use crate::epoch::Guard;
use crate::features::{Caps, Features};
use crate::flush::Stage2Tlb;
use crate::geometry::Geometry;
use crate::memory::{Memory, Table};
use crate::slot::{Slot, TrySetError};
use crate::tlbi::tlbi_caps;

/// The stage-2 tables of one VM.
#[derive(Debug)]
pub struct Space<M, A> {
    geometry: Geometry,
    encoding: Encoding,
    caps: Caps,
    vmid: Vmid,
    root: Pa,
    memory: M,
    arch: A,
}

/// Where [`Space::install`] gets the page that it maps.
pub trait Frames {
    /// A page of the wanted size, complete: zeroed or filled, and cleaned as far as the guest's
    /// uncached accesses and instruction fetches need. `None` when none is at hand.
    fn take(&mut self) -> Option<Pa>;

    /// A page that lost its race. It was never mapped.
    fn give_back(&mut self, frame: Pa);
}

/// What an install did on its way, for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leaves installed.
    pub installed: u32,
    /// Frames given back because another PE had installed one.
    pub lost_races: u32,
    /// Table pages linked.
    pub tables: u32,
    /// Table pages given back because another PE had linked one.
    pub lost_tables: u32,
}

/// How an install ended well. In every case the guest may resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// This frame is now mapped.
    Installed(Pa),
    /// Something was mapped there already, or a moment earlier by another PE.
    Present(Leaf),
}

/// Why nothing was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The address is beyond the VM's IPA size.
    BeyondIpaSize {
        /// The address.
        ipa: Ipa,
        /// Bits of the VM's IPAs.
        bits: u32,
    },
    /// No frame at hand: refill where waiting is allowed, then let the guest fault again.
    OutOfFrames,
    /// No table page at hand: likewise.
    OutOfTables,
    /// A slot on the way is being changed (Busy, Drain or Dead): let the guest fault again.
    Retry {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// A note stands there: what happens next is for its owner to say.
    Note {
        /// Level of the slot.
        level: Level,
        /// The payload.
        note: Note,
    },
    /// A table stands where a block was to go, or bits that this crate never wrote.
    Occupied {
        /// Level of the slot.
        level: Level,
        /// What it held.
        seen: Descriptor,
    },
    /// The machine has no atomic install: the fault cannot be recovered here.
    Unsupported,
    /// No descriptor can say what was wanted.
    Descriptor(DescriptorError),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondIpaSize { ipa, bits } => write!(f, "{ipa} needs more than {bits} IPA bits"),
            Self::OutOfFrames => f.write_str("no frame at hand"),
            Self::OutOfTables => f.write_str("no table page at hand"),
            Self::Retry { level, seen } => {
                write!(f, "the {level} slot is being changed: {:#x}", seen.bits())
            }
            Self::Note { level, note } => {
                write!(f, "the {level} slot holds note {:#x}", note.get())
            }
            Self::Occupied { level, seen } => {
                write!(f, "the {level} slot holds {:#x}", seen.bits())
            }
            Self::Unsupported => f.write_str("this machine has no atomic install"),
            Self::Descriptor(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for InstallError {}

impl From<DescriptorError> for InstallError {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}

/// Why a VM's tables could not be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSpaceError {
    /// No memory for the root.
    OutOfTables {
        /// Pages that the root needs, side by side.
        pages: usize,
    },
}

impl fmt::Display for NewSpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::OutOfTables { pages } = self;
        write!(f, "no {pages} adjacent pages for the root of the stage-2 tables")
    }
}

impl core::error::Error for NewSpaceError {}

/// A translation as a lockless walk found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Level of the slot where the walk ended.
    pub level: Level,
    /// What the slot held.
    pub descriptor: Descriptor,
}

impl Lookup {
    /// What the slot held, decoded.
    #[must_use]
    pub const fn view(&self) -> View {
        self.descriptor.view(self.level)
    }
}

impl<M: Memory, A: Arch> Space<M, A> {
    /// Empty tables for a VM. Allocates the root and flushes the VMID on all PEs, since another VM
    /// may have used it. Every PE that will run the VM has `features`.
    ///
    /// # Errors
    /// [`NewSpaceError`]: no memory for the root.
    pub fn new(
        geometry: Geometry,
        features: &Features,
        vmid: Vmid,
        memory: M,
        arch: A,
    ) -> Result<Self, NewSpaceError> {
        let pages = geometry.root_tables();
        let root = memory.alloc_table(pages).ok_or(NewSpaceError::OutOfTables { pages })?;
        let caps = tlbi_caps(features);
        let encoding = Encoding::of(features);
        let space = Self { geometry, encoding, caps, vmid, root, memory, arch };
        let _ = space.tlb().vm();
        Ok(space)
    }

    /// The shape, and VTCR_EL2 with it.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How attributes are encoded: HCR_EL2.FWB must agree with it.
    #[must_use]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The value of VTTBR_EL2: VMID and root. CnP is 0.
    #[must_use]
    pub const fn vttbr(&self) -> u64 {
        (self.vmid.get() as u64) << 48 | self.root.get()
    }

    /// The PE's primitives that this space uses.
    pub const fn arch(&self) -> &A {
        &self.arch
    }

    /// Where this space's table pages come from.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Flushes of this VM's translations.
    #[must_use]
    pub const fn tlb(&self) -> Stage2Tlb<'_, A> {
        Stage2Tlb::new(&self.arch, self.vttbr(), self.caps)
    }

    /// Maps a fresh frame at the slot of `level` that translates `ipa`, unless something is there.
    ///
    /// The guard is the one under which the caller decided that this address may be populated.
    /// On success a `DSB ISHST` has made the install visible to all walkers. `tally` counts what
    /// happened, errors included.
    ///
    /// # Errors
    /// [`InstallError`]. No frame is lost in any case; tables linked on the way stay.
    #[inline]
    pub fn install(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        level: Level,
        attributes: &Attributes,
        frames: &mut impl Frames,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        if !self.geometry.contains(ipa) {
            return Err(InstallError::BeyondIpaSize { ipa, bits: self.geometry.ipa_bits() });
        }
        let mut at = self.geometry.start();
        let mut table = self.root_table(guard, ipa);
        while at < level {
            let slot = table.slot(at.index(ipa));
            let next = match self.slot_to_table(guard, slot, at, tally)? {
                Step::Table(pa) => pa,
                Step::Leaf(leaf) => return Ok(Install::Present(leaf)),
            };
            table = self.linked_table(guard, next);
            let Some(below) = at.next() else { break };
            at = below;
        }
        let slot = table.slot(at.index(ipa));
        self.slot_to_leaf(guard, slot, at, attributes, frames, tally)
    }

    /// What translates `ipa` at this moment. Lockless; it may change as soon as it is read.
    #[must_use]
    pub fn lookup(&self, guard: &Guard<'_>, ipa: Ipa) -> Option<Lookup> {
        if !self.geometry.contains(ipa) {
            return None;
        }
        let mut level = self.geometry.start();
        let mut table = self.root_table(guard, ipa);
        loop {
            let descriptor = table.slot(level.index(ipa)).load(&self.arch);
            match (descriptor.view(level), level.next()) {
                (View::Table(pa), Some(below)) => {
                    table = self.linked_table(guard, pa);
                    level = below;
                }
                _ => return Some(Lookup { level, descriptor }),
            }
        }
    }

    /// The root page that serves `ipa`.
    fn root_table<'t>(&'t self, _guard: &'t Guard<'_>, ipa: Ipa) -> &'t Table {
        // SAFETY: (1) the root was allocated in `new` and lives as long as the space.
        unsafe { self.memory.table(self.geometry.root_page(self.root, ipa)) }
    }

    /// A table that a live descriptor pointed to.
    fn linked_table<'t>(&'t self, _guard: &'t Guard<'_>, pa: Pa) -> &'t Table {
        // SAFETY: (1) found linked under the guard, so it stays allocated while the guard lives.
        unsafe { self.memory.table(pa) }
    }

    /// Follows the slot to the next table, linking a fresh one if the slot is Empty.
    #[inline]
    fn slot_to_table(
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
        let linked = Descriptor::table(level, page)
            .map_err(InstallError::from)
            .and_then(|new| slot.try_set(&self.arch, guard, new).map_err(InstallError::from));
        match linked {
            Ok(()) => {
                tally.tables += 1;
                Ok(Step::Table(page))
            }
            Err(error) => {
                // SAFETY: (1) allocated above, and the install failed, so it is in no tree.
                // (2) It was never linked.
                unsafe { self.memory.free_table(page, 1) };
                match error {
                    InstallError::Occupied { seen, .. } => {
                        tally.lost_tables += 1;
                        step(seen, level)
                    }
                    other => Err(other),
                }
            }
        }
    }

    /// Maps a frame in the slot if it is Empty.
    #[inline]
    fn slot_to_leaf(
        &self,
        guard: &Guard<'_>,
        slot: &Slot,
        level: Level,
        attributes: &Attributes,
        frames: &mut impl Frames,
        tally: &mut Tally,
    ) -> Result<Install, InstallError> {
        let seen = slot.load(&self.arch);
        if seen != Descriptor::EMPTY {
            return present(seen, level);
        }
        let frame = frames.take().ok_or(InstallError::OutOfFrames)?;
        let installed = Descriptor::leaf(level, frame, attributes, self.encoding, true)
            .map_err(InstallError::from)
            .and_then(|new| slot.try_set(&self.arch, guard, new).map_err(InstallError::from));
        match installed {
            Ok(()) => {
                // Visible to all walkers before the guest relies on it.
                self.arch.dsb(Dsb::IshSt);
                tally.installed += 1;
                Ok(Install::Installed(frame))
            }
            Err(error) => {
                frames.give_back(frame);
                match error {
                    InstallError::Occupied { seen, .. } => {
                        tally.lost_races += 1;
                        present(seen, level)
                    }
                    other => Err(other),
                }
            }
        }
    }
}

/// Where a slot above the wanted level leads.
enum Step {
    Table(Pa),
    Leaf(Leaf),
}

/// What a non-empty slot above the wanted level means for an install.
#[inline]
fn step(seen: Descriptor, level: Level) -> Result<Step, InstallError> {
    match seen.view(level) {
        View::Table(pa) => Ok(Step::Table(pa)),
        View::Leaf(leaf) => Ok(Step::Leaf(leaf)),
        other => Err(obstacle(other, seen, level)),
    }
}

/// What a non-empty slot at the wanted level means for an install.
#[inline]
fn present(seen: Descriptor, level: Level) -> Result<Install, InstallError> {
    match seen.view(level) {
        View::Leaf(leaf) => Ok(Install::Present(leaf)),
        other => Err(obstacle(other, seen, level)),
    }
}

#[cold]
fn obstacle(view: View, seen: Descriptor, level: Level) -> InstallError {
    match view {
        View::Busy(_) | View::Drain | View::Dead => InstallError::Retry { level, seen },
        View::Note(note) => InstallError::Note { level, note },
        View::Empty | View::Leaf(_) | View::Table(_) | View::Foreign(_) => {
            InstallError::Occupied { level, seen }
        }
    }
}

impl From<TrySetError> for InstallError {
    fn from(error: TrySetError) -> Self {
        match error {
            // The level is filled in by whoever looks at what was seen.
            TrySetError::Occupied(seen) => Self::Occupied { level: Level::L3, seen },
            TrySetError::Unsupported => Self::Unsupported,
        }
    }
}

#[cfg(test)]
mod tests;
