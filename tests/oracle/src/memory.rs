//! Table pages, and which values of a descriptor a walk may still read.
//!
//! A store to a descriptor takes effect for other PEs' walks at some moment between its execution
//! and the completion of the next DSB of the PE that stored. Until then a walk may read the old
//! value as well as the new; several stores may be under way at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Dsb, Pe};

/// The page of an address.
pub(crate) const fn page(address: u64) -> u64 {
    address & !0xfff
}

#[derive(Clone, Copy, Debug)]
struct Overwritten {
    /// Event of the store.
    at: usize,
    bits: u64,
    by: Pe,
    /// A DSB NSH has completed the store, for the storing PE only.
    own_done: bool,
    /// By an atomic exchange.
    exchanged: bool,
}

/// A value that a descriptor once held.
#[derive(Clone, Copy, Debug)]
struct Past {
    bits: u64,
    /// Who overwrote it.
    by: Pe,
    /// Event of the store, and of the DSB that completed it.
    at: usize,
    done: usize,
}

/// Descriptors in memory. What was never written is 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    tables: BTreeSet<u64>,
    slots: BTreeMap<u64, u64>,
    /// Values that incomplete stores overwrote, oldest first.
    old: BTreeMap<u64, Vec<Overwritten>>,
    /// Every value that was overwritten, oldest first; those whose store is complete come first.
    log: BTreeMap<u64, Vec<Past>>,
}

impl Memory {
    pub(crate) fn is_table(&self, address: u64) -> bool {
        self.tables.contains(&page(address))
    }

    pub(crate) fn add_table(&mut self, table: u64) {
        self.tables.insert(page(table));
    }

    /// The page is no table any more; its content is forgotten.
    pub(crate) fn remove_table(&mut self, table: u64) {
        fn forget<T>(map: &mut BTreeMap<u64, T>, table: u64) {
            let slots: Vec<u64> = map.range(table..table + 0x1000).map(|(slot, _)| *slot).collect();
            for slot in slots {
                map.remove(&slot);
            }
        }
        self.tables.remove(&table);
        forget(&mut self.slots, table);
        forget(&mut self.old, table);
        forget(&mut self.log, table);
    }

    /// Whether every slot of the page holds 0.
    pub(crate) fn is_blank(&self, table: u64) -> bool {
        self.slots.range(table..table + 0x1000).all(|(_, bits)| *bits == 0)
    }

    pub(crate) fn current(&self, slot: u64) -> u64 {
        self.slots.get(&slot).copied().unwrap_or(0)
    }

    pub(crate) fn write(&mut self, at: usize, by: Pe, slot: u64, new: u64, exchanged: bool) {
        let bits = self.slots.insert(slot, new).unwrap_or(0);
        self.log.entry(slot).or_default().push(Past { bits, by, at, done: usize::MAX });
        let overwritten = Overwritten { at, bits, by, own_done: false, exchanged };
        self.old.entry(slot).or_default().push(overwritten);
    }

    /// A hardware update: an atomic change that every walk sees at once, since walks re-read.
    pub(crate) fn update(&mut self, slot: u64, new: u64) {
        self.slots.insert(slot, new);
    }

    /// Every value that a walk of `pe` may read now, the current one first.
    pub(crate) fn readable(&self, pe: Pe, slot: u64) -> impl Iterator<Item = u64> {
        let old = self.old.get(&slot).map_or(&[][..], Vec::as_slice);
        let seen = old.iter().filter(move |o| !(o.own_done && o.by == pe)).map(|o| o.bits);
        core::iter::once(self.current(slot)).chain(seen)
    }

    /// Every value that the descriptor has held since event `since`, before and after what happened
    /// there, as `pe` must see it: a store of another PE counts from the DSB that completed it.
    pub(crate) fn since(&self, pe: Pe, since: usize, slot: u64) -> impl Iterator<Item = u64> {
        let log = self.log.get(&slot).map_or(&[][..], Vec::as_slice);
        let from = log.partition_point(|past| past.done < since);
        let held = log[from..].iter().filter(move |past| past.at >= since || past.by != pe);
        core::iter::once(self.current(slot)).chain(held.map(|past| past.bits))
    }

    /// Whether a store that fills this descriptor is still under way: another PE's, or with `own` anybody's. An
    /// exchange of another PE fills nothing: it found a table in use, and what it replaced was as good to read. Nor
    /// does a store from one invalid descriptor to another: a walk ends at either.
    pub(crate) fn fill_pending(&self, pe: Pe, own: bool, slot: u64) -> bool {
        let fills = |o: &Overwritten| own || o.by != pe && !o.exchanged;
        let valid = |bits: u64| bits & 1 != 0;
        self.old.get(&slot).is_some_and(|old| {
            let readable = valid(self.current(slot)) || old.iter().any(|o| valid(o.bits));
            readable && old.iter().any(fills)
        })
    }

    /// A descriptor to which a store of `pe` is still under way.
    pub(crate) fn stored_by(&self, pe: Pe) -> Option<u64> {
        self.old.iter().find(|(_, old)| old.iter().any(|o| o.by == pe)).map(|(slot, _)| *slot)
    }

    /// Descriptors of a table that a walk may read as something other than 0.
    pub(crate) fn slots_of(&self, table: u64) -> BTreeSet<u64> {
        let range = table..table + 0x1000;
        let current = self.slots.range(range.clone()).map(|(slot, _)| *slot);
        current.chain(self.old.range(range).map(|(slot, _)| *slot)).collect()
    }

    /// A barrier completes the stores that its PE made before, and with them all older ones to
    /// the same descriptor.
    pub(crate) fn barrier(&mut self, now: usize, by: Pe, kind: Dsb) {
        let log = &mut self.log;
        match kind {
            Dsb::IshLd | Dsb::NshLd => {}
            Dsb::IshSt | Dsb::Ish => self.old.retain(|slot, old| {
                if let Some(last) = old.iter().rposition(|o| o.by == by) {
                    let at = old[last].at;
                    old.drain(..=last);
                    let past = log.entry(*slot).or_default();
                    let open = past.iter_mut().rev().take_while(|past| past.done == usize::MAX);
                    open.filter(|past| past.at <= at).for_each(|past| past.done = now);
                }
                !old.is_empty()
            }),
            Dsb::NshSt | Dsb::Nsh => {
                for old in self.old.values_mut().flatten().filter(|o| o.by == by) {
                    old.own_done = true;
                }
            }
        }
    }
}
