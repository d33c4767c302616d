//! Walks: what a PE may read it may hold.

use super::Model;
use super::evidence::About;
use crate::descriptor::{Kind, LEAF_LEVEL, accessed, shift};
use crate::event::Pe;
use crate::memory::page;
use crate::tlb::{EL2, Entry, Mask, Place, Regime, pes};
use crate::verdict::Defect;

/// Whose store may make tables walkable, and whether it had no release order.
#[derive(Clone, Copy)]
pub(super) struct Publisher {
    pub(super) pe: Pe,
    pub(super) relaxed: bool,
}

impl Model {
    pub(super) fn set_vttbr(&mut self, pe: Pe, value: u64) {
        let current = self.pes[pe].vttbr.last().copied().unwrap_or(0);
        if self.pes[pe].walking && current != value && current != 0 {
            let what = format!("PE {pe} from {current:#x} to {value:#x}");
            self.blame(Defect::WalkAcrossSwitch, what, &[About::Vttbr(pe)]);
        }
        self.pes[pe].vttbr.push(value);
        self.roots.insert((value >> 48) as Regime, value);
        for place in self.root_places(value) {
            self.open(place, 1 << pe, None);
        }
    }

    /// A context synchronization event: only the newest value of VTTBR_EL2 remains, and what the PE's
    /// own TLBIs took away is gone for the PE itself, too \[RBLDZX\].
    pub(super) fn synchronize(&mut self, pe: Pe) {
        self.pes[pe].walking = true;
        self.pes[pe].unsynchronized.clear();
        if self.pes[pe].vttbr.len() < 2 {
            return;
        }
        let newest = self.pes[pe].vttbr.pop();
        let dropped = core::mem::replace(&mut self.pes[pe].vttbr, newest.into_iter().collect());
        for value in dropped {
            for place in self.root_places(value) {
                self.close_unless_reached(pe, &place);
            }
        }
    }

    /// The pages of a root, by the value of VTTBR_EL2. 0 is no root.
    pub(super) fn root_places(&self, vttbr: u64) -> Vec<Place> {
        let (regime, root) = ((vttbr >> 48) as Regime, vttbr & 0x0000_ffff_ffff_fffe);
        let level = self.machine.start_level;
        let page =
            |n| Place { table: root + n * 0x1000, regime, level, ipa: n << (shift(level) + 9) };
        (0..if root == 0 { 0 } else { self.machine.root_pages }).map(page).collect()
    }

    /// EL2's own root, an L0 table, from where every PE may walk at any time.
    pub(super) fn el2_place(&self) -> Option<Place> {
        self.el2_root.map(|table| Place { table, regime: EL2, level: 0, ipa: 0 })
    }

    pub(super) fn set_el2_root(&mut self, root: u64) {
        if !self.memory.is_table(root) {
            self.memory.add_table(root);
        }
        self.el2_root = Some(root);
        if let Some(place) = self.el2_place() {
            self.open(place, self.everybody(), None);
        }
    }

    fn is_root(&self, pe: Pe, place: &Place) -> bool {
        if place.regime == EL2 {
            return self.el2_place() == Some(*place);
        }
        place.level == self.machine.start_level
            && self.pes[pe].vttbr.iter().any(|vttbr| self.root_places(*vttbr).contains(place))
    }

    /// Who may walk a page, and as what.
    pub(super) fn places_of(&self, table: u64) -> impl Iterator<Item = (Place, Mask)> {
        let first = Place { table, regime: 0, level: 0, ipa: 0 };
        let next = Place { table: table + 1, ..first };
        self.places.range(first..next).map(|(place, mask)| (*place, *mask))
    }

    /// The PEs of `mask` may walk a place: what they may read there they may hold.
    pub(super) fn open(&mut self, place: Place, mask: Mask, publisher: Option<Publisher>) {
        if place.level > LEAF_LEVEL {
            return;
        }
        let open = self.places.entry(place).or_default();
        let fresh = mask & !*open;
        *open |= mask;
        if fresh == 0 {
            return;
        }
        let slots = self.memory.slots_of(place.table);
        if let Some(publisher) = publisher {
            self.check_filled(&place, &slots, publisher);
        }
        for slot in slots {
            for pe in pes(fresh) {
                let values: Vec<u64> = self.memory.readable(pe, slot).collect();
                for bits in values {
                    self.hold(1 << pe, place.entry(slot, bits), publisher);
                }
            }
        }
    }

    /// The last entry that led `pe` to a place may be gone.
    pub(super) fn close_unless_reached(&mut self, pe: Pe, place: &Place) {
        let led = self.tlb.leading_to(place).any(|(_, held)| held.stage2 >> pe & 1 != 0);
        if led || self.is_root(pe, place) {
            return;
        }
        if let Some(mask) = self.places.get_mut(place) {
            *mask &= !(1 << pe);
            if *mask == 0 {
                self.places.remove(place);
            }
        }
    }

    /// The PEs of `mask` may hold the entry, if it is one that a TLB holds at all.
    fn hold(&mut self, mask: Mask, entry: Entry, publisher: Option<Publisher>) {
        let cacheable = match entry.kind() {
            Kind::Fault => false,
            Kind::Table(_) => true,
            Kind::Leaf(_) => accessed(entry.bits) || self.machine.hw_access,
        };
        if !cacheable {
            return;
        }
        let fresh = self.tlb.insert(mask, entry);
        if fresh != 0 {
            self.check_conflicts(fresh, &entry);
            if let Some(below) = entry.below() {
                self.open(below, fresh, publisher);
            }
        }
    }

    /// A descriptor has a new value: whoever may walk its table may read it.
    pub(super) fn read_again(&mut self, slot: u64, new: u64, publisher: Option<Publisher>) {
        let places: Vec<(Place, Mask)> = self.places_of(page(slot)).collect();
        for (place, mask) in places {
            self.hold(mask, place.entry(slot, new), publisher);
        }
    }

    /// Whether `pe` may still walk a place if the entries that `gone` names are removed.
    pub(super) fn reachable(&self, pe: Pe, place: &Place, gone: &impl Fn(&Entry) -> bool) -> bool {
        self.is_root(pe, place)
            || self
                .tlb
                .leading_to(place)
                .filter(|(_, held)| held.stage2 >> pe & 1 != 0)
                .any(|(entry, _)| !gone(entry) || self.readable_again(pe, entry, gone))
    }

    /// Whether `pe` could read an entry again at once if those that `gone` names were removed.
    pub(super) fn readable_again(
        &self,
        pe: Pe,
        entry: &Entry,
        gone: &impl Fn(&Entry) -> bool,
    ) -> bool {
        self.memory.readable(pe, entry.slot).any(|bits| bits == entry.bits)
            && self.reachable(pe, &entry.place(), gone)
    }
}
