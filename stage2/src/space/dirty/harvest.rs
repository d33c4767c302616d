//! A batch is harvested: what is dirty becomes clean, is flushed, and then its bits are set.

use super::found::{Found, SLOTS};
use super::session::SPAN;
use super::{DirtyError, Harvested, LogBlocks, Session};
use crate::addr::{Ipa, IpaRange, Level, PAGE_SIZE};
use crate::arch::Arch;
use crate::claim::Claim;
use crate::descriptor::Owner;
use crate::epoch::Cpu;
use crate::memory::{ARITY, Memory};
use crate::slot::Slot;
use crate::space::{Batch, Progress, Relax, Space, Taken};

/// Slots whose pages have a bit in the same word.
const GROUP: usize = u64::BITS as usize;

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// Moves the dirty state of the leaves in a batch of the claimed range, a part of the session's, into the bitmap of
    /// pages.
    ///
    /// Counts slots as [`modify_prot`](Self::modify_prot) does, of which this is one under one flush, 4096 at the most.
    /// A clean page costs no more than to be read. Remote PEs go on writing by dirty leaves until the flush within;
    /// after that a write sets the record again, by hardware or by a fault. Where the [engine](crate::space::Engine)
    /// breaks, they fault meanwhile, and repeat.
    ///
    /// Every write whose DSB ISH is complete before this begins has its bit set when this returns, unless it was taken out
    /// before; so with all vCPUs stopped nothing is missed.
    ///
    /// # Errors
    /// [`DirtyError`]: no leaf of the batch was harvested. A batch that comes to something in the way ends before it,
    /// and the next one says so.
    pub fn dirty_harvest(
        &self,
        cpu: &Cpu<'_>,
        claim: &mut Claim<'_>,
        batch: Batch,
    ) -> Result<Harvested, DirtyError> {
        let range = self.claimed(claim, batch.from).map_err(DirtyError::Claim)?;
        let session = self.log.running(&self.arch)?;
        if !session.range.covers(&range) {
            return Err(DirtyError::Outside { claimed: range, session: session.range });
        }
        if !cpu.is_quiescent() {
            return Err(DirtyError::NotQuiescent);
        }
        let batch = Batch { slots: batch.slots.min(SLOTS), ..batch };
        if session.blocks == LogBlocks::Split {
            self.split_for_log(cpu, claim, batch, &session);
        }
        let mut found = Found::new();
        let (outcome, modified) = {
            let guard = cpu.enter();
            let mut transaction = self
                .modify_prot(&guard, claim, batch, Relax::Everywhere)
                .map_err(DirtyError::Prot)?;
            transaction.harvests();
            let told = |first, level, slots| found.told(first, level, slots);
            let outcome = transaction.take(Taken::Dirty, told);
            (outcome, transaction.closed())
        };
        let pages = found.deliver(&session);
        let progress = modified.progress;
        let until = match progress {
            Progress::Done => range.end(),
            Progress::Until(next) => next,
        };
        match outcome {
            Err(error) if until == batch.from => return Err(DirtyError::Prot(error)),
            _ => self.look_first(cpu, &session, batch.from, until),
        }
        Ok(Harvested { progress, pages })
    }

    /// Reports all that is mapped where no harvest has been: what cannot be written is dirty nowhere, and who copies pages
    /// asks for it, too. After the flush, like all bits.
    fn look_first(&self, cpu: &Cpu<'_>, session: &Session, from: Ipa, until: Ipa) {
        let (start, end) = (session.range.start(), session.range.end());
        let mut at = self.log.harvested(from, until).max(from);
        while at < until {
            let Some(next) = at.align_down(SPAN).checked_add(SPAN) else { return };
            let next = next.min(end);
            if !session.is_seen(at)
                && let Ok(part) = IpaRange::new(at, next.min(until).get() - at.get())
            {
                self.mark_mapped(cpu, session, part);
                // Out of order, and in parts: there is never a batch that has seen all. It says too much.
                if at <= at.align_down(SPAN).max(start) && until >= next {
                    session.note_seen(at);
                }
            }
            at = next;
        }
    }

    /// Sets the bits of all leaves in a part of a span.
    fn mark_mapped(&self, cpu: &Cpu<'_>, session: &Session, part: IpaRange) {
        let guard = cpu.enter();
        let Some(node) = self.path(&guard, part.start()).and_then(|path| path.leaf()) else {
            return;
        };
        let level = node.level;
        let is_mapped = |slot: &Slot| {
            let leaf = slot.load(&self.arch).as_leaf(level);
            leaf.is_some_and(|leaf| leaf.owner() == Owner::Vm)
        };
        if level != Level::L3 {
            let ipa = part.start().align_down(level.slot_bytes());
            if is_mapped(node.table.slot(level.index(ipa))) {
                session.mark(part);
            }
            return;
        }
        // From the first group of 64 that the part has a slot of.
        let from = level.index(part.start()) / GROUP * GROUP;
        let count = (part.end().get() - node.ipa_of(from).get()).div_ceil(PAGE_SIZE) as usize;
        let slots = node.table.slots().get(from..).unwrap_or_default();
        let slots = slots.get(..count).unwrap_or(slots);
        for (slots, group) in slots.chunks(GROUP).zip(0_usize..) {
            let bit = |bits, slot| bits << 1 | u64::from(is_mapped(slot));
            let bits = slots.iter().rev().fold(0, bit);
            session.mark_pages_in(part, node.ipa_of(from + group * GROUP), bits);
        }
    }

    /// Splits the blocks of a batch, and remembers where they were. Those that cannot be split, for want of tables or
    /// because they reach over the edge of the claim, are harvested as they are.
    fn split_for_log(&self, cpu: &Cpu<'_>, claim: &mut Claim<'_>, batch: Batch, session: &Session) {
        let Some(runs) = self.note_blocks(cpu, claim.range(), batch, session) else { return };
        if runs {
            let _whole = self.dissolve(cpu, claim, batch);
        }
        // A block of 1 GiB takes two rounds.
        for _round in 0..2 {
            match self.split(cpu, claim, batch, Level::L3) {
                Ok(Progress::Until(next)) if next <= batch.from => {}
                _ => return,
            }
        }
    }

    /// Notes where in a batch are blocks; whether one of them is in a contiguous run. `None` if there are none. Looks at a slot
    /// for each 2 MiB.
    fn note_blocks(
        &self,
        cpu: &Cpu<'_>,
        range: IpaRange,
        batch: Batch,
        session: &Session,
    ) -> Option<bool> {
        let guard = cpu.enter();
        let (mut at, mut left, mut runs) = (batch.from, batch.slots.max(1), None);
        while at < range.end() && left > 0 {
            let found = self.lookup(&guard, at)?;
            let bytes = found.level.slot_bytes().max(SPAN);
            let start = at.align_down(bytes);
            let end = start.get() + bytes;
            let leaf = found.descriptor.as_leaf(found.level).filter(|_| found.level < Level::L3);
            if let Some(leaf) = leaf
                && range.start() <= start
                && end <= range.end().get()
            {
                runs = Some(runs.unwrap_or(false) | leaf.is_contiguous());
                (start.get()..end)
                    .step_by(SPAN as usize)
                    .for_each(|span| session.note_split(Ipa::new(span)));
            }
            let slots = match (leaf, found.level) {
                (Some(_), _) => ARITY,
                (None, Level::L3) => ((end - at.get()) / PAGE_SIZE) as usize,
                (None, _) => 1,
            };
            left = left.saturating_sub(slots);
            at = Ipa::new(end);
        }
        runs
    }
}
