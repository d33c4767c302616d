//! The ring of a CPU's violations against whoever empties it: each push is in one count or was lost, in order, and no record is
//! torn.

use std::sync::Arc;

use hyp_core::violation::{Pushed, Ring};

use crate::outcome::reached;
use crate::sched::thread;

/// A record: a name, and what has to go with it.
type Record = [u64; 2];

fn push<const N: usize>(ring: &Ring<N, 2>, name: u64) -> Pushed {
    ring.push([name, !name], |words, before| words[0] == before.word(0))
}

/// One thread pushes `names`, another tries `takes` times to take something; then the rest is taken. Returns what was taken, by the
/// other thread first, and whether anything was lost.
fn pushed_and_taken<const N: usize>(
    names: &'static [u64],
    takes: usize,
) -> (Vec<u64>, Vec<u64>, bool) {
    let ring = Arc::new(Ring::<N, 2>::new());
    let taker = {
        let ring = Arc::clone(&ring);
        thread::spawn(move || (0..takes).filter_map(|_| ring.take()).collect::<Vec<_>>())
    };
    let lost = names.iter().filter(|name| push(&ring, **name) == Pushed::Lost).count() as u64;
    let early = taker.join().unwrap();
    let late: Vec<_> = std::iter::from_fn(|| ring.take()).collect();
    assert!(ring.is_empty(), "what was pushed is taken");
    let all = || early.iter().chain(&late);
    for (record, _) in all() {
        let [name, with]: Record = *record;
        assert_eq!(with, !name, "a torn record: {record:x?}");
    }
    let counted: u64 = all().map(|(_, count)| count).sum();
    assert_eq!(counted + lost, names.len() as u64, "pushes that are counted: {early:?}, {late:?}");
    assert!(all().is_sorted_by_key(|(record, _)| record[0]), "out of order: {early:?}, {late:?}");
    assert!(all().all(|(_, count)| *count != 0), "a record that nobody has pushed");
    let counts = |records: &[(Record, u64)]| records.iter().map(|(_, count)| *count).collect();
    (counts(&early), counts(&late), lost != 0)
}

/// The same violation twice.
pub fn a_repeat_against_a_drain() {
    let (early, late, _) = pushed_and_taken::<2>(&[1, 1], 1);
    reached(match (early.as_slice(), late.as_slice()) {
        ([], [2]) => "came too early",
        ([2], []) => "took both as one",
        ([1], [1]) => "the repeat came after it",
        other => panic!("counts of {other:?}"),
    });
}

/// A third violation, where there is room for two.
pub fn a_full_log_against_a_drain() {
    let (early, late, lost) = pushed_and_taken::<2>(&[1, 2, 3], 2);
    assert_eq!(early.len() + late.len() + usize::from(lost), 3);
    reached(if lost { "lost" } else { "found room" });
}

/// Runs of repeats, wherever the ring ends.
pub fn a_storm_against_drains() {
    let names = &[1, 1, 1, 2, 3, 3, 4, 5, 5, 5, 5, 6, 7, 7, 8, 9, 9, 9];
    let (early, _, lost) = pushed_and_taken::<8>(names, 12);
    reached(if lost { "lost" } else { "found room" });
    if early.iter().any(|count| *count > 1) {
        reached("took a repeat");
    }
}
