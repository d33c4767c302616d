//! One change for all leaves of a batch: those side by side that are alike, but for where they lie, are changed by one loop.
//!
//! Whether a leaf is changed at all, is broken, and by which bits it becomes another, is asked of the first, and holds for
//! all that are like it: so the loop has a load, an atomic access and their comparisons, and nothing else
//! ([`Arch::alter_while`]). It ends where a leaf differs, which may be because hardware or a fault handler has
//! just set a record there.

use core::ops::Range;

use super::{ProtError, Transaction};
use crate::addr::{Ipa, Level};
use crate::arch::{Alteration, Arch};
use crate::descriptor::{Change, Descriptor, Leaf};
use crate::memory::{ARITY as SLOTS, Memory};
use crate::slot::Slot;
use crate::space::tables::Node;

/// Leaves side by side that were changed: the first one's address, their level, and how many.
pub(super) struct Run {
    pub(super) ipa: Ipa,
    pub(super) level: Level,
    pub(super) count: u64,
}

impl<'t, M: Memory, A: Arch> Transaction<'t, M, A> {
    /// Commits `change` to every leaf of the batch that is left and that `wanted` is true of, which goes by everything but its
    /// address. `told` hears of each, perhaps more than once.
    #[inline(always)]
    pub(super) fn all(
        &mut self,
        change: &Change,
        wanted: impl Fn(&Leaf) -> bool,
        mut told: impl FnMut(&Run),
    ) -> Result<(), ProtError> {
        while let Some((node, index)) = self.next_slot()? {
            let (next, odd) = match node.level {
                Level::L3 => self.runs(node, Level::L3, index, change, &wanted, &mut told)?,
                level => self.runs(node, level, index, change, &wanted, &mut told)?,
            };
            let leads_down = || node.table.slot(next).load(&self.space.arch).as_table(node.level);
            if odd && leads_down().is_none() {
                if let Some(leaf) = self.look(node, next)? {
                    let level = node.level;
                    self.commit(node, next, leaf, |ipa, was| {
                        wanted(was).then(|| {
                            told(&Run { ipa, level, count: 1 });
                            *change
                        })
                    })?;
                }
                self.pass(node, next);
            }
        }
        Ok(())
    }

    /// Changes the leaves of a table from a slot on, until the table, the range or the budget ends, or in a slot is
    /// something else. Returns where it has come to, and whether that is why. `level` is the table's.
    #[inline(always)]
    fn runs(
        &mut self,
        node: Node<'t>,
        level: Level,
        first: usize,
        change: &Change,
        wanted: &impl Fn(&Leaf) -> bool,
        told: &mut impl FnMut(&Run),
    ) -> Result<(usize, bool), ProtError> {
        let space = self.space;
        let reach = (self.range.end().get() - node.start.get()).div_ceil(level.slot_bytes());
        let last = SLOTS.min(reach as usize).min(first.saturating_add(self.left.max(1)));
        // Leaves side by side that were changed, and not owed for yet.
        let mut changed = first..first;
        let (mut index, mut odd, mut result) = (first, false, Ok(()));
        while let Some((slot, behind)) =
            node.table.slots().get(index..last).and_then(|slots| slots.split_first())
        {
            let ipa = node.ipa_of(index);
            let seen = slot.load(&space.arch);
            let Some(was) = self.ordinary(seen, level, ipa) else {
                if seen == Descriptor::EMPTY || seen.is_others_leaf(level) {
                    index += 1;
                    continue;
                }
                odd = true;
                break;
            };
            let now = was.changed(change);
            if now == was || !wanted(&was) {
                index += 1 + space.alike(behind, level, seen);
                continue;
            }
            let broken = self.breaks(&was, &now);
            let how = Alteration { watched: self.log.is_on(), ..was.alteration(change, broken) };
            // A block may reach over the edge of the claim: each is looked at.
            let end = if matches!(level, Level::L3) { last } else { index + 1 };
            let slots = node.table.slots().get(index..end).unwrap_or_default();
            // SAFETY: (1) the table's lock is held, and the claim covers the leaves: they may become Busy, or other leaves
            // of the same translation. (2) Under the lock others only set AF and S2AP, and grant execution: where XN is
            // in the change, it is not done by clearing bits alone. All bits of the change are cleared, whichever of them
            // were set before.
            let Some(done) = (unsafe { space.arch.alter_while(slots, &how) }) else {
                result = Err(ProtError::Unsupported);
                break;
            };
            if done.count == 0 {
                // Set meanwhile, at the most as often as a leaf has such bits.
                continue;
            }
            let run = index..index + done.count;
            told(&Run { ipa, level, count: done.count as u64 });
            self.log.changed(&was, &now);
            if let Some(last) = done.last.and_then(|old| Descriptor::from_bits(old).as_leaf(level))
            {
                self.log.changed(&last, &last.changed(change));
            }
            index = run.end;
            if !broken && self.is_local(&was, &now) {
                self.changed += done.count as u64;
                self.granted(ipa, level, done.count);
            } else {
                self.was_changed(node, run, broken, &mut changed);
            }
        }
        self.owe(node, &changed);
        self.left = self.left.saturating_sub(index - first);
        self.come_to(node.ipa_of(index));
        result.map(|()| (index, odd))
    }

    /// Leaves side by side were changed: what is owed for them joins `changed`, if that ends just before.
    #[inline(always)]
    pub(super) fn was_changed(
        &mut self,
        node: Node<'_>,
        run: Range<usize>,
        broken: bool,
        changed: &mut Range<usize>,
    ) {
        if broken {
            self.low = self.low.min(node.ipa_of(run.start).get());
            self.broken += run.len() as u64;
        }
        if changed.end != run.start {
            self.owe(node, changed);
            changed.start = run.start;
        }
        changed.end = run.end;
    }
}

impl<M: Memory, A: Arch> crate::space::Space<'_, M, A> {
    /// How many slots from the first on hold leaves like this one.
    #[inline(always)]
    fn alike(&self, slots: &[Slot], level: Level, leaf: Descriptor) -> usize {
        // Blocks are looked at one by one.
        let slots = if matches!(level, Level::L3) { slots } else { &[] };
        let other = |slot: &Slot| !leaf.is_twin_of(slot.load(&self.arch));
        slots.iter().position(other).unwrap_or(slots.len())
    }
}
