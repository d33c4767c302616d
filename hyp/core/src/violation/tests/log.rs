//! What the log of a run keeps and tells.

use alloc::string::ToString;
use std::vec::Vec;

use super::super::{KEPT, LINES, Log, PERIOD, Rest, Summary, Violation};
use super::{DATA, TRANSLATION, decoded};

/// The violation at page `page`.
fn at(page: u64) -> Violation {
    Violation { ipa: Some(page << 12), va: None, ..decoded(DATA | TRANSLATION) }
}

fn pages(range: core::ops::Range<u64>) -> impl Iterator<Item = Violation> {
    range.map(at)
}

#[test]
fn what_is_new_is_told_and_what_comes_again_is_counted() {
    let mut log = Log::new();
    let told: Vec<_> = log.add([at(1), at(2), at(1)]).iter().copied().collect();
    assert_eq!(told, [at(1), at(2)]);
    assert_eq!(log.add([Violation { count: 5, time: 7, ..at(2) }]).iter().count(), 0);
    let summary = log.summary(0);
    let counts: Vec<_> = summary.list.iter().map(|one| (one.ipa, one.count, one.time)).collect();
    let first = at(1).time;
    let expected = [(Some(0x1000), 2, first), (Some(0x2000), 6, first)];
    assert_eq!(counts, expected, "each counts its repeats");
    assert_eq!((summary.total(), summary.others), (8, 0), "all violations are counted");
}

#[test]
fn a_virtual_cpu_has_violations_of_its_own() {
    let mut log = Log::new();
    let other = Violation { vcpu: 1, ..at(1) };
    assert_eq!(log.add([at(1), other]).iter().count(), 2);
}

#[test]
fn a_drain_tells_so_many_lines_and_the_rest_in_one() {
    let mut log = Log::new();
    let told = log.add(pages(0..20));
    assert_eq!(told.iter().count(), LINES);
    assert_eq!(log.rest(0, 0, false), Some(Rest { more: 20 - LINES as u64, lost: 0 }));
    // What is kept, though it had no line, is known.
    assert_eq!(log.add(pages(0..20)).iter().count(), 0);
    assert_eq!(log.summary(0).list.len(), 20);
}

#[test]
fn the_rest_is_told_once_a_second_and_at_the_end() {
    let mut log = Log::new();
    log.add(pages(0..20));
    assert!(log.rest(5, 0, false).is_some());
    log.add([at(0)]);
    assert_eq!(log.rest(4 + PERIOD, 0, false), None);
    log.add([at(0)]);
    let rest = Rest { more: 2, lost: 0 };
    assert_eq!(log.rest(5 + PERIOD, 0, false), Some(rest), "each is told once");
    assert_eq!(log.rest(5 + 9 * PERIOD, 0, false), None, "there is none");
    log.add([at(0)]);
    assert_eq!(log.rest(5 + 9 * PERIOD, 3, true), Some(Rest { more: 1, lost: 3 }));
    assert_eq!(log.rest(6 + 9 * PERIOD, 3, true), None, "each is told once");
    assert_eq!(log.rest(6 + 99 * PERIOD, 4, false), Some(Rest { more: 0, lost: 1 }));
}

#[test]
fn the_line_of_the_rest_names_what_was_lost_only_if_something_was() {
    assert_eq!(Rest { more: 12, lost: 0 }.to_string(), "12 more");
    assert_eq!(Rest { more: 12, lost: 3 }.to_string(), "12 more, and 3 that found the log full");
}

#[test]
fn the_first_that_differ_are_kept_and_all_are_counted() {
    let mut log = Log::new();
    let all = 10 * KEPT as u64;
    for first in (0..all).step_by(16) {
        log.add(pages(first..first + 16));
    }
    log.add(pages(0..16));
    let summary = log.summary(5);
    assert_eq!(summary.list.len(), KEPT);
    assert!(summary.list.iter().map(|one| one.ipa).eq(pages(0..KEPT as u64).map(|one| one.ipa)));
    assert_eq!(summary.total(), all + 16 + 5, "all violations are counted");
}

#[test]
fn no_guest_can_flood_the_console() {
    let mut log = Log::new();
    let (mut lines, seconds) = (0, 20);
    for drain in 0..100 * seconds {
        lines += log.add(pages(drain * 16..drain * 16 + 16)).iter().count() as u64;
        lines += log.add(pages(0..8)).iter().count() as u64;
        lines += u64::from(log.rest(drain * PERIOD / 100, drain, false).is_some());
    }
    assert!(lines <= KEPT as u64 + seconds, "the console is flooded: {lines} lines");
}

#[test]
fn a_summary_is_one_line() {
    let list = [Violation { count: 11, ..at(1) }, at(2)].to_vec();
    let summary = Summary { list, others: 0, lost: 0 };
    assert_eq!(summary.to_string(), "12 (12 listed in 2 rows)");
    let summary = Summary { others: 3, lost: 1, ..summary };
    assert_eq!(summary.to_string(), "16 (12 listed in 2 rows, 3 not listed, 1 lost)");
    assert!(Summary::default().is_empty() && !summary.is_empty());
}
