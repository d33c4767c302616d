use alloc::string::ToString;
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const RAM: IpaRange = IpaRange { start: 0x4000_0000, end: 0x4000_0000 + (64 << 20) };

#[test]
fn the_word_is_read_as_it_is_written() {
    for (text, seconds, seed) in
        [("1", 1, 0), ("60,seed=7", 60, 7), ("86400,seed=18446744073709551615", 86400, u64::MAX)]
    {
        let wanted = Wanted::parse(text).unwrap();
        assert_eq!(wanted, Wanted { seconds, seed });
        assert_eq!(wanted.to_string(), text);
    }
    for text in ["", "0", "86401", "+1", "60,", "60,seed=", "60,seed=-1", "60 ,seed=1", "1.5"] {
        assert_eq!(Wanted::parse(text), None, "{text:?}");
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
fn all_of_ram_is_some_place_and_a_place_is_kept_for_a_while() {
    let mut dice = Dice::new(3, RAM).unwrap();
    let mut touched = [false; 32];
    let mut moves = 0;
    for _ in 0..32_000 {
        let before = dice.place();
        dice.step(4);
        moves += u32::from(dice.place() != before);
        for (block, touched) in touched.iter_mut().enumerate() {
            let start = RAM.start + block as u64 * BLOCK;
            *touched |= dice.place().contains(start);
        }
    }
    assert!(touched.iter().all(|touched| *touched), "{touched:?}");
    assert!((800..=970).contains(&moves), "{moves}");
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

#[test]
fn what_is_counted_is_told_and_nothing_else() {
    let mut tally = Tally::new();
    assert!(tally.effects().is_empty());
    tally.add(Kind::Move, 3);
    tally.add(Kind::Move, 0);
    tally.refuse(Kind::Split);
    tally.compared(8, false);
    tally.compared(9, true);
    let effects = tally.effects();
    assert_eq!(effects.len(), 3);
    assert_eq!(effects[&Kind::Compare], Effect { steps: 1, changed: 17, refused: 0 });
    assert_eq!(effects[&Kind::Move], Effect { steps: 1, changed: 3, refused: 0 });
    assert_eq!(effects[&Kind::Split], Effect { steps: 0, changed: 0, refused: 1 });
    let json = serde_json::to_string(&effects).unwrap();
    assert_eq!(serde_json::from_str::<Effects>(&json).unwrap(), effects);
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}

proptest! {
    #[test]
    fn a_step_stays_in_ram_and_in_bounds(
        seed: u64, pages in 512_u64..40_000, most in 0_u64..20, steps in 1_usize..200
    ) {
        let ram = IpaRange { start: 0x4000_0000, end: 0x4000_0000 + pages * PAGE_SIZE };
        let mut dice = Dice::new(seed, ram).unwrap();
        for _ in 0..steps {
            let step = dice.step(most);
            let (range, unit) = match step {
                Step::Harvest => continue,
                Step::Move(range) => (range, PAGE_SIZE),
                Step::Run { range, .. } => (range, BLOCK),
                Step::Copy { range, holes } => {
                    prop_assert!(holes < PAGES);
                    (range, BLOCK)
                }
                Step::WriteProtect(range) | Step::Age(range) | Step::Split(range)
                | Step::Collapse(range) | Step::Dissolve(range) => (range, BLOCK),
            };
            prop_assert!(ram.contains_range(&range) && !range.is_empty(), "{step:?}");
            prop_assert!(dice.place().contains_range(&range));
            prop_assert!((range.start | range.end).is_multiple_of(unit), "{step:?}");
            let longest = if unit == BLOCK { most.max(1) * BLOCK } else { BLOCK };
            prop_assert!(range.len() <= longest, "{step:?}");
        }
    }
}
