//! What hardware writes into descriptors, and what guests really wrote: the ground truth against
//! which a harvest of dirty state is judged.
//!
//! A store of a guest ([`GuestStore`](crate::Event::GuestStore)) is *covered* if dirty state that
//! software has seen, or can still see in the descriptor, says so. It is not covered
//!
//! * while its record is on its way: until the update, or a DSB of the storing PE that waits for
//!   loads and stores \[RZYCN, RMKHJS\];
//! * ever, if it went through a cached writable-*dirty* entry while the descriptor does not say
//!   dirty: hardware has nothing to update then, until the entry is invalidated;
//! * ever, if the descriptor was changed without break-before-make and the record got lost \[RRTBRL\]: so the size of a
//!   translation changes in place only where hardware has nothing to record in it;
//! * by its own descriptor, if another member of its contiguous run is dirty \[RJKCXG\].
//!
//! Conversely a dirty bit that appears without a store is *invented*, which \[RRTBRL\] permits after the
//! same change; otherwise no architecture makes it, and the trace is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::Model;
use super::evidence::About;
use crate::descriptor::{self, Kind, kind, writable_clean, writes_freely};
use crate::event::Pe;
use crate::memory::page;
use crate::tlb::{EL2, Entry, Held, Place, RUN, Regime, pes};
use crate::verdict::Defect;

/// The access flag.
pub(super) const ACCESSED: u64 = 1 << 10;
/// S2AP\[1\]: with DBM, the dirty state.
pub(super) const DIRTY: u64 = 1 << 7;
/// Dirty bit modifier.
pub(super) const DBM: u64 = 1 << 51;

/// What becomes of the record of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    /// Hardware makes it, at some time.
    Coming,
    /// Hardware need not make it: a neighbour of the contiguous run is dirty.
    Excused,
    /// Hardware may never make it.
    Never,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Stores that no dirty state covers.
    stores: BTreeMap<(Pe, u64), Record>,
    /// Descriptors of which software took dirty state away, and has not harvested it yet.
    taken: BTreeSet<u64>,
    /// Descriptors that were changed from leaf to leaf without a break while hardware updates them.
    at_risk: BTreeSet<u64>,
}

impl Dirty {
    fn forget(&mut self, slot: u64) {
        self.stores.retain(|(_, stored), _| *stored != slot);
    }
}

impl Model {
    /// Whether hardware may lose or invent a record in this descriptor: it was changed without a
    /// break, and somebody may still hold what it was.
    #[must_use]
    pub fn at_risk(&self, slot: u64) -> bool {
        self.dirty.at_risk.contains(&slot)
    }

    /// Whether `pe` may hold what it once read from this descriptor.
    #[must_use]
    pub fn holds(&self, pe: Pe, slot: u64, bits: u64) -> bool {
        let read = |(entry, held): (&Entry, Held)| entry.bits == bits && held.stage2 >> pe & 1 != 0;
        self.tlb.of_slot(slot).any(read)
    }

    /// A descriptor through which `pe` may write to `ipa` by an entry that it holds, with no update.
    #[must_use]
    pub fn writes_by_held(&self, pe: Pe, ipa: u64) -> Option<u64> {
        let vmid = (self.pes.get(pe)?.vttbr.last()? >> 48) as Regime;
        let mut held = self.tlb.overlapping(vmid, ipa, ipa + 1);
        held.find(|(entry, held)| {
            entry.is_leaf() && held.any() >> pe & 1 != 0 && writes_freely(entry.bits)
        })
        .map(|(entry, _)| entry.slot)
    }

    /// Whether `bits` in this slot are a leaf that hardware may update, as somebody walks it or holds it. In EL2's own
    /// tables it updates nothing: `TCR_EL2.HA` is 0.
    pub(super) fn is_leaf(&self, slot: u64, bits: u64) -> bool {
        let leaf = |level| matches!(kind(bits, level), Kind::Leaf(_));
        let places = self.places_of(page(slot)).map(|(place, _)| (place.regime, place.level));
        let entries = self.tlb.of_slot(slot).map(|(entry, _)| (entry.regime, entry.level));
        places.chain(entries).any(|(regime, level)| regime != EL2 && leaf(level))
    }

    /// Whether another member of the slot's contiguous run says dirty.
    fn run_is_dirty(&self, slot: u64) -> bool {
        let run = slot & !(RUN * 8 - 1);
        let member = |n| self.memory.current(run + n * 8);
        descriptor::contiguous(self.memory.current(slot))
            && (0..RUN).any(|n| descriptor::contiguous(member(n)) && descriptor::dirty(member(n)))
    }

    pub(super) fn guest_store(&mut self, pe: Pe, slot: u64) {
        if !self.machine.tracks_dirty() {
            return;
        }
        let bits = self.memory.current(slot);
        let live = self.is_leaf(slot, bits);
        if live && writes_freely(bits) {
            return;
        }
        let holds = |like: fn(u64) -> bool| {
            self.tlb.of_slot(slot).any(|(entry, held)| {
                entry.is_leaf() && held.any() >> pe & 1 != 0 && like(entry.bits)
            })
        };
        let unrecorded = holds(writes_freely) || self.at_risk(slot) && holds(writable_clean);
        let record = if unrecorded {
            Record::Never
        } else if live && writable_clean(bits) {
            if self.run_is_dirty(slot) { Record::Excused } else { Record::Coming }
        } else {
            let what = format!("PE {pe} cannot store through {slot:#x}, which holds {bits:#x}");
            return self.blame(Defect::ImpossibleUpdate, what, &[About::Slot(slot)]);
        };
        self.dirty.stores.insert((pe, slot), record);
    }

    pub(super) fn hw_update(&mut self, pe: Pe, slot: u64, new: u64, inferred: bool) {
        let old = self.memory.current(slot);
        let changed = old ^ new;
        let access = if self.machine.hw_access { ACCESSED } else { 0 };
        let record = if self.machine.tracks_dirty() && old & DBM != 0 { DIRTY } else { 0 };
        let walks = self.places_of(page(slot)).any(|(_, mask)| mask >> pe & 1 != 0);
        let possible = (inferred || walks && self.is_leaf(slot, old))
            && old & 1 != 0
            && changed & !(access | record) == 0
            && new & changed == changed
            && (changed & DIRTY == 0 || new & ACCESSED != 0);
        let made = changed & DIRTY != 0;
        let stored = inferred || self.dirty.stores.contains_key(&(pe, slot));
        let what = format!("{slot:#x} from {old:#x} to {new:#x} by PE {pe}");
        if !possible {
            self.blame(Defect::ImpossibleUpdate, what, &[About::Slot(slot)]);
        } else if made && !stored && self.at_risk(slot) {
            let what = format!("{what}: nobody wrote there");
            self.blame(Defect::InventedDirty, what, &[About::Slot(slot)]);
        } else if made && !stored {
            let what = format!("{what}: no store of that PE");
            self.blame(Defect::ImpossibleUpdate, what, &[About::Slot(slot)]);
        }
        self.update(slot, new);
    }

    fn update(&mut self, slot: u64, new: u64) {
        if descriptor::dirty(new) {
            self.dirty.forget(slot);
        }
        let old = self.memory.current(slot);
        self.memory.update(slot, new);
        self.updated(slot, old, new);
        self.read_again(slot, new, None);
    }

    /// A DSB for loads and stores waits for the records of the PE's own stores.
    pub(super) fn records_complete(&mut self, pe: Pe) {
        if self.dirty.stores.is_empty() {
            return;
        }
        let coming = self
            .dirty
            .stores
            .iter()
            .filter(|((by, _), record)| *by == pe && **record == Record::Coming);
        let slots: Vec<u64> = coming.map(|((_, slot), _)| *slot).collect();
        for slot in slots {
            self.update(slot, self.memory.current(slot) | DIRTY | ACCESSED);
        }
    }

    /// Software writes over a descriptor: what that does to dirty state.
    pub(super) fn overwrite(&mut self, pe: Pe, slot: u64, old: u64, new: u64, atomic: bool) {
        if !self.machine.hw_access {
            return;
        }
        let (was, stays) = (self.is_leaf(slot, old), self.is_leaf(slot, new));
        let change = || format!("{slot:#x} from {old:#x} to {new:#x}");
        if self.machine.tracks_dirty() {
            if was && stays && old != new {
                let recording = writable_clean(old) && !descriptor::dirty(new);
                if recording || writable_clean(new) {
                    self.blame(Defect::DirtyAtRisk, change(), &[About::Slot(slot)]);
                }
            }
            if self.loses_records_by_size(slot, old, new) {
                self.blame(Defect::DirtyAtRisk, change(), &[About::Slot(slot)]);
            }
            let coming = |((_, stored), record): (&(Pe, u64), &Record)| {
                *stored == slot && *record == Record::Coming
            };
            if was && !stays && self.dirty.stores.iter().any(coming) {
                let what = format!("{}: a store's record comes before, or not at all", change());
                self.blame(Defect::ImpossibleUpdate, what, &[About::Slot(slot)]);
            }
            if was && writes_freely(old) {
                self.dirty.taken.insert(slot);
            }
            if !was && stays {
                self.dirty.taken.remove(&slot);
                self.dirty.forget(slot);
            }
        }
        if was && stays && old != new {
            self.dirty.at_risk.insert(slot);
        }
        if was && !atomic {
            let what = format!("{} by a plain store of PE {pe}", change());
            self.blame(Defect::UpdateOverwritten, what, &[About::Slot(slot)]);
        }
    }

    /// Whether a live block and a table change places while hardware may have something to record in the block or
    /// in a page: an entry of one may be used when the record is due in the other.
    fn loses_records_by_size(&self, slot: u64, old: u64, new: u64) -> bool {
        let risky =
            |old, new| writable_clean(new) || writable_clean(old) && !descriptor::dirty(new);
        let parts = |table: u64, level| {
            let slots = self.memory.slots_of(page(table)).into_iter();
            slots
                .map(|slot| self.memory.current(slot))
                .filter(move |bits| matches!(kind(*bits, level), Kind::Leaf(_)))
        };
        self.places_of(page(slot)).any(|(Place { level, .. }, _)| {
            match (kind(old, level), kind(new, level)) {
                (Kind::Leaf(_), Kind::Table(table)) => {
                    parts(table, level + 1).any(|part| risky(old, part))
                }
                (Kind::Table(table), Kind::Leaf(_)) => {
                    parts(table, level + 1).any(|part| risky(part, new))
                }
                _ => false,
            }
        })
    }

    /// A risk is over once nobody can hold what the descriptor was.
    pub(super) fn settle_risks(&mut self) {
        if self.dirty.at_risk.is_empty() {
            return;
        }
        let over = |slot: &u64| {
            let now = self.memory.current(*slot);
            self.tlb.of_slot(*slot).all(|(entry, _)| (entry.bits ^ now) & !ACCESSED == 0)
        };
        let over: Vec<u64> = self.dirty.at_risk.iter().copied().filter(over).collect();
        for slot in over {
            self.dirty.at_risk.remove(&slot);
        }
    }

    /// Software takes the dirty state of `count` descriptors, as it read it, for complete.
    pub(super) fn harvested(&mut self, first: u64, count: u64) {
        if !self.machine.tracks_dirty() {
            return;
        }
        let slots: Vec<u64> = (0..count).map(|n| first + n * 8).collect();
        let mut dirty = false;
        for slot in &slots {
            self.check_no_silent_writer(*slot);
            let covered = self.dirty.taken.remove(slot)
                || self.is_leaf(*slot, self.memory.current(*slot))
                    && writes_freely(self.memory.current(*slot));
            dirty |= covered;
            if covered {
                self.dirty.forget(*slot);
            }
        }
        let missed = |((_, slot), record): &(&(Pe, u64), &Record)| {
            slots.contains(slot) && !(**record == Record::Excused && dirty)
        };
        let lost = self.dirty.stores.iter().find(missed).map(|((pe, slot), _)| (*pe, *slot));
        if let Some((pe, slot)) = lost {
            let what = format!("{slot:#x}: a store of PE {pe} is not recorded");
            self.blame(Defect::LostDirty, what, &[About::Slot(slot)]);
        }
        slots.iter().for_each(|slot| self.dirty.forget(*slot));
    }

    /// Nobody may go on writing through an entry that records nothing while the descriptor no longer
    /// says dirty: what is written from now on would be lost.
    fn check_no_silent_writer(&mut self, slot: u64) {
        let bits = self.memory.current(slot);
        if self.is_leaf(slot, bits) && writes_freely(bits) {
            return;
        }
        let writer = self
            .tlb
            .of_slot(slot)
            .find(|(entry, _)| entry.is_leaf() && writes_freely(entry.bits))
            .map(|(entry, held)| (*entry, held.any()));
        if let Some((entry, mask)) = writer {
            let who = pes(mask & self.everybody()).map(|pe| pe.to_string()).collect::<Vec<_>>();
            let what = format!(
                "{slot:#x}: PE {} may go on writing by {:#x}, with no record",
                who.join(", "),
                entry.bits
            );
            self.blame(Defect::LostDirty, what, &[About::Entry(entry)]);
        }
    }
}
