//! The model: applies events and says what is wrong with them.
//!
//! ```text
//!  event ─▶ memory (which values may be read) ─▶ places (which tables may be walked, as what)
//!                                                     │ every walk that is possible happens
//!                                                     ▼
//!                              verdicts ◀─────────── TLB (which entries may be held)
//! ```
//!
//! A *place* is a table page as one PE may walk it: under a VMID, at a level, for a range of IPAs. A PE
//! may walk from the root that its VTTBR_EL2 names, and on from any intermediate entry that it may
//! hold, even one whose table is no longer linked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::descriptor::{self, Kind, LEAF_LEVEL, accessed, kind, shift};
use crate::event::{Aim, Dsb, Event, Pe, Scope};
use crate::memory::{Memory, page};
use crate::tlb::{Entry, Form, Pending, Tlb, hits};
use crate::verdict::{Defect, Verdict};

mod check;

/// The access flag.
const ACCESSED: u64 = 1 << 10;
/// S2AP\[1\]: with DBM, the dirty state.
const DIRTY: u64 = 1 << 7;
/// Dirty bit modifier.
const DBM: u64 = 1 << 51;

/// The machine that is modelled, and what it must know of the software's conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// PEs, all in one Inner Shareable domain; 64 at the most.
    pub pes: usize,
    /// Level at which walks start.
    pub start_level: u8,
    /// Tables of the start level side by side.
    pub root_pages: u64,
    /// FEAT_BBM: 0, 1 or 2.
    pub bbm: u8,
    /// VTCR_EL2.HA.
    pub hw_access: bool,
    /// VTCR_EL2.HD.
    pub hw_dirty: bool,
    /// What software writes into slots of a table that is going away.
    pub dead: Option<u64>,
}

impl Default for Machine {
    /// Two PEs, walks from level 1, one root page, nothing optional.
    fn default() -> Self {
        Self {
            pes: 2,
            start_level: 1,
            root_pages: 1,
            bbm: 0,
            hw_access: false,
            hw_dirty: false,
            dead: None,
        }
    }
}

/// A table page as a PE may walk it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    vmid: u16,
    table: u64,
    level: u8,
    ipa: u64,
}

impl Place {
    fn entry(&self, slot: u64, bits: u64) -> Entry {
        let index = (slot & 0xfff) / 8;
        Entry {
            vmid: self.vmid,
            ipa: self.ipa + (index << shift(self.level)),
            level: self.level,
            form: Form::Stage2,
            slot,
            bits,
        }
    }

    /// Where an entry was read.
    fn of(entry: &Entry) -> Self {
        let index = (entry.slot & 0xfff) / 8;
        Self {
            vmid: entry.vmid,
            table: page(entry.slot),
            level: entry.level,
            ipa: entry.ipa - (index << shift(entry.level)),
        }
    }

    fn below(&self, entry: &Entry) -> Option<Self> {
        match entry.kind() {
            Kind::Table(table) => {
                Some(Self { vmid: self.vmid, table, level: self.level + 1, ipa: entry.ipa })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct PeState {
    /// Values of VTTBR_EL2 that walks may use: the last is the newest.
    vttbr: Vec<u64>,
    /// Walks for the value in force may be going on: no DSB since it came into force.
    walking: bool,
    pending: Vec<Pending>,
    locks: Vec<u64>,
    /// Event at which the maintenance began that the PE has done since it last did anything else.
    maintains: Option<usize>,
    places: BTreeSet<Place>,
}

/// The state of the machine.
#[derive(Clone, Debug)]
pub struct Model {
    machine: Machine,
    memory: Memory,
    tlb: Tlb,
    pes: Vec<PeState>,
    /// Stores of guests whose record in a descriptor may be on its way.
    unrecorded: BTreeSet<(Pe, u64)>,
    /// The value of VTTBR_EL2 last used for each VMID.
    roots: BTreeMap<u16, u64>,
    trace: Vec<Event>,
    verdicts: Vec<Verdict>,
}

impl Model {
    /// No tables, no translations, no VMID in force anywhere.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            memory: Memory::default(),
            tlb: Tlb::default(),
            pes: vec![PeState::default(); machine.pes],
            unrecorded: BTreeSet::new(),
            roots: BTreeMap::new(),
            trace: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// What was applied so far.
    #[must_use]
    pub fn trace(&self) -> &[Event] {
        &self.trace
    }

    /// Whether every slot of a table page holds 0.
    #[must_use]
    pub fn is_blank(&self, table: u64) -> bool {
        self.memory.is_blank(table)
    }

    /// Applies one event, and records what is wrong with it. An event of a PE that the machine does not
    /// have is ignored.
    pub fn apply(&mut self, event: &Event) {
        if event.pe() < self.pes.len() {
            self.step(event);
        }
        self.trace.push(event.clone());
    }

    fn step(&mut self, event: &Event) {
        let at = self.trace.len();
        let maintains = &mut self.pes[event.pe()].maintains;
        match event {
            Event::Dsb { .. } | Event::Tlbi { .. } | Event::SetVttbr { .. } | Event::Isb { .. } => {
                maintains.get_or_insert(at);
            }
            Event::Flushed { .. } => {}
            _ => *maintains = None,
        }
        match *event {
            Event::SetVttbr { pe, value } => {
                let current = self.pes[pe].vttbr.last().copied().unwrap_or(0);
                if self.pes[pe].walking && current != value && current != 0 {
                    let what = format!("PE {pe} from {current:#x} to {value:#x}");
                    self.blame(Defect::WalkAcrossSwitch, what);
                }
                self.pes[pe].vttbr.push(value);
                self.roots.insert((value >> 48) as u16, value);
                self.walk_all(pe);
            }
            Event::Isb { pe } => {
                let vttbr = &mut self.pes[pe].vttbr;
                vttbr.drain(..vttbr.len().saturating_sub(1));
                self.pes[pe].walking = true;
                self.find_places(pe);
            }
            Event::Write { pe, slot, new, atomic, relaxed } => {
                self.write(pe, slot, new, atomic, relaxed);
            }
            Event::HwUpdate { slot, new, .. } => self.hw_update(slot, new),
            Event::GuestStore { pe, slot } => {
                let bits = self.memory.current(slot);
                if self.machine.hw_dirty && bits & DBM != 0 && !descriptor::dirty(bits) {
                    self.unrecorded.insert((pe, slot));
                }
            }
            Event::Harvested { slot, .. } => {
                if let Some((pe, _)) = self.unrecorded.iter().find(|(_, stored)| *stored == slot) {
                    let what = format!("{slot:#x}: a store of PE {pe} is not recorded yet");
                    self.blame(Defect::LostDirty, what);
                }
            }
            Event::Dsb { pe, kind } => self.barrier(pe, kind),
            Event::Tlbi { pe, scope, aim } => {
                let pending = self.invalidate(pe, scope, aim);
                self.pes[pe].pending.push(pending);
            }
            Event::AllocTable { table, .. } => self.memory.add_table(table),
            Event::FreeTable { table, .. } => {
                self.check_table_gone(table, Defect::TableStillWalked);
                self.memory.remove_table(table);
            }
            Event::Scribble { table, .. } => {
                self.check_table_gone(table, Defect::TableScribbled);
            }
            Event::FreeFrame { frame, bytes, .. } => self.check_frame_gone(frame, bytes),
            Event::Flushed { pe, vmid, span } => {
                let since = self.pes[pe].maintains.take().unwrap_or(at);
                self.check_flushed(vmid, span, since);
            }
            Event::ReuseVmid { vmid, .. } => self.check_vmid_gone(vmid),
            Event::Lock { pe, table } => self.lock(pe, table),
            Event::Unlock { pe, table } => self.unlock(pe, table),
        }
    }

    fn blame(&mut self, defect: Defect, what: String) {
        self.verdicts.push(Verdict { defect, at: self.trace.len(), what });
    }

    /// Every place that `pe` may walk: from its roots by what it may read, and from intermediate
    /// entries that it may hold and `without` does not exclude.
    fn places(&self, pe: Pe, without: impl Fn(&Entry) -> bool) -> BTreeSet<Place> {
        let mut todo: Vec<Place> = Vec::new();
        for vttbr in &self.pes[pe].vttbr {
            todo.extend(self.root_places(*vttbr));
        }
        for entry in self.tlb.of(pe).filter(|entry| entry.form == Form::Stage2 && !without(entry)) {
            let place = Place { vmid: entry.vmid, table: 0, level: entry.level, ipa: 0 };
            todo.extend(place.below(entry));
        }
        let mut places = BTreeSet::new();
        while let Some(place) = todo.pop() {
            if place.level > LEAF_LEVEL || !places.insert(place) {
                continue;
            }
            for slot in self.memory.slots_of(place.table) {
                for bits in self.memory.readable(pe, slot) {
                    todo.extend(place.below(&place.entry(slot, bits)));
                }
            }
        }
        places
    }

    /// The pages of a root, by the value of VTTBR_EL2. 0 is no root.
    fn root_places(&self, vttbr: u64) -> Vec<Place> {
        let (vmid, root) = ((vttbr >> 48) as u16, vttbr & 0x0000_ffff_ffff_fffe);
        let level = self.machine.start_level;
        let page =
            |n| Place { vmid, table: root + n * 0x1000, level, ipa: n << (shift(level) + 9) };
        (0..if root == 0 { 0 } else { self.machine.root_pages }).map(page).collect()
    }

    fn find_places(&mut self, pe: Pe) {
        self.pes[pe].places = self.places(pe, |_| false);
    }

    /// Everything that `pe` may read by walks, it may hold.
    fn walk_all(&mut self, pe: Pe) {
        self.find_places(pe);
        for place in self.pes[pe].places.clone() {
            for slot in self.memory.slots_of(place.table) {
                let values: Vec<u64> = self.memory.readable(pe, slot).collect();
                for bits in values {
                    self.hold(pe, place.entry(slot, bits));
                }
            }
        }
    }

    /// `pe` may hold the entry, if it is one that a TLB holds at all.
    fn hold(&mut self, pe: Pe, entry: Entry) {
        let cacheable = match entry.kind() {
            Kind::Fault => false,
            Kind::Table(_) => true,
            Kind::Leaf(_) => accessed(entry.bits) || self.machine.hw_access,
        };
        if cacheable && self.tlb.insert(pe, entry) && entry.is_leaf() {
            self.check_conflicts(pe, &entry);
        }
    }

    fn write(&mut self, pe: Pe, slot: u64, new: u64, atomic: bool, relaxed: bool) {
        if !self.memory.is_table(slot) {
            return self.blame(Defect::WriteToNoTable, format!("{new:#x} to {slot:#x}"));
        }
        let old = self.memory.current(slot);
        self.check_write(pe, slot, old, new, atomic);
        self.memory.write(self.trace.len(), pe, slot, new);
        let links = |bits| {
            self.places_of(page(slot)).any(|p| matches!(kind(bits, p.level), Kind::Table(_)))
        };
        if links(new) || links(old) {
            self.check_published(pe, slot, new, relaxed);
            (0..self.pes.len()).for_each(|pe| self.walk_all(pe));
        } else {
            for pe in 0..self.pes.len() {
                let here = |p: &&Place| p.table == page(slot);
                let places: Vec<Place> = self.pes[pe].places.iter().filter(here).copied().collect();
                places.iter().for_each(|place| self.hold(pe, place.entry(slot, new)));
            }
        }
    }

    fn hw_update(&mut self, slot: u64, new: u64) {
        let old = self.memory.current(slot);
        let changed = old ^ new;
        let allowed = ACCESSED | if old & DBM != 0 && self.machine.hw_dirty { DIRTY } else { 0 };
        if old & 1 == 0 || changed & !allowed != 0 || new & changed != changed {
            self.blame(Defect::ImpossibleUpdate, format!("{slot:#x} from {old:#x} to {new:#x}"));
        }
        if descriptor::dirty(new) {
            self.unrecorded.retain(|(_, stored)| *stored != slot);
        }
        self.memory.update(slot, new);
        (0..self.pes.len()).for_each(|pe| self.walk_all(pe));
    }

    fn barrier(&mut self, pe: Pe, kind: Dsb) {
        self.memory.barrier(pe, kind);
        if matches!(kind, Dsb::Ish | Dsb::Nsh) {
            self.pes[pe].walking = false;
        }
        if kind == Dsb::Ish && self.unrecorded.iter().any(|(by, _)| *by == pe) {
            // Hardware made these updates before the DSB was over: the trace should say so.
            let stores: Vec<u64> =
                self.unrecorded.iter().filter(|(by, _)| *by == pe).map(|(_, slot)| *slot).collect();
            for slot in stores {
                self.hw_update(slot, self.memory.current(slot) | DIRTY | ACCESSED);
            }
        }
        let completes = |pending: &Pending| match kind {
            Dsb::Ish => true,
            Dsb::Nsh => pending.local,
            Dsb::IshSt | Dsb::IshLd | Dsb::NshSt | Dsb::NshLd => false,
        };
        let (done, waiting): (Vec<_>, Vec<_>) = self.pes[pe].pending.drain(..).partition(completes);
        self.pes[pe].pending = waiting;
        for pending in done {
            self.complete(&pending);
        }
    }

    /// Notes what a TLBI will have removed once it completes.
    fn invalidate(&self, pe: Pe, scope: Scope, aim: Aim) -> Pending {
        let vmids: BTreeSet<u16> =
            self.pes[pe].vttbr.iter().map(|vttbr| (vttbr >> 48) as u16).collect();
        // Between a write of VTTBR_EL2 and its synchronization, either VMID may be the one that is used:
        // neither is required to be.
        let of_vm = |entry: &Entry| {
            matches!(aim, Aim::All) || (vmids.len() == 1 && vmids.contains(&entry.vmid))
        };
        let mut doomed = BTreeSet::new();
        for target in 0..self.pes.len() {
            if scope == Scope::Local && target != pe {
                continue;
            }
            let hit = |entry: &Entry| of_vm(entry) && hits(aim, entry);
            let again = self.refetchable(target, hit);
            doomed.extend(
                self.tlb.of(target).filter(|e| hit(e) && !again(e)).map(|entry| (target, *entry)),
            );
        }
        Pending { local: scope == Scope::Local, doomed }
    }

    /// Which entries `pe` could hold again at once if those that `gone` names were removed.
    fn refetchable<'s>(
        &'s self,
        pe: Pe,
        gone: impl Fn(&Entry) -> bool + 's,
    ) -> impl Fn(&Entry) -> bool + 's {
        let places = self.places(pe, &gone);
        let by_walk = move |entry: &Entry| {
            places.contains(&Place::of(entry))
                && self.memory.readable(pe, entry.slot).any(|b| b == entry.bits)
        };
        move |entry: &Entry| {
            let stage2 = Entry { form: Form::Stage2, ..*entry };
            let from_stage2 =
                entry.form == Form::Combined && !gone(&stage2) && self.tlb.holds(pe, &stage2);
            from_stage2 || by_walk(&stage2)
        }
    }

    fn complete(&mut self, pending: &Pending) {
        for pe in 0..self.pes.len() {
            let gone = |entry: &Entry| pending.doomed.contains(&(pe, *entry));
            let again = self.refetchable(pe, gone);
            let removed: Vec<Entry> = pending
                .doomed
                .iter()
                .filter(|(target, entry)| *target == pe && !again(entry))
                .map(|(_, entry)| *entry)
                .collect();
            drop(again);
            for entry in &removed {
                self.tlb.remove(pe, entry);
            }
            self.find_places(pe);
        }
    }
}
