//! From slot to slot, table by table, each under its lock.

use super::{Here, ProtError, Transaction};
use crate::addr::{Ipa, Level};
use crate::arch::Arch;
use crate::descriptor::{Descriptor, Leaf, Owner, RUN, State, View};
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;
use crate::space::alike::to_busy;
use crate::space::contiguous::{members_of, run_bytes};
use crate::space::tables::Node;

impl<'t, M: Memory, A: Arch> Transaction<'t, M, A> {
    /// The slot that `at` is in, which leads to no table, in a table whose lock is held; `None` at the batch's end.
    pub(super) fn next_slot(&mut self) -> Result<Option<(Node<'t>, usize)>, ProtError> {
        let arch = &self.space.arch;
        // A run that was begun is gone through.
        while self.at < self.range.end() && (self.left > 0 || self.at.get() < self.run_end) {
            if let Some(table) = &self.table {
                let node = table.node;
                let index = node.level.index(self.at);
                let inside = self.at.get() < node.end() && index < SLOTS;
                if inside && node.table.slot(index).load(arch).as_table(node.level).is_none() {
                    return Ok(Some((node, index)));
                }
                // Before another's: of the same level they are taken by ascending IPA only while all are held.
                self.table = None;
            }
            let node = self.space.lowest(self.guard, self.at).ok_or(ProtError::ForeignGuard)?;
            if node.level.index(self.at) >= SLOTS {
                self.at = Ipa::new(node.end().min(self.range.end().get()));
                continue;
            }
            // The parent moved: look again.
            let Ok(table) = node.lock(arch, self.guard) else { continue };
            if let Some(pending) = &mut self.pending {
                // Of a block or a run all is changed.
                pending.cover(self.at.align_down(run_bytes(node.level)), node.end());
            }
            self.table = Some(table);
        }
        Ok(None)
    }

    /// A slot was shown, or passed over.
    pub(super) fn pass(&mut self, node: Node<'_>, index: usize) {
        self.left = self.left.saturating_sub(1);
        self.come_to(node.ipa_of(index + 1));
    }

    pub(super) fn come_to(&mut self, ipa: Ipa) {
        // A block may begin before the batch does.
        self.at = self.at.max(ipa).min(self.range.end());
    }

    /// Whether a slot lies in the claim as a whole.
    #[inline(always)]
    pub(super) fn covers(&self, ipa: Ipa, bytes: u64) -> bool {
        self.range.start() <= ipa && ipa.get() + bytes <= self.range.end().get()
    }

    /// The leaf in a slot, if it is one to be shown. Of a contiguous run, all members are Busy from then on.
    pub(super) fn look(&mut self, node: Node<'t>, index: usize) -> Result<Option<Leaf>, ProtError> {
        let (level, ipa) = (node.level, node.ipa_of(index));
        let seen = node.table.slot(index).load(&self.space.arch);
        match seen.view(level) {
            View::Leaf(leaf) if leaf.owner() == Owner::Other => Ok(None),
            View::Leaf(_) if !self.covers(ipa, level.slot_bytes()) => {
                Err(ProtError::Straddles { ipa, level })
            }
            View::Leaf(leaf) if leaf.is_contiguous() => {
                self.break_run(node, ipa.align_down(run_bytes(level)))?;
                Ok(node.table.slot(index).load(&self.space.arch).as_busy_leaf(level))
            }
            View::Leaf(leaf) => Ok(Some(leaf)),
            View::Busy(live) if ipa.get() < self.run_end => Ok(live.as_leaf(level)),
            // A table that a neighbour is about to link, in a slot that is not claimed as a whole.
            View::Busy(live)
                if live.as_table(level).is_some() && !self.covers(ipa, level.slot_bytes()) =>
            {
                Ok(None)
            }
            View::Busy(_) | View::Dead | View::Foreign(_) => {
                Err(ProtError::Unexpected { ipa, level, seen })
            }
            View::Empty | View::Table(_) | View::Drain(_) | View::Note(_) => Ok(None),
        }
    }

    /// Breaks the run that begins at `start`; each member remembers what any has recorded.
    #[cold]
    fn break_run(&mut self, node: Node<'t>, start: Ipa) -> Result<(), ProtError> {
        let (arch, level) = (&self.space.arch, node.level);
        if !self.covers(start, run_bytes(level)) {
            return Err(ProtError::CutsRun { ipa: start, level });
        }
        let members = members_of(node, start);
        for slot in members {
            to_busy(arch, slot, level);
        }
        let busy = |slot: &Slot| slot.load(arch).as_busy_leaf(level);
        let mut state = State::default();
        for leaf in members.iter().filter_map(busy) {
            state = state.or(leaf.state());
        }
        for slot in members {
            if let Some(busy) = busy(slot).and_then(|leaf| leaf.of_run(true, state).to_busy()) {
                // SAFETY: (1) made Busy above, under the lock; (2) the same leaf, with its run's records.
                unsafe { arch.store(slot, busy.bits()) };
            }
        }
        self.owed.leaves(start, level, RUN as u64);
        self.low = self.low.min(start.get());
        self.run_end = start.get() + run_bytes(level);
        self.broken += RUN as u64;
        Ok(())
    }

    /// Something was granted in so many leaves from `ipa` on, for this PE to know of.
    #[cold]
    pub(super) fn granted(&mut self, ipa: Ipa, level: Level, leaves: usize) {
        let first = self.here == Here::Nothing && leaves == 1;
        self.here = if first { Here::One(ipa, level) } else { Here::Many };
    }
}

impl Descriptor {
    /// The leaf that a Busy slot remembers.
    #[inline(always)]
    pub(super) const fn as_busy_leaf(self, level: Level) -> Option<Leaf> {
        if self.is_valid() { None } else { Self::from_bits(self.bits() | 1).as_leaf(level) }
    }
}
