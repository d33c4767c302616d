//! Conventions that keep writers of one descriptor apart: locks, Dead slots, transactions.

use std::collections::BTreeMap;

use super::Model;
use super::evidence::About;
use crate::event::Pe;
use crate::memory::page;
use crate::verdict::Defect;

#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    /// Who made a slot Dead.
    dead: BTreeMap<u64, Pe>,
    /// Transactions under way on a descriptor.
    open: BTreeMap<u64, Pe>,
}

impl Model {
    /// A Dead slot is written only by who made it Dead, or holds the lock of its table.
    pub(super) fn check_owner(&mut self, pe: Pe, slot: u64, old: u64, new: u64) {
        if self.machine.dead.is_none() {
            return;
        }
        let owner = self.owners.dead.get(&slot) == Some(&pe);
        let locked = self.pes[pe].locks.contains(&page(slot));
        if Some(old) == self.machine.dead && new != old && !owner && !locked {
            let what = format!("{new:#x} to {slot:#x} by PE {pe}");
            self.blame(Defect::WriteToDeadSlot, what, &[About::Slot(slot)]);
        }
        if Some(new) == self.machine.dead {
            self.owners.dead.insert(slot, pe);
        } else {
            self.owners.dead.remove(&slot);
        }
    }

    pub(super) fn start(&mut self, pe: Pe, slot: u64) {
        if let Some(other) = self.owners.open.insert(slot, pe) {
            let what = format!("{slot:#x}: PE {pe} starts, PE {other} has not committed");
            self.blame(Defect::UnmatchedTransaction, what, &[About::Slot(slot)]);
        }
    }

    pub(super) fn commit(&mut self, pe: Pe, slot: u64) {
        let what = match self.owners.open.remove(&slot) {
            Some(by) if by == pe => return,
            Some(by) => format!("{slot:#x}: PE {pe} commits what PE {by} started"),
            None => format!("{slot:#x}: PE {pe} commits what nobody started"),
        };
        self.blame(Defect::UnmatchedTransaction, what, &[About::Slot(slot)]);
    }

    /// At the end nothing is under way.
    pub(super) fn check_all_closed(&mut self) {
        let open: Vec<(u64, Pe)> = self.owners.open.iter().map(|(slot, pe)| (*slot, *pe)).collect();
        for (slot, pe) in open {
            let what = format!("{slot:#x}: PE {pe} never commits");
            self.blame(Defect::UnmatchedTransaction, what, &[About::Slot(slot)]);
        }
        for pe in 0..self.pes.len() {
            for table in self.pes[pe].locks.clone() {
                let what = format!("PE {pe} never gives back table {table:#x}");
                self.blame(Defect::LockState, what, &[About::Table(table)]);
            }
        }
    }

    pub(super) fn lock(&mut self, pe: Pe, table: u64) {
        if let Some(other) = (0..self.pes.len()).find(|pe| self.pes[*pe].locks.contains(&table)) {
            let what = format!("table {table:#x} is locked by PE {other}");
            self.blame(Defect::LockState, what, &[About::Table(table)]);
        }
        let place = |table| self.places_of(table).next().map(|(place, _)| (place.level, place.ipa));
        if let Some((level, ipa)) = place(table) {
            let held = self.pes[pe].locks.iter().filter_map(|held| Some((*held, place(*held)?)));
            let wrong = held.into_iter().find(|(_, (l, i))| *l > level || *l == level && *i >= ipa);
            if let Some((other, (l, i))) = wrong {
                let what = format!("level {level} at IPA {ipa:#x} after level {l} at IPA {i:#x}");
                self.blame(Defect::LockOrder, what, &[About::Table(table), About::Table(other)]);
            }
        }
        self.pes[pe].locks.push(table);
    }

    pub(super) fn unlock(&mut self, pe: Pe, table: u64) {
        match self.pes[pe].locks.iter().rposition(|held| *held == table) {
            Some(at) => _ = self.pes[pe].locks.remove(at),
            None => {
                let what = format!("PE {pe} does not hold {table:#x}");
                self.blame(Defect::LockState, what, &[About::Table(table)]);
            }
        }
    }
}
