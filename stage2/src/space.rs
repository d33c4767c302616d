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
//! What this PE linked or mapped is guaranteed to be observable only after a DSB of this PE \[RSPVBD\]:
//! whoever wins any compare-exchange executes one before it returns, however the rest of the walk
//! went. The guest's next instruction fetch sees the translation because the return to the guest is a
//! context synchronization \[IWZCBG\].
//!
//! The walk never descends through Busy, Drain or Dead, and tries each slot once, so it is bounded by
//! the depth of the tree.

use crate::addr::{Ipa, Level, Pa, Vmid};
use crate::arch::{Arch, Dsb};
use crate::attr::{Attributes, Encoding};
use crate::descriptor::{Descriptor, Leaf, LeafTemplate, Owner, View};
use crate::epoch::{Domain, Guard};
use crate::flush::Stage2Tlb;
use crate::geometry::Geometry;
use crate::memory::{Memory, Table};
use crate::slot::{Slot, TrySetError};

mod error;
pub use error::{InstallError, MappingError, NewSpaceError};

/// The stage-2 tables of one VM. Guards of one [`Epochs`](crate::Epochs), `'e`, protect them.
#[derive(Debug)]
pub struct Space<'e, M, A> {
    geometry: Geometry,
    encoding: Encoding,
    vmid: Vmid,
    root: Pa,
    domain: Domain<'e>,
    memory: M,
    arch: A,
}

/// What to map at an address, checked and encoded: see [`Space::mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping(LeafTemplate);

/// Where [`Space::install`] gets the page that it maps.
///
/// # Safety
/// An implementation promises of each page that `take` gives
/// 1. that it is the VM's to use (or, for [`Owner::Other`], meant to be), as large as the level of the
///    [`Mapping`] and aligned to that, below the machine's physical address size, and stays so until
///    a flush has completed after it was taken out of the tables again;
/// 2. that its content is what the guest may see, and visible to the guest whatever its caches: cache
///    maintenance is completed by a DSB before `take` returns, because the install's release order
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
    pub installed: u32,
    /// Frames given back because another PE had installed one.
    pub lost_races: u32,
    /// Table pages linked.
    pub tables: u32,
    /// Table pages given back because another PE had linked one.
    pub lost_tables: u32,
}

/// How an install ended well. The guest may resume, if what is there permits its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// This frame is now mapped.
    Installed(Pa),
    /// Something was mapped there already, or a moment earlier by another PE.
    Present(Leaf),
}

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

impl<'e, M: Memory, A: Arch> Space<'e, M, A> {
    /// Empty tables for a VM, to be walked under guards of `domain`. Allocates the root and flushes
    /// the VMID on all PEs, since another VM may have used it. No other VM has the VMID now.
    ///
    /// # Errors
    /// [`NewSpaceError`]: no memory for the root, or a VMID that the machine cannot tell apart.
    pub fn new(
        geometry: Geometry,
        vmid: Vmid,
        domain: Domain<'e>,
        memory: M,
        arch: A,
    ) -> Result<Self, NewSpaceError> {
        let bits = geometry.features().vmid_bits();
        if Vmid::new(vmid.get(), bits).is_none() {
            return Err(NewSpaceError::VmidTooWide { vmid, bits });
        }
        let pages = geometry.root_tables();
        let root = memory.alloc_table(pages).ok_or(NewSpaceError::OutOfTables { pages })?;
        let encoding = Encoding::of(geometry.features());
        let space = Self { geometry, encoding, vmid, root, domain, memory, arch };
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
        Stage2Tlb::new(&self.arch, self.vmid, self.vttbr(), self.geometry.features().caps)
    }

    /// A kind of leaf for [`install`](Self::install): made once, used for many.
    ///
    /// # Errors
    /// [`MappingError`]: a level that this VM's walks do not reach, a single member of a contiguous
    /// run, attributes that the machine cannot express.
    pub const fn mapping(
        &self,
        level: Level,
        attributes: &Attributes,
        owner: Owner,
    ) -> Result<Mapping, MappingError> {
        let start = self.geometry.start();
        if (level as u8) < start as u8 {
            return Err(MappingError::Level { level, start });
        }
        if attributes.contiguous {
            return Err(MappingError::Contiguous);
        }
        match LeafTemplate::new(level, attributes, self.encoding, owner) {
            Ok(template) => Ok(Mapping(template)),
            Err(error) => Err(MappingError::Descriptor(error)),
        }
    }

    /// Maps a fresh frame at the slot that translates `ipa`, unless something is there.
    ///
    /// The guard is the one under which the caller decided that this address may be populated.
    /// `tally` counts what happened, errors included.
    ///
    /// # Errors
    /// [`InstallError`]. No frame is lost in any case; tables linked on the way stay.
    #[inline]
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
        let mut walk = Walk { space: self, guard, tally, published: false };
        let result = walk.install(ipa, mapping, frames);
        if walk.published {
            self.arch.dsb(Dsb::IshSt);
        }
        result
    }

    /// What translates `ipa` at this moment. Lockless; it may change as soon as it is read. `None` beyond
    /// the IPA size, and under a guard of other epochs.
    #[must_use]
    pub fn lookup(&self, guard: &Guard<'_>, ipa: Ipa) -> Option<Lookup> {
        if !self.geometry.contains(ipa) || !self.domain.owns(guard) {
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
        // SAFETY: (1) found linked under a guard of this space's domain, so it stays allocated while
        // the guard lives.
        unsafe { self.memory.table(pa) }
    }
}

/// One install on its way down.
struct Walk<'w, 'e, M, A> {
    space: &'w Space<'e, M, A>,
    guard: &'w Guard<'w>,
    tally: &'w mut Tally,
    /// A compare-exchange was won: a DSB is owed.
    published: bool,
}

impl<M: Memory, A: Arch> Walk<'_, '_, M, A> {
    #[inline]
    fn install(
        &mut self,
        ipa: Ipa,
        mapping: &Mapping,
        frames: &mut impl Frames,
    ) -> Result<Install, InstallError> {
        let Self { space, guard, .. } = *self;
        let mut level = space.geometry.start();
        let mut table = space.root_table(guard, ipa);
        while let Some(below) = level.next().filter(|_| level < mapping.0.level()) {
            let slot = table.slot(level.index(ipa));
            match self.slot_to_table(slot, level)? {
                Step::Table(pa) => table = space.linked_table(guard, pa),
                Step::Leaf(leaf) => return Ok(Install::Present(leaf)),
            }
            level = below;
        }
        self.slot_to_leaf(table.slot(level.index(ipa)), mapping, frames)
    }

    /// Follows the slot to the next table, linking a fresh one if the slot is Empty.
    #[inline]
    fn slot_to_table(&mut self, slot: &Slot, level: Level) -> Result<Step, InstallError> {
        let seen = slot.load(&self.space.arch);
        if let Some(table) = seen.as_table(level) {
            return Ok(Step::Table(table));
        }
        if seen != Descriptor::EMPTY {
            return step(seen, level);
        }
        let memory = &self.space.memory;
        let page = memory.alloc_table(1).ok_or(InstallError::OutOfTables)?;
        let lost = match Descriptor::table(level, page) {
            Ok(table) => self.try_set(slot, table),
            Err(error) => Err(Lost::Error(error.into())),
        };
        match lost {
            Ok(()) => {
                self.tally.tables = self.tally.tables.saturating_add(1);
                Ok(Step::Table(page))
            }
            Err(lost) => {
                // SAFETY: (1) allocated above, and in no tree: the install failed. (2) Never linked.
                // (3) Nothing was written to it.
                unsafe { memory.free_table(page, 1) };
                let seen = lost.to(&mut self.tally.lost_tables)?;
                step(seen, level)
            }
        }
    }

    /// Maps a frame in the slot if it is Empty.
    #[inline]
    fn slot_to_leaf(
        &mut self,
        slot: &Slot,
        mapping: &Mapping,
        frames: &mut impl Frames,
    ) -> Result<Install, InstallError> {
        let Mapping(template) = mapping;
        let seen = slot.load(&self.space.arch);
        if seen != Descriptor::EMPTY {
            return present(seen, template.level());
        }
        let frame = frames.take().ok_or(InstallError::OutOfFrames)?;
        let lost = match template.at(frame) {
            Ok(leaf) => self.try_set(slot, leaf),
            Err(error) => Err(Lost::Error(error.into())),
        };
        match lost {
            Ok(()) => {
                self.tally.installed = self.tally.installed.saturating_add(1);
                Ok(Install::Installed(frame))
            }
            Err(lost) => {
                frames.give_back(frame);
                let seen = lost.to(&mut self.tally.lost_races)?;
                present(seen, template.level())
            }
        }
    }

    #[inline]
    fn try_set(&mut self, slot: &Slot, new: Descriptor) -> Result<(), Lost> {
        // SAFETY: (1) the slot was found under this guard. (2) The descriptor was made for its level,
        // from a table page fresh from `Memory` or a frame fresh from `Frames`, which promise the rest.
        match unsafe { slot.try_set(&self.space.arch, self.guard, new) } {
            Ok(()) => {
                self.published = true;
                Ok(())
            }
            Err(TrySetError::Occupied(seen)) => Err(Lost::Race(seen)),
            Err(TrySetError::Unsupported) => Err(Lost::Error(InstallError::Unsupported)),
        }
    }
}

/// Why a page that was at hand did not go into the slot.
enum Lost {
    /// Another PE was first; this is what the slot held.
    Race(Descriptor),
    /// It could not be.
    Error(InstallError),
}

impl Lost {
    /// Counts a lost race and hands on what stood there.
    #[inline]
    fn to(self, races: &mut u32) -> Result<Descriptor, InstallError> {
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
enum Step {
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

#[cfg(test)]
mod tests;
