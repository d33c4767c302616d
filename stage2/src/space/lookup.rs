//! What translates an address: walks without a lock, each slot by an acquire load.
//!
//! A walk under a guard finds tables that are not freed while the guard lives; that of a claim's holder needs none. What it
//! finds may change as soon as it is read. Who wants to write goes by `tables.rs`, or by one compare-exchange of an
//! Empty slot.

use core::ops::ControlFlow::{self, Break, Continue};

use super::Space;
use crate::addr::{Ipa, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Leaf, View};
use crate::epoch::Guard;
use crate::memory::{Memory, Table};
use crate::slot::Slot;

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

    /// Where `ipa` lies, if the walk to it ended in a leaf.
    #[inline(always)]
    fn translation(self, ipa: Ipa) -> Option<Translation> {
        let leaf = self.descriptor.as_leaf(self.level)?;
        let offset = ipa.get() & (self.level.slot_bytes() - 1);
        Some(Translation { pa: leaf.pa().checked_add(offset)?, leaf })
    }

    /// The same, apart from the code for pages, in which the level is a constant.
    #[cold]
    #[inline(never)]
    fn block(self, ipa: Ipa) -> Option<Translation> {
        self.translation(ipa)
    }
}

/// Where a byte of the VM lies, and by which leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The byte's physical address.
    pub pa: Pa,
    /// The block or page that it is in.
    pub leaf: Leaf,
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// What translates `ipa` at this moment. Lockless; it may change as soon as it is read. `None` beyond
    /// the IPA size, and under a guard of other epochs.
    #[must_use]
    #[inline(always)]
    pub fn lookup(&self, guard: &Guard<'_>, ipa: Ipa) -> Option<Lookup> {
        if !self.geometry.contains(ipa) || !self.domain.owns(guard) {
            return None;
        }
        let end = |_: &Slot, level, descriptor| Break(Lookup { level, descriptor });
        Some(match self.descend(guard, ipa, Level::L3, end) {
            Continue(slot) => Lookup { level: Level::L3, descriptor: slot.load(&self.arch) },
            Break(end) => end,
        })
    }

    /// The slot of level `wanted` on the way to `ipa`: the one walk of installs and look-ups, by acquire
    /// loads. The address is inside the IPA size, and the level not above the start level.
    ///
    /// Where a slot above that level holds no table, `elsewise` is told the slot, its level and what it
    /// held, and names a table after all or ends the walk.
    // Level by level and not a loop: where the level is a constant, so are shifts and masks.
    #[inline(always)]
    pub(super) fn descend<'g, E>(
        &'g self,
        guard: &'g Guard<'_>,
        ipa: Ipa,
        wanted: Level,
        mut elsewise: impl FnMut(&Slot, Level, Descriptor) -> ControlFlow<E, Pa>,
    ) -> ControlFlow<E, &'g Slot> {
        let start = self.geometry.start();
        debug_assert!(start <= wanted, "no walk reaches {wanted}");
        let mut table = self.root_table(guard, ipa);
        if start == Level::L0 {
            table =
                self.below(guard, table.slot(Level::L0.index(ipa)), Level::L0, &mut elsewise)?;
        }
        if start <= Level::L1 {
            let slot = table.slot(Level::L1.index(ipa));
            if wanted <= Level::L1 {
                return Continue(slot);
            }
            table = self.below(guard, slot, Level::L1, &mut elsewise)?;
        }
        let slot = table.slot(Level::L2.index(ipa));
        if wanted <= Level::L2 {
            return Continue(slot);
        }
        table = self.below(guard, slot, Level::L2, &mut elsewise)?;
        Continue(table.slot(Level::L3.index(ipa)))
    }

    /// The table that a slot leads to.
    #[inline(always)]
    fn below<'g, E>(
        &'g self,
        guard: &'g Guard<'_>,
        slot: &Slot,
        level: Level,
        mut elsewise: impl FnMut(&Slot, Level, Descriptor) -> ControlFlow<E, Pa>,
    ) -> ControlFlow<E, &'g Table> {
        let seen = slot.load(&self.arch);
        let table = match seen.as_table(level) {
            Some(table) => table,
            None => elsewise(slot, level, seen)?,
        };
        Continue(self.linked_table(guard, table))
    }

    /// The slot in which a walk to a claimed address ends, at level `wanted` at the latest, and its level. Needs no guard: the
    /// claim keeps the tables over its addresses where they are.
    ///
    /// # Safety
    /// 1. `ipa` is in the caller's claim as long as the slot is used, and the caller gives back no table over it meanwhile.
    pub(super) unsafe fn claimed_slot(&self, ipa: Ipa, wanted: Level) -> (Level, &Slot) {
        let (mut level, mut pa) = (self.geometry.start(), self.geometry.root_page(self.root, ipa));
        loop {
            // SAFETY: (1) a table over a claimed address is given back by the claim's holder alone, and he does not.
            let slot = unsafe { self.memory.table(pa) }.slot(level.index(ipa));
            if level >= wanted {
                return (level, slot);
            }
            match (slot.load(&self.arch).as_table(level), level.next()) {
                (Some(below), Some(next)) => (pa, level) = (below, next),
                _ => return (level, slot),
            }
        }
    }

    /// Where the byte at `ipa` lies, for EL2's own accesses; `None` where nothing is mapped.
    ///
    /// Holds only as long as nothing is unmapped: whoever takes memory from a VM waits for a grace
    /// period after the flush, so the frame stays the VM's while the guard lives.
    #[must_use]
    #[inline(always)]
    pub fn translate(&self, guard: &Guard<'_>, ipa: Ipa) -> Option<Translation> {
        let found = self.lookup(guard, ipa)?;
        if found.level == Level::L3 { found.translation(ipa) } else { found.block(ipa) }
    }
}
