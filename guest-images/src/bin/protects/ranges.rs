//! POPULATE and RELEASE, counted page by page.

use guest_rt::access::{load, store};
use guest_rt::{MIB2, PAGE, check, check_eq, say};
use hyp_abi::call::{POPULATE, RELEASE, Stat};

use crate::Scene;
use crate::calls::{all, part, stat};

pub(crate) fn check(scene: &mut Scene<'_>) {
    counted(scene);
    again_and_again(scene);
}

/// Faults of loads from every page of a range.
fn faults_of_touching(start: usize, bytes: usize, wanted: u64) -> u64 {
    let before = stat(Stat::Faults);
    for at in (start..start + bytes).step_by(PAGE) {
        check_eq!(load(at).ok(), Some(wanted), "the word at {at:#x}");
    }
    stat(Stat::Faults) - before
}

fn counted(scene: &mut Scene<'_>) {
    // Pages, wherever RAM has blocks: the range is smaller than one, and around it lies what is not populated.
    let start = scene.arena.take(MIB2, MIB2);
    let (at, bytes) = (start + 3 * PAGE, 100 * PAGE);
    let made = all(POPULATE, at, bytes, 0);
    check_eq!(made, if scene.blocks { 1 } else { 100 }, "pages or blocks populated");
    check_eq!(faults_of_touching(at, bytes, 0), 0, "faults of populated pages");
    check_eq!(all(POPULATE, at, bytes, 0), 0, "pages that were there");
    (at..at + bytes).step_by(PAGE).for_each(|at| check_eq!(store(at, 7), Ok(()), "a store"));
    // A part of them.
    check_eq!(all(RELEASE, at + PAGE, 98 * PAGE, 0), 98, "pages released");
    check_eq!(load(at).ok(), Some(7), "the page before");
    check_eq!(load(at + 99 * PAGE).ok(), Some(7), "the page behind");
    let faults = faults_of_touching(at + PAGE, 98 * PAGE, 0);
    check_eq!(faults, 98, "faults of released pages");
    check_eq!(all(RELEASE, start, MIB2, 0) >= 100, true, "pages released in the end");
    check_eq!(all(RELEASE, start, MIB2, 0), 0, "pages that had gone");
    check_eq!(load(at).ok(), Some(0), "a page that was released");
}

/// More in all than the machine has.
fn again_and_again(scene: &mut Scene<'_>) {
    const ROUNDS: usize = 12;
    let bytes = (scene.arena.left() / 4).min(64 * MIB2) & !(MIB2 - 1);
    let start = scene.arena.take(bytes, MIB2);
    let before = stat(Stat::Released);
    let (mut calls, mut pages) = (0, 0);
    for round in 0..ROUNDS as u64 {
        all(POPULATE, start, bytes, 0);
        for at in (start..start + bytes).step_by(MIB2 / 2) {
            check_eq!(load(at).ok(), Some(0), "a page of round {round}");
            check_eq!(store(at, round + 1), Ok(()), "a store");
        }
        let mut done = 0;
        while done < bytes as u64 {
            let answer = part(RELEASE, start as u64 + done, bytes as u64 - done, 0);
            let (now, count) = answer.unwrap_or((0, 0));
            check!(now != 0, "RELEASE does nothing: {answer:?}");
            (done, pages, calls) = (done + now, pages + count, calls + 1);
        }
    }
    check_eq!(pages, (ROUNDS * bytes / PAGE) as u64, "pages released");
    check_eq!(stat(Stat::Released) - before, pages, "pages counted");
    say!("protects: {pages} pages populated and released in {calls} calls");
}
