use std::collections::HashMap;

use proptest::prelude::*;

use super::super::dice::WAYS;
use super::super::*;
use super::RAM;
use crate::IpaRange;
use crate::range::PAGE_SIZE;

/// Where a step is, if it is no harvest, and what its bounds are multiples of.
fn range(step: Step) -> (Option<IpaRange>, u64) {
    match step {
        Step::Harvest => (None, BLOCK),
        Step::Move(range) => (Some(range), PAGE_SIZE),
        Step::Run { range, .. }
        | Step::Copy { range, .. }
        | Step::WriteProtect(range)
        | Step::Age(range)
        | Step::Split(range)
        | Step::Collapse(range)
        | Step::Dissolve(range) => (Some(range), BLOCK),
    }
}

#[test]
fn every_kind_of_step_comes_about_as_often_as_it_should() {
    let mut dice = Dice::new(1, RAM).unwrap();
    let mut seen = HashMap::new();
    for _ in 0..32_000 {
        *seen.entry(dice.step(4).kind()).or_insert(0_u64) += 1;
    }
    for (kind, weight) in WAYS {
        let count = seen[&kind];
        assert!((weight * 800..weight * 1200).contains(&count), "{kind:?}: {count}");
    }
}

#[test]
fn the_same_seed_takes_the_same_steps_and_another_one_others() {
    let steps = |seed| {
        let mut dice = Dice::new(seed, RAM).unwrap();
        core::array::from_fn::<_, 64, _>(|_| dice.step(4))
    };
    assert_eq!(steps(7), steps(7));
    assert_ne!(steps(7), steps(8));
}

#[test]
fn all_of_ram_is_some_place() {
    let mut dice = Dice::new(3, RAM).unwrap();
    let mut touched = [false; 32];
    for _ in 0..32_000 {
        dice.step(4);
        for (block, touched) in touched.iter_mut().enumerate() {
            let start = RAM.start + block as u64 * BLOCK;
            *touched |= dice.place().contains(start);
        }
    }
    assert!(touched.iter().all(|touched| *touched), "blocks without a step: {touched:?}");
}

/// A place without memory is left before a step is taken there, so it must be known before.
#[test]
fn every_place_has_32_steps_and_is_known_before_the_first() {
    let mut dice = Dice::new(3, RAM).unwrap();
    let mut moves = 0;
    for number in 1..=32_000 {
        let place = dice.place();
        let step = dice.step(4);
        let range = range(step).0;
        assert!(range.is_none_or(|range| place.contains_range(&range)), "{step:?} in {place}");
        if number % 32 == 0 {
            moves += u32::from(dice.place() != place);
        } else {
            assert_eq!(dice.place(), place, "another place after step {number}");
        }
    }
    // Of 25 places the next may be the same.
    assert!((900..1000).contains(&moves), "another place {moves} times of 1000");
}

#[test]
fn a_place_that_is_left_early_is_followed_by_one_with_32_steps() {
    let mut dice = Dice::new(5, RAM).unwrap();
    for _ in 0..7 {
        dice.step(4);
    }
    dice.move_on();
    let place = dice.place();
    for number in 1..32 {
        dice.step(4);
        assert_eq!(dice.place(), place, "another place after step {number}");
    }
}

#[test]
fn without_a_whole_aligned_block_there_is_nothing_to_do() {
    let ram = |start, end| IpaRange { start, end };
    for ram in [ram(0, 0), ram(0, BLOCK - 4096), ram(4096, 4 * BLOCK), ram(BLOCK, 0)] {
        assert!(Dice::new(0, ram).is_none(), "{ram}");
    }
    let mut dice = Dice::new(0, ram(BLOCK, 2 * BLOCK + 4096)).unwrap();
    assert_eq!(dice.place(), ram(BLOCK, 2 * BLOCK));
    dice.step(u64::MAX);
}

proptest! {
    #[test]
    fn a_step_stays_in_ram_and_in_bounds(
        seed: u64, pages in 512_u64..40_000, most in 0_u64..20, steps in 1_usize..200
    ) {
        let ram = IpaRange { start: 0x4000_0000, end: 0x4000_0000 + pages * PAGE_SIZE };
        let mut dice = Dice::new(seed, ram).unwrap();
        for _ in 0..steps {
            let place = dice.place();
            let step = dice.step(most);
            if let Step::Copy { holes, .. } = step {
                prop_assert!(holes < 512);
            }
            let (Some(range), unit) = range(step) else { continue };
            prop_assert!(!range.is_empty(), "{step:?} is nowhere");
            if let Step::Move(IpaRange { start, end }) = step {
                let is_in_one = start / BLOCK == (end - 1) / BLOCK;
                prop_assert!(is_in_one, "{step:?} is in two blocks");
            }
            prop_assert!(place.contains_range(&range), "{step:?} leaves its place");
            prop_assert!(ram.contains_range(&place), "{place} is not in RAM");
            prop_assert!((range.start | range.end).is_multiple_of(unit), "{step:?}");
            let longest = if unit == BLOCK { most.max(1) * BLOCK } else { BLOCK };
            prop_assert!(range.len() <= longest, "{step:?} is too long");
        }
    }
}
