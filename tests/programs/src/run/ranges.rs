//! Operations on ranges: `map`, `unmap`, `annotate`, `deannotate`, in batches, by one PE or by several in turn, with
//! another PE's install in between.
//!
//! What each must come to is said by the reference: which leaves appear and which go, at which slot it stops and why.
//! The tables are compared with the reference afterwards, as after every operation; here it is what was answered,
//! which memory came back, and that no empty table is left where one could be given back.

use std::collections::BTreeMap;

use mmu_oracle::Event;
use stage2::epoch::Cpu;
use stage2::space::{Batch, Extent, MapError, Notes, Progress, Release};
use stage2::{
    Claim, Descriptor, Flushed, Former, Install, InstallError, Ipa, IpaRange, Level, Note, Owner,
    Pa, UnmapError, View, Write,
};

use super::install::Tried;
use super::{Ground, World};
use crate::format::{self, Kind};
use crate::memory::Count;
use crate::program::{self, Backing, PES, Pace, Place, Reach, Who};
use crate::reference::{Leaf, Reference};
use crate::walk::span;

/// An operation on a range: whose, where, how.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) who: Who,
    pub(super) vm: usize,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) pace: Pace,
}

/// How things stood before an operation.
struct Before {
    reference: Reference,
    books: Count,
    /// Every table and every slot.
    tree: (BTreeMap<u64, usize>, BTreeMap<(u64, usize), u64>),
}

/// How far the batches of an operation came: all before `until` is done.
struct Came<E> {
    until: u64,
    error: Option<E>,
}

/// Memory that came back.
pub(super) struct Released<'m> {
    ground: Ground<'m>,
    frames: BTreeMap<u64, Former>,
    tables: usize,
}

impl<'m> Released<'m> {
    /// None yet.
    pub(super) fn new(ground: Ground<'m>) -> Self {
        Self { ground, frames: BTreeMap::new(), tables: 0 }
    }

    /// What came back is what these leaves had, all of it and nothing else.
    pub(super) fn are<'l>(mut self, leaves: impl Iterator<Item = (&'l u64, &'l Leaf)>) {
        for (ipa, leaf) in leaves {
            let came_back = self.frames.remove(ipa);
            self.accept(came_back, leaf);
        }
        assert!(self.frames.is_empty(), "memory came back that was not mapped: {:?}", self.frames);
    }

    /// What came back, if anything, is what this leaf had.
    fn accept(&self, came_back: Option<Former>, leaf: &Leaf) {
        if leaf.owner == Owner::Other {
            assert_eq!(came_back, None, "it is not the VM's");
            return self.give(leaf.frame, leaf.at());
        }
        let former = came_back.expect("the VM's memory comes back");
        assert_eq!((former.pa(), former.level()), (leaf.frame, leaf.at()));
        let writable = matches!(leaf.attributes.write, Write::Allowed | Write::Dirty);
        assert_eq!((former.accessed(), former.written()), (leaf.attributes.accessed, writable));
    }

    /// Nobody uses the frame any more.
    fn give(&self, frame: Pa, level: Level) {
        let bytes = level.slot_bytes();
        self.ground.machine.note(|pe| Event::FreeFrame { pe, frame: frame.get(), bytes });
        self.ground.store.give(frame, level);
    }
}

impl Release for Released<'_> {
    fn frame(&mut self, ipa: Ipa, former: &Former, _: &Flushed) {
        self.give(former.pa(), former.level());
        assert_eq!(self.frames.insert(ipa.get(), *former), None, "{ipa} came back twice");
    }

    fn table(&mut self, _: Ipa) {
        self.tables += 1;
    }
}

impl Range {
    fn ipas(&self) -> IpaRange {
        IpaRange::new(Ipa::new(self.start), self.end - self.start).expect("whole pages")
    }

    /// Whether a slot of `level` at `ipa` lies in it.
    fn holds(&self, ipa: u64, level: usize) -> bool {
        self.start <= ipa && ipa + span(level) <= self.end
    }
}

impl<'m> World<'m> {
    /// The range that an operation is about, if it is one of the VM's; what was left in transition there is finished.
    pub(super) fn range(&mut self, who: Who, at: Place, reach: Reach, pace: Pace) -> Option<Range> {
        let vm = self.vm(who)?;
        let (start, bytes) = reach.range(Ipa::new(self.ipa(at)));
        if start + bytes > 1 << self.setup.ipa_bits() {
            return None;
        }
        let range = Range { who, vm, start, end: start + bytes, pace };
        let state = &self.vms[&vm];
        let meets = |ipa: u64, level: usize| ipa < range.end && range.start < ipa + span(level);
        let owed = state.owed.iter().any(|owed| meets(owed.start, owed.leaf.level));
        if owed || state.held.iter().any(|held| meets(held.start, held.level)) {
            self.finish_all(vm);
        }
        Some(range)
    }

    fn before(&self, vm: usize) -> Before {
        let state = &self.vms[&vm];
        let (reference, tree) = (state.reference.clone(), state.tables.all());
        Before { reference, books: self.ground.store.count(), tree }
    }

    /// Runs the batches of an operation, while the rival of this step installs at the range's first address.
    fn batches<E: Copy>(
        &mut self,
        range: Range,
        kind: program::Kind,
        mut batch: impl FnMut(&Self, &Cpu<'_>, &mut Claim<'_>, Batch) -> Result<Progress, E>,
    ) -> (Came<E>, Option<Tried>) {
        let Range { who, vm, start, end, pace } = range;
        self.against_rival(who, vm, start, kind, |world| {
            let mut claim = world.vms[&vm].space.claim(range.ipas()).expect("nobody else is here");
            let (mut from, mut pe) = (start, who.pe());
            loop {
                let done = world.ground.machine.on_pe(pe, || {
                    let cpu = world.ground.epochs.join(pe).expect("each PE joins once at a time");
                    let slots = Batch { from: Ipa::new(from), slots: pace.slots() };
                    let done = batch(world, &cpu, &mut claim, slots);
                    assert!(cpu.is_quiescent(), "a batch gives back its guards and locks");
                    done
                });
                match done {
                    Ok(Progress::Done) => return Came { until: end, error: None },
                    Ok(Progress::Until(next)) => {
                        assert!(from < next.get() && next.get() < end, "a batch makes progress");
                        from = next.get();
                    }
                    Err(error) => return Came { until: from, error: Some(error) },
                }
                if pace.relay() {
                    // In turn with the PE that is not the rival.
                    pe = if pe == who.pe() { (pe + 2) % PES } else { who.pe() };
                }
            }
        })
    }

    /// Maps a range to memory of its own.
    pub(super) fn map_range(&mut self, range: Range, kind: program::Kind, backing: Backing) {
        let Range { vm, start, end, .. } = range;
        let before = self.before(vm);
        let tables = self.vms[&vm].tables.linked();
        let pa = self.ground.store.reserve(start, end - start, backing.alike(end - start));
        let (attributes, owner, coarsest) =
            (kind.attributes(), kind.owner(), backing.coarsest(end - start));
        let extent = Extent { pa, attributes, owner, coarsest };
        let (came, rival) = self.batches(range, kind, |world, cpu, claim, batch| {
            // SAFETY: (1) reserved for this VM. (2) No guest runs: nothing is ever reached through these tables.
            let done = unsafe { world.vms[&vm].space.map(cpu, claim, batch, &extent) };
            if done.is_ok() {
                world.ground.machine.note(|pe| Event::Published { pe });
            }
            done
        });
        let first = (coarsest as usize).max(self.start_level()).max(1);
        let fits = |ipa: u64, level: usize| {
            let bytes = span(level);
            let to = pa.get() + (ipa - start);
            (ipa | to) & (bytes - 1) == 0
                && ipa + bytes <= end
                && !tables.contains_key(&(level + 1, ipa))
        };
        let mut at = start;
        while at < came.until {
            let walked = self.vms[&vm].tables.walk(at, 3).expect("inside the IPA size").level;
            let level = (first..3).find(|level| fits(at, *level)).unwrap_or(3);
            // The rival's table may have been in the way of a larger leaf.
            let level = if rival.is_some() { walked } else { level };
            let leaf = Leaf { level, frame: Pa::new(pa.get() + (at - start)), attributes, owner };
            self.ground.store.enter(leaf.frame, leaf.at());
            self.vms.get_mut(&vm).expect("checked").reference.add(at, leaf);
            at += span(level);
        }
        self.filled(&before, range, came, rival);
    }

    /// Puts a note on a range.
    pub(super) fn annotate_range(&mut self, range: Range, payload: u32) {
        let Range { vm, start, end, .. } = range;
        let before = self.before(vm);
        let tables = self.vms[&vm].tables.linked();
        let note = Note::new(u64::from(payload)).expect("32 bits fit");
        let (came, rival) = self.batches(range, program::Kind(0), |world, cpu, claim, batch| {
            world.vms[&vm].space.annotate(cpu, claim, batch, note)
        });
        let first = self.start_level().max(1);
        let fits = |ipa: u64, level: usize| {
            let bytes = span(level);
            ipa & (bytes - 1) == 0 && ipa + bytes <= end && !tables.contains_key(&(level + 1, ipa))
        };
        let mut at = start;
        while at < came.until {
            let walked = self.vms[&vm].tables.walk(at, 3).expect("inside the IPA size").level;
            let level = (first..3).find(|level| fits(at, *level)).unwrap_or(3);
            let level = if rival.is_some() { walked } else { level };
            let bits = Descriptor::note(note).bits();
            let reference = &mut self.vms.get_mut(&vm).expect("checked").reference;
            assert_eq!(reference.obstacles.insert((level, at), bits), None, "{at:#x} was noted");
            at += span(level);
        }
        self.filled(&before, range, came, rival);
    }

    /// What a map or an annotate answered is what the reference of before expects.
    fn filled(
        &mut self,
        before: &Before,
        range: Range,
        came: Came<MapError>,
        rival: Option<Tried>,
    ) {
        let alone = rival.is_none();
        let installed = rival.and_then(|rival| self.judge_beside(range, &rival, before));
        let state = &self.vms[&range.vm];
        if alone && came.error.is_some() && came.until == range.start {
            assert_eq!(state.tables.all(), before.tree, "what is refused changes nothing");
        }
        let Before { reference, books, .. } = before;
        // The lowest address at which something was in the way.
        let leaf = reference.leaf(came.until).map(|(ipa, _)| ipa);
        let leaves = reference.leaves.range(came.until..range.end).map(|(ipa, _)| *ipa);
        let notes = reference
            .obstacles
            .keys()
            .filter(|(level, ipa)| *ipa < range.end && came.until < ipa + span(*level));
        let there = leaf.into_iter().chain(leaves).chain(notes.map(|(_, ipa)| *ipa));
        let lowest = there
            .chain(installed)
            .map(|ipa| ipa.max(came.until))
            .filter(|ipa| *ipa < range.end)
            .min();
        match came.error {
            None => assert_eq!(lowest, None, "something was in the way"),
            Some(MapError::Occupied { ipa, level, seen }) => {
                assert_eq!(Some(ipa.get()), lowest);
                let there = state.tables.walk(ipa.get(), 3).expect("inside the IPA size");
                assert_eq!((there.level, there.bits), (level as usize, seen.bits()));
            }
            Some(MapError::OutOfTables) => {
                assert!(self.ground.store.count().refused > books.refused, "tables were at hand");
            }
            Some(error) => panic!("{error}"),
        }
    }

    /// Takes a range away.
    pub(super) fn unmap_range(&mut self, range: Range, remove: bool) {
        let Range { vm, .. } = range;
        let before = self.before(vm);
        let (machine, tables) = (self.ground.machine, self.vms[&vm].tables.linked());
        let mut back = Released::new(self.ground);
        let notes = if remove { Notes::Remove } else { Notes::Keep };
        let (came, rival) = self.batches(range, program::Kind(0), |world, cpu, claim, batch| {
            let alone = || panic!("nobody is inside a guard");
            world.vms[&vm].space.unmap(cpu, claim, batch, notes, alone, &mut back)
        });
        let raced = rival.is_some();
        let installed = rival.and_then(|rival| self.judge_beside(range, &rival, &before));
        let until = match came.error {
            None => range.end,
            Some(UnmapError::Straddles { ipa, level }) => {
                let (ipa, level) = (ipa.get(), level as usize);
                let leaf = self.vms[&vm].reference.leaf(ipa).map(|(ipa, leaf)| (ipa, leaf.level));
                assert_eq!(leaf, Some((ipa, level)), "a leaf stands there");
                assert!(!range.holds(ipa, level), "and reaches over the edge");
                ipa.max(range.start)
            }
            Some(error) => panic!("{error}"),
        };
        let state = self.vms.get_mut(&vm).expect("checked");
        let gone: Vec<(u64, Leaf)> = (state.reference.leaves.range(range.start..until))
            .map(|(ipa, leaf)| (*ipa, *leaf))
            .collect();
        for (ipa, leaf) in gone {
            let came_back = back.frames.remove(&ipa);
            let there = state.tables.walk(ipa, 3).is_some_and(|stop| stop.bits & 1 == 1);
            if installed == Some(ipa) && there {
                // It came when the sweep was past.
                assert_eq!(came_back, None, "{ipa:#x} came back and is there");
                continue;
            }
            assert!(range.holds(ipa, leaf.level), "{ipa:#x} reaches over the edge");
            assert!(!there, "{ipa:#x} was left");
            machine.on_pe(range.who.pe(), || back.accept(came_back, &leaf));
            state.reference.leaves.remove(&ipa);
        }
        assert!(back.frames.is_empty(), "memory came back that was not mapped: {:?}", back.frames);
        if remove {
            state
                .reference
                .obstacles
                .retain(|(level, ipa), _| !(range.holds(*ipa, *level) && *ipa < until));
        }
        let after = state.tables.linked();
        let whole = |level: usize, first: u64| {
            range.start <= first && first + (span(level) << 9) <= range.end
        };
        for (level, first) in tables.keys().filter(|(level, first)| !whole(*level, *first)) {
            let stays = after.contains_key(&(*level, *first));
            assert!(
                stays,
                "a table of level {level} went at {first:#x}, which the range does not cover"
            );
        }
        if came.error.is_none() && !raced {
            for ((level, first), used) in after {
                let left = !used && whole(level, first);
                assert!(!left, "an empty table of level {level} is left at {first:#x}");
            }
        }
        self.report.tables_back += back.tables;
    }

    /// Takes the notes of a range out.
    pub(super) fn deannotate_range(&mut self, range: Range) {
        let Range { vm, .. } = range;
        let before = self.before(vm);
        let mut gone = BTreeMap::new();
        let (came, rival) = self.batches(range, program::Kind(0), |world, cpu, claim, batch| {
            let removed = |ipa: Ipa, bytes, note: Note| {
                assert_eq!(gone.insert(ipa.get(), (bytes, note)), None, "{ipa} was told twice");
            };
            world.vms[&vm].space.deannotate(cpu, claim, batch, removed)
        });
        if let Some(rival) = rival {
            let _ = self.judge_beside(range, &rival, &before);
        }
        let state = self.vms.get_mut(&vm).expect("checked");
        let until = match came.error {
            None => range.end,
            Some(UnmapError::Straddles { ipa, level }) => {
                let (ipa, level) = (ipa.get(), level as usize);
                assert!(
                    before.reference.obstacles.contains_key(&(level, ipa)),
                    "a note stands there"
                );
                assert!(!range.holds(ipa, level), "and reaches over the edge");
                ipa.max(range.start)
            }
            Some(error) => panic!("{error}"),
        };
        state.reference.obstacles.retain(|(level, ipa), bits| {
            let removed = range.holds(*ipa, *level) && *ipa < until;
            if removed {
                let (bytes, note) = gone.remove(ipa).expect("every note is told");
                assert_eq!((bytes, Descriptor::note(note).bits()), (span(*level), *bits));
            }
            !removed
        });
        assert!(gone.is_empty(), "notes that nobody put there: {gone:?}");
    }

    /// What the rival of an operation on a range met is what stood there before, in between or after. Where it
    /// mapped something, if it did; the reference has it then.
    fn judge_beside(&mut self, range: Range, tried: &Tried, before: &Before) -> Option<u64> {
        let (ipa, wanted) = (range.start, tried.size.level() as usize);
        let refused = self.ground.store.count().refused > before.books.refused;
        let state = self.vms.get_mut(&range.vm).expect("checked");
        match tried.result {
            Ok(Install::Installed(frame)) => {
                let (attributes, owner) = (tried.kind.attributes(), tried.kind.owner());
                state.reference.add(ipa, Leaf { level: wanted, frame, attributes, owner });
                self.report.installed += 1;
                return Some(crate::walk::base(ipa, wanted));
            }
            Ok(Install::Present(leaf)) => {
                let same = |there: Option<(u64, Leaf)>| {
                    there.is_some_and(|(_, there)| {
                        (there.frame, there.at()) == (leaf.pa(), leaf.level())
                    })
                };
                assert!(
                    same(before.reference.leaf(ipa)) || same(state.reference.leaf(ipa)),
                    "{leaf:?}"
                );
            }
            Err(InstallError::Retry { level, seen }) => {
                let view = seen.view(level);
                assert!(matches!(view, View::Busy(_) | View::Drain(_) | View::Dead), "{seen:?}");
            }
            // Its own, or one of an annotate that was refused further on.
            Err(InstallError::Note { .. }) => {}
            Err(InstallError::Occupied { level, seen }) => {
                assert_eq!(
                    (level as usize, format::kind(seen.bits(), wanted)),
                    (wanted, Kind::Table)
                );
            }
            Err(InstallError::OutOfFrames | InstallError::OutOfTables) => {
                assert!(refused, "memory was at hand");
            }
            Err(error) => panic!("{error}"),
        }
        None
    }
}
