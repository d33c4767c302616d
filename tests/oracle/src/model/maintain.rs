//! Barriers and invalidations: the only way out of a TLB.
//!
//! An invalidation is noted when it is executed and takes effect when a DSB of its scope completes it.
//! It removes an entry only if, at both moments, no walk could fetch the entry again:
//! * the old descriptor is not readable, because another stands and the store has completed,
//! * or nothing that the invalidation spares leads to its table;
//! * a combined entry goes only if its stage-2 entry is gone already, or goes with it;
//! * where a PE holds two sizes of one translation, which FEAT_BBM permits for a while, only `VMALLS12E1` and `ALLE1`
//!   are sure to remove all of them \[RGRVDR, RBLRKC, IJCCRT\].
//!
//! What a PE's own invalidation took away the PE itself may use until its next context synchronization
//! \[RBLDZX\]; another PE's that reaches it ends that, too, at its own DSB.

use std::collections::BTreeSet;

use super::Model;
use crate::descriptor;
use crate::event::{Aim, Dsb, Pe, Scope};
use crate::invalidate::{hits, span};
use crate::memory::page;
use crate::tlb::{EL2, Entry, Form, Held, Mask, Place, Regime, pes};

/// A TLBI that was executed and is not complete.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    local: bool,
    aim: Aim,
    /// Of which VM, where it is about one, and that is determined.
    regime: Option<Regime>,
    /// What it removes once complete, and from whom; in order.
    doomed: Vec<(Entry, Held)>,
    /// What other PEs may only use because they have not synchronized.
    others: Vec<(Pe, Entry, Form)>,
}

impl Pending {
    /// Whether it must hit an entry that is there when it is executed.
    fn hits(&self, entry: &Entry, form: Form) -> bool {
        (self.aim == Aim::All || self.regime == Some(entry.regime)) && hits(self.aim, entry, form)
    }

    fn everything(&self) -> bool {
        matches!(self.aim, Aim::All | Aim::Vm | Aim::El2All)
    }

    fn takes(&self, pe: Pe, entry: &Entry, form: Form) -> bool {
        self.doomed.binary_search_by_key(entry, |(entry, _)| *entry).is_ok_and(|at| {
            let held = self.doomed[at].1;
            let mask = if form == Form::Stage2 { held.stage2 } else { held.combined };
            mask >> pe & 1 != 0
        })
    }
}

impl Model {
    pub(super) fn invalidate(&mut self, pe: Pe, scope: Scope, aim: Aim) {
        let targets = match scope {
            Scope::Local => 1 << pe,
            Scope::Is => Mask::MAX,
        };
        let mut doomed: Vec<(Entry, Held)> = match (aim, self.aimed_at(pe, aim)) {
            (Aim::All, _) => self.doomed(self.tlb.all(), None, targets, aim),
            // Between a write of VTTBR_EL2 and its synchronization, either VMID may be the one that
            // is used: neither is required to be.
            (_, None) => Vec::new(),
            (Aim::Vm | Aim::El2All, Some(regime)) => {
                self.doomed(self.tlb.of_regime(regime), Some(regime), targets, aim)
            }
            (Aim::VmStage1, Some(regime)) => {
                let orphans = self.tlb.orphans().filter(|(entry, _)| entry.regime == regime);
                self.doomed(orphans, Some(regime), targets, aim)
            }
            (_, Some(regime)) => {
                let (start, end) = span(aim).unwrap_or_default();
                self.doomed(self.tlb.spanning(regime, start, end), Some(regime), targets, aim)
            }
        };
        doomed.sort_unstable_by_key(|(entry, _)| *entry);
        let local = scope == Scope::Local;
        let others = if local { Vec::new() } else { self.unsynchronized(pe, aim) };
        let regime = self.aimed_at(pe, aim);
        self.pes[pe].pending.push(Pending { local, aim, regime, doomed, others });
    }

    /// What PEs other than `by` have taken away and not synchronized, as far as an invalidation of `by`
    /// hits it: a combined entry only if it cannot be made again from its stage-2 one.
    fn unsynchronized(&self, by: Pe, aim: Aim) -> Vec<(Pe, Entry, Form)> {
        let regime = self.aimed_at(by, aim);
        let aimed = |entry: &Entry| aim == Aim::All || regime == Some(entry.regime);
        let mut found = Vec::new();
        for (pe, state) in self.pes.iter().enumerate().filter(|(pe, _)| *pe != by) {
            for (entry, form) in state.unsynchronized.iter().filter(|(entry, _)| aimed(entry)) {
                let made_again = *form == Form::Combined
                    && !hits(aim, entry, Form::Stage2)
                    && state.unsynchronized.contains(&(*entry, Form::Stage2));
                if hits(aim, entry, *form) && !made_again {
                    found.push((pe, *entry, *form));
                }
            }
        }
        found
    }

    /// Whose entries an invalidation of `pe` is aimed at, if that is one regime and determined.
    fn aimed_at(&self, pe: Pe, aim: Aim) -> Option<Regime> {
        if aim.is_el2() { Some(EL2) } else { self.vmid_in_force(pe) }
    }

    /// The VMID that `IPAS2*` and `VMALL*` of `pe` act on, if that is determined.
    fn vmid_in_force(&self, pe: Pe) -> Option<Regime> {
        let vmid = |vttbr: &u64| (vttbr >> 48) as Regime;
        let mut vmids = self.pes[pe].vttbr.iter().map(vmid);
        let first = vmids.next()?;
        vmids.all(|vmid| vmid == first).then_some(first)
    }

    /// Which of the candidates the invalidation removes, and from whom.
    fn doomed<'t>(
        &self,
        candidates: impl Iterator<Item = (&'t Entry, Held)>,
        regime: Option<Regime>,
        targets: Mask,
        aim: Aim,
    ) -> Vec<(Entry, Held)> {
        let hit = |entry: &Entry, form| {
            regime.is_none_or(|regime| entry.regime == regime) && hits(aim, entry, form)
        };
        let gone = |entry: &Entry| hit(entry, Form::Stage2);
        let mut doomed = Vec::new();
        for (entry, held) in candidates {
            let mut out = Held::default();
            for pe in pes(held.any() & targets) {
                let bit = 1 << pe;
                let stays = held.stage2 & bit != 0 && !gone(entry);
                let surely = matches!(aim, Aim::All | Aim::Vm | Aim::El2All)
                    || !self.held_in_two_sizes(pe, entry);
                if stays || !surely || self.readable_again(pe, entry, &gone) {
                    continue;
                }
                if gone(entry) {
                    out.stage2 |= held.stage2 & bit;
                }
                if hit(entry, Form::Combined) {
                    out.combined |= held.combined & bit;
                }
            }
            if out.any() != 0 {
                doomed.push((*entry, out));
            }
        }
        doomed
    }

    /// Whether `pe` holds another entry beside this one that translates one of its IPAs in another size, or leads on
    /// where it translates.
    fn held_in_two_sizes(&self, pe: Pe, entry: &Entry) -> bool {
        let (start, end) = entry.extent();
        let run = |entry: &Entry| descriptor::contiguous(entry.bits);
        let differs = |other: &Entry| match (entry.is_leaf(), other.is_leaf()) {
            (true, true) => entry.level != other.level || run(entry) != run(other),
            (false, false) => false,
            _ => entry.slot == other.slot,
        };
        self.machine.bbm != 0
            && self
                .tlb
                .overlapping(entry.regime, start, end)
                .any(|(other, held)| held.any() >> pe & 1 != 0 && differs(other))
    }

    /// Hardware has updated a descriptor. An invalidation under way that takes away what stood there
    /// waits for the walk that made the update, and takes what that walk leaves in a TLB.
    pub(super) fn updated(&mut self, slot: u64, old: u64, new: u64) {
        for pending in self.pes.iter_mut().flat_map(|state| &mut state.pending) {
            let old = pending.doomed.iter().filter(|(it, _)| (it.slot, it.bits) == (slot, old));
            let new: Vec<_> = old.map(|(it, held)| (Entry { bits: new, ..*it }, *held)).collect();
            if !new.is_empty() {
                pending.doomed.extend(new);
                pending.doomed.sort_unstable_by_key(|(entry, _)| *entry);
                pending.doomed.dedup_by_key(|(entry, _)| *entry);
            }
        }
    }

    /// Software has written a descriptor of a table to which walks come only by what an invalidation under way takes
    /// away. Those walks are over when it is complete, and what they leave in a TLB it takes, too: no PE can
    /// walk there once it has done its part of it.
    pub(super) fn caught(&mut self, slot: u64, new: u64) {
        let mut caught = Vec::new();
        for (place, mask) in self.places_of(page(slot)) {
            let entry = place.entry(slot, new);
            for (by, state) in self.pes.iter().enumerate() {
                for (at, pending) in state.pending.iter().enumerate() {
                    let cut = |pe: &Pe| {
                        let gone = |entry: &Entry| pending.takes(*pe, entry, Form::Stage2);
                        (*pe == by || !pending.local)
                            && !self.reachable(*pe, &place, &gone)
                            && (pending.everything() || !self.held_in_two_sizes(*pe, &entry))
                    };
                    let from =
                        pes(mask & self.everybody()).filter(cut).fold(0, |m, pe| m | 1 << pe);
                    let form = |form| if pending.hits(&entry, form) { from } else { 0 };
                    let held = Held { stage2: form(Form::Stage2), combined: form(Form::Combined) };
                    if held.any() != 0 {
                        caught.push((by, at, entry, held));
                    }
                }
            }
        }
        for (by, at, entry, held) in caught {
            let doomed = &mut self.pes[by].pending[at].doomed;
            match doomed.binary_search_by_key(&entry, |(entry, _)| *entry) {
                Ok(at) => {
                    doomed[at].1.stage2 |= held.stage2;
                    doomed[at].1.combined |= held.combined;
                }
                Err(at) => doomed.insert(at, (entry, held)),
            }
        }
    }

    pub(super) fn barrier(&mut self, pe: Pe, kind: Dsb) {
        self.memory.barrier(self.trace.len() - 1, pe, kind);
        if matches!(kind, Dsb::Ish | Dsb::Nsh) {
            self.pes[pe].walking = false;
        }
        if kind == Dsb::Ish {
            self.records_complete(pe);
        }
        let completes = |pending: &Pending| match kind {
            Dsb::Ish => true,
            Dsb::Nsh => pending.local,
            Dsb::IshSt | Dsb::IshLd | Dsb::NshSt | Dsb::NshLd => false,
        };
        if !self.pes[pe].pending.iter().any(completes) {
            return;
        }
        let (done, waiting): (Vec<_>, Vec<_>) = self.pes[pe].pending.drain(..).partition(completes);
        self.pes[pe].pending = waiting;
        for pending in done {
            self.complete(pe, &pending);
        }
        self.settle_risks();
    }

    /// Removes what a TLBI of `by` doomed, but for what was read again meanwhile.
    fn complete(&mut self, by: Pe, pending: &Pending) {
        let mut removed: Vec<(Entry, Held)> = Vec::new();
        for (entry, doomed) in &pending.doomed {
            let held = self.tlb.held(entry);
            let mut out = Held::default();
            for pe in pes(doomed.any()) {
                let bit = 1 << pe;
                let gone = |entry: &Entry| pending.takes(pe, entry, Form::Stage2);
                let stays = held.stage2 & bit != 0 && !gone(entry);
                if !stays && !self.readable_again(pe, entry, &gone) {
                    // Another PE's may have come before.
                    out.stage2 |= doomed.stage2 & held.stage2 & bit;
                    out.combined |= doomed.combined & held.combined & bit;
                }
            }
            if out.any() != 0 {
                removed.push((*entry, out));
            }
        }
        let mut closed: BTreeSet<(Pe, Place)> = BTreeSet::new();
        for (entry, out) in &removed {
            self.tlb.remove(entry, out.stage2, out.combined);
            for (form, mask) in [(Form::Stage2, out.stage2), (Form::Combined, out.combined)] {
                if mask >> by & 1 != 0 {
                    self.pes[by].unsynchronized.push((*entry, form));
                }
            }
            if let Some(below) = entry.below() {
                closed.extend(pes(out.stage2).map(|pe| (pe, below)));
            }
        }
        for (pe, place) in closed {
            self.close_unless_reached(pe, &place);
        }
        for (pe, state) in self.pes.iter_mut().enumerate().filter(|(pe, _)| *pe != by) {
            state.unsynchronized.retain(|(entry, form)| {
                !pending.takes(pe, entry, *form) && !pending.others.contains(&(pe, *entry, *form))
            });
        }
    }
}
