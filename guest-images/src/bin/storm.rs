//! All vCPUs at once ask for everything that changes the mappings of RAM, with arguments right and wrong.
//!
//! | what is asked | the answers that are allowed |
//! | --- | --- |
//! | what the hypervisor's interface allows | done, busy, no memory |
//! | anything else: not RAM, unaligned, too large, around the end of the address space | invalid, or busy |
//!
//! Between its calls each vCPU verifies and rewrites words of its own, in blocks that all the others move, split and put
//! together. Arguments (`key=value`): `calls` of each vCPU that are served (200), and how it `end`s: 0 with a verdict (the default),
//! 1 switched off by one vCPU, 2 reset by one vCPU, while the others go on.

#![no_std]
#![no_main]

use core::ops::Range;

use guest_rt::rng::mix;
use guest_rt::{MIB2, Machine, PAGE, call, check_eq, fail, say, smp};
use hyp_abi::call::{
    BLOCK, BUSY, COLLAPSE, CONTIGUOUS, COPY, DISSOLVE, INVALID_PARAMETER, MOVE, MOVE_MAX,
    NO_MEMORY, RESIZE_MAX, SCAN, SCAN_MAX, SPLIT, SUCCESS,
};
use smccc::{Hvc, psci};

guest_rt::guest!("storm", storm);

const CALLS: [u32; 7] = [MOVE, SPLIT, COLLAPSE, COPY, CONTIGUOUS, DISSOLVE, SCAN];
/// Blocks of each vCPU.
const BLOCKS: usize = 2;
const PAGES: usize = BLOCKS * MIB2 / PAGE;

fn storm(machine: &Machine) {
    let args = machine.args(&["calls", "end"]);
    let (calls, end) = (args.number("calls", 200) as u64, args.number("end", 0));
    let count = machine.vcpus().len();
    let blocks = machine.arena().take(count * BLOCKS * MIB2, MIB2);
    let asked = Asked { ram: machine.ram.clone(), blocks, count: count * BLOCKS };
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
    /// Blocks that hold words.
    blocks: usize,
    count: usize,
}

impl Asked {
    /// Makes a call, and judges the answer. Returns whether it was served.
    fn something(&self, dice: u64) -> bool {
        let function = CALLS[(dice >> 48) as usize % CALLS.len()];
        let start = self.start(dice, mix(dice));
        let bytes = self.bytes(dice, mix(!dice));
        let (first, second, third) = match function {
            SCAN => (bytes / PAGE as u64 % 80, start, dice),
            _ => (start, bytes, dice >> 20 & 0x3ff),
        };
        let [status, ..] = call::raw::<Hvc>(function, [first, second, third]);
        let allowed = self.allows(function, first, second, third);
        match status as i64 {
            SUCCESS | NO_MEMORY if allowed => {}
            BUSY => {}
            INVALID_PARAMETER if !allowed => {}
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

    /// Whether the interface allows it.
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
