//! Maps and notes of ranges.

use mmu_oracle::Event;
use stage2::space::{Extent, MapError};
use stage2::{Descriptor, Note, Pa};

use super::World;
use super::install::Tried;
use super::ranges::{Before, Came, Range};
use crate::program::{self, Backing};
use crate::reference::Leaf;
use crate::walk::span;

impl World<'_> {
    /// Maps a range to memory of its own.
    pub(super) fn map_range(&mut self, range: Range, kind: program::Kind, backing: Backing) {
        let Range { vm, start, end, .. } = range;
        let before = self.before(vm);
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
        let done = Range { end: came.until, ..range };
        for (at, level) in self.slots(&before, range, done, coarsest as usize, pa, rival.is_some())
        {
            let leaf = Leaf { level, frame: Pa::new(pa.get() + (at - start)), attributes, owner };
            self.ground.store.enter(leaf.frame, leaf.at());
            self.vms.get_mut(&vm).expect("checked").reference.add(at, leaf);
        }
        self.filled(&before, range, came, rival);
    }

    /// Puts a note on a range.
    pub(super) fn annotate_range(&mut self, range: Range, payload: u32) {
        let Range { vm, start, .. } = range;
        let before = self.before(vm);
        let note = Note::new(u64::from(payload)).expect("32 bits fit");
        let (came, rival) = self.batches(range, program::Kind(0), |world, cpu, claim, batch| {
            world.vms[&vm].space.annotate(cpu, claim, batch, note)
        });
        let done = Range { end: came.until, ..range };
        for slot in self.slots(&before, range, done, 1, Pa::new(start), rival.is_some()) {
            let bits = Descriptor::note(note).bits();
            let (at, level) = slot;
            let reference = &mut self.vms.get_mut(&vm).expect("checked").reference;
            assert_eq!(reference.obstacles.insert((level, at), bits), None, "{at:#x} was noted");
        }
        self.filled(&before, range, came, rival);
    }

    /// The slots, by first IPA and level, by which a part of a range that lies at `pa` must be filled: the largest that fit,
    /// but where a table is in the way. Of a rival's tables it is not known when they came.
    fn slots(
        &self,
        before: &Before,
        range: Range,
        done: Range,
        coarsest: usize,
        pa: Pa,
        raced: bool,
    ) -> Vec<(u64, usize)> {
        let first = coarsest.max(self.start_level()).max(1);
        let fits = |ipa: u64, level: usize| {
            let (bytes, to) = (span(level), pa.get() + (ipa - range.start));
            (ipa | to) & (bytes - 1) == 0
                && ipa + bytes <= range.end
                && !before.tables.contains_key(&(level + 1, ipa))
        };
        let (mut at, mut slots) = (range.start, Vec::new());
        while at < done.end {
            let there = self.vms[&range.vm].tables.walk(at, 3).expect("inside the IPA size").level;
            let level = (first..3).find(|level| fits(at, *level)).unwrap_or(3);
            slots.push((at, if raced { there } else { level }));
            at += span(if raced { there } else { level });
        }
        slots
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
}
