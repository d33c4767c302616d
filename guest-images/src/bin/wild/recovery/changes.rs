//! The memory around holes changes, by one vCPU, while the others reach into them.
//!
//! All values that are stored have the same mark ([`value`]). All holes of the VM are one page, so what a load from a hole finds
//! is what anybody has stored, or the pattern. But it is never anything else; and what is real memory keeps what it was given.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use guest_rt::access::{load, store};
use guest_rt::ranges::{all, part};
use guest_rt::smp::{self, Vcpu};
use guest_rt::{Args, MIB2, Machine, PAGE, call, check, check_eq, fail};
use hyp_abi::call::{
    AGE, BUSY, COLLAPSE, CONTIGUOUS, COPY, DIRTY_HARVEST, DIRTY_START, DIRTY_STOP, DISSOLVE, MOVE,
    POPULATE, PROT_EXEC_EL0, PROT_EXEC_EL1, PROT_READ, PROT_WRITE, PROTECT, RECOVER,
    RECOVER_SCRATCH, RELEASE, SHADOW, SHADOW_BEGIN, SHADOW_END, SHADOW_ROUND, SPLIT, SUCCESS, Stat,
};
use smccc::Hvc;

use super::{Counts, Hole, PATTERN, recovers, stat};

const PAGES: usize = 256;
const ROUNDS: usize = 6;
const READ: u64 = PROT_READ;
const EVERYTHING: u64 = PROT_READ | PROT_WRITE | PROT_EXEC_EL1 | PROT_EXEC_EL0;

/// The mark of a value.
const MARK: u64 = 0x5ec0_0000_0000_0000;
const MARKED: u64 = 0xffff << 48;

/// A value that is marked.
const fn value(vcpu: usize, number: usize) -> u64 {
    MARK | (vcpu as u64) << 32 | number as u64
}

/// Loads from a hole, or from what may have been one a moment ago.
fn glance(at: usize) -> u64 {
    match load(at) {
        Ok(found) if found == 0 || found == PATTERN || found & MARKED == MARK => found,
        Ok(found) => fail!("{found:#x} at {at:#x}, which nobody has stored"),
        Err(fault) => fail!("a load at {at:#x}: {fault}"),
    }
}

fn put(at: usize, what: u64) {
    if let Err(fault) = store(at, what) {
        fail!("a store at {at:#x}: {fault}");
    }
}

/// What all have to do with each other.
struct Round {
    /// How often any of the others was everywhere.
    passes: [AtomicUsize; hyp_abi::MAX_VCPUS],
    done: AtomicBool,
}

impl Round {
    const fn new() -> Self {
        Self {
            passes: [const { AtomicUsize::new(0) }; hyp_abi::MAX_VCPUS],
            done: AtomicBool::new(false),
        }
    }

    /// Waits until all of the others have been everywhere once more, from beginning to end.
    fn wait_for_all(&self, me: Vcpu) {
        for passes in &self.passes[1..me.count] {
            let before = passes.load(Ordering::Acquire);
            // One that is under way does not count.
            while passes.load(Ordering::Acquire) < before + 2 {
                smp::relax();
            }
        }
    }

    /// Goes everywhere until it is over.
    fn go_on(&self, me: Vcpu, mut everywhere: impl FnMut(usize)) {
        let passes = &self.passes[me.index];
        while !self.done.load(Ordering::Acquire) {
            everywhere(passes.load(Ordering::Relaxed));
            passes.fetch_add(1, Ordering::Release);
        }
    }
}

/// POPULATE puts real memory where scratch was. Each page is one vCPU's: what it stores is there from the moment
/// when the call has returned, and no store before is seen elsewhere.
pub(crate) fn populate(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let range = machine.arena().take(PAGES * PAGE, MIB2);
    check_eq!(all(RECOVER, range, PAGES * PAGE, RECOVER_SCRATCH), 0, "scratch pages at first");
    let at = |page: usize| range + page * PAGE;
    let of = |vcpu: usize| (0..PAGES).filter(move |page| page % count == vcpu);
    let before = Counts::now();
    for number in 0..ROUNDS {
        let (round, real) = (Round::new(), AtomicUsize::new(0));
        smp::run(machine, count, &|me| {
            if me.index == 0 {
                round.wait_for_all(me);
                for first in (0..PAGES).step_by(16) {
                    check_eq!(all(POPULATE, at(first), 16 * PAGE, 0), 16, "pages populated");
                    real.store(first + 16, Ordering::Release);
                }
                round.done.store(true, Ordering::Release);
                return;
            }
            round.go_on(me, |pass| {
                for page in of(me.index) {
                    let there = page < real.load(Ordering::Acquire);
                    put(at(page), value(me.index, pass));
                    let found = glance(at(page));
                    check!(!there || found == value(me.index, pass), "{found:#x} on page {page}");
                }
            });
            of(me.index).for_each(|page| put(at(page), value(me.index, page)));
        });
        // vCPU 0 has not touched its own.
        for page in 0..PAGES {
            let owner = page % count;
            let wanted = if owner == 0 { 0 } else { value(owner, page) };
            check_eq!(load(at(page)), Ok(wanted), "page {page} in round {number}");
        }
        check_eq!(all(RELEASE, range, PAGES * PAGE, 0), PAGES as u64, "pages released");
    }
    let counts = before.since();
    // Each hole of another vCPU's once a round.
    let wanted = (ROUNDS * (PAGES - of(0).count())) as u64;
    check_eq!((counts.recovered, counts.scratched), (wanted, wanted), "recovered, scratched");
}

/// RELEASE takes scratch pages away as often as they come.
pub(crate) fn release(machine: &Machine, _: Args) {
    const TIMES: usize = 20;
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let range = Hole::of(machine).take(PAGES);
    let (before, round) = (Counts::now(), Round::new());
    let tables = stat(Stat::Tables) - stat(Stat::TablesFreed);
    smp::run(machine, count, &|me| {
        if me.index != 0 {
            return round.go_on(me, |pass| {
                for page in (0..PAGES).map(|page| range + page * PAGE) {
                    put(page + 8 * me.index, value(me.index, pass));
                    glance(page + 8 * (pass % 8));
                }
            });
        }
        for _ in 0..TIMES {
            round.wait_for_all(me);
            // In the middle of what the others do, and again at once.
            for _ in 0..3 {
                check_eq!(all(RELEASE, range, PAGES * PAGE, 0), 0, "pages of the VM's");
            }
        }
        round.done.store(true, Ordering::Release);
    });
    let counts = before.since();
    check!(counts.scratched >= (TIMES * PAGES) as u64, "too few: {counts:?}");
    check!(counts.recovered >= counts.scratched, "too few: {counts:?}");
    let more = stat(Stat::Tables) - stat(Stat::TablesFreed) - tables;
    check!(more <= 1, "{more} tables for one table's pages");
}

/// Permissions, the dirty log and ages of a range in which every other page is a hole.
pub(crate) fn protections(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let mut arena = machine.arena();
    let range = arena.take(PAGES * PAGE, MIB2);
    let bitmap = arena.take(PAGE, PAGE);
    let at = |page: usize| range + page * PAGE;
    (0..PAGES).step_by(2).for_each(|page| put(at(page), value(0, page)));
    check_eq!(all(RECOVER, range, PAGES * PAGE, RECOVER_SCRATCH), 0, "scratch pages at first");
    let round = Round::new();
    let before = Counts::now();
    smp::run(machine, count, &|me| {
        if me.index != 0 {
            return round.go_on(me, |pass| {
                for page in 0..PAGES {
                    if page % 2 == 0 {
                        check_eq!(load(at(page)), Ok(value(0, page)), "page {page}");
                    } else {
                        put(at(page) + 8 * me.index, value(me.index, pass));
                        glance(at(page));
                    }
                }
            });
        }
        for number in 0..ROUNDS {
            // The first half with some of the holes filled, the second with none.
            if number == ROUNDS / 2 {
                round.wait_for_all(me);
            }
            all(PROTECT, range, PAGES * PAGE, READ);
            all(PROTECT, range, PAGES * PAGE, EVERYTHING);
            harvests(range, bitmap);
            ages(range, bitmap);
        }
        round.wait_for_all(me);
        round.done.store(true, Ordering::Release);
    });
    let counts = before.since();
    check_eq!(counts.scratched, PAGES as u64 / 2, "scratch pages");
    check_eq!(all(RELEASE, range, PAGES * PAGE, 0), PAGES as u64 / 2, "pages of the VM's");
}

/// A log of the range: what this vCPU writes is in it, and no hole is.
fn harvests(range: usize, bitmap: usize) {
    all(DIRTY_START, range, PAGES * PAGE, 0);
    for step in 0..4 {
        let written: usize = 2 * (step + 1);
        put(range + written * PAGE, value(0, written));
        all(DIRTY_HARVEST, range, PAGES * PAGE, bitmap as u64);
        for page in (0..PAGES).filter(|page| bit(bitmap, *page)) {
            check!(page % 2 == 0, "hole {page} is in the log");
        }
        check!(bit(bitmap, written), "page {written} was written, and is not in the log");
    }
    check_eq!(part(DIRTY_STOP, 0, 0, 0).is_ok(), true, "DIRTY_STOP");
}

/// A second copy of a range in which a quarter is holes: those have no part in it, until POPULATE puts memory there, and when RELEASE
/// has made holes again their memory is as if it had never been touched.
pub(crate) fn shadow(machine: &Machine, _: Args) {
    const HOLES: usize = PAGES / 4;
    const FILLED: usize = 16;
    let range = machine.arena().take(PAGES * PAGE, MIB2);
    let holes = range + HOLES * PAGE;
    let shadow = |operation| {
        let asked = [operation, range as u64, (PAGES * PAGE) as u64];
        let [status, first, second, _] = call::raw::<Hvc>(SHADOW, asked);
        check_eq!(status as i64, SUCCESS, "SHADOW {operation}");
        [first, second]
    };
    let write = |first: usize, pages: usize, round: usize| {
        (0..pages).for_each(|page| put(first + page * PAGE, value(round, page)));
    };
    check_eq!(all(RECOVER, holes, HOLES * PAGE, RECOVER_SCRATCH), 0, "scratch pages");
    check_eq!(all(DIRTY_START, range, PAGES * PAGE, 0), 0, "the dirty log");
    check_eq!(shadow(SHADOW_BEGIN)[0], (PAGES * PAGE) as u64, "bytes of the shadow");
    recovers("the holes", HOLES as u64, || write(range, PAGES, 0));
    check_eq!(shadow(SHADOW_ROUND)[1], (PAGES - HOLES) as u64, "pages copied, of all but holes");
    write(range, PAGES, 1);
    check_eq!(all(POPULATE, holes, FILLED * PAGE, 0), FILLED as u64, "pages populated");
    write(holes, FILLED, 2);
    let copied = (PAGES - HOLES + FILLED) as u64;
    check_eq!(shadow(SHADOW_ROUND)[1], copied, "pages copied, with those that were holes");
    write(holes, HOLES, 3);
    check_eq!(shadow(SHADOW_ROUND)[1], FILLED as u64, "pages copied, of those alone");
    check_eq!(all(RELEASE, holes, FILLED / 2 * PAGE, 0), FILLED as u64 / 2, "pages released");
    recovers("holes again", FILLED as u64 / 2, || write(holes, FILLED / 2, 4));
    // In the rest of it memory, written since the last round.
    write(holes, FILLED, 5);
    let [_, differs] = shadow(SHADOW_END);
    check_eq!(differs, 0, "the first page that is not what was reported of it");
    check_eq!(part(DIRTY_STOP, 0, 0, 0).is_ok(), true, "DIRTY_STOP");
}

/// Ages: a hole is no page that is mapped and was not accessed.
fn ages(range: usize, bitmap: usize) {
    all(AGE, range, PAGES * PAGE, bitmap as u64);
    for page in (0..PAGES).filter(|page| bit(bitmap, *page)) {
        check!(page % 2 == 0, "hole {page} has an age");
    }
}

/// Bit `page` of the words at `bitmap`.
fn bit(bitmap: usize, page: usize) -> bool {
    match load(bitmap + page / 64 * 8) {
        Ok(word) => word >> (page % 64) & 1 != 0,
        Err(fault) => fail!("the bitmap: {fault}"),
    }
}

/// Calls that change the size of mappings, on a span that is RAM in its first half and has holes in the second: no block and
/// no run swallows a hole.
pub(crate) fn sizes(machine: &Machine, _: Args) {
    let count = machine.vcpus().len();
    check!(count > 1, "this case needs several vCPUs");
    let range = machine.arena().take(MIB2, MIB2);
    let half = MIB2 / PAGE / 2;
    let at = |page: usize| range + page * PAGE;
    check_eq!(all(RECOVER, at(half), half * PAGE, RECOVER_SCRATCH), 0, "scratch pages at first");
    (0..half).for_each(|page| put(at(page), value(0, page)));
    // One page in four of the second half is real, in whole groups of 16.
    let real = |page: usize| page < half || page % 64 < 16;
    (half..2 * half).filter(|page| page % 64 == 0).for_each(|page| {
        check_eq!(all(POPULATE, at(page), 16 * PAGE, 0), 16, "pages populated");
    });
    (half..2 * half).filter(|page| real(*page)).for_each(|page| put(at(page), value(0, page)));
    let round = Round::new();
    let before = Counts::now();
    smp::run(machine, count, &|me| {
        if me.index != 0 {
            // The last group's holes nobody touches yet.
            return round.go_on(me, |pass| {
                for page in (0..2 * half - 48).step_by(3) {
                    if real(page) {
                        check_eq!(load(at(page)), Ok(value(0, page)), "page {page}");
                    } else {
                        put(at(page) + 8 * me.index, value(me.index, pass));
                        glance(at(page));
                    }
                }
            });
        }
        for _ in 0..ROUNDS {
            round.wait_for_all(me);
            for (function, more) in [(COLLAPSE, 0), (COPY, 0), (COPY, 511), (SPLIT, 0)] {
                check_eq!(all(function, range, MIB2, more), 0, "{function:#x}: blocks");
            }
            all(CONTIGUOUS, range, MIB2, 0);
            all(DISSOLVE, range, MIB2, 0);
            let pages = (0..2 * half).filter(|page| real(*page)).count();
            check_eq!(moved(range), pages as u64, "pages moved");
        }
        round.done.store(true, Ordering::Release);
    });
    let touched = (0..2 * half - 48).step_by(3).filter(|page| !real(*page)).count() as u64;
    // A move leaves holes where scratch was.
    let counts = before.since();
    check!(counts.scratched >= touched, "of {touched} holes: {counts:?}");
    (0..2 * half).filter(|page| real(*page)).for_each(|page| {
        check_eq!(load(at(page)), Ok(value(0, page)), "page {page} in the end");
    });
    recovers("the last holes", 48, || (2 * half - 48..2 * half).for_each(|page| put(at(page), 1)));
}

/// Moves a block of RAM; returns how many pages there were.
fn moved(start: usize) -> u64 {
    loop {
        let [status, pages, ..] = call::raw::<Hvc>(MOVE, [start as u64, MIB2 as u64, 0]);
        match status as i64 {
            SUCCESS => return pages,
            BUSY => {}
            other => fail!("MOVE answered {other}"),
        }
    }
}
