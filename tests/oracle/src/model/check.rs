//! What can be wrong with an event: each check against all that any PE may still hold.

use std::collections::BTreeSet;

use super::{ACCESSED, DBM, DIRTY, Model, Place};
use crate::descriptor::{self, Kind, LEAF_LEVEL, kind, memory, shift};
use crate::event::{Pe, Span};
use crate::memory::page;
use crate::tlb::Entry;
use crate::verdict::Defect;

impl Model {
    pub(super) fn places_of(&self, table: u64) -> impl Iterator<Item = Place> {
        let all: BTreeSet<Place> = self
            .pes
            .iter()
            .flat_map(|pe| pe.places.iter().copied())
            .filter(|place| place.table == table)
            .collect();
        all.into_iter()
    }

    pub(super) fn check_write(&mut self, pe: Pe, slot: u64, old: u64, new: u64, atomic: bool) {
        let locked = self.pes[pe].locks.contains(&page(slot));
        if Some(old) == self.machine.dead && !locked && new != old {
            self.blame(Defect::WriteToDeadSlot, format!("{new:#x} to {slot:#x}"));
        }
        if new == 0 {
            let holder = self.tlb.all().find(|(entry, _)| entry.slot == slot && entry.bits != 0);
            if let Some((entry, mask)) = holder {
                let what = format!(
                    "{slot:#x}: PEs {mask:#b} may still hold {:#x} for IPA {:#x}",
                    entry.bits, entry.ipa
                );
                self.blame(Defect::EmptyTooEarly, what);
            }
        }
        let is_leaf =
            |bits| self.places_of(page(slot)).any(|p| matches!(kind(bits, p.level), Kind::Leaf(_)));
        let (was_leaf, stays_leaf) = (is_leaf(old), is_leaf(new));
        if self.machine.hw_dirty && was_leaf && stays_leaf && old != new {
            let recording = old & DBM != 0 && !descriptor::dirty(old);
            let must_record = new & DBM != 0 && !descriptor::dirty(new);
            if recording && !descriptor::dirty(new) || must_record {
                self.blame(Defect::DirtyAtRisk, format!("{slot:#x} from {old:#x} to {new:#x}"));
            }
        }
        if was_leaf && !atomic && (self.machine.hw_access || self.machine.hw_dirty) {
            self.blame(Defect::UpdateOverwritten, format!("{slot:#x} from {old:#x} to {new:#x}"));
        }
    }

    /// Linking a table publishes its content, which must be visible to walks before the link is.
    pub(super) fn check_published(&mut self, pe: Pe, slot: u64, new: u64, relaxed: bool) {
        let level = self.places_of(page(slot)).map(|place| place.level).next();
        let Some(Kind::Table(table)) = level.map(|level| kind(new, level)) else { return };
        // A release store orders the writer's own earlier stores; other PEs' must have completed.
        let early: Vec<u64> = self
            .memory
            .slots_of(table)
            .into_iter()
            .filter(|slot| self.memory.store_pending(pe, relaxed, *slot))
            .collect();
        if let Some(slot) = early.first() {
            let what = format!("table {table:#x} linked while a store to {slot:#x} is under way");
            self.blame(Defect::PublishedBeforeFilled, what);
        }
    }

    /// A fresh entry against all that the same PE may hold for an overlapping IPA.
    pub(super) fn check_conflicts(&mut self, pe: Pe, fresh: &Entry) {
        let (start, end) = fresh.extent();
        let mut found: Option<(Defect, Entry)> = None;
        for (held, mask) in self.tlb.overlapping(fresh.vmid, start, end) {
            if mask & 1 << pe == 0 || !held.is_leaf() {
                continue;
            }
            if let Some(defect) = self.conflict(fresh, held) {
                found = Some((defect, *held));
                break;
            }
        }
        if let Some((defect, held)) = found {
            let what = format!(
                "PE {pe} may hold {:#x} and {:#x} for IPA {:#x}",
                held.bits,
                fresh.bits,
                start.max(held.extent().0)
            );
            self.blame(defect, what);
        }
    }

    fn conflict(&self, a: &Entry, b: &Entry) -> Option<Defect> {
        let common = a.extent().0.max(b.extent().0);
        // Contents are not modelled: two pages count as different contents, writable or not.
        if a.output(common) != b.output(common) {
            return Some(Defect::ConflictingAddress);
        }
        if memory(a.bits) != memory(b.bits) {
            return Some(Defect::ConflictingMemory);
        }
        let size = |e: &Entry| (e.level, descriptor::contiguous(e.bits));
        (size(a) != size(b) && self.machine.bbm < 2).then_some(Defect::ConflictingSize)
    }

    pub(super) fn check_table_gone(&mut self, table: u64, defect: Defect) {
        let walker = (0..self.pes.len()).find_map(|pe| {
            self.pes[pe].places.iter().find(|p| p.table == table).map(|place| (pe, *place))
        });
        if let Some((pe, place)) = walker {
            let what = format!(
                "table {table:#x}: PE {pe} may walk it for VMID {}, IPA {:#x}",
                place.vmid, place.ipa
            );
            self.blame(defect, what);
        }
    }

    pub(super) fn check_frame_gone(&mut self, frame: u64, bytes: u64) {
        let reaches = |entry: &Entry| match entry.kind() {
            Kind::Leaf(pa) => pa < frame + bytes && frame < pa + (1 << shift(entry.level)),
            _ => false,
        };
        let holder = self.tlb.all().find(|(entry, _)| reaches(entry));
        if let Some((entry, mask)) = holder {
            let what =
                format!("frame {frame:#x}: PEs {mask:#b} may reach it by IPA {:#x}", entry.ipa);
            self.blame(Defect::FrameStillReachable, what);
        }
    }

    /// No PE may translate a span by what its slots held before event `since`, when the flush began.
    /// What others change meanwhile they flush themselves.
    pub(super) fn check_flushed(&mut self, vmid: u16, span: Option<Span>, since: usize) {
        let Span { ipa, bytes } = span.unwrap_or(Span { ipa: 0, bytes: 1 << 52 });
        let linked = self.linked(vmid, since);
        let stale = self
            .tlb
            .overlapping(vmid, ipa, ipa + bytes)
            .find(|(entry, _)| !self.is_current(entry, &linked, since, ipa, ipa + bytes));
        if let Some((entry, mask)) = stale {
            let what = format!(
                "IPA {:#x}: PEs {mask:#b} may still use {:#x}, {:?}",
                entry.ipa, entry.bits, entry.form
            );
            self.blame(Defect::StaleTranslation, what);
        }
    }

    /// The tables of a VM as they have been linked at any time since event `since`, whoever runs it.
    fn linked(&self, vmid: u16, since: usize) -> BTreeSet<Place> {
        let mut todo = self.roots.get(&vmid).map_or(Vec::new(), |root| self.root_places(*root));
        let mut places = BTreeSet::new();
        while let Some(place) = todo.pop() {
            if place.level > LEAF_LEVEL || !places.insert(place) {
                continue;
            }
            for slot in self.memory.slots_of(place.table) {
                let values = self.memory.since(since, slot);
                todo.extend(values.filter_map(|bits| place.below(&place.entry(slot, bits))));
            }
        }
        places
    }

    /// Whether an entry says of `[start, end)` what the tables say, or said since event `since`, but for
    /// what hardware sets.
    fn is_current(
        &self,
        entry: &Entry,
        linked: &BTreeSet<Place>,
        since: usize,
        start: u64,
        end: u64,
    ) -> bool {
        let hardware = if self.machine.hw_dirty { ACCESSED | DIRTY } else { ACCESSED };
        let index = (entry.slot & 0xfff) / 8;
        let linked = linked.contains(&Place::of(entry));
        let same = |slot, bits: u64| {
            self.memory.since(since, slot).any(|held| (held ^ bits) & !hardware == 0)
        };
        // A member of a contiguous run speaks for its neighbours too: they must say the same.
        let step = 1 << shift(entry.level);
        let (from, to) = (entry.extent().0.max(start), entry.extent().1.min(end));
        let neighbours = (from / step..to.div_ceil(step)).all(|n| {
            let slot = page(entry.slot) + (n % 512) * 8;
            let moved = (n % 512).wrapping_sub(index).wrapping_mul(step);
            same(slot, entry.bits.wrapping_add(moved))
        });
        linked && same(entry.slot, entry.bits) && (!entry.is_leaf() || neighbours)
    }

    pub(super) fn check_vmid_gone(&mut self, vmid: u16) {
        let holder = self.tlb.all().find(|(entry, _)| entry.vmid == vmid);
        if let Some((entry, mask)) = holder {
            let what = format!("VMID {vmid}: PEs {mask:#b} may hold IPA {:#x}", entry.ipa);
            self.blame(Defect::VmidStillCached, what);
        }
    }

    pub(super) fn lock(&mut self, pe: Pe, table: u64) {
        if let Some(other) = (0..self.pes.len()).find(|pe| self.pes[*pe].locks.contains(&table)) {
            self.blame(Defect::LockState, format!("table {table:#x} is locked by PE {other}"));
        }
        let place = |table| self.places_of(table).next().map(|place| (place.level, place.ipa));
        if let Some((level, ipa)) = place(table) {
            let held: Vec<_> = self.pes[pe].locks.iter().filter_map(|held| place(*held)).collect();
            if let Some((l, i)) =
                held.into_iter().find(|(l, i)| *l > level || *l == level && *i >= ipa)
            {
                let what = format!("level {level} at IPA {ipa:#x} after level {l} at IPA {i:#x}");
                self.blame(Defect::LockOrder, what);
            }
        }
        self.pes[pe].locks.push(table);
    }

    pub(super) fn unlock(&mut self, pe: Pe, table: u64) {
        match self.pes[pe].locks.iter().rposition(|held| *held == table) {
            Some(at) => _ = self.pes[pe].locks.remove(at),
            None => self.blame(Defect::LockState, format!("PE {pe} does not hold {table:#x}")),
        }
    }
}
