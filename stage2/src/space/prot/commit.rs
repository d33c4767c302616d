//! One leaf after the other is exchanged; then all is flushed, and what was broken lives again.

use core::ops::Range;

use super::{Engine, Here, Modified, ProtError, Relax, Transaction};
use crate::addr::{Ipa, Level};
use crate::arch::{Arch, Dsb};
use crate::descriptor::{Change, Descriptor, Leaf, RUN, State};
use crate::geometry::HwUpdate;
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;
use crate::space::alike::parts;
use crate::space::contiguous::{members_of, run_bytes};
use crate::space::tables::Node;
use crate::space::{Progress, Space};
use crate::tlbi::LeafLevel;

/// What a fault handler has to update, if hardware does not.
const ALL: HwUpdate = HwUpdate::AccessAndDirty;

/// What became of a leaf.
enum Step {
    /// It stays as it is.
    Same,
    /// It is another leaf now. What it was, and is.
    InPlace(Leaf, Leaf),
    /// It is Busy now.
    Broken,
}

impl<'t, M: Memory, A: Arch> Transaction<'t, M, A> {
    /// Shows the leaves of a table from a slot on, and exchanges those that `decide` has a change for, until the table,
    /// the range or the budget ends, or in a slot is something else. Returns where it has come to, and whether that is
    /// why. `level` is the table's.
    #[inline(always)]
    pub(super) fn sweep(
        &mut self,
        node: Node<'t>,
        level: Level,
        first: usize,
        decide: &mut impl FnMut(Ipa, &Leaf) -> Option<Change>,
    ) -> Result<(usize, bool), ProtError> {
        let reach = (self.range.end().get() - node.start.get()).div_ceil(level.slot_bytes());
        let last = SLOTS.min(reach as usize).min(first.saturating_add(self.left.max(1)));
        let slots = node.table.slots().get(first..last).unwrap_or_default();
        // Leaves side by side that were changed, and not owed for yet.
        let mut changed = first..first;
        let (mut odd, mut result) = (false, Ok(()));
        let mut index = first;
        for slot in slots {
            let ipa = node.ipa_of(index);
            let seen = slot.load(&self.space.arch);
            let Some(leaf) = self.ordinary(seen, level, ipa) else {
                if seen == Descriptor::EMPTY || seen.is_others_leaf(level) {
                    index += 1;
                    continue;
                }
                odd = true;
                break;
            };
            let mut told = |leaf: &Leaf| decide(ipa, leaf);
            match self.exchange(slot, level, ipa, leaf, &mut told) {
                Ok(step) => self.note(node, level, index, &step, &mut changed),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            index += 1;
        }
        self.owe(node, &changed);
        self.left = self.left.saturating_sub(index - first);
        self.come_to(node.ipa_of(index));
        result.map(|()| (index, odd))
    }

    /// The leaf in a slot, unless it is one to be careful with.
    #[inline(always)]
    pub(super) fn ordinary(&self, seen: Descriptor, level: Level, ipa: Ipa) -> Option<Leaf> {
        let page = matches!(level, Level::L3);
        let inside = |_: &Leaf| page || self.covers(ipa, level.slot_bytes());
        seen.as_own_leaf(level).filter(|leaf| !leaf.is_contiguous()).filter(inside)
    }

    /// Commits to a leaf that [`look`](Self::look) found.
    pub(super) fn commit(
        &mut self,
        node: Node<'t>,
        index: usize,
        leaf: Leaf,
        mut decide: impl FnMut(Ipa, &Leaf) -> Option<Change>,
    ) -> Result<(), ProtError> {
        let (arch, slot) = (&self.space.arch, node.table.slot(index));
        let (level, ipa) = (node.level, node.ipa_of(index));
        if leaf.is_contiguous() {
            if let Some(change) = decide(ipa, &leaf)
                && let now = leaf.changed(&change)
                && now != leaf
                && let Some(busy) = Descriptor::from_bits(now.bits()).to_busy()
            {
                // SAFETY: (1) a member of a run that was broken here, and Busy until the flush; (2) the same
                // translation.
                unsafe { arch.store(slot, busy.bits()) };
                self.log.changed(&leaf, &now);
                self.changed += 1;
            }
            return Ok(());
        }
        let mut told = |leaf: &Leaf| decide(ipa, leaf);
        let step = self.exchange(slot, level, ipa, leaf, &mut told)?;
        let mut changed = index..index;
        self.note(node, level, index, &step, &mut changed);
        self.owe(node, &changed);
        Ok(())
    }

    /// Something became of a leaf: what is owed for it joins `changed`, if that ends just before it.
    #[inline(always)]
    fn note(
        &mut self,
        node: Node<'_>,
        level: Level,
        index: usize,
        step: &Step,
        changed: &mut Range<usize>,
    ) {
        let broken = match step {
            Step::Same => return,
            Step::InPlace(was, now) if self.is_local(was, now) => {
                self.changed += 1;
                return self.granted(node.ipa_of(index), level, 1);
            }
            Step::InPlace(..) => false,
            Step::Broken => true,
        };
        self.was_changed(node, index..index + 1, broken, changed);
    }

    /// One leaf, in a slot of a table whose lock is held.
    #[inline(always)]
    fn exchange(
        &self,
        slot: &Slot,
        level: Level,
        ipa: Ipa,
        mut was: Leaf,
        decide: &mut impl FnMut(&Leaf) -> Option<Change>,
    ) -> Result<Step, ProtError> {
        loop {
            let Some(change) = decide(&was) else { return Ok(Step::Same) };
            let now = was.changed(&change);
            if now == was {
                return Ok(Step::Same);
            }
            let broken = self.breaks(&was, &now);
            let new = if broken { now.bits() & !1 } else { now.bits() };
            // SAFETY: (1) the table's lock is held, and the claim covers the leaf: it may become Busy, or another
            // leaf of the same translation.
            match unsafe { self.space.arch.compare_exchange(slot, was.bits(), new) } {
                Some(Ok(_)) => {
                    self.log.changed(&was, &now);
                    return Ok(if broken { Step::Broken } else { Step::InPlace(was, now) });
                }
                // Hardware or a fault handler has changed it: at the most as often as it has such bits.
                Some(Err(seen)) => {
                    let seen = Descriptor::from_bits(seen);
                    let unexpected = ProtError::Unexpected { ipa, level, seen };
                    was = self.ordinary(seen, level, ipa).ok_or(unexpected)?;
                }
                None => return Err(ProtError::Unsupported),
            }
        }
    }

    /// Whether a leaf has to be invalid before it is another.
    #[inline(always)]
    pub(super) fn breaks(&self, was: &Leaf, now: &Leaf) -> bool {
        match self.engine {
            Engine::InPlace => false,
            Engine::Break => true,
            Engine::BreakUnsettled => {
                !(was.is_settled(self.hw_update) && now.is_settled(self.hw_update))
            }
        }
    }

    /// Whether a change is to be flushed on this PE alone.
    #[inline(always)]
    pub(super) fn is_local(&self, was: &Leaf, now: &Leaf) -> bool {
        matches!(self.relax, Relax::Here) && now.grants_all_of(was)
    }

    /// Leaves side by side were changed.
    pub(super) fn owe(&mut self, node: Node<'_>, slots: &Range<usize>) {
        if !slots.is_empty() {
            self.changed += slots.len() as u64;
            self.owed.leaves(node.ipa_of(slots.start), node.level, slots.len() as u64);
        }
    }

    /// The end of it, and what it did.
    pub(in crate::space) fn closed(&mut self) -> Modified {
        self.close();
        let progress =
            if self.at < self.range.end() { Progress::Until(self.at) } else { Progress::Done };
        Modified { progress, changed: self.changed, broken: self.broken }
    }

    /// Lock back, flush, what is Busy lives again. Afterwards there is nothing left to do, and to do it again does nothing.
    pub(super) fn close(&mut self) {
        if self.pending.is_none() {
            return;
        }
        let space = self.space;
        self.table = None;
        if self.changed + self.broken > 0 {
            let here = self.here != Here::Nothing;
            space.ledger.protected(self.changed, self.broken, here);
        }
        if self.owed.flush().is_some() && self.broken > 0 {
            self.revive(self.at.max(Ipa::new(self.run_end)));
            space.arch.dsb(Dsb::IshSt);
        }
        if self.log.lost() {
            self.owed.ranges().iter().for_each(|range| space.mark_logged(*range));
        }
        match core::mem::replace(&mut self.here, Here::Nothing) {
            Here::Nothing => {}
            Here::One(ipa, Level::L1) => space.tlb().relax_local(ipa, LeafLevel::L1),
            Here::One(ipa, Level::L2) => space.tlb().relax_local(ipa, LeafLevel::L2),
            Here::One(ipa, _) => space.tlb().relax_local(ipa, LeafLevel::L3),
            Here::Many => space.tlb().vm_local(),
        }
        self.pending = None;
    }

    /// What is Busy in this batch, before `end`, becomes what it remembers. It was flushed.
    fn revive(&self, end: Ipa) {
        let mut at = self.low;
        while at < end.get() {
            let Some(node) = self.space.lowest(self.guard, Ipa::new(at)) else { return };
            let next = match node.level {
                Level::L3 => self.space.revive_table(node, Level::L3, at, end),
                level => self.space.revive_table(node, level, at, end),
            };
            at = at.max(next);
        }
    }
}

impl<M: Memory, A: Arch> Space<'_, M, A> {
    /// The Busy leaves of a table live again, from `at` to `end`, the table's end, or a slot that leads to a table, which
    /// it returns.
    #[inline(always)]
    fn revive_table(&self, node: Node<'_>, level: Level, at: u64, end: Ipa) -> u64 {
        let arch = &self.arch;
        let mut index = level.index(Ipa::new(at));
        while let Some(slot) = node.table.slots().get(index) {
            let (ipa, seen) = (node.ipa_of(index), slot.load(arch));
            if ipa >= end || seen.as_table(level).is_some() {
                return ipa.get();
            }
            match seen.as_busy_leaf(level) {
                Some(leaf) if leaf.is_contiguous() => {
                    let start = ipa.align_down(run_bytes(level));
                    self.revive_run(node, start);
                    index = level.index(start) + RUN;
                }
                Some(leaf) => {
                    let behind = node.table.slots().get(index..).unwrap_or_default();
                    let reach = (end.get() - ipa.get()).div_ceil(level.slot_bytes());
                    // SAFETY: (1) the claim covers them, and they were flushed.
                    index += unsafe { self.revive_alike(behind, reach as usize, level, &leaf) };
                }
                None => index += 1,
            }
        }
        node.end()
    }

    /// The first of so many slots, which remembers a leaf, and those behind that remember one like it live again.
    /// Returns how many.
    ///
    /// # Safety
    /// 1. What is Busy there was made so under the caller's claim, and flushed since.
    #[inline(always)]
    unsafe fn revive_alike(&self, slots: &[Slot], most: usize, level: Level, leaf: &Leaf) -> usize {
        let busy = Descriptor::from_bits(leaf.bits() & !1);
        // Blocks are looked at one by one.
        let most = if matches!(level, Level::L3) { most } else { 1 };
        let slots = slots.get(..most.min(slots.len())).unwrap_or_default();
        for (count, slot) in slots.iter().enumerate() {
            let seen = slot.load(&self.arch);
            if !busy.is_twin_of(seen) {
                return count;
            }
            // SAFETY: (1) the caller's clause; (2) the same translation.
            unsafe { self.arch.store(slot, seen.bits() | 1) };
        }
        slots.len()
    }

    /// The members of a broken run live again: as a run, if they are alike and nothing is left to be recorded in them.
    /// What has to change one leaf only, without a lock, finds none that is of a run then.
    #[cold]
    fn revive_run(&self, node: Node<'_>, start: Ipa) {
        let (arch, level) = (&self.arch, node.level);
        let live = |slot: &Slot| {
            let seen = slot.load(arch);
            seen.as_busy_leaf(level).map_or(seen, |leaf| Descriptor::from_bits(leaf.bits()))
        };
        let first = level.index(start);
        let settled = |slot: &Slot| {
            slot.load(arch).as_busy_leaf(level).is_some_and(|leaf| leaf.is_settled(ALL))
        };
        let alike = parts(node, first..first + RUN, live).is_ok()
            && members_of(node, start).iter().all(settled);
        if !alike {
            self.ledger.run(false);
        }
        for slot in members_of(node, start) {
            if let Some(leaf) = slot.load(arch).as_busy_leaf(level) {
                // SAFETY: (1) Busy, made so under this claim; flushed since, with all of its run; (2) the same
                // translation.
                unsafe { arch.store(slot, leaf.of_run(alike, State::default()).bits()) };
            }
        }
    }
}
