//! A block becomes pages, of which some form contiguous runs, and the block again: the tables are what they were.

use stage2::Level;
use stage2::space::{Collapse, Contiguous, SplitError};

use super::World;
use super::ranges::{Came, Range};
use crate::program::{Kind, Pace, Place, Who};
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
}

/// It came to its end.
fn done<E: core::fmt::Debug>(came: &Came<E>, end: u64) {
    assert!(came.error.is_none() && came.until == end, "{:?} at {:#x}", came.error, came.until);
}
