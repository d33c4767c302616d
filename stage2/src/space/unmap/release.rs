//! The second pass of an unmap: what the first left in Drain is released, and its slots are Empty again.

use super::Release;
use crate::addr::{Ipa, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Former, Owner, View};
use crate::flush::Flushed;
use crate::memory::Memory;
use crate::slot::Slot;
use crate::space::Space;
use crate::space::dirty::Session;

/// The second pass: Drain → Empty, after flush and grace.
pub(super) struct Releaser<'w, 'e, M, A, R> {
    pub(super) space: &'w Space<'e, M, A>,
    pub(super) flushed: &'w Flushed,
    pub(super) release: &'w mut R,
    /// The dirty session that covers a part of it.
    pub(super) log: Option<Session>,
    /// Slots of EL2's window that are in Drain.
    pub(super) revoked: usize,
    /// Leaves of the VM's that ended, by level; those of others, and tables.
    pub(super) leaves: [u64; 4],
    pub(super) others: u64,
    pub(super) tables: u64,
}

impl<M: Memory, A: Arch, R: Release> Releaser<'_, '_, M, A, R> {
    pub(super) fn roots(&mut self, start: u64, end: u64) {
        let geometry = &self.space.geometry;
        let level = geometry.start();
        let mut ipa = Ipa::new(start).align_down(level.table_bytes());
        while ipa.get() < end {
            self.table(geometry.root_page(self.space.root, ipa), level, ipa, start, Some(end));
            let Some(next) = ipa.checked_add(level.table_bytes()) else { return };
            ipa = next;
        }
    }

    /// Releases what the slots of a table between `start` and `end` held; all of it, and without an `end`, if the table
    /// was taken out of the tree. At most four deep.
    fn table(&mut self, pa: Pa, level: Level, first: Ipa, start: u64, end: Option<u64>) {
        // SAFETY: (1) linked in the claimed range, or unlinked by this claim: allocated until below.
        let table = unsafe { self.space.memory.table(pa) };
        let bytes = level.slot_bytes();
        let from = start.saturating_sub(first.get()) / bytes;
        // In a table that an unmap takes out each slot is Drain or Dead: nobody installs there any more.
        let shut = |slot: &Slot| {
            let seen = slot.load(&self.space.arch);
            seen == Descriptor::DEAD || seen.as_drain(level).is_some()
        };
        let given_up = end.is_none() && !table.slots().iter().any(shut);
        let slots = table.slots().iter().enumerate().skip(from as usize);
        for (index, slot) in slots {
            let ipa = Ipa::new(first.get() + index as u64 * bytes);
            if end.is_some_and(|end| ipa.get() >= end) {
                return;
            }
            let seen = slot.load(&self.space.arch);
            if let Some(former) = seen.as_drain(level) {
                self.drained(slot, ipa, &former);
                continue;
            }
            match seen.view(level) {
                View::Table(below) => {
                    if let Some(next) = level.next() {
                        self.table(below, next, ipa, start, end);
                    }
                }
                // Only a table that was taken out has these; it is gone through from end to end.
                // SAFETY: (1) killed by this claim.
                View::Dead => unsafe { slot.empty(&self.space.arch) },
                // A copy into a block that was given up leaves its pages in the table that it took out.
                View::Leaf(_) if given_up => {
                    if let Some(former) = seen.to_drain(level).and_then(|it| it.as_drain(level)) {
                        self.drained(slot, ipa, &former);
                    }
                }
                _ => {}
            }
        }
    }

    #[inline]
    fn drained(&mut self, slot: &Slot, ipa: Ipa, former: &Former) {
        match former.level().next().filter(|_| former.is_table()) {
            Some(below) => {
                self.table(former.pa(), below, ipa, ipa.get(), None);
                // SAFETY: (1) taken out of the tree; (2) flushed, and the grace period is over; (3) each
                // slot was Drain, Dead or a leaf and is Empty now.
                unsafe { self.space.memory.free_table(former.pa(), 1) };
                self.tables += 1;
                self.release.table(ipa);
            }
            None if former.owner() == Owner::Vm => {
                self.leaves[former.level() as usize] += 1;
                if let Some(log) = &self.log {
                    // Whatever its record says: what was there is gone.
                    log.mark_leaf(ipa, former.level());
                }
                self.release.frame(ipa, former, self.flushed);
            }
            None => self.others += 1,
        }
        // SAFETY: (1) in Drain since the sweep, or in a table that is; under this claim; flushed since.
        unsafe { slot.empty(&self.space.arch) };
        if self.revoked > 0 && !former.is_table() {
            let reopened = self.space.reopen_window(ipa, former.level().slot_bytes());
            self.revoked = self.revoked.saturating_sub(reopened);
        }
    }
}
