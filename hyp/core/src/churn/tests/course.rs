use super::super::*;
use super::RAM;
use crate::IpaRange;

/// Ticks a second.
const SECOND: u64 = 1_000_000;
/// When the life begins.
const START: u64 = 77;
/// What a harvest or a comparison does at a time.
const PART: u64 = 16 << 20;

fn course(seconds: u32, session: Option<u32>) -> (Course, Dice) {
    let wanted = Wanted { seconds, seed: 9, session };
    (Course::new(&wanted, START, SECOND), Dice::new(9, RAM).unwrap())
}

/// One that has just begun its first session, of all RAM.
fn begun(seconds: u32, session: Option<u32>) -> (Course, Dice) {
    let (mut course, mut dice) = course(seconds, session);
    assert_eq!(course.next(START), Next::Begin);
    course.begun(RAM, START, &mut dice);
    (course, dice)
}

fn from(offset: u64) -> IpaRange {
    IpaRange { start: RAM.start + offset, end: RAM.end }
}

#[test]
fn a_session_runs_is_compared_part_after_part_stopped_cleared_and_followed_by_another() {
    let (mut course, mut dice) = begun(60, Some(3));
    let over = START + 3 * SECOND;
    assert_eq!(course.next(START), Next::Step);
    assert_eq!(course.next(over - 1), Next::Step);
    for part in 0..4 {
        assert_eq!(course.next(over), Next::Compare(from(part * PART)));
        // Until somebody says that it was done.
        assert_eq!(course.next(over), Next::Compare(from(part * PART)));
        assert_eq!(course.compared(PART), part == 3);
    }
    assert_eq!((course.next(over), course.at_the_end()), (Next::Stop, None));
    assert_eq!(course.next(over), Next::Stop);
    course.stopped();
    assert_eq!((course.next(over), course.at_the_end()), (Next::Clear, None));
    course.cleared(over, &mut dice);
    assert_eq!(course.next(over + SECOND - 1), Next::Step);
    assert_eq!(course.next(over + 3 * SECOND), Next::Begin);
    // Nobody has begun one.
    assert_eq!((course.next(over + 3 * SECOND), course.at_the_end()), (Next::Begin, None));
}

#[test]
fn a_session_takes_1_to_5_seconds_and_a_while_between_two_1_to_3() {
    let (mut lengths, mut whiles) = ([false; 6], [false; 4]);
    let (mut course, mut dice) = course(86_400, None);
    let mut now = START;
    let lasts = |course: &mut Course, now: &mut u64, seen: &mut [bool]| {
        let begin = *now;
        while course.next(*now) == Next::Step {
            *now += SECOND / 1000;
        }
        seen[((*now - begin - 1) / SECOND) as usize] = true;
    };
    for _ in 0..200 {
        assert_eq!(course.next(now), Next::Begin);
        course.begun(RAM, now, &mut dice);
        lasts(&mut course, &mut now, &mut lengths);
        assert!(course.compared(RAM.len()));
        course.stopped();
        course.cleared(now, &mut dice);
        lasts(&mut course, &mut now, &mut whiles);
    }
    assert_eq!(lengths, [false, true, true, true, true, false]);
    assert_eq!(whiles, [false, true, true, false]);
}

#[test]
fn when_the_time_is_over_what_runs_is_compared_and_nothing_begins() {
    let (mut course, mut dice) = begun(2, Some(600));
    let over = START + 2 * SECOND;
    assert_eq!(course.next(over - 1), Next::Step);
    assert_eq!(course.next(over), Next::Compare(RAM));
    assert!(course.compared(RAM.len()));
    assert_eq!(course.next(over), Next::Stop);
    course.stopped();
    course.cleared(over, &mut dice);
    assert_eq!(course.next(over), Next::Over);
    assert_eq!(course.next(over + 5 * SECOND), Next::Over);
}

#[test]
fn a_vm_that_ends_has_all_of_a_session_compared_or_what_is_left_of_it() {
    let (mut running, _) = begun(60, Some(3));
    assert_eq!(running.at_the_end(), Some(RAM));
    assert!(!running.compared(PART));
    assert_eq!(running.at_the_end(), Some(from(PART)));
    assert_eq!(running.next(START), Next::Compare(from(PART)));
    let (mut none, _) = course(60, None);
    assert_eq!(none.at_the_end(), None);
}

#[test]
fn a_session_that_proves_nothing_is_stopped_and_not_compared() {
    let (mut running, _) = begun(60, Some(3));
    running.gave_up();
    assert_eq!((running.next(START), running.at_the_end()), (Next::Stop, None));
    let (mut comparing, _) = begun(60, Some(3));
    assert_eq!(comparing.at_the_end(), Some(RAM));
    comparing.gave_up();
    assert_eq!((comparing.next(START), comparing.at_the_end()), (Next::Stop, None));
    assert!(!comparing.compared(RAM.len()));
    // Where there is none nothing is given up.
    let (mut none, _) = course(60, None);
    none.gave_up();
    assert_eq!(none.next(START), Next::Begin);
}

#[test]
fn harvests_go_around_the_session() {
    let (mut running, _) = begun(60, Some(3));
    for _ in 0..3 {
        for part in 0..4 {
            assert_eq!(running.harvest(), Some(from(part * PART)));
            running.harvested(PART);
        }
    }
    running.harvested(PART);
    assert_eq!(running.at_the_end(), Some(RAM));
    assert_eq!(running.harvest(), None);
}
