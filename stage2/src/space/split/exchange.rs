//! A block is exchanged for the table of its parts: by a break, by nT, or at once.
//!
//! Every step is a compare-exchange from what the parts were built from, under the lock of the block's table. If it
//! fails, the parts are built again from what stands there now:
//!
//! ```text
//! PE 0, splits                        PE 1, hardware
//! reads the block: clean
//! fills 512 pages: clean
//!                                     a store: S2AP[1] <- 1 in the block
//! block -> table, by a plain store    <- the write is recorded nowhere: the page is not sent
//! ```
//!
//! # What is not settled is broken
//!
//! Without a break the block may be used from a TLB after its slot has become a table. As long as hardware has
//! something to record in it, that goes wrong:
//!
//! ```text
//! PE 0, splits at once                PE 1, hardware
//!                                     holds the block: writable, clean
//! block -> table, 512 clean pages
//!                                     a store by the block that it holds: where is the record to go?
//! flush                               <- nowhere, or into a page that nobody wrote [RRTBRL]
//! ```
//!
//! So a block stays live on its way only if hardware has nothing more to set in it ([`Leaf::is_settled`]): its pages
//! are read-only or dirty from the start, and whatever is written by the block is covered. Any other block is broken,
//! in the same batch, under the same flush. Broken, its state is final: hardware re-reads a descriptor before it
//! sets the dirty state \[RSGJBL\].
//!
//! # Locked until the flush is over
//!
//! A table that replaces a live block can be found as soon as it is linked, while TLBs still hold the block. Whoever
//! changes a page in it would flush that page, and believe that this was all:
//!
//! ```text
//! PE 0, splits at once                PE 1
//! block -> table
//!                                     finds the table, takes its lock
//!                                     page 7: writable -> read-only; flush of a page, by its level
//! flush                               <- until here PE 2 writes to page 7, by the block
//! ```
//!
//! So the locks of such tables are taken before they are linked, by ascending IPA, and given back after the flush. They
//! are held while the next block's slot is exchanged, under the lock of its table: that must be the lock of the same table,
//! or a parent would be locked after a child. So where blocks of another table begin, such a batch ends. A table
//! whose parent slot was Busy is linked after the flush, and needs none of this.
//!
//! # The flush
//!
//! That of a break goes by the block's address and level. After the size of a live translation has changed, everything
//! of the VM goes: block and page may both be cached, and no invalidation by address is sure to take both
//! \[RGRVDR, RBLRKC\]. With nT the first flush takes the block without nT, in the size that it has, so it goes by
//! address; the second is like that of level 2. Only what has nT everywhere may change its size \[RKFLJB, IXPRKH\].

use super::{Split, SplitError, fill};
use crate::addr::{Ipa, Level, Pa};
use crate::arch::{Arch, Dsb, Locked, Observation};
use crate::descriptor::{Descriptor, Leaf};
use crate::epoch::Guard;
use crate::features::Bbm;
use crate::gather::Owed;
use crate::lock::{Held, Rank};
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;
use crate::space::Space;

/// How far a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its parts are built; nobody has seen a change.
    Built,
    /// Its slot is Busy.
    Broken,
    /// It has nT, by this batch.
    Marked,
    /// Its slot leads to the parts, and TLBs may still hold the block.
    Linked,
    /// Nothing is left to do: it is split, or it was no block any more.
    Over,
}

/// A block that is being split.
pub(super) struct Block<'g> {
    slot: &'g Slot,
    ipa: Ipa,
    /// What the parts were built from; with nT, what the slot holds.
    leaf: Leaf,
    /// The table of its parts.
    parts: Pa,
    stage: Stage,
    /// The lock of that table, if it is linked while the block may be cached.
    held: Option<Held<'g>>,
}

impl<'w, M: Memory, A: Arch> Split<'_, 'w, '_, M, A> {
    /// The walk leaves a table: what was built there is exchanged. Returns whether the batch may go on in another.
    pub(super) fn leave(&mut self) -> Result<bool, SplitError> {
        self.exchange()?;
        let live = |block: &Block<'_>| matches!(block.stage, Stage::Marked | Stage::Linked);
        Ok(!self.blocks.iter().flatten().any(live))
    }

    /// Exchanges what has been built, all of one table. If that is refused for one of them, the tables of the others
    /// after it are given back, too, and the batch ends before it.
    pub(super) fn exchange(&mut self) -> Result<(), SplitError> {
        let Self { space, guard, blocks, owed, .. } = self;
        let Some(table) = self.table.filter(|_| self.exchanged < self.built) else { return Ok(()) };
        let new = blocks.iter_mut().take(self.built).skip(self.exchanged).flatten();
        self.exchanged = self.built;
        // Of claimed blocks the parent stays. If it did not, they would be no blocks of this VM any more.
        let lock = table.lock(&space.arch, guard);
        let mut refused = Ok(());
        for block in new {
            if lock.is_ok() && refused.is_ok() {
                refused = block.exchange(space, guard, owed);
                if refused.is_err() {
                    self.at = self.at.min(block.ipa);
                }
            }
            block.give_up_unless_changed(space);
        }
        refused
    }

    /// Flushes, and makes what was broken or marked live, as tables. Returns whether anything was changed.
    pub(super) fn finish(&mut self) -> bool {
        let changed = self.flush();
        self.link();
        if self.blocks.iter().flatten().any(|block| block.stage == Stage::Marked) {
            self.replace_marked();
            self.flush();
            self.link();
        }
        changed
    }

    /// One flush of all that is owed.
    fn flush(&mut self) -> bool {
        let owed = core::mem::replace(&mut self.owed, Owed::new(self.space.tlb()));
        owed.settle().is_some()
    }

    /// Blocks that have nT, and are cached only so, become tables.
    fn replace_marked(&mut self) {
        let Self { space, guard, blocks, owed, .. } = self;
        let Some(table) = self.table else { return };
        // The claim keeps it where it is.
        let _lock = table.hold(&space.arch, guard);
        for block in blocks.iter_mut().flatten().filter(|block| block.stage == Stage::Marked) {
            // A refusal leaves the block as somebody else has made it: split it in another batch.
            let _ = block.exchange(space, guard, owed);
            block.give_up_unless_changed(space);
        }
    }

    /// After the flush: Busy slots lead to their tables, and the locks of tables that are linked are given back.
    fn link(&mut self) {
        let (space, mut stored) = (self.space, false);
        for block in self.blocks.iter_mut().flatten() {
            match block.stage {
                Stage::Broken => {
                    if let Some(table) = block.table() {
                        // SAFETY: (1) Busy, made so under this claim; flushed since, so no TLB has the block; (2)
                        // what it remembers, which is complete.
                        unsafe { space.arch.store(block.slot, table.bits()) };
                        stored = true;
                    }
                }
                Stage::Linked => block.unlock(space),
                Stage::Built | Stage::Marked | Stage::Over => continue,
            }
            block.stage = Stage::Over;
            space.ledger.split(block.leaf.level(), SLOTS as u64);
        }
        if stored {
            space.arch.dsb(Dsb::IshSt);
        }
    }
}

impl<'w> Block<'w> {
    /// A block whose parts are built.
    pub(super) const fn new(slot: &'w Slot, ipa: Ipa, leaf: Leaf, parts: Pa) -> Self {
        Self { slot, ipa, leaf, parts, stage: Stage::Built, held: None }
    }

    const fn level(&self) -> Level {
        self.leaf.level()
    }

    /// The pointer to its parts.
    fn table(&self) -> Option<Descriptor> {
        Descriptor::table(self.level(), self.parts).ok()
    }

    /// What its slot becomes next: of a block that was `marked` by this batch, and flushed, or of any.
    fn next<M: Memory, A: Arch>(
        &self,
        space: &Space<'_, M, A>,
        marked: bool,
    ) -> Option<(Stage, Descriptor)> {
        let table = self.table()?;
        let to = match space.bbm() {
            _ if !self.leaf.is_settled(space.geometry.hw_update()) => Stage::Broken,
            Bbm::Level0 => Stage::Broken,
            Bbm::Level1 if !marked => Stage::Marked,
            // Somebody has taken nT away.
            Bbm::Level1 if !self.leaf.has_no_translation() => Stage::Broken,
            Bbm::Level1 | Bbm::Level2 => Stage::Linked,
        };
        let new = match to {
            Stage::Broken => table.to_busy()?,
            Stage::Marked => {
                Descriptor::from_bits(self.leaf.bits()).with_no_translation(self.level(), true)?
            }
            _ => table,
        };
        Some((to, new))
    }

    /// Takes one step, under the lock of the slot's table. A slot that holds no block any more is left alone: the
    /// stage is [`Stage::Built`] then, and after an error.
    fn exchange<M: Memory, A: Arch>(
        &mut self,
        space: &'w Space<'_, M, A>,
        guard: &'w Guard<'_>,
        owed: &mut Owed<'_, A>,
    ) -> Result<(), SplitError> {
        let marked = self.stage == Stage::Marked;
        self.stage = Stage::Built;
        while let Some((to, new)) = self.next(space, marked) {
            if to == Stage::Linked && self.held.is_none() {
                self.lock(space, guard);
            }
            // SAFETY: (1) the lock of the slot's table is held, and the claim covers the block; what `new` points to
            // or remembers is complete.
            let seen = match unsafe {
                space.arch.compare_exchange(self.slot, self.leaf.bits(), new.bits())
            } {
                None => return Err(SplitError::Unsupported),
                Some(Ok(_)) => {
                    self.changed(space, owed, to, new);
                    if to == Stage::Linked {
                        space.ledger.split_live(marked);
                    }
                    return Ok(());
                }
                Some(Err(seen)) => Descriptor::from_bits(seen),
            };
            // Hardware has changed A/D, or the lock's last holder the leaf: is it a block still?
            match seen.as_leaf(self.level()) {
                Some(now) if now.is_contiguous() => {
                    return Err(SplitError::Contiguous { ipa: self.ipa });
                }
                Some(now) => {
                    fill(space, self.parts, &now);
                    self.leaf = now;
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Its slot holds something else now: what TLBs may hold of it is owed.
    fn changed<M: Memory, A: Arch>(
        &mut self,
        space: &Space<'_, M, A>,
        owed: &mut Owed<'_, A>,
        to: Stage,
        new: Descriptor,
    ) {
        self.stage = to;
        match to {
            Stage::Linked => owed.conflict(),
            _ => owed.leaf(self.ipa, self.level()),
        }
        if to == Stage::Marked
            && let Some(marked) = new.as_leaf(self.level())
        {
            self.leaf = marked;
        }
        if to != Stage::Linked {
            self.unlock(space);
        }
    }

    /// Gives its table back if it is not used.
    fn give_up_unless_changed<M: Memory, A: Arch>(&mut self, space: &Space<'_, M, A>) {
        if self.stage == Stage::Built {
            self.unlock(space);
            if let Some(below) = self.level().next() {
                space.free_detached(self.parts, below);
            }
            self.stage = Stage::Over;
        }
    }

    /// Takes the lock of the table of its parts, which nobody else knows yet.
    fn lock<M: Memory, A: Arch>(&mut self, space: &'w Space<'_, M, A>, guard: &'w Guard<'_>) {
        let Some(below) = self.level().next() else { return };
        // SAFETY: (1) just allocated.
        let meta = unsafe { space.memory.meta(self.parts) };
        space.arch.about_to_lock(Locked::Table(self.parts));
        self.held = Some(Held::take(meta, guard.cpu(), Rank::new(below, self.ipa)));
        space.arch.observe(Observation::Locked { table: self.parts });
    }

    fn unlock<M: Memory, A: Arch>(&mut self, space: &Space<'_, M, A>) {
        if let Some(held) = self.held.take() {
            space.arch.observe(Observation::Unlocked { table: self.parts });
            drop(held);
        }
    }
}
