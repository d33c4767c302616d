//! Scans of RAM that is a list of looks: what they hand out, when, and what they leave alone.

use std::vec::Vec;

use super::*;

const BASE: u64 = 0x4000_0000;
const LIMITS: Limits = Limits { in_a_row: 2, rest: 3, holes: 64, misplaced: 512 };
const PLENTY: Budget = Budget { slots: usize::MAX, blocks: usize::MAX, copies: usize::MAX };
/// Pages that are a block already.
const ONE: Look = pages(0, 0);

const fn pages(holes: u16, misplaced: u16) -> Look {
    Look::Pages(Pages { holes, misplaced })
}

fn range(first: u64, count: u64) -> IpaRange {
    IpaRange::new(Ipa::new(BASE + first * BLOCK), count * BLOCK).unwrap()
}

/// What a pass hands out, as first span, spans, way; everything is made if `made` says so.
type Handed = Vec<(u64, u64, Way)>;

/// RAM and a scan of it.
struct Ram<const ROOM: usize> {
    looks: Vec<Look>,
    scan: Scan<[Span; ROOM]>,
    /// Looks taken, by span.
    seen: Vec<u32>,
}

impl<const ROOM: usize> Ram<ROOM> {
    fn new(looks: &[Look], limits: Limits) -> Self {
        let spans = looks.len();
        let scan = Scan::new(range(0, spans as u64), limits, [Span::default(); ROOM]).unwrap();
        Self { looks: looks.to_vec(), scan, seen: vec![0; spans] }
    }

    fn step(&mut self, budget: &mut Budget) -> Step {
        let Self { looks, scan, seen } = self;
        scan.step(budget, |ipa| {
            let number = usize::try_from((ipa.get() - BASE) / BLOCK).unwrap();
            seen[number] += 1;
            looks[number]
        })
    }

    /// One pass; each block that is handed out is made or not.
    fn pass(&mut self, made: bool) -> Handed {
        let mut handed = Vec::new();
        loop {
            match self.step(&mut { PLENTY }) {
                Step::Pass => return handed,
                Step::Spent => panic!("there is budget"),
                Step::Act { spans, way } => {
                    let (first, count) =
                        ((spans.start().get() - BASE) / BLOCK, spans.bytes() / BLOCK);
                    handed.push((first, count, way));
                    for number in first..first + count {
                        self.scan.heard(Ipa::new(BASE + number * BLOCK), made);
                        if made {
                            self.looks[usize::try_from(number).unwrap()] = Look::Block;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_worth_what() {
    let way = |look| LIMITS.judge(&look);
    assert_eq!(way(ONE), Some(Way::Collapse));
    assert_eq!(way(pages(0, 1)), Some(Way::Copy));
    assert_eq!(way(pages(64, 448)), Some(Way::Copy));
    assert_eq!(way(pages(65, 0)), None, "too many holes");
    for nothing in [Look::Empty, Look::Block, Look::Other] {
        assert_eq!(way(nothing), None, "{nothing:?}");
    }
    let few = Limits { misplaced: 8, ..LIMITS };
    assert_eq!(few.judge(&pages(0, 9)), None, "too many elsewhere");
    assert_eq!(few.judge(&pages(0, 8)), Some(Way::Copy));
    let never = Limits { holes: 0, misplaced: 0, ..LIMITS };
    assert_eq!(never.judge(&pages(1, 0)), None);
    assert_eq!(never.judge(&ONE), Some(Way::Collapse));
}

#[test]
fn a_span_has_to_look_worth_it_in_as_many_scans_as_are_asked_for() {
    for in_a_row in 0..5 {
        let mut ram = Ram::<1>::new(&[ONE], Limits { in_a_row, ..LIMITS });
        for _ in 1..in_a_row {
            assert_eq!(ram.pass(true), []);
        }
        assert_eq!(ram.pass(true), [(0, 1, Way::Collapse)]);
        assert_eq!(ram.pass(true), [], "it is a block");
        assert_eq!(ram.scan.counts().waiting, u64::from(in_a_row.saturating_sub(1)));
    }
}

#[test]
fn a_span_that_changes_begins_anew() {
    let mut ram = Ram::<1>::new(&[pages(9, 0)], LIMITS);
    for holes in (1..9).rev() {
        assert_eq!(ram.pass(true), [], "it is being filled");
        ram.looks[0] = pages(holes, 0);
    }
    assert_eq!(ram.pass(true), []);
    ram.looks[0] = Look::Other;
    assert_eq!(ram.pass(true), []);
    ram.looks[0] = pages(1, 0);
    assert_eq!(ram.pass(true), [], "what it looked like before does not count");
    assert_eq!(ram.pass(true), [(0, 1, Way::Copy)]);
}

#[test]
fn a_block_that_was_split_is_left_alone_and_not_looked_at() {
    let mut ram = Ram::<1>::new(&[Look::Block], LIMITS);
    assert_eq!(ram.pass(true), []);
    ram.looks[0] = ONE;
    assert_eq!(ram.pass(true), [], "this pass sees that it was split");
    let looked = ram.seen[0];
    for _ in 0..LIMITS.rest {
        assert_eq!(ram.pass(true), []);
    }
    assert_eq!(ram.seen[0], looked);
    assert_eq!(ram.scan.counts().resting, u64::from(LIMITS.rest));
    assert_eq!((ram.pass(true), ram.pass(true)), (vec![], vec![(0, 1, Way::Collapse)]));
}

#[test]
fn a_block_that_the_scan_made_and_somebody_split_is_left_alone() {
    let mut ram = Ram::<1>::new(&[ONE], Limits { in_a_row: 1, ..LIMITS });
    assert_eq!(ram.pass(true).len(), 1);
    ram.looks[0] = ONE;
    for _ in 0..=LIMITS.rest {
        assert_eq!(ram.pass(true), []);
    }
    assert_eq!(ram.pass(true).len(), 1);
}

#[test]
fn a_split_that_is_told_counts_as_one_that_was_seen() {
    let limits = Limits { in_a_row: 1, ..LIMITS };
    let mut ram = Ram::<4>::new(&[ONE; 4], limits);
    // From within span 1 to within span 2, and far beyond the scan's end.
    let start = Ipa::new(BASE + BLOCK + 4096);
    ram.scan.split(IpaRange::new(start, BLOCK).unwrap());
    ram.scan.split(range(3, 1 << 20));
    for _ in 0..LIMITS.rest {
        let handed = ram.pass(false);
        assert!(handed.iter().all(|(first, count, _)| (*first, *count) == (0, 1)), "{handed:?}");
    }
    assert_eq!(ram.pass(true), [(1, 3, Way::Collapse)]);
}

#[test]
fn a_span_that_failed_is_left_alone() {
    let mut ram = Ram::<1>::new(&[ONE], LIMITS);
    for _ in 0..2 {
        assert_eq!(ram.pass(false), []);
        assert_eq!(ram.pass(false), [(0, 1, Way::Collapse)]);
        for _ in 0..LIMITS.rest {
            assert_eq!(ram.pass(false), []);
        }
    }
}

#[test]
fn what_nobody_acted_on_is_handed_out_again() {
    let mut ram = Ram::<2>::new(&[ONE; 2], Limits { in_a_row: 1, ..LIMITS });
    let act = Step::Act { spans: range(0, 2), way: Way::Collapse };
    for _ in 0..2 {
        assert_eq!(ram.step(&mut { PLENTY }), act);
        assert_eq!(ram.step(&mut { PLENTY }), Step::Pass);
    }
}

#[test]
fn spans_side_by_side_are_handed_out_together_as_far_as_the_ways_are_the_same() {
    let looks = [ONE, ONE, pages(1, 0), pages(0, 9), Look::Empty, ONE, Look::Block, ONE, ONE];
    let mut ram = Ram::<9>::new(&looks, Limits { in_a_row: 1, ..LIMITS });
    let expected =
        [(0, 2, Way::Collapse), (2, 2, Way::Copy), (5, 1, Way::Collapse), (7, 2, Way::Collapse)];
    assert_eq!(ram.pass(true), expected);
}

#[test]
fn no_more_blocks_are_handed_out_than_the_budget_allows() {
    let limits = Limits { in_a_row: 1, ..LIMITS };
    let mut ram = Ram::<6>::new(&[ONE, ONE, ONE, Look::Empty, ONE, ONE], limits);
    let mut budget = Budget { blocks: 2, ..PLENTY };
    let act = |first, count| Step::Act { spans: range(first, count), way: Way::Collapse };
    assert_eq!(ram.step(&mut budget), act(0, 2));
    assert_eq!(budget.blocks, 0);
    assert_eq!(ram.step(&mut budget), Step::Spent);
    assert_eq!(ram.step(&mut budget), Step::Spent, "not passed over");
    budget.blocks = 9;
    assert_eq!(ram.step(&mut budget), act(2, 1));
    assert_eq!(ram.step(&mut budget), act(4, 2));
    assert_eq!((ram.step(&mut budget), budget.blocks), (Step::Pass, 6));
}

#[test]
fn copies_have_a_budget_of_their_own() {
    let limits = Limits { in_a_row: 1, ..LIMITS };
    let mut ram = Ram::<4>::new(&[pages(1, 0), pages(0, 9), ONE, pages(2, 2)], limits);
    let mut budget = Budget { blocks: 9, copies: 1, ..PLENTY };
    let act = |first, way| Step::Act { spans: range(first, 1), way };
    assert_eq!(ram.step(&mut budget), act(0, Way::Copy));
    assert_eq!(ram.step(&mut budget), Step::Spent);
    budget.copies = 1;
    assert_eq!(ram.step(&mut budget), act(1, Way::Copy));
    assert_eq!(ram.step(&mut budget), act(2, Way::Collapse));
    assert_eq!(ram.step(&mut budget), Step::Spent);
    assert_eq!((budget.blocks, budget.copies), (8, 0));
}

#[test]
fn no_more_slots_are_looked_at_than_the_budget_allows_but_for_the_last_table() {
    let mut ram = Ram::<4>::new(&[Look::Empty, Look::Other, Look::Block, ONE], LIMITS);
    // One slot, then a table of 512.
    let mut budget = Budget { slots: 2, ..PLENTY };
    assert_eq!((ram.step(&mut budget), budget.slots), (Step::Spent, 0));
    assert_eq!(ram.seen, [1, 1, 0, 0]);
    let mut budget = Budget { slots: 1 + 512, ..PLENTY };
    assert_eq!((ram.step(&mut budget), budget.slots), (Step::Pass, 0));
    assert_eq!(ram.seen, [1, 1, 1, 1], "it goes on where it stopped");
    assert_eq!(ram.step(&mut budget), Step::Spent);
    assert_eq!(ram.seen, [1, 1, 1, 1]);
}

#[test]
fn resting_costs_a_slot_so_that_a_call_ends() {
    let mut ram = Ram::<4>::new(&[ONE; 4], LIMITS);
    ram.scan.split(range(0, 4));
    let mut budget = Budget { slots: 3, ..PLENTY };
    assert_eq!((ram.step(&mut budget), ram.scan.counts().resting), (Step::Spent, 3));
}

#[test]
fn a_budget_that_ends_within_a_run_hands_out_what_there_is() {
    let mut ram = Ram::<3>::new(&[ONE; 3], Limits { in_a_row: 1, ..LIMITS });
    let mut budget = Budget { slots: 513, ..PLENTY };
    assert_eq!(ram.step(&mut budget), Step::Act { spans: range(0, 2), way: Way::Collapse });
    assert_eq!(ram.step(&mut budget), Step::Spent);
}

#[test]
fn more_spans_than_can_be_remembered_are_scanned_window_by_window() {
    let mut ram = Ram::<2>::new(&[ONE; 5], LIMITS);
    let mut windows = Vec::new();
    for _ in 0..3 * (2 * 2 + 3) {
        windows.extend(ram.pass(true));
    }
    let expected = [(0, 2, Way::Collapse), (2, 2, Way::Collapse), (4, 1, Way::Collapse)];
    assert_eq!(windows, expected);
    // And from the start again.
    ram.looks.fill(ONE);
    assert_eq!((ram.pass(true), ram.pass(true)), (vec![], vec![(0, 2, Way::Collapse)]));
}

/// A call is short, so 2^32 passes over little RAM take a guest some hours.
#[test]
fn passes_over_a_window_that_stays_have_no_end() {
    let mut ram = Ram::<2>::new(&[ONE, Look::Block], LIMITS);
    ram.scan.turns = u32::MAX;
    assert_eq!(ram.pass(false), []);
    assert_eq!(ram.pass(false), [(0, 1, Way::Collapse)]);
}

#[test]
fn a_window_gives_what_failed_a_second_try() {
    let mut ram = Ram::<1>::new(&[ONE; 2], LIMITS);
    let mut tries = 0;
    while ram.seen[1] == 0 {
        tries += ram.pass(false).len();
    }
    assert_eq!(tries, 2);
}

#[test]
fn outcomes_outside_the_window_are_nobodys() {
    let mut ram = Ram::<1>::new(&[ONE; 2], Limits { in_a_row: 1, ..LIMITS });
    for ipa in [0, BASE - BLOCK, BASE + BLOCK, u64::MAX] {
        ram.scan.heard(Ipa::new(ipa), false);
    }
    assert_eq!(ram.pass(true), [(0, 1, Way::Collapse)]);
}

#[test]
fn a_span_is_remembered_in_six_bytes() {
    assert_eq!(size_of::<Span>(), 6);
}

#[test]
fn only_whole_blocks_are_scanned() {
    let at = |start, bytes| IpaRange::new(Ipa::new(start), bytes).unwrap();
    let scan = |range| Scan::new(range, LIMITS, [Span::default(); 4]);
    let mut looks = Vec::new();
    let mut whole = scan(at(BASE + 4096, 3 * BLOCK)).unwrap();
    let look = |ipa: Ipa| {
        looks.push(ipa.get());
        Look::Empty
    };
    assert_eq!(whole.step(&mut { PLENTY }, look), Step::Pass);
    assert_eq!(looks, [BASE + BLOCK, BASE + 2 * BLOCK]);

    let small = at(BASE + 4096, 2 * BLOCK - 8192);
    assert_eq!(scan(small).unwrap_err(), ScanError::TooSmall { range: small });
    let last = at(u64::MAX - BLOCK + 1 - 4096, 4096);
    assert_eq!(scan(last).unwrap_err(), ScanError::TooSmall { range: last });
    let none: [Span; 0] = [];
    assert_eq!(Scan::new(range(0, 1), LIMITS, none).unwrap_err(), ScanError::NoMemory);
}
