//! What the TLBs of all PEs may hold, at most.
//!
//! An [`Entry`] is one descriptor as some walk may have read it, tagged with VMID and IPA. A PE may hold
//! it as a stage-2 entry (a leaf, or an intermediate one), and a leaf also as a combined
//! stage-1-and-2 entry, which is made from the stage-2 one whenever the PE likes \[RRVJDB\]. Nothing
//! but a completed invalidation takes an entry out.
//!
//! An invalidation removes only what the architecture *requires* it to remove. In particular
//! * not an entry that a walk may fetch again, because the old descriptor is still readable: its store
//!   had not completed when the TLBI was executed, or the descriptor still stands;
//! * not a combined entry whose stage-2 entry the PE may still hold;
//! * nothing at all if the level hint or the granule is wrong, or the base of a hinted range is
//!   unaligned \[C5.5\].

use std::collections::{BTreeMap, BTreeSet};

use crate::descriptor::{self, Kind, LEAF_LEVEL, kind, shift};
use crate::event::{Aim, Pe};

/// How an entry is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Form {
    /// From stage 2 alone.
    Stage2,
    /// Combined with the guest's stage 1, by VA: only its VMID finds it.
    Combined,
}

/// One descriptor as a walk may have read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) vmid: u16,
    /// First IPA of the slot's span.
    pub(crate) ipa: u64,
    pub(crate) level: u8,
    pub(crate) form: Form,
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
    /// run \[IPGVGZ, RJQQTC\].
    pub(crate) fn extent(&self) -> (u64, u64) {
        let (start, end) = self.span();
        if !descriptor::contiguous(self.bits) {
            return (start, end);
        }
        let run = (end - start) * 16;
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

    fn as_form(self, form: Form) -> Self {
        Self { form, ..self }
    }
}

/// Which PEs, one bit each.
pub(crate) type Mask = u64;

/// All that may be held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tlb {
    held: BTreeMap<Entry, Mask>,
}

impl Tlb {
    /// `pe` may hold the entry, and a leaf in both forms. Returns what is new.
    pub(crate) fn insert(&mut self, pe: Pe, entry: Entry) -> bool {
        let stage2 = self.held.entry(entry.as_form(Form::Stage2)).or_default();
        let new = *stage2 & 1 << pe == 0;
        *stage2 |= 1 << pe;
        if entry.is_leaf() {
            *self.held.entry(entry.as_form(Form::Combined)).or_default() |= 1 << pe;
        }
        new
    }

    /// Takes an entry away from `pe`.
    pub(crate) fn remove(&mut self, pe: Pe, entry: &Entry) {
        if let Some(mask) = self.held.get_mut(entry) {
            *mask &= !(1 << pe);
            if *mask == 0 {
                self.held.remove(entry);
            }
        }
    }

    pub(crate) fn holds(&self, pe: Pe, entry: &Entry) -> bool {
        self.held.get(entry).is_some_and(|mask| mask & 1 << pe != 0)
    }

    /// Everything that `pe` may hold.
    pub(crate) fn of(&self, pe: Pe) -> impl Iterator<Item = &Entry> {
        self.held.iter().filter(move |(_, mask)| *mask & 1 << pe != 0).map(|(entry, _)| entry)
    }

    /// Everything that anybody may hold, with who.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Entry, Mask)> {
        self.held.iter().map(|(entry, mask)| (entry, *mask))
    }

    /// Entries of a VM whose extent meets `[start, end)`.
    pub(crate) fn overlapping(
        &self,
        vmid: u16,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (&Entry, Mask)> {
        // An entry begins at most its own extent before `start`; the largest is 16 GiB.
        let low = start.saturating_sub(16 << 30);
        let first = Entry { vmid, ipa: low, level: 0, form: Form::Stage2, slot: 0, bits: 0 };
        let last = Entry { ipa: end, ..first };
        self.held.range(first..last).map(|(entry, mask)| (entry, *mask)).filter(
            move |(entry, _)| {
                let (from, to) = entry.extent();
                from < end && start < to
            },
        )
    }
}

/// Whether an invalidation must hit an entry of the VM that it is aimed at.
pub(crate) fn hits(aim: Aim, entry: &Entry) -> bool {
    let stage2 = entry.form == Form::Stage2;
    match aim {
        Aim::All | Aim::Vm => true,
        Aim::VmStage1 => entry.form == Form::Combined,
        Aim::Ipa(operand) => stage2 && page_hits(operand, entry),
        Aim::IpaLast(operand) => stage2 && entry.is_leaf() && page_hits(operand, entry),
        Aim::IpaRange(operand) => stage2 && range_hits(operand, entry),
        Aim::IpaRangeLast(operand) => stage2 && entry.is_leaf() && range_hits(operand, entry),
    }
}

/// What a level hint spares: leaves of other levels, and tables that are not above the leaf.
fn level_hits(hint: u8, entry: &Entry) -> bool {
    match entry.kind() {
        Kind::Leaf(_) => entry.level == hint,
        Kind::Table(_) => entry.level < hint,
        Kind::Fault => false,
    }
}

fn page_hits(operand: u64, entry: &Entry) -> bool {
    let ipa = (operand & ((1 << 40) - 1)) << descriptor::GRANULE;
    let (start, end) = entry.span();
    let ttl = operand >> 44 & 0xf;
    let level = match (ttl >> 2, ttl & 0b11) {
        // No hint; 0b0100 is reserved without FEAT_LPA2 and counts as none.
        (0, _) | (1, 0) => true,
        (1, hint) => level_hits(hint as u8, entry),
        // Another granule than the tables': nothing is required to go.
        _ => false,
    };
    level && start <= ipa && ipa < end
}

fn range_hits(operand: u64, entry: &Entry) -> bool {
    let base = (operand & ((1 << 37) - 1)) << descriptor::GRANULE;
    let (ttl, num) = ((operand >> 37 & 0b11) as u8, operand >> 39 & 0x1f);
    let (scale, granule) = (operand >> 44 & 0b11, operand >> 46 & 0b11);
    if granule != 1 {
        return false;
    }
    if ttl != 0 && ttl < LEAF_LEVEL && base & ((1 << shift(ttl)) - 1) != 0 {
        return false;
    }
    let bytes = (num + 1) << (5 * scale + 1) << descriptor::GRANULE;
    let (start, end) = entry.span();
    (ttl == 0 || level_hits(ttl, entry)) && start < base + bytes && base < end
}

/// A TLBI that was executed and is not complete.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) local: bool,
    /// What it removes once complete, and from whom.
    pub(crate) doomed: BTreeSet<(Pe, Entry)>,
}
