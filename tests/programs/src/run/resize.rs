//! A block becomes pages, of which some form contiguous runs, and the block again: the tables are what they were. Or
//! another block, into which the pages are copied.

use mmu_oracle::Event;
use stage2::space::{
    Blocks, Collapse, Contiguous, CopyCollapse, CopyObstacle, Release, SplitError,
};
use stage2::{Flushed, Former, Ipa, Level, Owner, Pa};

use super::ranges::{Came, Range};
use super::{Ground, World};
use crate::program::{Kind, Pace, Place, Who};
use crate::reference::Leaf;
use crate::walk::span;

/// Bytes of the pages of which runs are made.
const RUNS: u64 = 3 << 16;

impl World<'_> {
    /// Splits a block of 2 MiB and puts it together again.
    pub(super) fn resize(&mut self, who: Who, at: Place, pace: Pace) {
        let Some(vm) = self.vm(who) else { return };
        // No fault handler comes between: it would be told of a page where the reference has a block.
        self.rival = None;
        let from = self.ipa(at);
        let leaves = &self.vms[&vm].reference.leaves;
        let blocks = leaves.range(from..).chain(leaves).filter(|(_, leaf)| leaf.level == 2);
        let Some((start, leaf)) = blocks.map(|(ipa, leaf)| (*ipa, *leaf)).next() else { return };
        self.finish_all(vm);
        let before = self.before(vm);
        let block = Range { who, vm, start, end: start + span(2), pace };
        let space = |world: &Self| std::sync::Arc::clone(&world.vms[&vm].space);

        let (came, _) = self.batches(block, Kind(0), |world, cpu, claim, batch| {
            space(world).split(cpu, claim, batch, Level::L3)
        });
        if let Some(error) = came.error {
            assert!(matches!(error, SplitError::OutOfTables { .. }), "{error}");
            assert!(self.ground.store.count().refused > before.books.refused, "there was memory");
            assert_eq!(self.vms[&vm].tables.all(), before.tree, "half split");
            return;
        }
        for page in [0, 1, 511] {
            let (stop, page_leaf) =
                self.vms[&vm].tables.translate(start + page * 4096).expect("a page");
            assert_eq!((stop.level, page_leaf.address), (3, leaf.frame.get() + page * 4096));
        }

        let runs = Range { end: start + RUNS, ..block };
        let mut made = 0;
        let (came, _) = self.batches(runs, Kind(0), |world, cpu, claim, batch| {
            let heard = &mut |_, what| made += usize::from(what == Contiguous::Made);
            space(world).make_contiguous(cpu, claim, batch, Level::L3, heard)
        });
        done(&came, runs.end);
        assert_eq!(made, 3);
        self.no_verdict(&"runs were made");
        // The first is dissolved, the others go with the table.
        let first = Range { end: start + RUNS / 3, ..block };
        let (came, _) = self.batches(first, Kind(0), |world, cpu, claim, batch| {
            space(world).dissolve(cpu, claim, batch)
        });
        done(&came, first.end);
        for (page, member) in [(0, false), (15, false), (16, true), (47, true), (48, false)] {
            let (_, leaf) = self.vms[&vm].tables.translate(start + page * 4096).expect("a page");
            assert_eq!(leaf.contiguous, member, "page {page}");
        }

        // Every other block is another one afterwards.
        if self.report.resized.is_multiple_of(2) && self.copied(block, leaf) {
            self.report.resized += 1;
            self.report.copied += 1;
            return;
        }

        let mut told = Vec::new();
        let (came, _) = self.batches(block, Kind(0), |world, cpu, claim, batch| {
            let alone = || panic!("nobody is inside a guard");
            let heard = &mut |ipa: stage2::Ipa, what| told.push((ipa.get(), what));
            space(world).collapse(cpu, claim, batch, Level::L2, alone, heard)
        });
        done(&came, block.end);
        assert_eq!(told, [(start, Collapse::Made)]);
        assert_eq!(self.vms[&vm].tables.all(), before.tree, "the block is what it was");
        self.report.resized += 1;
    }

    /// Copies the pages of a block that was split into a fresh one; `false` if there was none, or they are not the VM's.
    fn copied(&mut self, block: Range, leaf: Leaf) -> bool {
        let start = block.start;
        let space = std::sync::Arc::clone(&self.vms[&block.vm].space);
        let (mut fresh, mut told) = (None, Vec::new());
        let (came, _) = self.batches(block, Kind(0), |world, cpu, claim, batch| {
            let alone = || panic!("nobody is inside a guard");
            let mut blocks = Fresh { ground: &world.ground, block: None, pages: 0, told: None };
            let done = space.copy_collapse(cpu, claim, batch, 0, &mut blocks, alone);
            assert!(matches!(blocks.pages, 0 | 1024), "each page is copied, and comes back");
            fresh = fresh.or(blocks.block);
            told.extend(blocks.told);
            done
        });
        done(&came, block.end);
        let Some(frame) = fresh else {
            let why = if leaf.owner == Owner::Vm {
                CopyObstacle::NoBlock
            } else {
                CopyObstacle::NotOwned { ipa: Ipa::new(start) }
            };
            assert_eq!(told, [(start, CopyCollapse::Stays(why))]);
            return false;
        };
        assert_eq!(told, [(start, CopyCollapse::Made { filled: 0 })]);
        self.ground.store.give(leaf.frame, Level::L2);
        let state = self.vms.get_mut(&block.vm).expect("checked");
        state.reference.leaves.insert(start, Leaf { frame, ..leaf });
        true
    }
}

/// A fresh block. A page is nobody's from the moment on that it is copied.
struct Fresh<'g, 'm> {
    ground: &'g Ground<'m>,
    block: Option<Pa>,
    /// Pages that were copied, and pages that came back.
    pages: usize,
    told: Option<(u64, CopyCollapse)>,
}

impl Release for Fresh<'_, '_> {
    fn frame(&mut self, _: Ipa, _: &Former, _: &Flushed) {
        self.pages += 1;
    }
}

// SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
unsafe impl Blocks for Fresh<'_, '_> {
    fn take(&mut self) -> Option<Pa> {
        self.block = self.ground.store.take(Level::L2);
        self.block
    }

    fn give_back(&mut self, block: Pa) {
        panic!("{block} was not used");
    }

    fn copy(&mut self, _: Ipa, from: Pa, _: Pa) {
        self.pages += 1;
        let (frame, bytes) = (from.get(), 4096);
        self.ground.machine.note(|pe| Event::FreeFrame { pe, frame, bytes });
    }

    fn fill(&mut self, ipa: Ipa, _: Pa) {
        panic!("{ipa} was a page");
    }

    fn finish(&mut self, _: Ipa, _: Pa) {}

    fn heard(&mut self, ipa: Ipa, what: CopyCollapse) {
        self.told = Some((ipa.get(), what));
    }
}

/// It came to its end.
fn done<E: core::fmt::Debug>(came: &Came<E>, end: u64) {
    assert!(came.error.is_none() && came.until == end, "{:?} at {:#x}", came.error, came.until);
}
