//! RAM that was populated page by page, in disorder and not all of it, becomes blocks: the hypervisor's scan.
//!
//! All vCPUs touch the pages of some spans of 2 MiB in an order of their own, so that the frames behind a span lie anywhere.
//! Three spans stay incomplete:
//!
//! | span | pages never touched | what the scan makes of it |
//! | --- | --- | --- |
//! | 1 | as many as it allows ([`HOLES`]) | a block, zeros in the holes |
//! | 2 | one more | nothing, until one of them is touched |
//! | 3 | all but one page | nothing |
//!
//! Arguments (`key=value`): `spans` (6), and who scans, `by`:
//!
//! | `by` | what the guest does |
//! | --- | --- |
//! | `call` (the default) | calls `SCAN`, and knows after how many scans what must have happened: needs a vCPU alone |
//! | `idle` | works on its memory while CPUs scan that have nothing to run, for `seconds` (60) at most |
//! | `wfi` | waits in WFI for a timer, so that its own CPU scans |

#![no_std]
#![no_main]

use aarch64_cpu::asm::{barrier, wfi};
use aarch64_cpu::registers::{CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0};
use guest_rt::rng::{Permutation, mix};
use guest_rt::{MIB2, Machine, PAGE, call, check, check_eq, cpu, fail, say, smp};
use hyp_abi::call::{self as vendor, Stat};
use smccc::Hvc;
use tock_registers::interfaces::{Readable, Writeable};

guest_rt::guest!("settle", settle);

/// Pages of a span.
const PAGES: usize = MIB2 / PAGE;
/// Holes that the hypervisor fills in a span, at the most.
const HOLES: usize = 64;
/// Scans in a row in which a span has to look the same.
const IN_A_ROW: u64 = 2;
/// Scans for which a span is left alone that was split.
const REST: u64 = 8;
/// Words of a page that are written.
const STEP: usize = 64;

/// The spans that the scan works on.
#[derive(Clone, Copy)]
struct Spans {
    base: usize,
    count: usize,
}

impl Spans {
    /// Holes of a span.
    const fn holes(span: usize) -> usize {
        match span {
            1 => HOLES,
            2 => HOLES + 1,
            3 => PAGES - 1,
            _ => 0,
        }
    }

    /// Whether a page is never touched: holes and pages take turns.
    const fn is_hole(page: usize) -> bool {
        let (span, page) = (page / PAGES, page % PAGES);
        let holes = Self::holes(span);
        if holes == PAGES - 1 { page != 7 } else { page % 7 == 3 && page / 7 < holes }
    }

    fn pages(&self) -> impl Iterator<Item = usize> {
        0..self.count * PAGES
    }

    fn word(&self, page: usize, word: usize) -> *mut u64 {
        (self.base + page * PAGE + word * 8) as *mut u64
    }

    fn value(page: usize, round: u64) -> u64 {
        mix(page as u64 ^ round << 32)
    }

    fn write(&self, page: usize, round: u64) {
        for word in (0..PAGE / 8).step_by(STEP) {
            // SAFETY: 1. the arena gave this page to nobody else, and no two vCPUs write it at a time; 2. mapped
            // read-write by the identity map.
            unsafe { self.word(page, word).write_volatile(Self::value(page, round)) };
        }
    }

    /// Expects what was last written, or zeros.
    fn verify(&self, page: usize, round: u64) {
        let wanted = if Self::is_hole(page) { 0 } else { Self::value(page, round) };
        for word in (0..PAGE / 8).step_by(STEP) {
            // SAFETY: 1. as for `write`; any bits are a u64.
            let found = unsafe { self.word(page, word).read_volatile() };
            check_eq!(found, wanted, "page {page}, word {word}");
        }
    }

    /// All vCPUs populate the pages, each in its own order, and meet in none.
    fn populate(&self, machine: &Machine) {
        smp::run(machine, machine.vcpus().len(), &|me| {
            let order = Permutation::new(self.count * PAGES, me.index as u64);
            let all = (0..self.count * PAGES).map(|n| order.at(n));
            all.filter(|page| page % me.count == me.index && !Self::is_hole(*page))
                .for_each(|page| self.write(page, 0));
        });
    }

    /// Spans that become blocks.
    const fn due(&self) -> u64 {
        self.count as u64 - 2
    }
}

fn settle(machine: &Machine) {
    let args = machine.args(&["spans", "by", "seconds"]);
    let count = args.number("spans", 6);
    check!(count >= 4, "spans={count}: four are needed");
    let mut arena = machine.arena();
    let spans = Spans { base: arena.take(count * MIB2, MIB2), count };
    if scan(1) == Scan::Unsupported {
        fail!("the hypervisor keeps RAM in pages");
    }
    refusals();
    let by = args.get("by").unwrap_or("call");
    if by == "call" {
        check!(machine.vcpus().len() == 1, "by=call needs a vCPU alone");
        // From here on a scan begins where RAM begins.
        pass();
    }
    spans.populate(machine);
    let limit = args.number("seconds", 60) as u64 * cpu::tick_rate();
    match by {
        "call" => by_call(spans),
        "idle" => by_others(spans, limit, || {}),
        "wfi" => by_others(spans, limit, doze),
        other => fail!("by={other}: call, idle or wfi"),
    }
    // What was zero when nobody had touched it still is.
    spans.pages().for_each(|page| spans.verify(page, 1));
}

/// Waits in WFI for 1/50 s.
fn doze() {
    barrier::isb(barrier::SY);
    CNTP_CVAL_EL0.set(CNTPCT_EL0.get() + cpu::tick_rate() / 50);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::SET);
    barrier::isb(barrier::SY);
    while !CNTP_CTL_EL0.is_set(CNTP_CTL_EL0::ISTATUS) {
        wfi();
    }
    CNTP_CTL_EL0.set(0);
}

/// What SCAN answered.
#[derive(Debug, PartialEq, Eq)]
enum Scan {
    /// So many blocks were made; whether it came to the end of RAM.
    Done(u64, bool),
    Busy,
    Invalid,
    Unsupported,
}

fn scan(spans: u64) -> Scan {
    let [status, made, ended, ..] = call::raw::<Hvc>(vendor::SCAN, [spans, 0, 0]);
    match status as i64 {
        vendor::SUCCESS => Scan::Done(made, ended != 0),
        vendor::BUSY => Scan::Busy,
        vendor::INVALID_PARAMETER => Scan::Invalid,
        vendor::NOT_SUPPORTED => Scan::Unsupported,
        other => fail!("SCAN of {spans} spans answered {other}"),
    }
}

fn refusals() {
    for spans in [0, vendor::SCAN_MAX + 1, u64::MAX] {
        check!(scan(spans) == Scan::Invalid, "SCAN of {spans} spans is not refused");
    }
}

/// One scan of all RAM; says how many blocks it made.
fn pass() -> u64 {
    let mut sum = 0;
    loop {
        match scan(vendor::SCAN_MAX) {
            Scan::Done(made, ended) => {
                sum += made;
                if ended {
                    return sum;
                }
            }
            other => fail!("SCAN answered {other:?}, though this vCPU is alone"),
        }
    }
}

fn stat(which: Stat) -> u64 {
    call::stat(which).unwrap_or_else(|| fail!("{which:?} is not counted"))
}

/// Nobody else scans, so each pass has one right outcome.
fn by_call(spans: Spans) {
    let passes = stat(Stat::ScanPasses);
    check_eq!(pass(), 0, "blocks made of what looked worth it in one whole scan");
    check_eq!(pass(), spans.due(), "blocks made of what looked worth it in two");
    check_eq!(stat(Stat::ScanPasses) - passes, 2, "scans counted");
    check_eq!(stat(Stat::Copied), spans.due(), "of them, by copying");
    check_eq!(stat(Stat::Filled), HOLES as u64, "holes filled");
    check_eq!(pass(), 0, "blocks made when there is nothing left to make");
    let (looked, start) = (stat(Stat::Scanned), cpu::ticks());
    check_eq!(pass(), 0, "blocks made when there is nothing left to make");
    let (ticks, looked) = (cpu::ticks() - start, stat(Stat::Scanned) - looked);
    say!("settle: a scan of {looked} spans that makes no block takes {ticks} ticks");

    // Blocks do not fault, not even where nobody has been.
    let faults = stat(Stat::Faults);
    for page in spans.pages().filter(|page| !matches!(page / PAGES, 2 | 3)) {
        spans.verify(page, 0);
        if !Spans::is_hole(page) {
            spans.write(page, 1);
        }
    }
    // A page of this program may fault, which is fewer than there are holes.
    let more = stat(Stat::Faults) - faults;
    check!(more < HOLES as u64 / 4, "{more} faults in what are blocks");

    // One hole fewer is worth it, after as many scans as the first time.
    let hole = spans.pages().find(|page| page / PAGES == 2 && Spans::is_hole(*page));
    spans.verify(hole.unwrap_or_default(), 0);
    check_eq!(pass(), 0, "blocks made of a span that has just changed");
    check_eq!(pass(), 1, "blocks made of it in the next scan");
    check_eq!(stat(Stat::Filled), 2 * HOLES as u64, "holes filled");

    // What was split is left alone, and then has to look worth it again.
    let rests = stat(Stat::ScanRests);
    let [status, ..] = call::raw::<Hvc>(vendor::SPLIT, [spans.base as u64, MIB2 as u64, 0]);
    check_eq!(status as i64, vendor::SUCCESS, "SPLIT");
    let split = stat(Stat::Split);
    check_eq!(split, 1, "blocks split");
    for number in 1..REST + IN_A_ROW {
        check_eq!(pass(), 0, "blocks made in scan {number} after the split");
    }
    check_eq!(stat(Stat::ScanRests) - rests, REST, "scans that left it alone");
    check_eq!(pass(), 1, "blocks made when it was left alone long enough");
    check_eq!(stat(Stat::Collapsed), 1, "of them, where the pages lay");
    for page in spans.pages().filter(|page| matches!(page / PAGES, 2 | 3) && !Spans::is_hole(*page))
    {
        spans.verify(page, 0);
        spans.write(page, 1);
    }
}

/// Works until others have made the blocks, with a wait after each round.
fn by_others(spans: Spans, limit: u64, wait: impl Fn()) {
    let start = cpu::ticks();
    let mut rounds = 0;
    let written = || spans.pages().filter(|page| !Spans::is_hole(*page));
    while stat(Stat::ScanMade) < spans.due() {
        check!(
            cpu::ticks() - start < limit,
            "{} of {} blocks made in time",
            stat(Stat::ScanMade),
            spans.due()
        );
        for page in written().skip(rounds % 7).step_by(7) {
            spans.verify(page, 0);
            spans.write(page, 0);
        }
        rounds += 1;
        wait();
    }
    say!("settle: {rounds} rounds of work until {} blocks were made", stat(Stat::ScanMade));
    for page in written() {
        spans.verify(page, 0);
        spans.write(page, 1);
    }
}
