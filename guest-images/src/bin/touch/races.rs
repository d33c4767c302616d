//! Two vCPUs at one never-touched page at the same moment, again and again.
//!
//! First for tables: a pair to each block of 2 MiB, which has no table yet. In even blocks both touch
//! the same page, in odd ones two pages, where they race for the table alone. Then for the other pages
//! of the same blocks, one pair a page. Either goes on until its minimum is exceeded or the blocks are
//! used up.

use guest_rt::race::{self, Meeting};
use guest_rt::{MIB2, PAGE, check, check_eq, smp};

use crate::Run;
use crate::pages::Pages;

/// Pages of a block.
const BLOCK: usize = MIB2 / PAGE;
/// Where the table's pair of an odd block goes: this page and the next. That of an even one: page 0.
const APART: usize = BLOCK - 2;
/// Pages of a block for the other pairs, from page 1.
const DENSE: usize = APART - 1;
/// Pairs between two looks at the counters.
const TABLE_BATCH: usize = 16;
const LEAF_BATCH: usize = 256;

/// Races in at most `blocks` blocks until more than `least` leaf races and more than `least_tables`
/// table races were lost since the run began; fails when the blocks do not suffice. Where no minimum
/// of table races is asked for, one is tried for and none is no failure.
pub(crate) fn race(run: &mut Run<'_>, blocks: usize, least: u64, least_tables: Option<u64>) {
    let (machine, vcpus) = (run.machine, run.vcpus);
    check!(blocks > 0, "no RAM is left to race in");
    let pages = Pages::new("races", run.arena.take(blocks * MIB2, MIB2), 0);
    // Pairs from 0 to `limit`, in batches, until a look at the counters says enough; gives how many.
    // Without a hypervisor nobody counts, and one batch is as good as many.
    let batches =
        |limit: usize, batch: usize, page: fn(Meeting) -> usize, enough: &dyn Fn() -> bool| {
            let mut done = 0;
            while done < limit && (done == 0 || !enough()) {
                let end = limit.min(done + batch);
                race::run(machine, vcpus, done..end, &|meeting, me| {
                    pages.visit(page(meeting), me.index)
                });
                done = end;
            }
            done
        };
    let lost = || run.moved().map_or(u64::MAX, |moved| moved.lost);
    let lost_tables = || run.moved().map_or(u64::MAX, |moved| moved.lost_tables);
    let tables =
        batches(blocks, TABLE_BATCH, table_page, &|| lost_tables() > least_tables.unwrap_or(0));
    let leaves = batches(blocks * DENSE, LEAF_BATCH, leaf_page, &|| lost() > least);

    smp::run(machine, vcpus, &|_| {
        for (pair, half) in (0..tables).flat_map(|pair| [(pair, 0), (pair, 1)]) {
            let page = table_page(Meeting { pair, half });
            let visitors = if is_apart(pair) { 1 } else { 2 };
            check_eq!(pages.visitors(page), visitors, "block {pair}, half {half}");
        }
        for pair in 0..leaves {
            let page = leaf_page(Meeting { pair, half: 0 });
            check_eq!(pages.visitors(page), 2, "races: page {page}");
        }
    });
    let (lost, lost_tables) = (lost(), lost_tables());
    check!(lost > least, "{lost} leaf races lost by {leaves} pairs, more than {least} wanted");
    if let Some(least) = least_tables {
        check!(
            lost_tables > least,
            "{lost_tables} table races lost by {tables} pairs, more than {least} wanted"
        );
    }
    run.touched += tables + tables / 2 + leaves;
}

fn is_apart(block: usize) -> bool {
    block % 2 == 1
}

/// The page that one half of a block's first pair touches.
fn table_page(Meeting { pair: block, half }: Meeting) -> usize {
    block * BLOCK + if is_apart(block) { APART + half } else { 0 }
}

/// The page that another pair touches.
fn leaf_page(Meeting { pair, .. }: Meeting) -> usize {
    pair / DENSE * BLOCK + 1 + pair % DENSE
}
