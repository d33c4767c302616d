//! A list of ranges against one value an address.

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Addresses of the reference.
const SPACE: u64 = 40;

fn range(start: u64, end: u64) -> IpaRange {
    IpaRange { start, end }
}

/// Ranges of addresses with values, in order, as a list and as one value an address.
fn applied(changes: &[(u64, u64, Option<u8>)]) -> (Patches<u8>, Vec<Option<u8>>) {
    let (mut patches, mut reference) = (Patches::new(), std::vec![None; SPACE as usize]);
    for &(start, len, value) in changes {
        let end = (start + len).min(SPACE);
        patches = patches.with(range(start, end), value, usize::MAX).unwrap();
        (start..end).for_each(|at| reference[at as usize] = value);
    }
    (patches, reference)
}

fn changes() -> impl Strategy<Value = Vec<(u64, u64, Option<u8>)>> {
    prop::collection::vec((0..SPACE, 0..SPACE / 2, prop::option::of(0..3_u8)), 0..12)
}

proptest! {
    #[test]
    fn each_address_has_what_was_said_of_it_last(changes in changes()) {
        let (patches, reference) = applied(&changes);
        for (at, value) in reference.iter().enumerate() {
            prop_assert_eq!(patches.at(at as u64), value.as_ref());
        }
        let runs = reference.chunk_by(|a, b| a == b).filter(|run| run[0].is_some()).count();
        prop_assert_eq!(patches.len(), runs, "neighbours alike are one");
        prop_assert_eq!(patches.is_empty(), runs == 0);
        let again = patches.again().unwrap();
        prop_assert_eq!(&again.list, &patches.list);
    }

    #[test]
    fn a_range_has_one_value_or_is_mixed(
        changes in changes(), start in 0..SPACE - 1, len in 1..SPACE,
    ) {
        let (patches, reference) = applied(&changes);
        let end = (start + len).min(SPACE);
        let part = &reference[start as usize..end as usize];
        let wanted = match part[0] {
            first if part.iter().any(|value| *value != first) => Over::Mixed,
            Some(value) => Over::Patch(value),
            None => Over::Rest,
        };
        prop_assert_eq!(patches.over(range(start, end)), wanted);
    }

    #[test]
    fn around_an_address_is_all_in_which_the_same_holds(changes in changes(), at in 0..SPACE) {
        let (patches, reference) = applied(&changes);
        let (around, value) = patches.around(at);
        prop_assert_eq!(value.copied(), reference[at as usize]);
        let (start, end) = (around.start, around.end.min(SPACE));
        prop_assert!((start..end).contains(&at));
        let alike = |other: u64| reference[other as usize] == reference[at as usize];
        prop_assert!((start..end).all(alike), "{start} to {end}");
        prop_assert!(start == 0 || !alike(start - 1), "more before {start}");
        prop_assert!(end == SPACE || !alike(end), "more from {end} on");
    }

    #[test]
    fn the_largest_gap_is_as_large_as_any(changes in changes(), cut in 0..SPACE) {
        let (patches, reference) = applied(&changes);
        let (below, above) = reference.split_at(cut as usize);
        let free = |part: &[Option<u8>]| {
            let runs = part.chunk_by(|a, b| a.is_none() == b.is_none());
            runs.filter(|run| run[0].is_none()).map(<[_]>::len).max().unwrap_or(0)
        };
        let gap = patches.largest_gap(&[range(0, cut), range(cut, SPACE)]);
        prop_assert_eq!(gap.map_or(0, |gap| gap.len()) as usize, free(below).max(free(above)));
        if let Some(gap) = gap {
            prop_assert_eq!(patches.over(gap), Over::Rest);
            prop_assert!(gap.end <= cut || cut <= gap.start);
        }
    }
}

#[test]
fn there_are_no_more_ranges_than_there_may_be() {
    let two = [(0, 4, Some(1)), (8, 4, Some(1))];
    let (patches, _) = applied(&two);
    assert_eq!(
        patches.with(range(20, 24), Some(1), 2).unwrap_err(),
        PatchError::TooMany { wanted: 3, most: 2 }
    );
    // One that is cut in the middle is two.
    assert!(patches.with(range(1, 2), None, 2).is_err());
    assert_eq!(patches.with(range(4, 8), Some(1), 2).unwrap().len(), 1);
    assert_eq!(
        patches.with(range(20, 24), Some(1), 2).unwrap_err().to_string(),
        "3 ranges differ from the rest; 2 may"
    );
}
