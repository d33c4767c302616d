use std::vec::Vec;

use proptest::prelude::*;

use super::{Alarms, NEVER};

#[test]
fn the_earliest_wins_whoever_sets_it() {
    let alarms = Alarms::<3>::none();
    assert_eq!(alarms.earliest(), NEVER);
    assert_eq!(alarms.set(1, 50), Some(50));
    assert_eq!(alarms.set(0, 70), None, "the timer is set to an earlier one already");
    assert_eq!(alarms.set(2, 20), Some(20), "the timer is set to the earlier one");
    assert_eq!(alarms.earliest(), 20, "the timer's time is known");
}

#[test]
fn who_takes_its_time_back_leaves_the_others_theirs() {
    let alarms = Alarms::<3>::none();
    alarms.set(0, 10);
    alarms.set(1, 30);
    assert_eq!(alarms.set(0, NEVER), Some(30), "the timer is set to the other one's");
    assert_eq!(alarms.set(1, NEVER), Some(NEVER));
    assert_eq!(alarms.set(1, NEVER), None, "there was none");
}

#[test]
fn two_with_the_same_time_keep_it_until_both_have_taken_it_back() {
    let alarms = Alarms::<2>::none();
    alarms.set(0, 10);
    assert_eq!(alarms.set(1, 10), None);
    assert_eq!(alarms.set(0, NEVER), None);
    assert_eq!(alarms.earliest(), 10);
    assert_eq!(alarms.set(1, NEVER), Some(NEVER));
}

#[test]
fn a_time_is_over_at_its_own_tick_and_not_before() {
    let alarms = Alarms::<2>::none();
    alarms.set(0, 10);
    alarms.set(1, 11);
    assert_eq!(alarms.came(9), 10, "a time that is to come stays");
    assert_eq!(alarms.came(10), 11, "a time that has come is gone");
    assert_eq!(alarms.came(u64::MAX - 1), NEVER);
}

#[test]
fn a_time_that_was_set_again_is_the_new_one() {
    let alarms = Alarms::<2>::none();
    alarms.set(0, 10);
    assert_eq!(alarms.set(0, 40), Some(40));
    assert_eq!(alarms.came(39), 40);
}

proptest! {
    /// Against four times that are looked through each time.
    #[test]
    fn the_timer_is_always_set_to_the_earliest(
        steps in prop::collection::vec((0..5_usize, prop_oneof![0..40_u64, Just(NEVER)]), 0..60),
    ) {
        let alarms = Alarms::<4>::none();
        let mut times = [NEVER; 4];
        let mut timer = NEVER;
        for (which, at) in steps {
            if let Some(time) = times.get_mut(which) {
                *time = at;
                timer = alarms.set(which, at).unwrap_or(timer);
            } else {
                let over: Vec<_> = times.iter_mut().filter(|time| **time <= at).collect();
                over.into_iter().for_each(|time| *time = NEVER);
                timer = alarms.came(at);
            }
            let earliest = times.into_iter().min().unwrap();
            prop_assert_eq!((timer, alarms.earliest()), (earliest, earliest));
        }
    }
}
