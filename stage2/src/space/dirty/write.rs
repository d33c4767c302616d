//! EL2's own writes to guest memory: hardware does not see them, so they are recorded here.
//!
//! The bytes first, and then **always** an exchange of the leaf that has translated the address, with release order,
//! which sets S2AP\[1\], even if it is set:
//!
//! ```text
//! PE 0, EL2 on behalf of a guest      PE 1, harvests              PE 2, copies
//! writes bytes into page 7
//!   (still in its store buffer)
//! reads the leaf: dirty. Done         <- without an exchange
//!                                     leaf: dirty -> clean; flush; bit 7
//!                                                                 takes bit 7, copies page 7
//!   the bytes arrive                  <- page 7 is clean, and its copy is old
//! ```
//!
//! The exchange comes before the harvest's or after it. Before: its release order makes the bytes visible to who reads the page
//! after the harvest. After: the leaf is dirty again, for the next one. (The exchange fails if hardware or a fault handler
//! changed the leaf, and is tried again.)
//!
//! If the slot does not hold a leaf of the same page any more, it is being changed: Busy, Drain, a table since a
//! split, or something else. What was written may then be recorded in no leaf, or lie in a frame that is read no more. So all
//! of it is repeated, by who called, without the guard: nobody waits with one open. And the page's bit is set, if a session
//! runs, because the repetition may find that it may not write any more:
//!
//! ```text
//! PE 0, EL2 on behalf of a guest      PE 1, write-protects        PE 2, copies
//!                                     leaf: writable -> read-only; flush; bit 7
//!                                                                 takes bit 7, copies page 7
//! writes bytes into page 7, as the leaf was
//! exchange: read-only. Again
//!   read-only: refused                <- without a bit, page 7 and its copy differ for good
//! ```

use super::WriteError;
use crate::addr::{Ipa, IpaRange, Level, Pa};
use crate::arch::Arch;
use crate::descriptor::{Leaf, Owner, View};
use crate::epoch::Guard;
use crate::memory::Memory;
use crate::slot::Slot;
use crate::space::Space;

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Has EL2 write to a VM's page, and records it as a guest's write is recorded. `write` is given where the byte at
    /// `ipa` lies; up to the end of its page of 4 KiB the others follow. It may be called again, by another call of this.
    ///
    /// Takes no lock. The record is made whether a dirty session runs or not.
    ///
    /// # Errors
    /// [`WriteError::Again`]: close the guard and repeat all of it, when others have had time to go on. If bytes were written, a
    /// dirty session will tell of the page, whatever becomes of the repetition. With any other error but
    /// [`WriteError::Unsupported`] nothing was written by this call.
    pub fn write_through<T>(
        &self,
        guard: &Guard<'_>,
        ipa: Ipa,
        write: impl FnOnce(Pa) -> T,
    ) -> Result<T, WriteError> {
        if !self.geometry.contains(ipa) {
            return Err(WriteError::NotMapped { ipa });
        }
        let node = self.path(guard, ipa).and_then(|path| path.leaf());
        let node = node.ok_or(WriteError::ForeignGuard)?;
        let (slot, level) = (node.table.slot(node.level.index(ipa)), node.level);
        let seen = slot.load(&self.arch);
        let leaf = match seen.view(level) {
            View::Leaf(leaf) => leaf,
            View::Empty | View::Note(_) | View::Foreign(_) => {
                return Err(WriteError::NotMapped { ipa });
            }
            View::Table(_) | View::Busy(_) | View::Drain(_) | View::Dead => {
                return Err(WriteError::Again { level, seen });
            }
        };
        if !leaf.is_writable() {
            return Err(WriteError::ReadOnly { ipa });
        }
        if leaf.owner() != Owner::Vm {
            return Err(WriteError::NotOwned { ipa });
        }
        let offset = ipa.get() & (level.slot_bytes() - 1);
        let at = leaf.pa().checked_add(offset).ok_or(WriteError::NotMapped { ipa })?;
        let done = write(at);
        let recorded = self.record(slot, level, &leaf);
        if recorded.is_err()
            && let Some(page) = IpaRange::page_of(ipa)
        {
            // The bytes may be there to stay, and the caller may not come again.
            self.dirty_mark(guard, page);
        }
        recorded.map(|()| done)
    }

    /// Sets the dirty record of a leaf, after the last byte.
    fn record(&self, slot: &Slot, level: Level, written: &Leaf) -> Result<(), WriteError> {
        loop {
            let seen = slot.load(&self.arch);
            let same = |leaf: &Leaf| leaf.pa() == written.pa() && leaf.owner() == Owner::Vm;
            let leaf = seen.as_leaf(level).filter(same).filter(Leaf::is_writable);
            let Some(dirty) = leaf.map(|leaf| leaf.written()) else {
                return Err(WriteError::Again { level, seen });
            };
            // SAFETY: (1) the same leaf; writable-clean becomes writable-dirty and accessed, in which hardware has nothing to
            // update.
            match unsafe { self.arch.compare_exchange(slot, seen.bits(), dirty.bits()) } {
                Some(Ok(_)) => return Ok(()),
                // Hardware, a fault handler or a harvest was faster.
                Some(Err(_)) => {}
                None => return Err(WriteError::Unsupported),
            }
        }
    }
}
