//! What can be wrong with an event: each check against all that any PE may still hold.

use std::collections::BTreeSet;

use super::Model;
use super::dirty::{ACCESSED, DIRTY};
use super::evidence::About;
use super::walk::Publisher;
use crate::descriptor::{self, Kind, kind, memory, shift};
use crate::event::{Pe, Span};
use crate::memory::page;
use crate::tlb::{EL2, Entry, Held, Mask, Place, Regime, pes};
use crate::verdict::Defect;

/// From when on `pe` need not know of a change.
#[derive(Clone, Copy)]
struct Since {
    pe: Pe,
    event: usize,
}

impl Model {
    pub(super) fn check_write(&mut self, pe: Pe, slot: u64, old: u64, new: u64) {
        self.check_owner(pe, slot, old, new);
        if new == 0 {
            self.check_empty(slot);
        }
    }

    /// A slot becomes Empty only when nobody translates by what it held, nor by what was below: whoever
    /// faults there may install at once.
    fn check_empty(&mut self, slot: u64) {
        let own = self.tlb.of_slot(slot).next().map(|(entry, held)| (*entry, held));
        let below = || {
            self.places_of(page(slot)).find_map(|(place, _)| {
                let (start, end) = place.entry(slot, 0).span();
                self.tlb
                    .spanning(place.regime, start, end)
                    .find(|(entry, _)| entry.level > place.level)
                    .map(|(entry, held)| (*entry, held))
            })
        };
        if let Some((entry, held)) = own.or_else(below) {
            let what = format!("{slot:#x}: {}", self.describe(&entry, held));
            self.blame(Defect::EmptyTooEarly, what, &[About::Entry(entry)]);
        }
    }

    /// Linking a table publishes its content, which must be visible to walks before the link is. A
    /// release store orders the writer's own earlier stores; other PEs' must have completed. Where a table was linked
    /// before and is again, as after a collapse that failed, others may go on to exchange its leaves meanwhile.
    pub(super) fn check_filled(&mut self, place: &Place, slots: &BTreeSet<u64>, by: Publisher) {
        let early =
            slots.iter().find(|slot| self.memory.fill_pending(by.pe, by.relaxed, **slot)).copied();
        if let Some(slot) = early {
            let table = place.table;
            let what = format!("table {table:#x} linked while a store to {slot:#x} is under way");
            self.blame(Defect::PublishedBeforeFilled, what, &[About::Slot(slot)]);
        }
    }

    /// A fresh entry against all that the same PE may hold for an overlapping IPA.
    pub(super) fn check_conflicts(&mut self, fresh: Mask, entry: &Entry) {
        let (start, end) = entry.extent();
        let found = self
            .tlb
            .overlapping(entry.regime, start, end)
            .filter(|(_, held)| held.any() & fresh != 0)
            .find_map(|(held, mask)| {
                Some((self.conflict(entry, held)?, *held, mask.any() & fresh))
            });
        if let Some((defect, held, mask)) = found {
            let what = format!(
                "PE {} may hold {:#x} and {:#x} for {}",
                list(mask & self.everybody()),
                held.bits,
                entry.bits,
                address(entry.regime, start.max(held.extent().0))
            );
            self.blame(defect, what, &[About::Entry(held), About::Slot(entry.slot)]);
        }
    }

    fn conflict(&self, a: &Entry, b: &Entry) -> Option<Defect> {
        let block_for_table = a.slot == b.slot && a.is_leaf() != b.is_leaf();
        if a.is_leaf() && b.is_leaf() {
            let common = a.extent().0.max(b.extent().0);
            // Contents are not modelled: two pages count as different contents, writable or not.
            if a.output(common) != b.output(common) {
                return Some(Defect::ConflictingAddress);
            }
            if memory(a.bits) != memory(b.bits) {
                return Some(Defect::ConflictingMemory);
            }
        } else if !block_for_table {
            return None;
        }
        // Level 1 covers the Contiguous bit [RKHRBC] and, with the nT bit, blocks [RHHCXC].
        let no_translation = descriptor::no_translation(a.bits, a.level)
            || descriptor::no_translation(b.bits, b.level);
        let block = (a.level != b.level || block_for_table) && !no_translation;
        let run = descriptor::contiguous(a.bits) != descriptor::contiguous(b.bits);
        let wrong = match self.machine.bbm {
            0 => a.level != b.level || block_for_table || run && a.is_leaf() && b.is_leaf(),
            1 => block,
            _ => false,
        };
        wrong.then_some(Defect::ConflictingSize)
    }

    pub(super) fn check_table_gone(&mut self, table: u64, defect: Defect) {
        let Some((place, mask)) = self.places_of(table).next() else { return };
        let what = format!(
            "table {table:#x}: PE {} may walk it for {}",
            list(mask & self.everybody()),
            whose(place.regime, place.ipa)
        );
        let by = self.tlb.leading_to(&place).next().map(|(entry, _)| *entry);
        match by {
            Some(entry) => self.blame(defect, what, &[About::Entry(entry)]),
            None => self.blame(defect, what, &[About::Table(table)]),
        }
    }

    pub(super) fn check_frame_gone(&mut self, frame: u64, bytes: u64) {
        let holder = self.tlb.reaching(frame, frame + bytes).next();
        if let Some((entry, held)) = holder.map(|(entry, held)| (*entry, held)) {
            let what = format!("frame {frame:#x}: {}", self.describe(&entry, held));
            self.blame(Defect::FrameStillReachable, what, &[About::Entry(entry)]);
        }
    }

    /// Every walk reads what the PE wrote.
    pub(super) fn check_published(&mut self, pe: Pe) {
        if let Some(slot) = self.memory.stored_by(pe) {
            let what = format!("a store of PE {pe} to {slot:#x} is still under way");
            self.blame(Defect::NotYetVisible, what, &[About::Slot(slot)]);
        }
    }

    /// No PE may translate a span by what its slots held before event `since`, when the flush of `pe`
    /// began. What others change meanwhile, or have not completed, they flush themselves.
    pub(super) fn check_flushed(
        &mut self,
        pe: Pe,
        regime: Regime,
        span: Option<Span>,
        since: usize,
    ) {
        let Span { ipa, bytes } = span.unwrap_or(Span { ipa: 0, bytes: 1 << 52 });
        let end = ipa + bytes.max(1);
        let since = Since { pe, event: since };
        let stale = |entry: &Entry| !self.is_current(entry, since, ipa, end);
        let held = self
            .tlb
            .overlapping(regime, ipa, end)
            .find(|(entry, _)| stale(entry))
            .map(|(entry, held)| (*entry, held));
        if let Some((entry, held)) = held {
            let what = self.describe(&entry, held);
            let defect =
                if self.wrong_vmid(&entry) { Defect::WrongVmid } else { Defect::StaleTranslation };
            return self.blame(defect, what, &[About::Entry(entry)]);
        }
        let meets = |entry: &Entry| {
            let (from, to) = entry.extent();
            entry.regime == regime && from < end && ipa < to && stale(entry)
        };
        let own = (0..self.pes.len()).find_map(|pe| {
            let (entry, _) = self.pes[pe].unsynchronized.iter().find(|(entry, _)| meets(entry))?;
            Some((pe, *entry))
        });
        if let Some((pe, entry)) = own {
            let what = format!(
                "PE {pe} itself may use {:#x} for {} until its next context synchronization",
                entry.bits,
                address(entry.regime, entry.ipa)
            );
            self.blame(Defect::StaleTranslation, what, &[About::Entry(entry)]);
        }
    }

    /// Whether a table has been linked as this place at any time since then, whoever runs the VM.
    fn linked(&self, place: &Place, since: Since) -> bool {
        let roots = match (place.regime, self.roots.get(&place.regime)) {
            (EL2, _) => self.el2_place().into_iter().collect(),
            (_, Some(root)) => self.root_places(*root),
            (_, None) => return false,
        };
        let start = roots.first().map_or(0, |root| root.level);
        let mut pages: Vec<u64> = roots
            .iter()
            .filter(|root| {
                place.ipa >> (shift(root.level) + 9) == root.ipa >> (shift(root.level) + 9)
            })
            .map(|root| root.table)
            .collect();
        for level in start..place.level {
            let index = place.ipa >> shift(level) & 511;
            pages = pages
                .iter()
                .flat_map(|page| self.memory.since(since.pe, since.event, page + index * 8))
                .filter_map(|bits| match kind(bits, level) {
                    Kind::Table(table) => Some(table),
                    _ => None,
                })
                .collect();
        }
        pages.contains(&place.table)
    }

    /// Whether an entry says of `[start, end)` what the tables say, or said since then, but for what
    /// hardware sets.
    fn is_current(&self, entry: &Entry, since: Since, start: u64, end: u64) -> bool {
        let hardware = if self.machine.tracks_dirty() { ACCESSED | DIRTY } else { ACCESSED };
        let index = (entry.slot & 0xfff) / 8;
        let same = |slot, bits: u64| {
            self.memory
                .since(since.pe, since.event, slot)
                .any(|held| (held ^ bits) & !hardware == 0)
        };
        if !same(entry.slot, entry.bits) || !self.linked(&entry.place(), since) {
            return false;
        }
        if !entry.is_leaf() || !descriptor::contiguous(entry.bits) {
            return true;
        }
        // A member of a contiguous run speaks for its neighbours too: they must say the same.
        let step = 1 << shift(entry.level);
        let (from, to) = (entry.extent().0.max(start), entry.extent().1.min(end));
        (from / step..to.div_ceil(step)).all(|n| {
            let slot = page(entry.slot) + (n % 512) * 8;
            let moved = (n % 512).wrapping_sub(index).wrapping_mul(step);
            same(slot, entry.bits.wrapping_add(moved))
        })
    }

    pub(super) fn check_vmid_gone(&mut self, vmid: u16) {
        let holder =
            self.tlb.of_regime(Regime::from(vmid)).next().map(|(entry, held)| (*entry, held));
        if let Some((entry, held)) = holder {
            let what = format!("VMID {vmid}: {}", self.describe(&entry, held));
            self.blame(Defect::VmidStillCached, what, &[About::Entry(entry)]);
        }
    }

    /// Who may hold what, and how.
    fn describe(&self, entry: &Entry, held: Held) -> String {
        let form = match (held.stage2, held.combined, entry.is_leaf()) {
            (0, _, _) => "combined with stage 1",
            (_, _, false) => "as the next step of a walk",
            _ if entry.regime == EL2 => "of EL2's stage 1",
            _ => "of stage 2",
        };
        format!(
            "PE {} may hold {:#x} for {}, level {}, {}{form}",
            list(held.any() & self.everybody()),
            entry.bits,
            address(entry.regime, entry.ipa),
            entry.level,
            if entry.regime == EL2 { String::new() } else { format!("VMID {}, ", entry.regime) }
        )
    }
}

/// An address, in the words of its regime.
fn address(regime: Regime, address: u64) -> String {
    let kind = if regime == EL2 { "EL2's VA" } else { "IPA" };
    format!("{kind} {address:#x}")
}

/// A regime and an address in it.
fn whose(regime: Regime, at: u64) -> String {
    if regime == EL2 { address(regime, at) } else { format!("VMID {regime}, IPA {at:#x}") }
}

/// `0, 2 and 5`.
fn list(mask: Mask) -> String {
    let names: Vec<String> = pes(mask).map(|pe| pe.to_string()).collect();
    match names.as_slice() {
        [] => "none".into(),
        [one] => one.clone(),
        [more @ .., last] => format!("{} and {last}", more.join(", ")),
    }
}
