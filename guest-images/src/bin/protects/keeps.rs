//! Permissions stay, whatever else is done to the memory.

use core::sync::atomic::{AtomicUsize, Ordering};

use guest_rt::access::{Access, RET_AND_SVC, expect, load, store};
use guest_rt::cache::sync_code;
use guest_rt::{MIB2, PAGE, check_eq, fail, say, smp};
use hyp_abi::call::{
    COLLAPSE, CONTIGUOUS, COPY, DISSOLVE, MOVE, POPULATE, RELEASE, SPLIT, SUCCESS,
};

use crate::Scene;
use crate::calls::{ALL, READ, READ_EXEC, all, part, protect};

pub(crate) fn check(scene: &mut Scene<'_>) {
    pages(scene);
    if scene.blocks {
        blocks(scene);
        mixed(scene);
        loosened(scene);
        same(scene);
    }
}

/// Moves a range, which answers otherwise than calls on a range do.
fn relocate(start: usize, bytes: usize) -> u64 {
    match part(MOVE, start as u64, bytes as u64, 0) {
        Ok((pages, _)) => pages,
        Err(other) => fail!("MOVE of {start:#x} answered {other}"),
    }
}

/// Pages with different permissions, side by side.
fn pages(scene: &mut Scene<'_>) {
    let start = scene.arena.take(8 * PAGE, PAGE);
    let page = |number: usize| start + number * PAGE;
    (0..6).for_each(|number| Access::Store.expect(page(number), true));
    sync_code(start, 6 * PAGE);
    protect(page(1), PAGE, READ);
    protect(page(2), 2 * PAGE, READ_EXEC);
    // The last two are not there yet.
    protect(page(5), 2 * PAGE, READ);
    let prots = [ALL, READ, READ_EXEC, READ_EXEC, ALL, READ, READ, ALL];
    let keep = |what: &str| {
        for (number, prot) in prots.into_iter().enumerate().take(6) {
            check_eq!(load(page(number)).ok(), Some(RET_AND_SVC), "page {number} after {what}");
            expect(page(number), prot);
        }
    };
    keep("PROTECT");
    check_eq!(relocate(start, 6 * PAGE), 6, "pages moved");
    keep("MOVE");
    check_eq!(all(POPULATE, start, 8 * PAGE, 0) <= 2, true, "pages that were missing");
    keep("POPULATE");
    Access::Store.expect(page(6), false);
    check_eq!(load(page(6)).ok(), Some(0), "a page that was populated under a protection");
    all(RELEASE, page(1), 5 * PAGE, 0);
    for number in [1, 5] {
        check_eq!(load(page(number)).ok(), Some(0), "page {number} after RELEASE");
        Access::Store.expect(page(number), false);
    }
    protect(start, 8 * PAGE, ALL);
    (0..8).for_each(|number| Access::Store.expect(page(number), true));
}

/// A block, and what becomes of it.
fn blocks(scene: &mut Scene<'_>) {
    let block = scene.arena.take(MIB2, MIB2);
    let last = block + MIB2 - PAGE;
    Access::Store.expect(block, true);
    Access::Store.expect(last, true);
    sync_code(block, 8);
    sync_code(last, 8);
    check_eq!(protect(block, MIB2, READ_EXEC), 0, "blocks split for all of one");
    let keep = |what: &str| {
        for at in [block, last] {
            check_eq!(load(at).ok(), Some(RET_AND_SVC), "{at:#x} after {what}");
            expect(at, READ_EXEC);
        }
    };
    keep("PROTECT");
    for (call, what, count) in [
        (SPLIT, "SPLIT", Some(1)),
        (CONTIGUOUS, "CONTIGUOUS", Some(32)),
        (DISSOLVE, "DISSOLVE", Some(32)),
        (COLLAPSE, "COLLAPSE", Some(1)),
        (SPLIT, "a second SPLIT", Some(1)),
        (COPY, "COPY", None),
    ] {
        let made = all(call, block, MIB2, 0);
        check_eq!(count.is_none_or(|count| count == made), true, "{what} made {made}");
        keep(what);
    }
    check_eq!(relocate(block, MIB2), 512, "pages moved");
    keep("MOVE");
    // What is populated under a protection of all of it may be a block.
    check_eq!(all(RELEASE, block, MIB2, 0), 512, "pages released");
    all(POPULATE, block, MIB2, 0);
    check_eq!(load(last).ok(), Some(0), "what is populated under a protection");
    Access::Store.expect(last, false);
    protect(block, MIB2, ALL);
    Access::Store.expect(last, true);
}

/// Blocks in which permissions change.
fn mixed(scene: &mut Scene<'_>) {
    let start = scene.arena.take(3 * MIB2, MIB2);
    (0..3).for_each(|block| Access::Store.expect(start + block * MIB2, true));
    // From the middle of the first to the middle of the last.
    let (from, until) = (start + MIB2 / 2, start + 2 * MIB2 + MIB2 / 2);
    check_eq!(protect(from, until - from, READ), 2, "blocks split at the edges");
    let edges = || {
        for (at, allowed) in [
            (from - PAGE, true),
            (from, false),
            (start + MIB2, false),
            (start + 2 * MIB2 - PAGE, false),
            (until - PAGE, false),
            (until, true),
        ] {
            Access::Store.expect(at, allowed);
            Access::Load.expect(at, true);
        }
    };
    edges();
    // Nothing of the first is mapped: neither a fault nor a copy that fills holes makes a block of it.
    all(RELEASE, start, MIB2, 0);
    Access::Load.expect(start, true);
    match part(COPY, start as u64, MIB2 as u64, 511) {
        Ok(answer) => check_eq!(answer, (MIB2 as u64, 0), "COPY of two protections"),
        Err(other) => fail!("COPY of two protections answered {other}, not {SUCCESS}"),
    }
    edges();
    all(POPULATE, start, 3 * MIB2, 0);
    edges();
    protect(start, 3 * MIB2, ALL);
    (0..3).for_each(|block| Access::Store.expect(start + block * MIB2 + MIB2 / 2, true));
    say!("protects: permissions stay");
}

/// A page of a block is given back the permission to write while the other vCPUs wait to do so. Nothing else is: neither
/// while the block is still one leaf, nor of what becomes of it.
fn loosened(scene: &mut Scene<'_>) {
    const ROUNDS: usize = 16;
    let count = scene.machine.vcpus().len();
    let block = scene.arena.take(MIB2, MIB2);
    for round in 0..ROUNDS {
        all(RELEASE, block, MIB2, 0);
        Access::Store.expect(block, true);
        protect(block, MIB2, READ);
        let waiting = AtomicUsize::new(0);
        smp::run(scene.machine, count, &|me| {
            if me.index == 0 {
                while waiting.load(Ordering::Acquire) != count - 1 {
                    smp::relax();
                }
                check_eq!(protect(block, PAGE, ALL), 1, "blocks split in round {round}");
                return;
            }
            let mine = block + me.index * size_of::<u64>();
            check_eq!(store(mine, 1).is_err(), true, "a store to a block that is protected");
            waiting.fetch_add(1, Ordering::Release);
            while store(mine, 1).is_err() {}
        });
        for at in (PAGE..MIB2).step_by(16 * PAGE).chain([MIB2 - PAGE]) {
            Access::Store.expect(block + at, false);
        }
        protect(block, MIB2, ALL);
    }
}

/// A page is protected as all of its block is already, while the other vCPUs populate the block.
fn same(scene: &mut Scene<'_>) {
    const SPANS: usize = 8;
    const ROUNDS: usize = 4;
    let count = scene.machine.vcpus().len();
    let start = scene.arena.take(SPANS * MIB2, MIB2);
    for prot in [ALL, READ].into_iter().cycle().take(ROUNDS) {
        protect(start, SPANS * MIB2, prot);
        all(RELEASE, start, SPANS * MIB2, 0);
        let (at, through) = (AtomicUsize::new(0), AtomicUsize::new(0));
        smp::run(scene.machine, count, &|me| {
            for span in 0..SPANS {
                let block = start + span * MIB2;
                if me.index == 0 {
                    at.store(span + 1, Ordering::Release);
                    protect(block, PAGE, prot);
                    while through.load(Ordering::Acquire) < (span + 1) * (count - 1) {
                        smp::relax();
                    }
                } else {
                    while at.load(Ordering::Acquire) <= span {
                        smp::relax();
                    }
                    Access::Load.expect(block + me.index * PAGE, true);
                    through.fetch_add(1, Ordering::Release);
                }
            }
        });
        for at in (start..start + SPANS * MIB2).step_by(MIB2 / 4) {
            Access::Store.expect(at, prot == ALL);
        }
    }
    protect(start, SPANS * MIB2, ALL);
}
