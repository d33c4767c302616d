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
//! If the hypervisor populates RAM by blocks, each worker has a second block, whose memory stays while the mover
//! splits and collapses it: a stale translation is right there, so what shows is a page that is lost or locked
//! meanwhile, and a TLB that has two sizes of one address.
//!
//! It goes on until faults met a slot in transition, tables were given back and races were lost more
//! often than the minimum, or until the time is over, which fails.
//!
//! Arguments (`key=value`): `pages` of data a vCPU (64), `moves` at the least (200), `seconds` at the most
//! (60), and the minimum of each: `min-drained` (100), `min-freed` (16), `min-lost` (2),
//! with blocks `min-split` (16) and `min-collapsed` (16). vCPUs that take
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
const WATCHED: [(&[Stat], &str, &str, usize); KINDS] = [
    (&[Stat::Drained], "faults met in Drain", "min-drained", 100),
    (&[Stat::TablesFreed], "tables given back", "min-freed", 16),
    (&[Stat::LostRaces, Stat::LostTables], "races lost for a page or a table", "min-lost", 2),
    (&[Stat::Split], "blocks split", "min-split", 16),
    (&[Stat::Collapsed], "blocks made", "min-collapsed", 16),
];
/// Counters; without blocks the last two do not count.
const KINDS: usize = 5;
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

/// What SPLIT or COLLAPSE answered.
#[derive(Debug, PartialEq, Eq)]
enum Resize {
    /// So many bytes are done.
    Done(usize),
    /// An argument is wrong.
    Invalid,
    /// RAM is populated by pages.
    Unsupported,
}

/// Splits or collapses the first blocks of a range.
fn resize(call: u32, start: usize, bytes: usize) -> Resize {
    let [status, done, ..] = call::raw::<Hvc>(call, [start as u64, bytes as u64, 0]);
    match status as i64 {
        vendor::SUCCESS => Resize::Done(done as usize),
        vendor::INVALID_PARAMETER => Resize::Invalid,
        vendor::NOT_SUPPORTED => Resize::Unsupported,
        other => fail!("{call:#x} of {bytes:#x} bytes from {start:#x} answered {other}"),
    }
}

/// Splits or collapses a whole range, a part at a time.
fn resize_all(call: u32, start: usize, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        match resize(call, start + done, bytes - done) {
            Resize::Done(more) if more != 0 => done += more,
            other => fail!("{call:#x} from {:#x}: {other:?}", start + done),
        }
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
        "min-split",
        "min-collapsed",
        "reset",
    ]);
    let vcpus = machine.vcpus().len();
    check!(vcpus >= 2, "churn needs two vCPUs at the least, has {vcpus}");
    let pages = args.number("pages", 64);
    check!((1..=MAX_PAGES).contains(&pages), "pages={pages}: 1 to {MAX_PAGES} are possible");
    let moves = args.number("moves", 200);
    let limit = args.number("seconds", 60) as u64 * CNTFRQ_EL0.get();
    let resizes = resize(vendor::SPLIT, machine.ram.start, MIB2) != Resize::Unsupported;
    let least = WATCHED.map(|(stats, _, key, default)| match stats {
        [Stat::Split | Stat::Collapsed] if !resizes => 0,
        _ => args.number(key, default) as u64,
    });
    let Some(before) = counters() else {
        say!("churn: no hypervisor, so nobody can move memory");
        return;
    };
    refusals(machine, resizes);

    let mut arena = machine.arena();
    // One block for each worker, and one that all of them read.
    // As many again stay where they are, if there are blocks to resize.
    let count = if resizes { 2 * vcpus } else { vcpus };
    let blocks = arena.take(count * MIB2, MIB2);
    let block = |number: usize| Block::new(blocks + number * MIB2, number, pages);
    (0..count).for_each(|number| block(number).prepare());
    let mine = |number: usize| [block(number), block(count - vcpus + number)];

    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    smp::run(machine, vcpus, &|me| {
        if me.index != 0 {
            let done = work::work(&mine(me.index), &block(0), &stop);
            rounds.fetch_add(done, Ordering::Relaxed);
            return;
        }
        let start = cpu::ticks();
        let (mut moved, mut calls, mut busy) = (0, 0, 0u64);
        let enough = |calls| {
            calls >= moves
                && counters().is_some_and(|now| (0..KINDS).all(|n| now[n] - before[n] >= least[n]))
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
            if resizes {
                // One of those that stay, one that is moved, or all that stay: done a part at a time.
                let call = if dice >> 50 & 1 == 0 { vendor::SPLIT } else { vendor::COLLAPSE };
                let (first, number) = match dice >> 52 & 7 {
                    0 => (vcpus, vcpus),
                    1 => ((dice >> 16) as usize % vcpus, 1),
                    _ => (vcpus + (dice >> 16) as usize % vcpus, 1),
                };
                resize_all(call, blocks + first * MIB2, number * MIB2);
            }
        }
        stop.store(true, Ordering::Release);
        say!("churn: {calls} moves of {moved} pages in all, {busy} times busy");
    });
    (0..count).for_each(|number| block(number).verify());
    judge(before, least, rounds.load(Ordering::Relaxed));
    if args.number("reset", 0) != 0 {
        stop.store(false, Ordering::Relaxed);
        smp::run(machine, vcpus, &|me| {
            if me.index != 0 {
                work::work(&mine(me.index), &block(0), &stop);
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
fn refusals(machine: &Machine, resizes: bool) {
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
    let block = vendor::BLOCK;
    for (from, bytes) in [
        (start, 0),
        (start + page, block),
        (start, page),
        (start - block, block),
        (end.next_multiple_of(block), block),
        (start, vendor::RESIZE_MAX + block),
        (u64::MAX - block + 1, block),
        (0, !(block - 1)),
    ] {
        for call in [vendor::SPLIT, vendor::COLLAPSE] {
            let answer = resize(call, from as usize, bytes as usize);
            let wanted = if resizes { Resize::Invalid } else { Resize::Unsupported };
            check!(answer == wanted, "{call:#x} of {bytes:#x} bytes from {from:#x}: {answer:?}");
        }
    }
}

fn counters() -> Option<[u64; KINDS]> {
    let sums: [Option<u64>; KINDS] =
        WATCHED.map(|(stats, ..)| stats.iter().map(|stat| call::stat(*stat)).sum());
    let [a, b, c, d, e] = sums;
    Some([a?, b?, c?, d?, e?])
}

fn judge(before: [u64; KINDS], least: [u64; KINDS], rounds: usize) {
    check!(rounds != 0, "the workers did nothing");
    say!("churn: {rounds} pages verified and rewritten meanwhile");
    let Some(now) = counters() else { fail!("the hypervisor has stopped to count") };
    for (number, (_, name, ..)) in WATCHED.into_iter().enumerate() {
        let (seen, least) = (now[number] - before[number], least[number]);
        say!("churn: {name}: {seen}");
        check!(seen >= least, "{name}: {seen}, at least {least} wanted");
    }
}
