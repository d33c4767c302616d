//! Copy-collapses against what they should give; what stands in their way; who else is at the table meanwhile.

use std::vec;

use super::unmap::range;
use super::*;
use crate::arch::Observation;
use crate::descriptor::Former;
use crate::epoch::Cpu;
use crate::flush::Flushed;
use crate::slot::Slot;
use crate::space::{
    Batch, Blocks, CopyCollapse, CopyError, CopyObstacle, NotClaimed, Notes, Progress, Release,
};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
/// Where blocks come from: above all that these tests map otherwise.
const FRESH: u64 = 1 << 42;
/// What a page holds that nobody has written.
const UNTOUCHED: u64 = 7;
/// S2AP\[1\], and DBM.
const WRITABLE: u64 = 1 << 7;
const DIRTY_MODIFIER: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;

mod rig;
use rig::{Rig, Source, fresh, page_at};

#[test]
fn pages_that_lie_anywhere_and_holes_become_one_block() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let hole = |page: &u64| matches!(page, 0 | 77 | 511);
    let rig = Rig::new(&pages, &epochs, (0..512).filter(|page| !hole(page)));
    let before = rig.leaves();
    let (tables, at) = (pages.live(), range(GIB, MIB2));
    let mut blocks = rig.blocks(1);
    assert_eq!(rig.copy(at, 3, &mut blocks, || {}), Ok(Progress::Done));
    assert_eq!(blocks.heard, [(GIB, CopyCollapse::Made { filled: 3 })]);
    assert_eq!(rig.leaves(), [(GIB, fresh(0), 2)]);
    for page in 0..512 {
        let wanted = if hole(&page) { UNTOUCHED } else { 1000 + page };
        assert_eq!(rig.read(fresh(page)), wanted, "page {page}");
    }
    let released: Vec<_> = blocks.released.iter().map(|(ipa, (pa, _))| (*ipa, *pa, 3)).collect();
    assert_eq!(before, released, "each page came back, once");
    assert_eq!((blocks.tables, pages.live()), (vec![GIB], tables - 1), "the table came back");
    assert_eq!(blocks.finished, [fresh(0)], "the block was finished");
    assert_eq!(blocks.given_back, [], "and used");
    let account = rig.space.account();
    assert_eq!((account.collapsed, account.leaves_now()), (1, 1), "blocks made, leaves there");
    assert_eq!(account.tables_now(), 1);
    let mut released = super::unmap::Released::default();
    let mut claim = rig.space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let done = rig.space.unmap(&rig.cpu, &mut claim, all, Notes::Keep, || {}, &mut released);
    assert_eq!((done, released.0), (Ok(Progress::Done), [(GIB, (fresh(0), MIB2))].into()));
    assert_eq!(rig.space.account().leaves_now(), 0);
}

/// What hardware recorded in any page is recorded in the block, and told of the page.
#[test]
fn one_dirty_page_makes_a_dirty_block() {
    for dirty in [None, Some(0), Some(300), Some(511)] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
        let rig = Rig::new(&pages, &epochs, 0..512);
        for page in 0..512 {
            let its = if dirty == Some(page) { WRITABLE } else { 0 };
            // In a run or not: it goes as a whole, and a block is no member of one.
            let run = if page < 16 { CONTIGUOUS } else { 0 };
            rig.put(page, |held| held & !WRITABLE | DIRTY_MODIFIER | its | run);
        }
        let mut blocks = rig.blocks(1);
        assert_eq!(rig.copy(range(GIB, MIB2), 0, &mut blocks, || {}), Ok(Progress::Done));
        let bits = rig.space.lookup(&rig.cpu.enter(), page_at(0)).unwrap().descriptor.bits();
        assert_eq!(bits & WRITABLE != 0, dirty.is_some(), "the block, with {dirty:?} dirty");
        assert_eq!(bits & (DIRTY_MODIFIER | CONTIGUOUS), DIRTY_MODIFIER);
        for (page, (ipa, (_, written))) in (0..512).zip(&blocks.released) {
            let speaks = |its| if page < 16 { its < 16 } else { its == page };
            let wanted = dirty.is_some_and(speaks);
            assert_eq!((*ipa, *written), (page_at(page).get(), wanted), "page {page}, {dirty:?}");
        }
    }
}

/// Each obstacle with its numbers; nothing is changed, flushed or kept.
#[test]
fn what_is_in_the_way_of_a_copy_is_named() {
    type Spoil<'s> = &'s dyn Fn(&Rig<'_>);
    let busy = |held: u64| held & !1;
    let cases: [(usize, u64, Spoil<'_>, CopyObstacle); 8] = [
        (1, 1, &|rig| rig.put(7, |_| 0), CopyObstacle::Holes { holes: 2, allowed: 1 }),
        (0, 1, &|_| (), CopyObstacle::Holes { holes: 1, allowed: 0 }),
        (
            usize::MAX,
            1,
            &|rig| (0..512).for_each(|page| rig.put(page, |_| 0)),
            CopyObstacle::Holes { holes: 512, allowed: 511 },
        ),
        (
            1,
            1,
            &|rig| rig.put(7, |_| Descriptor::note(Note::new(1).unwrap()).bits()),
            CopyObstacle::Note { ipa: page_at(7) },
        ),
        (
            1,
            1,
            &|rig| rig.put(8, busy),
            CopyObstacle::NoPage { ipa: page_at(8), seen: Descriptor::EMPTY },
        ),
        (
            1,
            1,
            &|rig| rig.put(9, |held| held | 1 << 57),
            CopyObstacle::NotOwned { ipa: page_at(9) },
        ),
        (
            1,
            1,
            &|rig| rig.put(10, |held| held & !WRITABLE),
            CopyObstacle::Unlike { ipa: page_at(10) },
        ),
        (1, 0, &|_| (), CopyObstacle::NoBlock),
    ];
    for (holes, blocks, spoil, obstacle) in cases {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
        let rig = Rig::new(&pages, &epochs, 0..511);
        spoil(&rig);
        let obstacle = match obstacle {
            CopyObstacle::NoPage { ipa, .. } => {
                CopyObstacle::NoPage { ipa, seen: rig.slot(8).load(&rig.space.arch) }
            }
            other => other,
        };
        let (before, _) = (rig.leaves(), rig.space.arch.take_log());
        let mut blocks = rig.blocks(blocks);
        assert_eq!(rig.copy(range(GIB, MIB2), holes, &mut blocks, || {}), Ok(Progress::Done));
        assert_eq!(blocks.heard, [(GIB, CopyCollapse::Stays(obstacle))]);
        assert_eq!((blocks.taken, blocks.released.len()), (0, 0), "nothing was asked for");
        assert_eq!((rig.space.arch.take_log(), rig.leaves()), (vec![], before), "{obstacle}");
    }
}

/// EL2 writes for a guest: it looked the page up under a guard, and its write comes late.
#[test]
fn what_is_written_under_a_guard_is_in_the_block() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, 0..512);
    let mut guard = Some(rig.other.enter());
    let there = rig.space.translate(guard.as_ref().unwrap(), page_at(7)).unwrap();
    let mut blocks = rig.blocks(1);
    let relax = || {
        rig.write(there.pa, 0xbeef);
        guard = None;
    };
    assert_eq!(rig.copy(range(GIB, MIB2), 0, &mut blocks, relax), Ok(Progress::Done));
    assert_eq!(rig.read(fresh(7)), 0xbeef, "a write under a guard was lost");
    assert!(guard.is_none(), "the copy waited");
}

/// A fault handler that found the table before the break fills its hole after it.
#[test]
fn a_hole_that_is_filled_after_the_break_is_copied() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, 0..510);
    let (hole, like) = (rig.slot(510), rig.slot(0).load(&rig.space.arch).bits());
    let frame = 1 << 41;
    rig.write(Pa::new(frame), 0xf00d);
    let mut guard = Some(rig.other.enter());
    let relax = || {
        let Some(guard) = guard.take() else { return };
        let page = Descriptor::from_bits(like & !0xffff_ffff_f000 | frame);
        // SAFETY: (1, 2) no guest runs.
        assert_eq!(unsafe { hole.try_set(&rig.space.arch, &guard, page) }, Ok(()));
    };
    let mut blocks = rig.blocks(1);
    assert_eq!(rig.copy(range(GIB, MIB2), 2, &mut blocks, relax), Ok(Progress::Done));
    assert_eq!(blocks.heard, [(GIB, CopyCollapse::Made { filled: 1 })]);
    assert_eq!((rig.read(fresh(510)), rig.read(fresh(511))), (0xf00d, UNTOUCHED));
    assert_eq!(blocks.released[&page_at(510).get()].0, frame, "it came back");
}

/// What is not fit for a block any more after the break: the table is linked again as it is.
#[test]
fn a_copy_that_fails_after_the_break_links_the_table_again() {
    type Change<'c> = (&'c dyn Fn(u64) -> u64, u64, CopyObstacle);
    let scratch = |held: u64| held & !0xffff_ffff_f000 | 1 << 41 | 1 << 57;
    let cases: [Change<'_>; 2] = [
        (&scratch, 511, CopyObstacle::NotOwned { ipa: page_at(511) }),
        (&|held| held & !WRITABLE, 3, CopyObstacle::Unlike { ipa: page_at(3) }),
    ];
    for (change, page, obstacle) in cases {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
        let rig = Rig::new(&pages, &epochs, 0..511);
        let (slot, like) = (rig.slot(page), rig.slot(3).load(&rig.space.arch).bits());
        let before = rig.leaves();
        let mut guard = Some(rig.other.enter());
        let relax = || {
            // SAFETY: (1, 2) no guest runs.
            unsafe { rig.space.arch.swap(slot, change(like)) };
            guard = None;
        };
        let (mut blocks, live) = (rig.blocks(1), pages.live());
        assert_eq!(rig.copy(range(GIB, MIB2), 1, &mut blocks, relax), Ok(Progress::Done));
        assert_eq!(blocks.heard, [(GIB, CopyCollapse::Stays(obstacle))]);
        assert_eq!(blocks.given_back, [fresh(0)], "the block went back");
        assert_eq!((blocks.released.len(), pages.live()), (0, live));
        let changed = |(ipa, ..): &&(u64, u64, u8)| *ipa == page_at(page).get();
        let now = rig.leaves();
        assert_eq!(now.iter().filter(changed).count(), 1);
        let rest = |leaves: &[(u64, u64, u8)]| -> Vec<_> {
            leaves.iter().filter(|leaf| !changed(leaf)).copied().collect()
        };
        assert_eq!(rest(&before), rest(&now), "every page is where it was");
        let dsb = rig.space.arch.take_log().last() == Some(&Event::Dsb(Dsb::IshSt));
        assert!(dsb, "no DSB after the table was linked again");
    }
}

/// One flush for four; locks parent first, and given back before it; a DSB after each block.
#[test]
fn the_steps_come_in_order() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, (0..5).map(|table| table * 512));
    let child = rig.space.lookup_rw(&rig.cpu.enter(), page_at(0)).unwrap().parent().unwrap();
    let child = child.as_table(Level::L2).unwrap();
    let _ = rig.space.arch.take_log();
    let mut blocks = rig.blocks(5);
    let (at, end) = (range(GIB, 5 * MIB2), Ipa::new(GIB + 4 * MIB2));
    assert_eq!(rig.copy(at, 511, &mut blocks, || {}), Ok(Progress::Until(end)), "four at a time");
    let log = rig.space.arch.take_log();
    let locks: Vec<(Pa, bool)> = log
        .iter()
        .filter_map(|event| match event {
            Event::Observe(Observation::Locked { table }) => Some((*table, true)),
            Event::Observe(Observation::Unlocked { table }) => Some((*table, false)),
            _ => None,
        })
        .collect();
    let parent = locks[0].0;
    let wanted = [(parent, true), (child, true), (child, false), (parent, false)];
    assert_eq!(locks[..4], wanted, "the parent's lock, then the child's");
    let place = |what: &dyn Fn(&Event) -> bool| log.iter().position(what).unwrap();
    let last = |what: &dyn Fn(&Event) -> bool| log.iter().rposition(what).unwrap();
    let unlocked = last(&|event| matches!(event, Event::Observe(Observation::Unlocked { .. })));
    let flush = place(&|event| matches!(event, Event::Tlbi(..)));
    assert!(unlocked < flush, "no lock is held over the flush");
    let flushed = last(&|event| matches!(event, Event::Tlbi(..)));
    let made: Vec<usize> = (0..log.len())
        .filter(|at| matches!(log[*at], Event::Store(bits) if bits & 3 == 1))
        .collect();
    assert_eq!(made.len(), 4);
    for at in made {
        assert!(flushed < at, "made before the flush");
        assert_eq!(log[at + 1], Event::Dsb(Dsb::IshSt), "no DSB after what was made");
    }
    let account = rig.space.account();
    assert_eq!(account.whole_flushes + account.flushes, 1, "one flush for the batch");
}

/// The claim, the budget, the alignment; and whoever is inside a guard.
#[test]
fn a_copy_keeps_to_its_claim_and_to_its_budget() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, (0..3).map(|table| table * 512));
    let mut blocks = rig.blocks(9);
    let at = range(GIB + PAGE_SIZE, 2 * MIB2);
    assert_eq!(rig.copy(at, 511, &mut blocks, || {}), Ok(Progress::Done));
    let told: Vec<u64> = blocks.heard.iter().map(|(ipa, _)| *ipa).collect();
    assert_eq!(told, [GIB + MIB2], "the others reach over its edges");
    let all = range(GIB, 3 * MIB2);
    let mut claim = rig.space.claim(all).unwrap();
    let batch = Batch { from: all.start(), slots: 512 };
    let done = rig.space.copy_collapse(&rig.cpu, &mut claim, batch, 511, &mut blocks, || {});
    assert_eq!(done, Ok(Progress::Until(Ipa::new(GIB + MIB2))), "one table");
    let batch = Batch { from: Ipa::new(GIB + MIB2 + PAGE_SIZE), slots: 9999 };
    let done = rig.space.copy_collapse(&rig.cpu, &mut claim, batch, 511, &mut blocks, || {});
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(rig.leaves().len(), 3, "what is a block is passed over");

    let from = Ipa::new(GIB - PAGE_SIZE);
    let outside = Batch { from, slots: 1 };
    let done = rig.space.copy_collapse(&rig.cpu, &mut claim, outside, 0, &mut blocks, || {});
    assert_eq!(done, Err(CopyError::Claim(NotClaimed::From { from, range: all })));
    let _guard = rig.cpu.enter();
    let done = rig.space.copy_collapse(&rig.cpu, &mut claim, batch, 0, &mut blocks, || {});
    assert_eq!(done, Err(CopyError::NotQuiescent), "inside a guard");
}

/// A source that leaves a guard open: nobody could wait, so nothing moves, and all is linked again.
#[test]
fn a_guard_that_is_left_open_lets_nothing_move() {
    struct Careless<'s, 't>(Source<'s, 't>, Vec<Guard<'s>>);

    impl Release for Careless<'_, '_> {
        fn frame(&mut self, _: Ipa, _: &Former, _: &Flushed) {
            panic!("nothing moves")
        }
    }

    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    unsafe impl Blocks for Careless<'_, '_> {
        fn take(&mut self) -> Option<Pa> {
            let block = self.0.take();
            self.1.push(self.0.rig.cpu.enter());
            block
        }

        fn give_back(&mut self, block: Pa) {
            self.0.give_back(block);
        }

        fn copy(&mut self, _: Ipa, _: Pa, _: Pa) {
            panic!("nothing moves")
        }

        fn fill(&mut self, _: Ipa, _: Pa) {
            panic!("nothing moves")
        }

        fn finish(&mut self, _: Ipa, _: Pa) {
            panic!("nothing moves")
        }

        fn heard(&mut self, _: Ipa, _: CopyCollapse) {
            panic!("nothing happened")
        }
    }

    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, 0..512);
    let before = rig.leaves();
    let mut careless = Careless(rig.blocks(1), vec![]);
    let mut claim = rig.space.claim(range(GIB, MIB2)).unwrap();
    let all = Batch::all_of(&claim);
    let done = rig.space.copy_collapse(&rig.cpu, &mut claim, all, 0, &mut careless, || {});
    assert_eq!(done, Err(CopyError::NotQuiescent));
    assert_eq!((rig.leaves(), careless.0.given_back), (before, vec![fresh(0)]));
}

/// A source that fails in the middle: the table is in Drain, and its pages are still in it. Whoever claims the range
/// next finishes that.
#[test]
fn a_copy_that_was_given_up_is_finished_by_the_next_claim() {
    struct Fails<'s, 't>(Source<'s, 't>);

    impl Release for Fails<'_, '_> {
        fn frame(&mut self, _: Ipa, _: &Former, _: &Flushed) {
            panic!("nothing moves")
        }
    }

    // SAFETY: (1, 2) no guest runs: nothing is ever reached through these tables.
    unsafe impl Blocks for Fails<'_, '_> {
        fn take(&mut self) -> Option<Pa> {
            self.0.take()
        }

        fn give_back(&mut self, block: Pa) {
            self.0.give_back(block);
        }

        fn copy(&mut self, _: Ipa, _: Pa, _: Pa) {
            panic!("its owner goes away")
        }

        fn fill(&mut self, _: Ipa, _: Pa) {}

        fn finish(&mut self, _: Ipa, _: Pa) {}

        fn heard(&mut self, _: Ipa, _: CopyCollapse) {}
    }

    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<2>::new());
    let rig = Rig::new(&pages, &epochs, (0..512).filter(|page| *page != 9));
    let (before, tables, at) = (rig.leaves(), pages.live(), range(GIB, MIB2));
    let mut claim = rig.space.claim(at).unwrap();
    let all = Batch::all_of(&claim);
    let mut fails = Fails(rig.blocks(1));
    let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        rig.space.copy_collapse(&rig.cpu, &mut claim, all, 1, &mut fails, || {})
    }));
    assert!(gone.is_err() && rig.cpu.is_quiescent());
    let (View::Drain(_), Level::L2) = rig.found(Ipa::new(GIB)) else { panic!("it was made") };

    let mut released = super::unmap::Released::default();
    let done = rig.space.unmap(&rig.cpu, &mut claim, all, Notes::Keep, || {}, &mut released);
    assert_eq!(done, Ok(Progress::Done));
    let released: Vec<_> = released.0.iter().map(|(ipa, (pa, _))| (*ipa, *pa, 3)).collect();
    assert_eq!(before, released, "each page came back, once");
    assert_eq!((pages.live(), rig.leaves()), (tables - 1, vec![]));
    assert_eq!(rig.space.account().leaves_now(), 0);
}
