//! Ranges that go, with their tables, and notes that go.

use std::collections::BTreeMap;

use mmu_oracle::Event;
use stage2::space::{Notes, Release};
use stage2::{Descriptor, Flushed, Former, Ipa, Level, Note, Owner, Pa, UnmapError, Write};

use super::ranges::Range;
use super::{Ground, World};
use crate::program;
use crate::reference::Leaf;
use crate::walk::span;

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

impl World<'_> {
    /// Takes a range away.
    pub(super) fn unmap_range(&mut self, range: Range, remove: bool) {
        let Range { vm, .. } = range;
        let before = self.before(vm);
        let machine = self.ground.machine;
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
        for (level, first) in before.tables.keys().filter(|(level, first)| !whole(*level, *first)) {
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
}
