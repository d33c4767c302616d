//! What led to a verdict: the events of the trace that matter to it, found by reading it again.
//!
//! It is done when a verdict is given, and never otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::Model;
use crate::descriptor::{Kind, LEAF_LEVEL, kind};
use crate::event::{Aim, Event, Pe};
use crate::invalidate::hits;
use crate::memory::page;
use crate::tlb::{EL2, Entry, Form, Mask, Regime};
use crate::verdict::{Defect, Verdict};

/// What a verdict is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum About {
    /// An entry that somebody may hold.
    Entry(Entry),
    /// A descriptor.
    Slot(u64),
    /// A table page.
    Table(u64),
    /// The value of VTTBR_EL2 of a PE.
    Vttbr(Pe),
}

/// More verdicts than this have no evidence: one mistake often shows at every later step.
const WITH_EVIDENCE: usize = 64;

impl Model {
    pub(super) fn blame(&mut self, defect: Defect, what: String, about: &[About]) {
        let mut events: BTreeSet<usize> = BTreeSet::new();
        if self.verdicts.len() < WITH_EVIDENCE {
            for about in about {
                match about {
                    About::Entry(entry) => self.entry_events(entry, &mut events),
                    About::Slot(slot) => self.slot_events(*slot, &mut events),
                    About::Table(table) => self.table_events(*table, &mut events),
                    About::Vttbr(pe) => self.vttbr_events(*pe, &mut events),
                }
            }
            events.insert(self.now());
        }
        let trace = events.into_iter().map(|at| (at, self.trace[at].clone())).collect();
        self.verdicts.push(Verdict { defect, at: self.now(), what, trace });
    }

    /// All PEs of the machine.
    pub(super) fn everybody(&self) -> Mask {
        if self.pes.len() == 64 { Mask::MAX } else { (1 << self.pes.len()) - 1 }
    }

    /// When an entry was last what its descriptor said, and when it first was not, after that.
    fn life(&self, entry: &Entry) -> (usize, usize) {
        let written = |event: &Event| match *event {
            Event::Write { slot, new, .. } | Event::HwUpdate { slot, new, .. } => Some((slot, new)),
            _ => None,
        };
        let made = self.trace.iter().rposition(|e| written(e) == Some((entry.slot, entry.bits)));
        let made = made.unwrap_or(0);
        let above = self.ancestors(entry);
        let ends = |e: &Event| {
            written(e).is_some_and(|(slot, _)| slot == entry.slot || above.contains(&slot))
        };
        let ended = self.trace[made..].iter().skip(1).position(ends).map(|n| made + 1 + n);
        (made, ended.unwrap_or(made))
    }

    /// Descriptors that ever led to an entry's table.
    fn ancestors(&self, entry: &Entry) -> BTreeSet<u64> {
        let mut above = BTreeSet::new();
        let mut pages = BTreeSet::from([page(entry.slot)]);
        for _ in 0..LEAF_LEVEL {
            for event in &self.trace {
                let Event::Write { slot, new, .. } = *event else { continue };
                if matches!(kind(new, 0), Kind::Table(to) if pages.contains(&to))
                    && page(slot) != page(entry.slot)
                {
                    above.insert(slot);
                }
            }
            pages.extend(above.iter().copied().map(page));
        }
        above
    }

    fn entry_events(&self, entry: &Entry, events: &mut BTreeSet<usize>) {
        let (made, ended) = self.life(entry);
        let above = self.ancestors(entry);
        for (at, event) in self.trace.iter().enumerate().skip(made) {
            let matters = match *event {
                Event::Write { slot, .. } | Event::HwUpdate { slot, .. } => {
                    slot == entry.slot || at > made && above.contains(&slot)
                }
                Event::Dsb { .. } | Event::Tlbi { .. } => at > ended && ended > made,
                Event::SetVttbr { .. } | Event::Isb { .. } => ended > made && at > ended,
                Event::GuestStore { slot, .. } | Event::Harvested { slot, .. } => {
                    slot == entry.slot
                }
                _ => false,
            };
            if matters {
                events.insert(at);
            }
        }
        // Under which VMID the invalidations were executed.
        let maintainers: BTreeSet<Pe> = self.trace[ended..]
            .iter()
            .filter(|event| matches!(event, Event::Tlbi { .. }))
            .map(Event::pe)
            .collect();
        for pe in maintainers {
            self.vttbr_before(pe, ended, events);
        }
    }

    fn vttbr_before(&self, pe: Pe, before: usize, events: &mut BTreeSet<usize>) {
        let set = |e: &Event| matches!(e, Event::SetVttbr { pe: by, .. } if *by == pe);
        if let Some(at) = self.trace[..before].iter().rposition(set) {
            events.insert(at);
            let isb = |e: &Event| *e == Event::Isb { pe };
            events.extend(self.trace[at..before].iter().position(isb).map(|n| at + n));
        }
    }

    fn vttbr_events(&self, pe: Pe, events: &mut BTreeSet<usize>) {
        self.vttbr_before(pe, self.now(), events);
    }

    fn slot_events(&self, about: u64, events: &mut BTreeSet<usize>) {
        // The barriers of those who wrote or stored there matter, too.
        let mut users = BTreeSet::new();
        for (at, event) in self.trace.iter().enumerate() {
            let touches = match *event {
                Event::Write { slot, .. }
                | Event::HwUpdate { slot, .. }
                | Event::GuestStore { slot, .. }
                | Event::Harvested { slot, .. }
                | Event::Start { slot, .. }
                | Event::Commit { slot, .. } => slot == about,
                Event::Dsb { pe, .. } => users.contains(&pe),
                _ => false,
            };
            if touches {
                users.insert(event.pe());
                events.insert(at);
            }
        }
    }

    fn table_events(&self, about: u64, events: &mut BTreeSet<usize>) {
        for (at, event) in self.trace.iter().enumerate() {
            let touches = match *event {
                Event::AllocTable { table, .. }
                | Event::FreeTable { table, .. }
                | Event::ListTable { table, .. }
                | Event::Scribble { table, .. }
                | Event::Lock { table, .. }
                | Event::Unlock { table, .. } => table == about,
                _ => false,
            };
            if touches {
                events.insert(at);
            }
        }
    }

    /// Whether an invalidation since the entry's end would have hit it, but acted on another VMID, or
    /// on one that was not determined.
    pub(super) fn wrong_vmid(&self, entry: &Entry) -> bool {
        if entry.regime == EL2 {
            return false;
        }
        let (made, ended) = self.life(entry);
        let ended = if ended > made { ended } else { self.trace.len() };
        // Another VM's own flush in between is none of this entry's business.
        let concerned: BTreeSet<Pe> =
            self.trace.get(ended).into_iter().chain(self.trace.last()).map(Event::pe).collect();
        let mut vmids: BTreeMap<Pe, Vec<Regime>> =
            concerned.iter().map(|pe| (*pe, vec![])).collect();
        for (at, event) in self.trace.iter().enumerate() {
            let Some(vmids) = vmids.get_mut(&event.pe()) else { continue };
            match *event {
                Event::SetVttbr { value, .. } => vmids.push((value >> 48) as Regime),
                Event::Isb { .. } => _ = vmids.drain(..vmids.len().saturating_sub(1)),
                Event::Tlbi { aim, .. } if at > ended => {
                    let hit = hits(aim, entry, Form::Stage2) || hits(aim, entry, Form::Combined);
                    let right = vmids.iter().all(|vmid| *vmid == entry.regime);
                    if hit && !right && aim != Aim::All {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}
