//! The second half of a batch: what was broken is flushed and waited for, copied, and becomes a block; or the table
//! is linked again, before anybody hears of it.

use super::{Blocks, Broken, CopyCollapse, CopyError, CopyObstacle, Found, Sweep, Told, page_of};
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE, Pa};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Descriptor, Former, Leaf, RUN, State};
use crate::epoch::Cpu;
use crate::flush::Flushed;
use crate::gather::Owed;
use crate::memory::{ARITY as SLOTS, Memory, Table};
use crate::slot::Slot;
use crate::space::Space;

impl<M: Memory, A: Arch> Sweep<'_, '_, M, A> {
    /// Flushes and waits; then each broken table becomes a block, or is linked again.
    pub(super) fn finish(
        mut self,
        cpu: &Cpu<'_>,
        blocks: &mut impl Blocks,
        relax: impl FnMut(),
    ) -> Result<Told, CopyError> {
        let mut owed = core::mem::replace(&mut self.owed, Owed::new(self.space.tlb()));
        let Some(flushed) = owed.flush() else { return Ok(self.told) };
        // Nothing of ours is held, so this fails only after a `take` that left a guard open.
        let waited = cpu.wait(relax);
        let revoked = match waited {
            Ok(()) => self.space.revoke_window(owed.ranges().iter()),
            Err(_) => 0,
        };
        for Broken { ipa, block, told } in self.broken.into_iter().flatten() {
            let Some((slot, former)) = self.broken_slot(ipa) else { continue };
            let what = match waited {
                Ok(()) => self.make(slot, &former, ipa, block, blocks, &flushed),
                Err(_) => Err(CopyObstacle::NoBlock),
            };
            let what = what.unwrap_or_else(|obstacle| {
                if let Ok(table) = Descriptor::table(Level::L2, former.pa()) {
                    // SAFETY: (1) in Drain since this batch broke it, under the claim; (2) the table as it was.
                    unsafe { self.space.arch.store(slot, table.bits()) };
                    self.space.arch.dsb(Dsb::IshSt);
                }
                blocks.give_back(block);
                CopyCollapse::Stays(obstacle)
            });
            if revoked > 0 {
                // The parent slot is live again: the block, or the table as it was.
                self.space.reopen_window(ipa, Level::L2.slot_bytes());
            }
            self.told[told] = Some((ipa, what));
        }
        waited.map(|()| self.told).map_err(|_| CopyError::NotQuiescent)
    }

    /// The parent slot of a table that this batch has broken, and what that was.
    fn broken_slot(&self, ipa: Ipa) -> Option<(&Slot, Former)> {
        // SAFETY: (1) of a span that lies in the claim as a whole; what is given back is below the slot.
        let (level, slot) = unsafe { self.space.claimed_slot(ipa, Level::L2) };
        let former = slot.load(&self.space.arch).as_drain(level)?;
        (level == Level::L2).then_some((slot, former))
    }

    /// Moves the pages of a table that nobody else reaches any more, makes the block live and gives the rest back.
    fn make(
        &self,
        slot: &Slot,
        former: &Former,
        ipa: Ipa,
        block: Pa,
        blocks: &mut impl Blocks,
        flushed: &Flushed,
    ) -> Result<CopyCollapse, CopyObstacle> {
        let Space { memory, arch, ledger, .. } = self.space;
        // SAFETY: (1) taken out of the tree by this batch, and given back below.
        let table = unsafe { memory.table(former.pa()) };
        let Found { first, state, holes } = self.survey(table, ipa)?;
        let live = first.block_at(block, state).ok_or(CopyObstacle::NoBlock)?;
        let pages = || table.slots().iter().enumerate();
        for (index, slot) in pages() {
            let (page, to) = (page_of(ipa, index), block.get() + index as u64 * PAGE_SIZE);
            match slot.load(arch).as_leaf(Level::L3) {
                Some(leaf) => blocks.copy(page, leaf.pa(), Pa::new(to)),
                None => blocks.fill(page, Pa::new(to)),
            }
        }
        blocks.finish(ipa, block);
        // SAFETY: (1) in Drain since this batch broke it, under the claim; flushed since, so no TLB has the table
        // or a page; (2) a block that `Blocks` promises to be the VM's, and complete.
        unsafe { arch.store(slot, live.bits()) };
        arch.dsb(Dsb::IshSt);
        if holes > 0
            && let Ok(filled) = IpaRange::new(ipa, Level::L2.slot_bytes())
        {
            // The block may be clean, and what was filled in is new.
            self.space.mark_logged(filled);
        }
        ledger.collapsed(Level::L2, (SLOTS - holes) as u64);
        self.release(table, ipa, blocks, flushed);
        // SAFETY: (1) taken out of the tree; (2) flushed, and the grace period is over; (3) every slot is Empty.
        unsafe { memory.free_table(former.pa(), 1) };
        blocks.table(ipa);
        Ok(CopyCollapse::Made { filled: holes })
    }

    /// Gives the pages of a table that was copied to the caller, each with its final state; every slot is Empty
    /// then. The members of a contiguous run speak for each other \[INFFSV\].
    fn release(&self, table: &Table, ipa: Ipa, blocks: &mut impl Blocks, flushed: &Flushed) {
        let arch = &self.space.arch;
        for (number, slots) in table.slots().chunks(RUN).enumerate() {
            let pages = slots.iter().filter_map(|slot| slot.load(arch).as_leaf(Level::L3));
            let state = pages
                .filter(Leaf::is_contiguous)
                .fold(State::default(), |state, page| state.or(page.state()));
            for (index, slot) in slots.iter().enumerate() {
                let held = slot.load(arch);
                // SAFETY: (1) flushed, and the grace period is over; (2) live or Empty, and nobody's but this
                // claim's.
                unsafe { arch.store_detached(slot, Descriptor::EMPTY.bits()) };
                let last = match held.as_leaf(Level::L3) {
                    Some(page) if page.is_contiguous() => page.of_run(true, state),
                    _ => held,
                };
                let former = last.to_drain(Level::L3).and_then(|page| page.as_drain(Level::L3));
                if let Some(former) = former {
                    blocks.frame(page_of(ipa, number * RUN + index), &former, flushed);
                }
            }
        }
    }
}
