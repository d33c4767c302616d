//! Scans of real tables: what they see, and what comes of acting on it.

use super::map::{extent, leaves, map};
use super::unmap::range;
use super::*;
use crate::scan::{Budget, Limits, Look, Scan, Span, Step, Way};
use crate::space::{Batch, Collapse};

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;
const LIMITS: Limits = Limits { in_a_row: 2, rest: 2, holes: 16, misplaced: 512 };

fn look(space: &Space<'_, &Pages, Host>, epochs: &Epochs<1>, ipa: u64) -> Look {
    let cpu = epochs.join(0).unwrap();
    let guard = cpu.enter();
    Look::of(space, &guard, Ipa::new(ipa))
}

fn pages(holes: u16, misplaced: u16) -> Look {
    Look::Pages(crate::scan::Pages { holes, misplaced })
}

#[test]
fn a_look_sees_blocks_of_either_size_tables_and_nothing() {
    let (memory, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&memory, &epochs, 40);
    map(&space, &epochs, range(GIB, GIB), &extent(8 * GIB, Level::L1), 1).unwrap();
    map(&space, &epochs, range(2 * GIB, MIB2), &extent(0, Level::L2), 1).unwrap();
    let part = range(2 * GIB + MIB2, MIB2 - PAGE_SIZE);
    map(&space, &epochs, part, &extent(MIB2, Level::L3), 9).unwrap();
    let shifted = range(2 * GIB + 2 * MIB2, MIB2);
    map(&space, &epochs, shifted, &extent(PAGE_SIZE, Level::L3), 9).unwrap();

    let sees = |ipa| look(&space, &epochs, ipa);
    assert_eq!(sees(GIB + 7 * MIB2), Look::Block);
    assert_eq!(sees(2 * GIB), Look::Block);
    assert_eq!(sees(2 * GIB + MIB2), pages(1, 0));
    assert_eq!(sees(2 * GIB + MIB2 + 0x1000), pages(1, 0), "of the span, wherever in it");
    assert_eq!(sees(2 * GIB + 2 * MIB2), pages(0, 512));
    assert_eq!(sees(2 * GIB + 3 * MIB2), Look::Empty);
    assert_eq!(sees(0), Look::Empty, "there is no table at all");
    assert_eq!(sees(1 << 40), Look::Other, "beyond the IPA size");
    let other = Epochs::<1>::new();
    assert_eq!(look(&space, &other, GIB), Look::Other, "a guard of other epochs");
}

/// Of nine spans of 2 MiB two have a hole. All others become blocks, adjacent ones under one flush.
#[test]
fn what_a_scan_hands_out_can_be_collapsed() {
    let (memory, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let space = space(&memory, &epochs, 40);
    let all = range(GIB, 9 * MIB2);
    for (first, bytes) in [
        (0, 3 * MIB2),
        (3 * MIB2 + PAGE_SIZE, 2 * MIB2),
        (5 * MIB2 + 2 * PAGE_SIZE, 4 * MIB2 - 2 * PAGE_SIZE),
    ] {
        let at = range(GIB + first, bytes);
        map(&space, &epochs, at, &extent(8 * GIB + first, Level::L3), usize::MAX).unwrap();
    }
    let limits = Limits { holes: 0, misplaced: 0, ..LIMITS };
    let mut scan = Scan::new(all, limits, [Span::default(); 9]).unwrap();
    let mut runs = Vec::new();
    for _ in 0..3 {
        loop {
            let mut budget = Budget { slots: usize::MAX, blocks: 64, copies: 0 };
            let spans = match scan.step(&mut budget, |ipa| look(&space, &epochs, ipa.get())) {
                Step::Act { spans, way: Way::Collapse } => spans,
                Step::Act { .. } => panic!("nothing is to be copied"),
                Step::Pass => break,
                Step::Spent => panic!("there is budget"),
            };
            runs.push(((spans.start().get() - GIB) / MIB2, spans.bytes() / MIB2));
            let cpu = epochs.join(0).unwrap();
            let mut claim = space.claim(spans).unwrap();
            let batch = Batch::all_of(&claim);
            let mut heard = |ipa, what| scan.heard(ipa, what == Collapse::Made);
            let progress =
                space.collapse(&cpu, &mut claim, batch, Level::L2, || panic!("nobody"), &mut heard);
            assert_eq!(progress, Ok(Progress::Done));
        }
    }
    assert_eq!(runs, [(0, 3), (4, 1), (6, 3)]);
    assert_eq!(space.account().collapsed, 7);
    assert_eq!(space.account().flushes + space.account().whole_flushes, 3);
    let blocks = leaves(&space, &epochs, all).iter().filter(|(_, _, level)| *level == 2).count();
    assert_eq!(blocks, 7);
}
