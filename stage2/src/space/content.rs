//! What fills the slots of a range: the leaves of an extent of memory, or something else of one kind.

use super::{MapError, Space};
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa};
use crate::arch::Arch;
use crate::attr::Attributes;
use crate::descriptor::{Descriptor, LeafTemplate, Owner};
use crate::memory::Memory;

/// What a range is to be mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the first page of the claimed range lies. The others follow.
    pub pa: Pa,
    /// What the guest may do with it.
    pub attributes: Attributes,
    /// Whose the memory is. Of [`Owner::Other`] the attributes are accessed, and not [`Write::Clean`](crate::Write::Clean).
    pub owner: Owner,
    /// The largest leaves to use: level 1 (1 GiB) to level 3 (4 KiB).
    pub coarsest: Level,
}

/// What goes into the slots of a range.
pub(super) trait Content {
    /// The level of the largest slot that can begin at `ipa`, not above level `above`.
    fn level_at(&self, ipa: Ipa, above: Level) -> Level;

    /// What a slot of that level holds. A leaf, or a note.
    fn at(&self, ipa: Ipa, level: Level) -> Result<Descriptor, MapError>;

    /// What one slot's descriptor is more than that of the slot before, in a run of pages.
    const STEP: u64;

    /// Whether these are leaves.
    const LEAVES: bool;

    /// Whether these are leaves of the VM's.
    fn is_the_vms(&self) -> bool;
}

/// The leaves of an extent, of each level.
pub(super) struct Leaves {
    range: IpaRange,
    pa: Pa,
    coarsest: Level,
    owner: Owner,
    /// Levels 1 to 3.
    templates: [LeafTemplate; 3],
}

impl Leaves {
    pub(super) fn new<M: Memory, A: Arch>(
        space: &Space<'_, M, A>,
        range: IpaRange,
        extent: &Extent,
    ) -> Result<Self, MapError> {
        let Extent { pa, attributes, owner, coarsest } = *extent;
        let bits = space.geometry.features().pa_bits;
        let end = pa.checked_add(range.bytes());
        if pa.page() != pa || end.is_none_or(|end| end.get() > 1 << bits) {
            return Err(MapError::Pa { pa, bytes: range.bytes(), bits });
        }
        let template = |level| space.template(level, &attributes, owner).map_err(MapError::Mapping);
        let templates = [template(Level::L1)?, template(Level::L2)?, template(Level::L3)?];
        let coarsest = coarsest.max(Level::L1).max(space.geometry.start());
        Ok(Self { range, pa, coarsest, owner, templates })
    }

    fn pa_of(&self, ipa: Ipa) -> Pa {
        Pa::new(self.pa.get() + (ipa.get() - self.range.start().get()))
    }
}

/// The largest level, not above `coarsest`, whose slots can begin at `ipa` and end within the range.
pub(super) fn largest(range: IpaRange, ipa: Ipa, coarsest: Level) -> Level {
    let fits = |level: &Level| {
        let bytes = level.slot_bytes();
        *level >= coarsest && ipa.is_aligned(bytes) && range.end().get() - ipa.get() >= bytes
    };
    [Level::L1, Level::L2].into_iter().find(fits).unwrap_or(Level::L3)
}

impl Content for Leaves {
    const STEP: u64 = PAGE_SIZE;
    const LEAVES: bool = true;

    fn is_the_vms(&self) -> bool {
        self.owner == Owner::Vm
    }

    fn level_at(&self, ipa: Ipa, above: Level) -> Level {
        let mut level = largest(self.range, ipa, self.coarsest.max(above));
        while let Some(below) = level.next()
            && !self.pa_of(ipa).is_aligned(level.slot_bytes())
        {
            level = below;
        }
        level
    }

    fn at(&self, ipa: Ipa, level: Level) -> Result<Descriptor, MapError> {
        let [l1, l2, l3] = &self.templates;
        let template = match level {
            Level::L0 | Level::L1 => l1,
            Level::L2 => l2,
            Level::L3 => l3,
        };
        template.at(self.pa_of(ipa)).map_err(|error| MapError::Mapping(error.into()))
    }
}
