//! Two vCPUs at one page at the same moment, again and again.
//!
//! The races run through blocks of 2 MiB that nobody has touched. The first pair in a block finds no
//! table: in even blocks both touch the same page, in odd ones two pages, where they race for the
//! table alone. The other pairs race for one page each.

use guest_rt::smp::{self, Meeting, Pairing};
use guest_rt::{MIB2, PAGE, check, check_eq};

use crate::Run;
use crate::pages::Pages;

/// Pages of a block.
const BLOCK: usize = MIB2 / PAGE;
/// Pairs of a block.
const PAIRS: usize = 128;
/// Where the first pair of an odd block goes: this page and the next.
const APART: usize = BLOCK - 2;
/// Blocks between two looks at the counters.
const BATCH: usize = 8;

/// Races in at most `blocks` blocks until more than `least` leaf races and more than `least_tables`
/// table races were lost since the run began; fails when the blocks do not suffice. Where no minimum
/// of table races is asked for, one is tried for and none is no failure: only the first pair of a block
/// can lose one, and the walk's window is short.
pub(crate) fn race(run: &mut Run<'_>, blocks: usize, least: u64, least_tables: Option<u64>) {
    let (machine, vcpus) = (run.machine, run.vcpus);
    check!(blocks > 0, "no RAM is left to race in");
    let races = Pages::new("races", run.arena.take(blocks * MIB2, MIB2), 0);
    let (mut done, mut enough) = (0, false);
    while done < blocks && !enough {
        let end = blocks.min(done + BATCH);
        let pairing = Pairing::starting_at(done * PAIRS);
        smp::run(machine, vcpus, &|me| {
            while let Some(meeting) = pairing.next(end * PAIRS) {
                races.visit(page(meeting), me.index);
            }
        });
        done = end;
        // Without a hypervisor nobody counts, and one batch is as good as many.
        enough = run.moved().is_none_or(|moved| {
            moved.lost > least && moved.lost_tables > least_tables.unwrap_or(0)
        });
    }
    run.touched += done * PAIRS + done / 2;
    smp::run(machine, vcpus, &|_| verify(&races, done));
    if let Some(moved) = run.moved() {
        let (lost, tables) = (moved.lost, moved.lost_tables);
        check!(lost > least, "{lost} leaf races lost in {done} blocks, more than {least} wanted");
        if let Some(least) = least_tables {
            check!(
                tables > least,
                "{tables} table races lost in {done} blocks, more than {least} wanted"
            );
        }
    }
}

/// The page that one half of a pair touches.
fn page(Meeting { pair, half }: Meeting) -> usize {
    let (block, nth) = (pair / PAIRS, pair % PAIRS);
    block * BLOCK + if nth == 0 && is_apart(block) { APART + half } else { nth }
}

fn is_apart(block: usize) -> bool {
    block % 2 == 1
}

/// Every page has exactly the visitors that it had.
fn verify(races: &Pages, blocks: usize) {
    for block in 0..blocks {
        let apart = is_apart(block);
        for nth in usize::from(apart)..PAIRS {
            check_eq!(races.visitors(block * BLOCK + nth), 2, "races: block {block}, page {nth}");
        }
        for nth in if apart { APART..BLOCK } else { 0..0 } {
            check_eq!(races.visitors(block * BLOCK + nth), 1, "races: block {block}, page {nth}");
        }
    }
}
