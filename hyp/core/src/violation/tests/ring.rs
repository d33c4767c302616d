//! The ring, by one thread against a reference, and by two.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

use proptest::prelude::*;

use super::super::{Newest, Pushed, Ring};

/// Records of two words: a name and a value; the same if the names are.
type Small = Ring<4, 2>;

fn by_name(words: &[u64; 2], before: &Newest<'_, 2>) -> bool {
    words[0] == before.word(0)
}

fn push<const N: usize>(ring: &Ring<N, 2>, name: u64, value: u64) -> Pushed {
    ring.push([name, value], by_name)
}

#[test]
fn the_newest_counts_its_repeats_and_keeps_its_first_words() {
    let ring = Small::new();
    assert_eq!(push(&ring, 1, 10), Pushed::First);
    assert_eq!(push(&ring, 1, 11), Pushed::Counted);
    assert_eq!(push(&ring, 2, 12), Pushed::Added, "another violation is a record of its own");
    assert_eq!(push(&ring, 2, 13), Pushed::Counted);
    assert_eq!(push(&ring, 2, 14), Pushed::Counted);
    // No longer the newest.
    assert_eq!(push(&ring, 1, 15), Pushed::Added);
    assert_eq!(ring.take(), Some(([1, 10], 2)));
    assert_eq!(ring.take(), Some(([2, 12], 3)));
    assert_eq!(ring.take(), Some(([1, 15], 1)));
    assert_eq!(ring.take(), None);
}

#[test]
fn a_repeat_of_what_was_taken_is_a_record_of_its_own() {
    let ring = Small::new();
    push(&ring, 1, 10);
    assert_eq!(ring.take(), Some(([1, 10], 1)));
    assert_eq!(push(&ring, 1, 11), Pushed::First, "a repeat of what was taken is a record");
    assert_eq!(ring.take(), Some(([1, 11], 1)));
}

#[test]
fn a_full_ring_loses_what_comes_and_keeps_what_it_has() {
    let ring = Small::new();
    for name in 0..4 {
        assert_ne!(push(&ring, name, 0), Pushed::Lost);
    }
    assert_eq!(push(&ring, 9, 0), Pushed::Lost, "a full ring has no room");
    // The newest still counts.
    assert_eq!(push(&ring, 3, 0), Pushed::Counted);
    assert_eq!(ring.take(), Some(([0, 0], 1)));
    assert_eq!(push(&ring, 9, 1), Pushed::Added);
    let rest: Vec<_> = core::iter::from_fn(|| ring.take()).collect();
    assert_eq!(rest, [([1, 0], 1), ([2, 0], 1), ([3, 0], 2), ([9, 1], 1)]);
    assert!(ring.is_empty());
}

/// Nothing is the same as nothing: words of 0 in a ring that was never used.
#[test]
fn the_first_record_of_all_is_no_repeat() {
    let ring = Small::new();
    assert!(ring.is_empty());
    assert_eq!(push(&ring, 0, 0), Pushed::First);
    assert!(!ring.is_empty());
}

proptest! {
    /// The names are few, so that repeats are common; so are takes, so that the ring is empty, full and between.
    #[test]
    fn a_ring_is_a_queue_with_room_for_some(steps in proptest::collection::vec(proptest::option::weighted(0.7, 0..3_u64), 0..200)) {
        let ring = Small::new();
        let mut queue: VecDeque<([u64; 2], u64)> = VecDeque::new();
        for (value, step) in (0..).zip(steps) {
            let Some(name) = step else {
                prop_assert_eq!(ring.take(), queue.pop_front());
                continue;
            };
            let waiting = queue.len();
            let expected = match queue.back_mut() {
                Some((words, count)) if words[0] == name => {
                    *count += 1;
                    Pushed::Counted
                }
                _ if waiting == 4 => Pushed::Lost,
                _ => {
                    queue.push_back(([name, value], 1));
                    if queue.len() == 1 { Pushed::First } else { Pushed::Added }
                }
            };
            prop_assert_eq!(push(&ring, name, value), expected);
            prop_assert_eq!(ring.is_empty(), queue.is_empty());
        }
    }
}

/// One thread adds, one takes: whatever happens first, each push is in exactly one count or was lost, the order is kept, and no
/// record is torn.
#[test]
fn nothing_is_counted_twice_and_nothing_lost_in_silence() {
    const PUSHES: u64 = 200_000;
    let ring = Ring::<8, 2>::new();
    let done = AtomicBool::new(false);
    let (mut lost, mut taken) = (0, Vec::new());
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let mut taken = Vec::new();
            loop {
                let over = done.load(Ordering::Acquire);
                match ring.take() {
                    Some(record) => taken.push(record),
                    None if over => return taken,
                    None => std::thread::yield_now(),
                }
            }
        });
        for number in 0..PUSHES {
            // Runs of five of a name.
            let name = number / 5;
            lost += u64::from(push(&ring, name, !name) == Pushed::Lost);
        }
        done.store(true, Ordering::Release);
        taken = taker.join().unwrap();
    });
    let counted: u64 = taken.iter().map(|(_, count)| count).sum();
    assert_eq!(counted + lost, PUSHES);
    assert!(taken.iter().all(|([name, value], count)| *value == !name && (1..=5).contains(count)));
    assert!(taken.is_sorted_by_key(|(words, _)| words[0]));
}
