use std::vec::Vec;

use proptest::prelude::*;

use super::{Turns, Verdict};

const SLICE: u64 = 10;

#[test]
fn turns_go_round() {
    let mut turns = Turns::new(3);
    let mut order = Vec::new();
    for now in 0..7 {
        let next = turns.next(|_| true).unwrap();
        turns.begin(next, now, SLICE);
        order.push(next);
    }
    assert_eq!(order, [1, 2, 0, 1, 2, 0, 1], "the order of the turns");
}

#[test]
fn who_is_not_ready_is_passed_over() {
    let mut turns = Turns::new(4);
    turns.begin(1, 0, SLICE);
    assert_eq!(turns.next(|vcpu| vcpu == 0 || vcpu == 3), Some(3));
    assert_eq!(turns.next(|vcpu| vcpu == 0), Some(0), "those before it come after the last");
    assert_eq!(turns.next(|_| false), None);
}

#[test]
fn the_current_one_goes_on_only_if_no_other_is_ready() {
    let mut turns = Turns::new(3);
    turns.begin(2, 0, SLICE);
    assert_eq!(turns.next(|vcpu| vcpu == 2), Some(2));
    assert_eq!(turns.next(|vcpu| vcpu != 0), Some(1), "another one is ready, too");
}

#[test]
fn a_cpu_without_vcpus_has_nobody_to_run() {
    let turns = Turns::new(0);
    assert_eq!(turns.next(|_| true), None);
    assert!(turns.is_alone(), "nobody has to be taken out for a turn");
}

#[test]
fn who_is_alone_has_no_end() {
    let mut turns = Turns::new(1);
    turns.begin(0, 0, SLICE);
    assert_eq!(turns.verdict(1_000_000, false), Verdict::GoOn, "nobody is waiting");
}

#[test]
fn a_slice_ends_at_its_own_tick_and_not_before() {
    let mut turns = Turns::new(2);
    turns.begin(0, 100, SLICE);
    assert_eq!(turns.verdict(100, true), Verdict::Until(110), "a slice from its beginning on");
    assert_eq!(turns.verdict(109, true), Verdict::Until(110));
    assert_eq!(turns.verdict(110, true), Verdict::Over, "the slice is over at its end");
}

#[test]
fn who_has_had_the_cpu_for_long_gives_it_up_at_once() {
    let mut turns = Turns::new(2);
    turns.begin(0, 0, SLICE);
    assert_eq!(turns.verdict(500, false), Verdict::GoOn);
    assert_eq!(turns.verdict(501, true), Verdict::Over);
}

#[test]
fn at_the_end_of_time_a_slice_does_not_wrap() {
    let mut turns = Turns::new(2);
    turns.begin(0, u64::MAX - 3, SLICE);
    assert_eq!(turns.verdict(u64::MAX - 2, true), Verdict::Until(u64::MAX), "the end of time");
}

proptest! {
    /// A CPU that looks at every tick; vCPUs become ready and stop being it as they like.
    #[test]
    fn who_stays_ready_waits_no_longer_than_the_slices_of_the_others(
        vcpus in 1..8_usize,
        changes in prop::collection::vec((0..8_usize, any::<bool>()), 0..400),
    ) {
        let mut turns = Turns::new(vcpus);
        let mut ready = [false; 8];
        let mut since = [0_u64; 8];
        let most = (vcpus as u64 - 1) * SLICE;
        for (now, (vcpu, is_ready)) in (0..).zip(changes) {
            if vcpu < vcpus {
                ready[vcpu] = is_ready;
            }
            let current = turns.current();
            let wanted = turns.others().any(|vcpu| ready[vcpu]);
            let ends = !ready[current] || turns.verdict(now, wanted) == Verdict::Over;
            if ends && let Some(next) = turns.next(|vcpu| ready[vcpu]) {
                prop_assert!(ready[next]);
                prop_assert!(next != current || !wanted);
                turns.begin(next, now, SLICE);
            }
            for vcpu in 0..vcpus {
                if !ready[vcpu] || vcpu == turns.current() {
                    since[vcpu] = now;
                }
                prop_assert!(now - since[vcpu] <= most, "vCPU {vcpu} has waited since {}", since[vcpu]);
            }
        }
    }
}
