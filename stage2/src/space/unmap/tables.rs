//! Tables that end with what they map: taken out of the tree, and given back by the same batch.
//!
//! The window to close is an install that lands in a dying table:
//!
//! ```text
//! PE 0, gives table T back            PE 1, in a fault handler
//!                                     walks through the parent slot into T
//! sees T empty, parent slot -> Drain
//! flush, grace ...                    CAS Empty -> page: won, in a table that nobody walks
//! ```
//!
//! So under both locks, parent first, **every slot is made non-installable while T is still linked**:
//! Empty → Dead by compare-exchange, live → Drain. If one cannot be (a Note that is to stay, something
//! installed that is a table), the Dead ones thaw, those in Drain are flushed and released like any other,
//! and T stays linked. Only then the parent slot goes to
//! Drain. Nothing is written into the page before the flush that covers its whole span, without a
//! level hint, is over \[RRVJDB\], and nothing is freed before the grace period.
//!
//! A table is given back only by a claim on its whole span, so the tables that a claim's range touches
//! stay allocated for that claim, also outside a guard.

use super::{Drain, Stays, Sweep};
use crate::addr::Ipa;
use crate::arch::Arch;
use crate::descriptor::{Leaf, View};
use crate::epoch::Guard;
use crate::memory::Memory;
use crate::slot::{Slot, TrySetError};
use crate::space::tables::{LockedTable, Node};

impl<M: Memory, A: Arch> Sweep<'_, '_, M, A> {
    /// Gives back every table that ends where the sweep has come to, from the lowest up.
    pub(super) fn give_back_finished(&mut self, guard: &Guard<'_>) {
        while self.at > self.range.start() {
            let last = Ipa::new(self.at.get() - 1);
            let Some(path) = self.space.path(guard, last) else { return };
            let Some(node) = path.leaf() else { return };
            let whole = self.range.start() <= node.start && node.end() == self.at.get();
            let Some(parent) = path.above(&node).filter(|_| whole) else { return };
            match self.give_back(guard, parent, node) {
                Ok(()) | Err(Stays::Stale) => {}
                Err(Stays::InUse) => return,
            }
        }
    }

    /// Takes a table out of the tree, with all that it maps.
    pub(super) fn give_back(
        &mut self,
        guard: &Guard<'_>,
        parent: Node<'_>,
        node: Node<'_>,
    ) -> Result<(), Stays> {
        let arch = &self.space.arch;
        let Some(link) = node.link else { return Err(Stays::InUse) };
        let _parent = parent.lock(arch, guard).map_err(|_| Stays::Stale)?;
        let table = node.lock(arch, guard).map_err(|_| Stays::Stale)?;
        // SAFETY: (1) the parent's lock is held, and the claim covers the table.
        if self.kill_all(&table) && unsafe { link.slot.clear(arch, parent.level) }.is_some() {
            // The flush of its whole span is one for all that it mapped.
            self.drained(node.start, parent.level, true);
            return Ok(());
        }
        self.thaw(&table);
        Err(Stays::InUse)
    }

    /// Makes every slot of a table non-installable; `false` if one cannot be. For what it drains, the caller
    /// owes.
    fn kill_all(&mut self, table: &LockedTable<'_, A>) -> bool {
        let (node, arch) = (table.node, &self.space.arch);
        let all = self.what.only.is_none();
        node.table.slots().iter().enumerate().all(|(index, slot)| {
            let ipa = node.ipa_of(index);
            let single = |leaf: Leaf| !leaf.is_contiguous();
            if all && self.from <= ipa && slot.load(arch).as_leaf(node.level).is_some_and(single) {
                // By far the most frequent. SAFETY: (1) the table's lock is held, and the claim covers it.
                unsafe { slot.clear(arch, node.level) }.is_some()
            } else {
                self.shut(node, slot, ipa)
            }
        })
    }

    /// Makes a slot of any state non-installable; `false` if it cannot be.
    #[cold]
    fn shut(&mut self, node: Node<'_>, slot: &Slot, ipa: Ipa) -> bool {
        match self.drain_slot(node, slot, ipa) {
            Ok(Drain::Shut) => true,
            // SAFETY: (1) the table's lock and its parent's are held, to take the table out.
            Ok(Drain::Empty) => match unsafe { slot.kill(&self.space.arch) } {
                Ok(()) => true,
                // Somebody populated it meanwhile, which nobody can do twice.
                Err(TrySetError::Occupied(_)) => {
                    self.drain_slot(node, slot, ipa) == Ok(Drain::Shut)
                }
                Err(TrySetError::Unsupported) => false,
            },
            Ok(Drain::Stays | Drain::Table) | Err(_) => false,
        }
    }

    /// A table stays after all: its Dead slots become Empty again, and what was drained is owed for.
    #[cold]
    fn thaw(&mut self, table: &LockedTable<'_, A>) {
        let (node, arch) = (table.node, &self.space.arch);
        for (index, slot) in node.table.slots().iter().enumerate() {
            match slot.load(arch).view(node.level) {
                // SAFETY: (1) Dead, and killed under this lock: a Dead slot of a linked table can be no
                // other's.
                View::Dead => unsafe { slot.empty(arch) },
                View::Drain(former) => {
                    self.drained(node.ipa_of(index), node.level, former.is_table());
                }
                _ => {}
            }
        }
    }
}
