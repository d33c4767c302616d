//! What a trace in a file comes to.
//!
//! # One PE alone
//!
//! Where only each PE's own order is known, each PE gets a [`Model`] of its own, and of the others' doings
//! only what cannot depend on order:
//!
//! * a page that became a table once and stayed one is a table from the start;
//! * a table that was linked once, by the PE that had made it, is linked from the start. That lets
//!   the PE walk more, and earlier, than it could; a slot that goes from invalid to valid earlier than it
//!   did hides nothing that the PE does itself.
//!
//! A descriptor that several PEs wrote has no history in one PE's order, and is left out; so is
//! everything in a page whose use as a table changed hands. What is left is sound for software that keeps
//! the rule that who changes a descriptor flushes it \[RSPVBD, RYNJCP\]: a PE that relied on another's flush
//! would be blamed here, although an order of the whole might clear it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Line, Order, Recording, RecordingError};
use crate::event::{Dsb, Event, Pe};
use crate::memory::page;
use crate::model::{Machine, Model};
use crate::verdict::Verdict;

const VALID: u64 = 1;
const S2AP_WRITE: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const DBM: u64 = 1 << 51;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// A verdict on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The line that showed it, from 1.
    pub line: usize,
    /// What is wrong. Its event numbers are the model's: `trace` has the lines.
    pub verdict: Verdict,
    /// What led to it, with lines. An event without one is in no line: it is taken for granted where a PE
    /// is judged alone, or is an update by hardware that a later line shows.
    pub trace: Vec<(Option<usize>, Event)>,
}

/// What a trace comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What is wrong, by line.
    pub found: Vec<Found>,
    /// What could not be judged, in sentences.
    pub unjudged: Vec<String>,
    /// Updates by hardware that no line tells and that later lines show.
    pub hw_updates: usize,
}

impl Recording {
    /// Judges the trace. `progress` hears how many of how many steps are done.
    ///
    /// # Errors
    /// [`RecordingError::Line`]: a write that found what nobody had written, in a total order or in a slot
    /// that one PE alone writes.
    pub fn judge(
        &self,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Judgement, RecordingError> {
        let mut judgement = match self.header.order {
            Order::Total => self.judge_all(&mut progress)?,
            Order::PerPe => self.judge_each(&mut progress)?,
        };
        if self.header.dropped != 0 {
            judgement.unjudged.push(format!(
                "the recorder was full: {} events after the last line are unknown",
                self.header.dropped
            ));
        }
        judgement.found.sort_by_key(|found| found.line);
        Ok(judgement)
    }

    fn judge_all(
        &self,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Judgement, RecordingError> {
        let mut judge = Judge::new(self.header.machine);
        let mut slots = BTreeMap::new();
        let mut hw_updates = 0;
        for (done, line) in self.lines.iter().enumerate() {
            progress(done, self.lines.len());
            if let Some(update) = missing_update(&self.header.machine, line, &mut slots)? {
                hw_updates += 1;
                judge.apply(&update, None);
            }
            judge.apply(&line.event, Some(line.number));
        }
        Ok(Judgement { found: judge.found(), hw_updates, unjudged: Vec::new() })
    }

    fn judge_each(
        &self,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Judgement, RecordingError> {
        let shared = Shared::of(&self.lines);
        let mut judgement = Judgement::default();
        let (mut done, all) = (0, self.lines.len());
        for pe in 0..self.header.machine.pes {
            if !self.lines.iter().any(|line| line.event.pe() == pe) {
                continue;
            }
            let mut judge = Judge::new(self.header.machine);
            shared.taken_for_granted(pe).iter().for_each(|event| judge.apply(event, None));
            let mut slots = BTreeMap::new();
            for line in self.lines.iter().filter(|line| line.event.pe() == pe) {
                progress(done, all);
                done += 1;
                if shared.is_unjudged(pe, line) {
                    continue;
                }
                // Nobody else writes the slots that are judged: what stands there is known.
                if let Some(update) = missing_update(&self.header.machine, line, &mut slots)? {
                    judgement.hw_updates += 1;
                    judge.apply(&update, None);
                }
                judge.apply(&line.event, Some(line.number));
            }
            judgement.found.extend(judge.found());
        }
        judgement.unjudged.push(
            "the order between PEs is not known: each was judged alone, as if the others held no \
             translation"
                .to_owned(),
        );
        let slots = shared.slots.values().filter(|slot| slot.writers.len() > 1).count();
        if slots != 0 {
            judgement.unjudged.push(format!("{slots} descriptors that several PEs wrote"));
        }
        let with = |wanted: fn(&Owner) -> bool| shared.pages.values().filter(|o| wanted(o)).count();
        let several = with(|owner| *owner == Owner::Several);
        if several != 0 {
            judgement.unjudged.push(format!("{several} table pages that changed hands"));
        }
        let private = with(|owner| matches!(owner, Owner::Private(_)));
        if private != 0 {
            judgement.unjudged.push(format!(
                "{private} table pages that came and went, but for what their own PE did"
            ));
        }
        Ok(judgement)
    }
}

/// A model, and which of its events stand in which line.
struct Judge {
    model: Model,
    lines: Vec<Option<usize>>,
}

impl Judge {
    fn new(machine: Machine) -> Self {
        Self { model: Model::new(machine), lines: Vec::new() }
    }

    fn apply(&mut self, event: &Event, line: Option<usize>) {
        self.model.apply(event);
        self.lines.push(line);
    }

    /// The verdicts, each with the line that showed it: the event's own, or of one that stands in no line,
    /// the next.
    fn found(&self) -> Vec<Found> {
        let found = |verdict: &Verdict| {
            let from = self.lines.get(verdict.at..).unwrap_or_default();
            let line = from.iter().flatten().next().copied()?;
            let line_of = |at: usize| self.lines.get(at).copied().flatten();
            let trace =
                verdict.trace.iter().map(|(at, event)| (line_of(*at), event.clone())).collect();
            Some(Found { line, verdict: verdict.clone(), trace })
        };
        self.model.verdicts().iter().filter_map(found).collect()
    }
}

/// The update by hardware that must have come before a line, if what its write found says that there was
/// one. `slots` is what the lines before have left.
fn missing_update(
    machine: &Machine,
    line: &Line,
    slots: &mut BTreeMap<u64, u64>,
) -> Result<Option<Event>, RecordingError> {
    match line.event {
        Event::AllocTable { table, .. } | Event::FreeTable { table, .. } => {
            let gone: Vec<u64> =
                slots.range(table..table + 0x1000).map(|(slot, _)| *slot).collect();
            gone.iter().for_each(|slot| _ = slots.remove(slot));
            Ok(None)
        }
        Event::HwUpdate { slot, new, .. } => {
            slots.insert(slot, new);
            Ok(None)
        }
        Event::Write { pe, slot, new, .. } => {
            let known = slots.insert(slot, new).unwrap_or(0);
            let Some(found) = line.old.filter(|old| *old != known) else { return Ok(None) };
            let changed = found ^ known;
            let dirty = if machine.hw_dirty && known & DBM != 0 { S2AP_WRITE } else { 0 };
            let hardware = if machine.hw_access { AF | dirty } else { dirty };
            if known & VALID != 0 && changed & !hardware == 0 && found & changed == changed {
                return Ok(Some(Event::HwUpdate { pe, slot, new: found, inferred: true }));
            }
            let why = format!(
                "the write to {slot:#x} found {found:#x}, and the lines before leave {known:#x} there: a \
                 line is missing, or the order is not what the header says"
            );
            Err(RecordingError::Line { line: line.number, column: 1, why })
        }
        _ => Ok(None),
    }
}

/// Whose a page's use as a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A table once and for all; made by this PE.
    Stable(Pe),
    /// A table now and then, always this PE's.
    Private(Pe),
    /// Different PEs made tables of it.
    Several,
}

impl Owner {
    /// After `pe` has taken the page for a table again, or given it back.
    fn again(self, pe: Pe) -> Self {
        match self {
            Self::Stable(owner) | Self::Private(owner) if owner == pe => Self::Private(pe),
            _ => Self::Several,
        }
    }
}

#[derive(Default)]
struct Slot {
    writers: BTreeSet<Pe>,
    /// What was written, if it was one value once.
    once: Option<u64>,
    writes: usize,
}

/// What several PEs have to do with.
struct Shared {
    pages: BTreeMap<u64, Owner>,
    slots: BTreeMap<u64, Slot>,
    /// EL2's own root.
    el2: Option<u64>,
}

impl Shared {
    fn of(lines: &[Line]) -> Self {
        let mut slots = BTreeMap::<u64, Slot>::new();
        let mut pages = BTreeMap::<u64, Owner>::new();
        let mut el2 = None;
        for line in lines {
            match line.event {
                Event::Write { pe, slot, new, .. } => {
                    let slot = slots.entry(slot).or_default();
                    slot.writers.insert(pe);
                    slot.writes += 1;
                    slot.once = (slot.writes == 1).then_some(new);
                }
                Event::AllocTable { pe, table } => {
                    let owner = match pages.get(&table) {
                        None => Owner::Stable(pe),
                        Some(before) => before.again(pe),
                    };
                    pages.insert(table, owner);
                }
                Event::FreeTable { pe, table } => {
                    let owner = pages.get(&table).map_or(Owner::Several, |owner| owner.again(pe));
                    pages.insert(table, owner);
                }
                Event::El2Root { pe, root } => {
                    el2 = Some(root);
                    pages.entry(page(root)).or_insert(Owner::Stable(pe));
                }
                _ => {}
            }
        }
        Self { pages, slots, el2 }
    }

    fn owner(&self, address: u64) -> Option<Owner> {
        self.pages.get(&page(address)).copied()
    }

    /// What is so before anything happens, as `pe` sees it.
    fn taken_for_granted(&self, pe: Pe) -> Vec<Event> {
        let stable = self.pages.iter().filter(|(_, owner)| matches!(owner, Owner::Stable(_)));
        let mut events: Vec<Event> =
            stable.map(|(table, _)| Event::AllocTable { pe, table: *table }).collect();
        for (address, slot) in &self.slots {
            let Some(new) = slot.once.filter(|new| new & 0b11 == 0b11) else { continue };
            let linked_by_its_maker = match self.pages.get(&(new & ADDRESS)) {
                Some(Owner::Stable(maker)) => slot.writers.contains(maker),
                _ => false,
            };
            let here = matches!(self.owner(*address), Some(Owner::Stable(_)));
            if here && linked_by_its_maker && !slot.writers.contains(&pe) {
                events.push(Event::Write { pe, slot: *address, new, atomic: true, relaxed: false });
            }
        }
        events.extend(self.el2.map(|root| Event::El2Root { pe, root }));
        events.push(Event::Dsb { pe, kind: Dsb::Ish });
        events
    }

    /// Whether a line says nothing that one PE's order gives a meaning to.
    fn is_unjudged(&self, pe: Pe, line: &Line) -> bool {
        match line.event {
            Event::Write { slot, .. }
            | Event::HwUpdate { slot, .. }
            | Event::GuestStore { slot, .. }
            | Event::Harvested { slot, .. }
            | Event::Start { slot, .. }
            | Event::Commit { slot, .. } => {
                let alone = self.slots.get(&slot).is_some_and(|slot| slot.writers == [pe].into());
                let mine = match self.owner(slot) {
                    Some(Owner::Stable(_)) => true,
                    Some(Owner::Private(owner)) => owner == pe,
                    Some(Owner::Several) => false,
                    // A page that nobody made a table is for the model to judge.
                    None => true,
                };
                !alone || !mine
            }
            Event::AllocTable { table, .. }
            | Event::FreeTable { table, .. }
            | Event::ListTable { table, .. }
            | Event::Scribble { table, .. } => self.owner(table) != Some(Owner::Private(pe)),
            _ => false,
        }
    }
}
