//! Memory is moved under vCPUs that work with it.
//!
//! One vCPU asks the hypervisor, again and again, to move a piece of RAM to other frames with its
//! content kept. The others go on reading and writing that RAM, and verify every word. What was
//! left behind is poisoned, so a stale translation shows:
//!
//! | what is moved | what a missing invalidation would show |
//! | --- | --- |
//! | data pages of one vCPU each | an old page, poisoned; a write lost |
//! | the stage-1 tables of their aliases | a walk through a poisoned table: the stage-2 entries of stage 1's own walks |
//! | pages that all read | two frames for one page |
//! | code | poison fetched as instructions |
//!
//! It goes on until faults met a slot in transition, tables were given back and races were lost more
//! often than the minimum, or until the time is over, which fails.
//!
//! Arguments (`key=value`): `pages` of data a vCPU (64), `moves` at the least (200), `seconds` at the most
//! (60), and the minimum of each: `min-drained` (100), `min-freed` (16), `min-lost` (2). vCPUs that take
//! turns (`--icount`) lose no race: `min-lost=0`. With `reset=1` a pass is no verdict: the guest resets its
//! machine instead, while its vCPUs work.

#![no_std]
#![no_main]

mod work;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
use guest_rt::rng::mix;
use guest_rt::{MIB2, Machine, PAGE, call, check, cpu, fail, say, smp};
use hyp_abi::call::{self as vendor, Stat};
use smccc::{Hvc, psci};
use work::{Block, MAX_PAGES};

guest_rt::guest!("churn", churn);

/// The counters that a run must move, their names, arguments and minima.
const WATCHED: [(&[Stat], &str, &str, usize); 3] = [
    (&[Stat::Drained], "faults met in Drain", "min-drained", 100),
    (&[Stat::TablesFreed], "tables given back", "min-freed", 16),
    (&[Stat::LostRaces, Stat::LostTables], "races lost for a page or a table", "min-lost", 2),
];
/// Seconds / this: how long vCPUs work before their machine is reset.
const RESET_AFTER: u64 = 50;

/// Moves `bytes` bytes from `start`; says how many pages there were, or that it is to be tried again.
fn move_memory(start: usize, bytes: usize) -> Option<u64> {
    let [status, pages, ..] = call::raw::<Hvc>(vendor::MOVE, [start as u64, bytes as u64, 0]);
    match status as i64 {
        vendor::SUCCESS => Some(pages),
        vendor::BUSY => None,
        other => fail!("MOVE of {bytes:#x} bytes from {start:#x} answered {other}"),
    }
}

fn churn(machine: &Machine) {
    let args = machine.args(&[
        "pages",
        "moves",
        "seconds",
        "min-drained",
        "min-freed",
        "min-lost",
        "reset",
    ]);
    let vcpus = machine.vcpus().len();
    check!(vcpus >= 2, "churn needs two vCPUs at the least, has {vcpus}");
    let pages = args.number("pages", 64);
    check!((1..=MAX_PAGES).contains(&pages), "pages={pages}: 1 to {MAX_PAGES} are possible");
    let moves = args.number("moves", 200);
    let limit = args.number("seconds", 60) as u64 * CNTFRQ_EL0.get();
    let least = WATCHED.map(|(_, _, key, default)| args.number(key, default) as u64);
    let Some(before) = counters() else {
        say!("churn: no hypervisor, so nobody can move memory");
        return;
    };
    refusals(machine);

    let mut arena = machine.arena();
    // One block for each worker, and one that all of them read.
    let blocks = arena.take(vcpus * MIB2, MIB2);
    let block = |number: usize| Block::new(blocks + number * MIB2, number, pages);
    (1..vcpus).for_each(|number| block(number).prepare());
    block(0).prepare();

    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    smp::run(machine, vcpus, &|me| {
        if me.index != 0 {
            let done = block(me.index).work(&block(0), &stop);
            rounds.fetch_add(done, Ordering::Relaxed);
            return;
        }
        let start = cpu::ticks();
        let (mut moved, mut calls, mut busy) = (0, 0, 0u64);
        let enough = |calls| {
            calls >= moves
                && counters().is_some_and(|now| (0..3).all(|n| now[n] - before[n] >= least[n]))
        };
        while !enough(calls) && cpu::ticks() - start < limit {
            let dice = mix(calls as u64);
            let base = blocks + dice as usize % vcpus * MIB2;
            // A whole block, whose table goes too; or some pages of it.
            let (first, count) = match dice >> 32 & 3 {
                0 => (0, MIB2 / PAGE),
                _ => ((dice >> 8) as usize % pages, 1 + (dice >> 40) as usize % 16),
            };
            match move_memory(base + first * PAGE, count * PAGE) {
                Some(pages) => moved += pages,
                None => busy += 1,
            }
            calls += 1;
        }
        stop.store(true, Ordering::Release);
        say!("churn: {calls} moves of {moved} pages in all, {busy} times busy");
    });
    (0..vcpus).for_each(|number| block(number).verify());
    judge(before, least, rounds.load(Ordering::Relaxed));
    if args.number("reset", 0) != 0 {
        stop.store(false, Ordering::Relaxed);
        smp::run(machine, vcpus, &|me| {
            if me.index != 0 {
                block(me.index).work(&block(0), &stop);
                return;
            }
            let start = cpu::ticks();
            while cpu::ticks() - start < CNTFRQ_EL0.get() / RESET_AFTER {}
            let refused = psci::system_reset::<Hvc>();
            fail!("PSCI SYSTEM_RESET returned: {refused:?}");
        });
    }
}

/// What is no RAM, too large or unaligned is refused, and changes nothing.
fn refusals(machine: &Machine) {
    let (start, end) = (machine.ram.start as u64, machine.ram.end as u64);
    let page = PAGE as u64;
    for (from, bytes) in [
        (start, 0),
        (start + 8, page),
        (start, page + 8),
        (start - page, page),
        (end, page),
        (end - page, 2 * page),
        (start, vendor::MOVE_MAX + page),
        (u64::MAX - page + 1, page),
        (0, !(page - 1)),
    ] {
        let [status, ..] = call::raw::<Hvc>(vendor::MOVE, [from, bytes, 0]);
        check!(
            status as i64 == vendor::INVALID_PARAMETER,
            "MOVE of {bytes:#x} bytes from {from:#x} answered {}",
            status as i64
        );
    }
}

fn counters() -> Option<[u64; 3]> {
    let sums: [Option<u64>; 3] =
        WATCHED.map(|(stats, ..)| stats.iter().map(|stat| call::stat(*stat)).sum());
    let [a, b, c] = sums;
    Some([a?, b?, c?])
}

fn judge(before: [u64; 3], least: [u64; 3], rounds: usize) {
    check!(rounds != 0, "the workers did nothing");
    say!("churn: {rounds} pages verified and rewritten meanwhile");
    let Some(now) = counters() else { fail!("the hypervisor has stopped to count") };
    for (number, (_, name, ..)) in WATCHED.into_iter().enumerate() {
        let (seen, least) = (now[number] - before[number], least[number]);
        say!("churn: {name}: {seen}");
        check!(seen >= least, "{name}: {seen}, at least {least} wanted");
    }
}
