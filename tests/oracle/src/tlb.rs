//! What the TLBs of all PEs may hold, at most.
//!
//! An [`Entry`] is one descriptor as some walk may have read it, tagged with VMID and IPA. A PE may hold
//! it as a stage-2 entry (a leaf, or an intermediate one), and a leaf also as a combined
//! stage-1-and-2 entry, which is made from the stage-2 one whenever the PE likes \[RTVTYQ, RVZZVZ\].
//! Nothing but a completed invalidation takes an entry out.
//!
//! Entries are found by IPA, by the descriptor that they were read from, and by the memory that they
//! reach; the *orphans*, combined entries whose stage-2 entry is gone from the same PE, by themselves:
//! they are all that `VMALLE1` can be required to remove.
//!
//! EL2's own regime has one stage. Its entries are kept beside the others, under a number that is no VMID, as stage-2 entries are:
//! there is nothing to combine them with.

use std::collections::{BTreeMap, BTreeSet};

use crate::descriptor::{self, Kind, LEAF_LEVEL, kind, shift};
use crate::event::Pe;
use crate::memory::page;

/// Whose translations: a VM's, by its VMID, or EL2's own.
pub(crate) type Regime = u32;

/// EL2's own regime: no VMID has 17 bits.
pub(crate) const EL2: Regime = 1 << 16;

/// How an entry is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// From stage 2 alone.
    Stage2,
    /// Combined with the guest's stage 1, by VA: only its VMID finds it.
    Combined,
}

/// One descriptor as a walk may have read it. Under EL2's own regime `ipa` is an address of EL2's. The order makes entries of one level neighbours by IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) regime: Regime,
    pub(crate) level: u8,
    /// First IPA of the slot's span.
    pub(crate) ipa: u64,
    /// Address of the descriptor.
    pub(crate) slot: u64,
    pub(crate) bits: u64,
}

impl Entry {
    pub(crate) fn kind(&self) -> Kind {
        kind(self.bits, self.level)
    }

    /// IPAs that the slot spans.
    pub(crate) fn span(&self) -> (u64, u64) {
        (self.ipa, self.ipa + (1 << shift(self.level)))
    }

    /// IPAs that the entry may translate: a member of a contiguous run may stand for the whole
    /// run \[D8.7.1, RJQQTC\].
    pub(crate) fn extent(&self) -> (u64, u64) {
        let (start, end) = self.span();
        if !self.is_leaf() || !descriptor::contiguous(self.bits) {
            return (start, end);
        }
        let run = (end - start) * RUN;
        let start = start & !(run - 1);
        (start, start + run)
    }

    /// Where `ipa`, inside the extent, is translated to.
    pub(crate) fn output(&self, ipa: u64) -> Option<u64> {
        match self.kind() {
            Kind::Leaf(pa) => Some(pa.wrapping_add(ipa.wrapping_sub(self.ipa))),
            _ => None,
        }
    }

    pub(crate) fn is_leaf(&self) -> bool {
        matches!(self.kind(), Kind::Leaf(_))
    }

    /// Where it was read.
    pub(crate) fn place(&self) -> Place {
        let index = (self.slot & 0xfff) / 8;
        Place {
            table: page(self.slot),
            regime: self.regime,
            level: self.level,
            ipa: self.ipa - (index << shift(self.level)),
        }
    }

    /// Where it leads, if it is an intermediate entry.
    pub(crate) fn below(&self) -> Option<Place> {
        match self.kind() {
            Kind::Table(table) => {
                Some(Place { table, regime: self.regime, level: self.level + 1, ipa: self.ipa })
            }
            _ => None,
        }
    }
}

/// Members of a contiguous run, with the 4 KiB granule.
pub(crate) const RUN: u64 = 16;

/// A table page as a PE may walk it: under a VMID, at a level, for a range of IPAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) table: u64,
    pub(crate) regime: Regime,
    pub(crate) level: u8,
    pub(crate) ipa: u64,
}

impl Place {
    pub(crate) fn entry(&self, slot: u64, bits: u64) -> Entry {
        let index = (slot & 0xfff) / 8;
        Entry {
            regime: self.regime,
            level: self.level,
            ipa: self.ipa + (index << shift(self.level)),
            slot,
            bits,
        }
    }
}

/// Which PEs, one bit each.
pub(crate) type Mask = u64;

/// Who may hold an entry, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) stage2: Mask,
    pub(crate) combined: Mask,
}

impl Held {
    pub(crate) fn any(&self) -> Mask {
        self.stage2 | self.combined
    }

    fn orphan(&self) -> bool {
        self.combined & !self.stage2 != 0
    }
}

/// All that may be held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tlb {
    held: BTreeMap<Entry, Held>,
    by_slot: BTreeSet<(u64, Entry)>,
    by_output: BTreeSet<(u8, u64, Entry)>,
    orphans: BTreeSet<Entry>,
}

impl Tlb {
    /// The PEs of `mask` may hold the entry, and a leaf in both forms. Returns those for which the
    /// stage-2 form is new.
    pub(crate) fn insert(&mut self, mask: Mask, entry: Entry) -> Mask {
        let held = self.held.entry(entry).or_default();
        let fresh = mask & !held.stage2;
        if fresh == 0 {
            return 0;
        }
        let (known, was_orphan) = (held.any() != 0, held.orphan());
        held.stage2 |= mask;
        if entry.is_leaf() && entry.regime != EL2 {
            held.combined |= mask;
        }
        if was_orphan && !held.orphan() {
            self.orphans.remove(&entry);
        }
        if !known {
            self.by_slot.insert((entry.slot, entry));
            if let Kind::Leaf(pa) = entry.kind() {
                self.by_output.insert((entry.level, pa, entry));
            }
        }
        fresh
    }

    /// Takes an entry away from the PEs of two masks, one for each form.
    pub(crate) fn remove(&mut self, entry: &Entry, stage2: Mask, combined: Mask) {
        let Some(held) = self.held.get_mut(entry) else { return };
        held.stage2 &= !stage2;
        held.combined &= !combined;
        if held.orphan() {
            self.orphans.insert(*entry);
        } else {
            self.orphans.remove(entry);
        }
        if held.any() == 0 {
            self.held.remove(entry);
            self.by_slot.remove(&(entry.slot, *entry));
            if let Kind::Leaf(pa) = entry.kind() {
                self.by_output.remove(&(entry.level, pa, *entry));
            }
        }
    }

    pub(crate) fn held(&self, entry: &Entry) -> Held {
        self.held.get(entry).copied().unwrap_or_default()
    }

    /// Every entry of a VM, or of EL2.
    pub(crate) fn of_regime(&self, regime: Regime) -> impl Iterator<Item = (&Entry, Held)> {
        self.range(regime, 0, 0, regime, u8::MAX, u64::MAX)
    }

    /// Every entry.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Entry, Held)> {
        self.held.iter().map(|(entry, held)| (entry, *held))
    }

    /// Combined entries that some PE holds without the stage-2 entry.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = (&Entry, Held)> {
        self.orphans.iter().map(|entry| (entry, self.held(entry)))
    }

    /// Entries that were read from a descriptor.
    pub(crate) fn of_slot(&self, slot: u64) -> impl Iterator<Item = (&Entry, Held)> {
        let first = Entry { regime: 0, level: 0, ipa: 0, slot: 0, bits: 0 };
        self.by_slot
            .range((slot, first)..(slot + 1, first))
            .map(|(_, entry)| (entry, self.held(entry)))
    }

    /// Leaves that reach memory in `[start, end)`.
    pub(crate) fn reaching(&self, start: u64, end: u64) -> impl Iterator<Item = (&Entry, Held)> {
        let first = Entry { regime: 0, level: 0, ipa: 0, slot: 0, bits: 0 };
        (1..=LEAF_LEVEL)
            .flat_map(move |level| {
                // A member of a contiguous run may reach the memory of all of it.
                let run = (RUN << shift(level)) - 1;
                let from = start.saturating_sub(run);
                self.by_output
                    .range((level, from, first)..(level, end.saturating_add(run), first))
                    .map(|(_, _, entry)| entry)
            })
            .filter(move |entry| {
                let (from, to) = entry.extent();
                let at = |ipa| entry.output(ipa).unwrap_or(u64::MAX);
                at(from) < end && start <= at(to - 1)
            })
            .map(|entry| (entry, self.held(entry)))
    }

    /// Intermediate entries that lead to a place.
    pub(crate) fn leading_to(&self, place: &Place) -> impl Iterator<Item = (&Entry, Held)> {
        let (regime, ipa, table) = (place.regime, place.ipa, place.table);
        let above = place.level.wrapping_sub(1);
        self.range(regime, above, ipa, regime, above, ipa)
            .filter(move |(entry, _)| entry.kind() == Kind::Table(table))
    }

    /// Entries of a VM whose slot spans an IPA in `[start, end)`.
    pub(crate) fn spanning(
        &self,
        regime: Regime,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (&Entry, Held)> {
        (0..=LEAF_LEVEL).flat_map(move |level| {
            let from = start & !((1 << shift(level)) - 1);
            self.range(regime, level, from, regime, level, end - 1)
        })
    }

    /// Entries of a VM whose extent meets `[start, end)`.
    pub(crate) fn overlapping(
        &self,
        regime: Regime,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (&Entry, Held)> {
        (0..=LEAF_LEVEL)
            .flat_map(move |level| {
                let run = RUN << shift(level);
                let last = (end - 1) | (run - 1);
                self.range(regime, level, start & !(run - 1), regime, level, last)
            })
            .filter(move |(entry, _)| {
                let (from, to) = entry.extent();
                from < end && start < to
            })
    }

    /// Entries from one (regime, level, address) to another, both included.
    fn range(
        &self,
        regime: Regime,
        level: u8,
        ipa: u64,
        to_regime: Regime,
        to_level: u8,
        to_ipa: u64,
    ) -> impl Iterator<Item = (&Entry, Held)> {
        let first = Entry { regime, level, ipa, slot: 0, bits: 0 };
        let max = u64::MAX;
        let last = Entry { regime: to_regime, level: to_level, ipa: to_ipa, slot: max, bits: max };
        self.held.range(first..=last).map(|(entry, held)| (entry, *held))
    }
}

/// The PEs of a mask.
pub(crate) fn pes(mut mask: Mask) -> impl Iterator<Item = Pe> {
    core::iter::from_fn(move || {
        let pe = (mask != 0).then(|| mask.trailing_zeros() as Pe)?;
        mask &= mask - 1;
        Some(pe)
    })
}
