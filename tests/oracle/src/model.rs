//! The model: applies events and says what is wrong with them.
//!
//! ```text
//!  event ─▶ memory (which values may be read) ─▶ places (which tables may be walked, as what)
//!                                                     │ every walk that is possible happens
//!                                                     ▼
//!                              verdicts ◀─────────── TLB (which entries may be held)
//! ```
//!
//! A *place* is a table page as a PE may walk it. A PE may walk from the root that its VTTBR_EL2 names,
//! and on from any intermediate entry that it may hold, even one whose table is no longer linked.
//! Whatever it may read there it may hold. Two facts are kept true by every step, so that no step has
//! to walk everything again:
//!
//! * a place is open to a PE exactly if it is a root of that PE, or an intermediate entry that the
//!   PE may hold leads there;
//! * of an open place, every readable descriptor that a TLB keeps at all is held.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Pe};
use crate::memory::{Memory, page};
use crate::tlb::{EL2, Entry, Form, Mask, Place, Regime, Tlb};
use crate::verdict::{Defect, Verdict};

mod check;
mod dirty;
mod evidence;
#[cfg(test)]
mod invariants;
mod maintain;
mod owner;
mod walk;

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
    /// VTCR_EL2.HD, which counts only where HA is set, too.
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

impl Machine {
    /// Whether hardware manages the dirty state: HD behaves as 0 where HA is 0 (VTCR_EL2.HD).
    #[must_use]
    pub const fn tracks_dirty(&self) -> bool {
        self.hw_access && self.hw_dirty
    }
}

#[derive(Clone, Debug, Default)]
struct PeState {
    /// Values of VTTBR_EL2 that walks may use: the last is the newest.
    vttbr: Vec<u64>,
    /// Walks for the value in force may be going on: no DSB since it came into force.
    walking: bool,
    /// TLBIs that were executed and are not complete.
    pending: Vec<maintain::Pending>,
    /// What completed invalidations took away from this PE by its own TLBIs, with no context
    /// synchronization since, and in which form.
    unsynchronized: Vec<(Entry, Form)>,
    locks: Vec<u64>,
    /// Event at which the maintenance began that the PE has done since it last did anything else.
    maintains: Option<usize>,
}

/// The state of the machine.
#[derive(Clone, Debug)]
pub struct Model {
    machine: Machine,
    memory: Memory,
    tlb: Tlb,
    /// Tables that may be walked, and by whom.
    places: BTreeMap<Place, Mask>,
    pes: Vec<PeState>,
    dirty: dirty::Dirty,
    owners: owner::Owners,
    /// The value of VTTBR_EL2 last used for each VMID.
    roots: BTreeMap<Regime, u64>,
    /// EL2's own root.
    el2_root: Option<u64>,
    trace: Vec<Event>,
    verdicts: Vec<Verdict>,
}

impl Model {
    /// No tables, no translations, no VMID in force anywhere.
    ///
    /// # Panics
    /// If the machine has more than 64 PEs.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        assert!(machine.pes <= 64, "{} PEs, 64 at the most", machine.pes);
        Self {
            machine,
            memory: Memory::default(),
            tlb: Tlb::default(),
            places: BTreeMap::new(),
            pes: vec![PeState::default(); machine.pes],
            dirty: dirty::Dirty::default(),
            owners: owner::Owners::default(),
            roots: BTreeMap::new(),
            el2_root: None,
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

    /// The machine.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

    /// What a descriptor holds.
    #[must_use]
    pub fn current(&self, slot: u64) -> u64 {
        self.memory.current(slot)
    }

    /// Whether every slot of a table page holds 0.
    #[must_use]
    pub fn is_blank(&self, table: u64) -> bool {
        self.memory.is_blank(table)
    }

    /// Applies one event, and records what is wrong with it. An event of a PE that the machine does not
    /// have is ignored.
    pub fn apply(&mut self, event: &Event) {
        self.trace.push(event.clone());
        if event.pe() < self.pes.len() {
            self.maintains(event);
            self.step(event);
        }
    }

    /// The trace is over: nothing may be left open.
    pub fn finish(&mut self) {
        self.check_all_closed();
    }

    /// Number of the event that is being applied.
    fn now(&self) -> usize {
        self.trace.len().saturating_sub(1)
    }

    /// Keeps the moment at which a PE's current run of maintenance began.
    fn maintains(&mut self, event: &Event) {
        let now = self.now();
        let began = &mut self.pes[event.pe()].maintains;
        match event {
            Event::Dsb { .. } | Event::Tlbi { .. } | Event::SetVttbr { .. } | Event::Isb { .. } => {
                began.get_or_insert(now);
            }
            Event::Flushed { .. } | Event::El2Flushed { .. } => {}
            _ => *began = None,
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::SetVttbr { pe, value } => self.set_vttbr(pe, value),
            Event::Isb { pe } => self.synchronize(pe),
            Event::Write { pe, slot, new, atomic, relaxed } => {
                self.write(pe, slot, new, atomic, relaxed);
            }
            Event::HwUpdate { pe, slot, new, inferred } => {
                self.hw_update(pe, slot, new, inferred);
            }
            Event::GuestStore { pe, slot } => self.guest_store(pe, slot),
            Event::Harvested { slot, count, .. } => self.harvested(slot, count),
            Event::Dsb { pe, kind } => self.barrier(pe, kind),
            Event::Tlbi { pe, scope, aim } => self.invalidate(pe, scope, aim),
            Event::AllocTable { table, .. } => {
                let table = page(table);
                self.check_table_gone(table, Defect::TableReused);
                self.memory.remove_table(table);
                self.memory.add_table(table);
            }
            Event::FreeTable { table, .. } => {
                let table = page(table);
                self.check_table_gone(table, Defect::TableStillWalked);
                self.memory.remove_table(table);
            }
            Event::ListTable { table, .. } => {
                self.check_table_gone(page(table), Defect::TableListed);
            }
            Event::Scribble { table, .. } => {
                self.check_table_gone(page(table), Defect::TableScribbled);
            }
            Event::FreeFrame { frame, bytes, .. } => self.check_frame_gone(frame, bytes),
            Event::Published { pe } => self.check_published(pe),
            Event::Flushed { pe, vmid, span } => {
                let since = self.pes[pe].maintains.take().unwrap_or(self.now());
                self.check_flushed(pe, Regime::from(vmid), span, since);
            }
            Event::El2Root { root, .. } => self.set_el2_root(page(root)),
            Event::El2Flushed { pe } => {
                let since = self.pes[pe].maintains.take().unwrap_or(self.now());
                self.check_flushed(pe, EL2, None, since);
            }
            Event::ReuseVmid { vmid, .. } => self.check_vmid_gone(vmid),
            Event::Lock { pe, table } => self.lock(pe, page(table)),
            Event::Unlock { pe, table } => self.unlock(pe, page(table)),
            Event::Start { pe, slot } => self.start(pe, slot),
            Event::Commit { pe, slot } => self.commit(pe, slot),
        }
    }

    /// Software writes a descriptor.
    fn write(&mut self, pe: Pe, slot: u64, new: u64, atomic: bool, relaxed: bool) {
        if !self.memory.is_table(slot) {
            let what = format!("{new:#x} to {slot:#x}");
            return self.blame(Defect::WriteToNoTable, what, &[evidence::About::Table(page(slot))]);
        }
        let old = self.memory.current(slot);
        self.check_write(pe, slot, old, new);
        self.overwrite(pe, slot, old, new, atomic);
        self.memory.write(self.now(), pe, slot, new, atomic);
        self.read_again(slot, new, Some(walk::Publisher { pe, relaxed }));
        self.caught(slot, new);
    }
}
