//! All vCPUs at once ask for everything that changes the mappings of RAM, with arguments right and wrong.
//!
//! | what is asked | the answers that are allowed |
//! | --- | --- |
//! | what the hypervisor's interface allows | done, busy, no memory |
//! | a dirty log or a shadow, which there may be already, or not be | invalid, too |
//! | anything else: not RAM, unaligned, too large, around the end of the address space | invalid, or busy |
//!
//! Between its calls each vCPU verifies and rewrites words of its own, in blocks that all the others move, split and put
//! together. What may end the content of memory, or take permissions, is asked of blocks that hold none. Arguments (`key=value`): `calls` of each vCPU that are served (200), and how it `end`s: 0 with a verdict (the default),
//! 1 switched off by one vCPU, 2 reset by one vCPU, while the others go on.

#![no_std]
#![no_main]

use core::ops::Range;

use guest_rt::rng::mix;
use guest_rt::{MIB2, Machine, PAGE, call, check_eq, fail, say, smp};
use hyp_abi::call::{
    self as vendor, AGE, BLOCK, BUSY, COPY, DIRTY_HARVEST, DIRTY_START, DIRTY_STOP,
    INVALID_PARAMETER, MANAGING, MOVE, MOVE_MAX, NO_MEMORY, POPULATE, PROTECT, RANGE_MAX, RECOVER,
    RECOVER_STOP, RELEASE, RESIZE_MAX, SCAN, SCAN_MAX, SHADOW, SUCCESS,
};
use hyp_abi::measure::MEASURE;
use smccc::{Hvc, psci};

guest_rt::guest!("storm", storm);

/// All that change memory, in builds for use: `MEASURE` is of builds that measure.
fn calls() -> impl Iterator<Item = u32> {
    MANAGING.into_iter().filter(|&function| function != MEASURE)
}
/// Blocks that hold nothing.
const SPARE: usize = 4;
/// Blocks of each vCPU.
const BLOCKS: usize = 2;
const PAGES: usize = BLOCKS * MIB2 / PAGE;

fn storm(machine: &Machine) {
    let args = machine.args(&["calls", "end"]);
    let (calls, end) = (args.number("calls", 200) as u64, args.number("end", 0));
    let count = machine.vcpus().len();
    let mut arena = machine.arena();
    let blocks = arena.take((count * BLOCKS + SPARE) * MIB2, MIB2);
    let (spare, buffer) = (blocks + count * BLOCKS * MIB2, arena.take(MIB2, MIB2));
    let asked =
        Asked { ram: machine.ram.clone(), blocks, count: count * BLOCKS + SPARE, spare, buffer };
    smp::run(machine, count, &|me| {
        let mine = Mine(blocks + me.index * BLOCKS * MIB2);
        let mut versions = [0; PAGES];
        (0..PAGES).for_each(|page| mine.write(page, 0));
        let (ends, mut round, mut done) = (end != 0 && me.index == count - 1, 0, 0);
        while done < calls || end != 0 && !ends {
            done += u64::from(asked.something(mix(round << 8 | me.index as u64)));
            let page = mix(round << 8 | 0x80 | me.index as u64) as usize % PAGES;
            mine.check(page, versions[page]);
            versions[page] = versions[page].wrapping_add(1);
            mine.write(page, versions[page]);
            round += 1;
        }
        match end {
            1 if ends => call::system_off(),
            2 if ends => fail!("PSCI SYSTEM_RESET returned: {:?}", psci::system_reset::<Hvc>()),
            _ => {}
        }
        (0..PAGES).for_each(|page| mine.check(page, versions[page]));
        say!("storm: vCPU {} asked {round} times, and was served {done} times", me.index);
    });
}

/// The blocks of a vCPU: a word of each page.
struct Mine(usize);

impl Mine {
    fn place(&self, page: usize) -> *mut u64 {
        (self.0 + page * PAGE + page % 512 * 8) as *mut u64
    }

    fn word(&self, page: usize, version: u8) -> u64 {
        mix((self.0 + page * PAGE) as u64 | u64::from(version))
    }

    fn write(&self, page: usize, version: u8) {
        // SAFETY: 1. the arena gave this memory to this vCPU alone; 2. mapped read-write by the identity map.
        unsafe { self.place(page).write_volatile(self.word(page, version)) };
    }

    fn check(&self, page: usize, version: u8) {
        // SAFETY: 1, 2. as above.
        let found = unsafe { self.place(page).read_volatile() };
        check_eq!(found, self.word(page, version), "page {page} of {:#x}", self.0);
    }
}

/// What is asked about.
struct Asked {
    ram: Range<usize>,
    /// Blocks that hold words, and behind them those that hold nothing.
    blocks: usize,
    count: usize,
    /// Blocks that hold nothing.
    spare: usize,
    /// Where bitmaps go.
    buffer: usize,
}

/// What an interface may answer besides busy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// Done, or no memory.
    Served,
    /// Invalid.
    Refused,
    /// Any of these, as it depends on what others have asked for.
    Either,
}

impl Asked {
    /// Makes a call, and judges the answer. Returns whether it was served.
    fn something(&self, dice: u64) -> bool {
        let Some(function) = calls().nth((dice >> 48) as usize % calls().count()) else {
            fail!("there are no calls");
        };
        let mut start = self.start(dice, mix(dice));
        let bytes = self.bytes(dice, mix(!dice));
        if matches!(function, PROTECT | RELEASE | SHADOW | RECOVER) {
            start = self.harmless(start, bytes);
        }
        let [first, second, third] = match function {
            SCAN => [bytes / PAGE as u64 % 80, start, dice],
            SHADOW => [dice >> 20 & 7, start, bytes],
            DIRTY_START => [start, bytes, dice >> 20 & 3],
            DIRTY_HARVEST | AGE => [start, bytes, self.bitmap(dice)],
            PROTECT => [start, bytes, dice >> 20 & 0x1f],
            RECOVER => [start, bytes, dice >> 20 & 7],
            _ => [start, bytes, dice >> 20 & 0x3ff],
        };
        let [status, ..] = call::raw::<Hvc>(function, [first, second, third]);
        let answers = self.answers(function, first, second, third);
        match status as i64 {
            SUCCESS | NO_MEMORY if answers != Answers::Refused => {}
            BUSY => {}
            INVALID_PARAMETER if answers != Answers::Served => {}
            other => fail!("{function:#x} of {first:#x}, {second:#x}, {third:#x} answered {other}"),
        }
        status as i64 == SUCCESS
    }

    fn start(&self, dice: u64, garbage: u64) -> u64 {
        let block = (self.blocks + (dice >> 8) as usize % self.count * MIB2) as u64;
        match dice & 15 {
            0..=8 => block,
            9 | 10 => block + (dice >> 16 & 511) * PAGE as u64,
            // Where the image is, and everything else.
            11 => (self.ram.start + (dice >> 8) as usize % 64 * MIB2) as u64,
            12 => (self.ram.end - PAGE) as u64,
            13 => garbage & !(BLOCK - 1),
            14 => garbage & !(PAGE as u64 - 1),
            _ => garbage,
        }
    }

    fn bytes(&self, dice: u64, garbage: u64) -> u64 {
        match dice >> 4 & 15 {
            0..=5 => BLOCK,
            6..=8 => BLOCK * (1 + (dice >> 30) % 4),
            9..=11 => PAGE as u64 * (1 + (dice >> 30) % 32),
            12 => RESIZE_MAX + BLOCK,
            13 => 0u64.wrapping_sub(BLOCK),
            14 => 0,
            _ => garbage,
        }
    }

    /// An address from which so many bytes hold nothing, or are no RAM.
    fn harmless(&self, start: u64, bytes: u64) -> u64 {
        let (spare, end) = (self.spare as u64, (self.spare + SPARE * MIB2) as u64);
        if bytes <= end - spare {
            spare + start % (end - spare - bytes + 1)
        } else {
            // Too large, or beyond the end of everything.
            start
        }
    }

    /// Where a bitmap goes, right or wrong: not where anything else is.
    fn bitmap(&self, dice: u64) -> u64 {
        let at = self.buffer as u64 + (dice >> 20 & 0xff) * 8;
        match dice >> 40 & 7 {
            0 => at + 4,
            1 => self.ram.end as u64 - 4,
            2 => mix(dice) | 1 << 60,
            _ => at,
        }
    }

    /// What the interface may answer.
    fn answers(&self, function: u32, first: u64, second: u64, third: u64) -> Answers {
        let ram = self.ram.start as u64..self.ram.end as u64;
        let pages = |start: u64, bytes: u64| {
            let end = start.checked_add(bytes);
            end.is_some_and(|end| ram.start <= start && end <= ram.end)
                && bytes != 0
                && bytes <= RANGE_MAX
                && (start | bytes).is_multiple_of(PAGE as u64)
        };
        let right = match function {
            // Execution at one level alone is for CPUs that can tell them apart.
            PROTECT if matches!(third >> 2, 1 | 2) && pages(first, second) => {
                return Answers::Either;
            }
            PROTECT => pages(first, second) && third < 16,
            POPULATE | RELEASE => pages(first, second),
            RECOVER => pages(first, second) && third <= RECOVER_STOP,
            DIRTY_START | DIRTY_HARVEST | AGE if pages(first, second) => return Answers::Either,
            DIRTY_START | DIRTY_HARVEST | AGE => false,
            DIRTY_STOP => return Answers::Either,
            SHADOW if first <= vendor::SHADOW_DROP => return Answers::Either,
            SHADOW => false,
            _ => self.allows(function, first, second, third),
        };
        if right { Answers::Served } else { Answers::Refused }
    }

    /// Whether the arguments of the other calls are right.
    fn allows(&self, function: u32, start: u64, bytes: u64, third: u64) -> bool {
        let ram = self.ram.start as u64..self.ram.end as u64;
        let inside =
            start.checked_add(bytes).is_some_and(|end| ram.start <= start && end <= ram.end);
        let (unit, most) = match function {
            SCAN => return (1..=SCAN_MAX).contains(&start),
            MOVE => (PAGE as u64, MOVE_MAX),
            COPY if third > 511 => return false,
            _ => (BLOCK, RESIZE_MAX),
        };
        inside && bytes != 0 && bytes <= most && (start | bytes).is_multiple_of(unit)
    }
}
