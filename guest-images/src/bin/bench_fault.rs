//! Touches never-touched pages one by one, for counting what one populate fault costs.
//!
//! With `log=1` it then has its writes logged and writes to each of the pages once more, for counting what one write fault on a
//! clean page costs where hardware does not manage the dirty state.
//!
//! With `holes=1` it reaches for so many pages behind its RAM instead, for counting what one recovery by the scratch page costs. Between
//! them it makes a call now and then, so that the hypervisor's log of violations does not fill up. `far=` bytes behind that is
//! another window, then, which it reaches for by turns; unless it is 0.
//!
//! Arguments: `pages=` (2048), `log=` (0), `holes=` (0), `far=` (0). One vCPU. The warm-up touches one page of every 2 MiB block of the
//! range, so that the stage-2 tables are there; between the two looks at the counter there is nothing
//! but one store for each further page, and each of them faults once.

#![no_std]
#![no_main]

use guest_rt::{MIB2, Machine, PAGE, call, check, check_eq, cpu, say};
use hyp_abi::call::{DIRTY_HARVEST, DIRTY_START, SUCCESS, Stat};
use smccc::Hvc;

/// Violations between two calls: fewer than a CPU's log holds.
const UNTOLD: usize = 64;

guest_rt::guest!("bench-fault", bench);

/// Pages that one level-3 table maps.
const BLOCK: usize = MIB2 / PAGE;

fn bench(machine: &Machine) {
    let arguments = machine.args(&["pages", "log", "holes", "far"]);
    let (pages, log) = (arguments.number("pages", 2048), arguments.number("log", 0));
    check!(pages > 0, "pages=0: nothing to measure");
    if arguments.number("holes", 0) != 0 {
        return holes(machine.ram.end, arguments.number("far", 0), pages);
    }
    // The first page of each block is the warm-up's.
    let blocks = pages.div_ceil(BLOCK - 1);
    let mut arena = machine.arena();
    let base = arena.take(blocks * MIB2, MIB2);
    (0..blocks).for_each(|block| touch(base + block * MIB2));

    // What the measured loop itself needs is touched, and its counters read once, before it starts.
    let _ = (cpu::ticks(), installed());
    let (installed_before, start) = (installed(), cpu::ticks());
    let mut left = pages;
    for block in 0..blocks {
        let here = left.min(BLOCK - 1);
        for page in 1..=here {
            touch(base + block * MIB2 + page * PAGE);
        }
        left -= here;
    }
    let (end, installed_after) = (cpu::ticks(), installed());

    // Whatever comes now is new code, whose pages fault in their turn.
    let ticks = end - start;

    let rate = cpu::tick_rate().max(1);
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(rate);
    let each = nanoseconds / pages as u128;
    say!("bench-fault: {pages} pages, {ticks} ticks of {rate} Hz, {each} ns a page");
    if let (Some(before), Some(after)) = (installed_before, installed_after) {
        check_eq!(after - before, pages as u64, "pages installed by the measured loop");
    }
    if log != 0 {
        refault(base, pages + blocks, arena.take(PAGE, PAGE));
    }
}

/// Writes to each of so many pages when all are clean: one fault each. The log is read into `bitmap`.
fn refault(base: usize, pages: usize, bitmap: usize) {
    let bytes = pages * PAGE;
    touch(bitmap);
    let ask = |function, at: usize, more: usize| {
        let asked = [(base + at) as u64, (bytes - at) as u64, more as u64];
        let [status, done, ..] = call::raw::<Hvc>(function, asked);
        check_eq!(status as i64, SUCCESS, "{function:#x} at {at:#x}");
        done as usize
    };
    check_eq!(ask(DIRTY_START, 0, 0), bytes, "bytes that are logged");
    let mut at = 0;
    while at < bytes {
        at += ask(DIRTY_HARVEST, at, bitmap);
    }
    let before = call::stat(Stat::Relaxed);
    (0..pages).for_each(|page| touch(base + page * PAGE));
    let after = call::stat(Stat::Relaxed);
    say!("bench-fault: {pages} pages written once more");
    check_eq!(
        after.zip(before).map(|(after, before)| after - before),
        Some(pages as u64),
        "faults"
    );
}

/// Reaches for so many pages behind RAM; every other one is `far` bytes behind its place.
fn holes(base: usize, far: usize, pages: usize) {
    let (blocks, each) = (pages.div_ceil(BLOCK - 1), BLOCK - 1);
    for block in (0..blocks).map(|block| base + block * MIB2) {
        touch(block);
        if far != 0 {
            touch(block + far);
        }
    }
    let before = call::stat(Stat::Recovered);
    for number in 0..pages {
        if number % UNTOLD == 0 {
            let _ = installed();
        }
        touch(base + number % 2 * far + number / each * MIB2 + (number % each + 1) * PAGE);
    }
    let after = call::stat(Stat::Recovered);
    say!("bench-fault: {pages} pages that are not there");
    check_eq!(
        after.zip(before).map(|(after, before)| after - before),
        Some(pages as u64),
        "violations that were recovered"
    );
}

fn installed() -> Option<u64> {
    call::stat(Stat::Installed)
}

/// One store, one populate fault.
fn touch(va: usize) {
    // SAFETY: 1. the arena gave this page to nobody else; 2. mapped read-write by the identity map.
    unsafe { (va as *mut u64).write_volatile(1) };
}
