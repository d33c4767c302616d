//! What is owed to the TLBs, gathered until one flush settles it.
//!
//! Every operation that takes something away collects here what its flush must cover. Ranges that touch
//! merge; a few stay apart, so that two pages at the ends of a VM do not cost everything between them;
//! when there are more, the nearest grow together. A level hint survives only if every leaf is of
//! that level and no table was unlinked, because a hint spares whatever it does not name \[RXKMMX\].
//!
//! Where two sizes of one translation may be cached side by side, by FEAT_BBM, everything of the VM goes: which
//! invalidations by address remove *all* entries that match an address is IMPLEMENTATION DEFINED \[RGRVDR\], and
//! `VMALLS12E1` removes them for sure \[RBLRKC, IJCCRT\]. Of the combined entries `VMALLE1IS` would leave none either.
//!
//! [`Owed`] is that debt as a value. It is settled once, for a [`Flushed`]; dropping it settles it too, so
//! a forgotten flush is a late one and not a missing one. It stays on its PE: the PE that stored is
//! the one whose DSB counts \[RSPVBD\].

use core::marker::PhantomData;

use crate::addr::{Ipa, IpaRange, Level};
use crate::arch::Arch;
use crate::flush::{Flushed, Stage2Tlb};
use crate::tlbi::LeafLevel;

/// Ranges that are kept apart.
const RANGES: usize = 8;
/// Places for ranges: one more, for a moment, before two grow together.
const PLACES: usize = RANGES + 1;

/// What is known of the leaves of a gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Nothing,
    All(Level),
    Mixed,
    /// Two sizes of one translation may be cached at once.
    Conflicting,
}

/// Translations that ended, and that TLBs may still hold.
#[derive(Debug)]
#[must_use = "what is owed is settled by a flush"]
pub(crate) struct Owed<'s, A: Arch> {
    tlb: Stage2Tlb<'s, A>,
    /// So many are held, sorted and apart; the last place is free.
    ranges: [IpaRange; PLACES],
    count: usize,
    leaves: Leaves,
    not_send: PhantomData<*const ()>,
}

impl<'s, A: Arch> Owed<'s, A> {
    /// Nothing yet.
    pub(crate) const fn new(tlb: Stage2Tlb<'s, A>) -> Self {
        let ranges = [IpaRange::FIRST_PAGE; PLACES];
        Self { tlb, ranges, count: 0, leaves: Leaves::Nothing, not_send: PhantomData }
    }

    /// A leaf of `level` at `ipa` ended.
    pub(crate) fn leaf(&mut self, ipa: Ipa, level: Level) {
        self.leaves(ipa, level, 1);
    }

    /// So many leaves of `level`, side by side from `ipa` on, ended.
    pub(crate) fn leaves(&mut self, ipa: Ipa, level: Level, count: u64) {
        self.leaves = match self.leaves {
            Leaves::Nothing => Leaves::All(level),
            Leaves::All(same) if same == level => Leaves::All(level),
            Leaves::Conflicting => Leaves::Conflicting,
            _ => Leaves::Mixed,
        };
        self.cover(ipa, count * level.slot_bytes());
    }

    /// The table under the slot of `level` at `ipa` was unlinked: its whole span, any level.
    pub(crate) fn table(&mut self, ipa: Ipa, level: Level) {
        if self.leaves != Leaves::Conflicting {
            self.leaves = Leaves::Mixed;
        }
        self.cover(ipa, level.slot_bytes());
    }

    /// The size of a live translation changed with no break in between: whatever of it is cached goes.
    pub(crate) fn conflict(&mut self) {
        self.leaves = Leaves::Conflicting;
    }

    /// What is owed, or was until the flush, and perhaps what lies between.
    pub(crate) fn ranges(&self) -> &[IpaRange] {
        self.ranges.get(..self.count).unwrap_or_default()
    }

    fn cover(&mut self, ipa: Ipa, bytes: u64) {
        let Ok(new) = IpaRange::new(ipa, bytes) else { return };
        // By far the most frequent: the neighbour of the last.
        if let Some(last) = self.ranges.get_mut(self.count.wrapping_sub(1))
            && last.start() <= ipa
            && ipa <= last.end()
        {
            *last = last.hull(&new);
            return;
        }
        // Those that it touches become one with it.
        let held = self.ranges();
        let from = held.partition_point(|range| range.end() < new.start());
        let behind = held.partition_point(|range| range.start() <= new.end());
        let touched = held.get(from..behind).unwrap_or_default();
        let merged = touched.iter().fold(new, |merged, range| merged.hull(range));
        self.ranges.copy_within(behind..self.count, from + 1);
        self.count = self.count - (behind - from) + 1;
        if let Some(place) = self.ranges.get_mut(from) {
            *place = merged;
        }
        if self.count == PLACES {
            self.join_nearest();
        }
    }

    /// Makes one range of the two with the smallest gap. They are sorted and apart, the new one among them, so
    /// no other lies between.
    #[cold]
    fn join_nearest(&mut self) {
        let gap = |pair: &[IpaRange; 2]| pair[1].start().get() - pair[0].end().get();
        let pairs = self.ranges().array_windows().enumerate();
        let Some((at, [low, high])) = pairs.min_by_key(|(_, pair)| gap(pair)) else { return };
        self.ranges[at] = low.hull(high);
        self.ranges.copy_within(at + 2..self.count, at + 1);
        self.count -= 1;
    }

    /// Flushes; `None` if nothing is owed. Returns once no PE translates by what ended.
    pub(crate) fn settle(mut self) -> Option<Flushed> {
        self.flush()
    }

    /// The same. What was owed can be [asked for](Self::ranges) afterwards; nothing is to be added then.
    pub(crate) fn flush(&mut self) -> Option<Flushed> {
        let level = match core::mem::replace(&mut self.leaves, Leaves::Nothing) {
            Leaves::Nothing => return None,
            Leaves::Conflicting => return Some(self.tlb.vm()),
            Leaves::All(Level::L1) => LeafLevel::L1,
            Leaves::All(Level::L2) => LeafLevel::L2,
            Leaves::All(Level::L3) => LeafLevel::L3,
            Leaves::All(Level::L0) | Leaves::Mixed => LeafLevel::Unknown,
        };
        Some(self.tlb.reduce_all(self.ranges().iter().copied(), level))
    }
}

impl<A: Arch> Drop for Owed<'_, A> {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::host::Event;
    use crate::features::Caps;
    use crate::flush::tests::Rig;
    use crate::tlbi::Tlbi;

    /// The ranges of pages that a flush of these pages covers, and the hints it gives.
    fn flush_of(pages: &[u64]) -> Vec<(u64, u64)> {
        let rig = Rig::new();
        let mut owed = Owed::new(rig.tlb(Caps::empty()));
        pages.iter().for_each(|page| owed.leaf(Ipa::new(page << 12), Level::L3));
        owed.ranges().iter().map(|r| (r.start().get() >> 12, r.end().get() >> 12)).collect()
    }

    #[test]
    fn neighbours_merge_in_any_order() {
        assert_eq!(flush_of(&[5, 6, 7, 8]), [(5, 9)]);
        assert_eq!(flush_of(&[8, 7, 6, 5]), [(5, 9)]);
        assert_eq!(flush_of(&[5, 7, 6]), [(5, 8)]);
        assert_eq!(flush_of(&[5, 5]), [(5, 6)]);
        assert_eq!(flush_of(&[9, 1, 5]), [(1, 2), (5, 6), (9, 10)]);
    }

    #[test]
    fn when_there_are_too_many_the_nearest_grow_together() {
        let pages = [100, 200, 300, 302, 400, 500, 600, 700, 800];
        let ranges = flush_of(&pages);
        assert_eq!(ranges.len(), RANGES);
        assert!(ranges.contains(&(300, 303)));
        for page in pages {
            assert!(ranges.iter().any(|(start, end)| (*start..*end).contains(&page)), "{page}");
        }
    }

    #[test]
    fn one_that_falls_between_two_grows_with_the_nearer() {
        let ranges = flush_of(&[10, 20, 30, 40, 44, 70, 80, 90, 42, 100]);
        assert_eq!(ranges.len(), RANGES);
        assert!(ranges.is_sorted() && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        assert!(ranges.contains(&(40, 45)), "{ranges:?}");
    }

    fn operands(level: Level, table: bool) -> Vec<u64> {
        let rig = Rig::new();
        let mut owed = Owed::new(rig.tlb(Caps::TTL));
        owed.leaf(Ipa::new(0x4000_0000), level);
        if table {
            owed.table(Ipa::new(0x4000_0000), level);
        }
        assert!(owed.settle().is_some());
        let hint = |event: &Event| match event {
            Event::Tlbi(Tlbi::Ipas2e1Is(operand), _) => Some(operand.bits() >> 44),
            _ => None,
        };
        let mut hints: Vec<u64> = rig.host.take_log().iter().filter_map(hint).collect();
        hints.dedup();
        hints
    }

    #[test]
    fn a_hint_survives_only_leaves_of_one_level_and_no_table() {
        assert_eq!(operands(Level::L3, false), [0b0111]);
        assert_eq!(operands(Level::L2, false), [0b0110]);
        assert_eq!(operands(Level::L2, true), [0]);
    }

    /// Whatever else is owed, and however the flush is pinned.
    #[test]
    fn what_may_be_cached_in_two_sizes_goes_with_everything() {
        type Step = fn(&mut Owed<'_, crate::arch::host::Host>);
        let steps: [Step; 3] = [
            |owed| owed.leaf(Ipa::new(0x4000_0000), Level::L3),
            |owed| owed.table(Ipa::new(0x4000_0000), Level::L2),
            |_| {},
        ];
        for (before, after) in steps.iter().flat_map(|step| steps.map(|other| (step, other))) {
            let rig = Rig::new();
            let tlb = Stage2Tlb { pinned: Some(crate::cost::Pinned::Range), ..rig.tlb(Caps::TTL) };
            let mut owed = Owed::new(tlb);
            before(&mut owed);
            owed.conflict();
            after(&mut owed);
            assert!(owed.settle().is_some());
            let log = rig.host.take_log();
            let tlbis = log.into_iter().filter_map(|event| match event {
                Event::Tlbi(tlbi, _) => Some(tlbi),
                _ => None,
            });
            assert_eq!(tlbis.collect::<Vec<_>>(), [Tlbi::Vmalls12e1Is]);
        }
    }

    #[test]
    fn what_is_dropped_is_flushed_once() {
        let rig = Rig::new();
        let mut owed = Owed::new(rig.tlb(Caps::empty()));
        drop(Owed::new(rig.tlb(Caps::empty())));
        assert_eq!(rig.host.take_log(), [], "nothing owed");
        owed.leaf(Ipa::new(0x5000), Level::L3);
        drop(owed);
        let tlbis = rig.host.take_log().iter().filter(|e| matches!(e, Event::Tlbi(..))).count();
        assert_eq!(tlbis, 2, "stage 2, then combined");
    }
}
