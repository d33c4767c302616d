//! Has the protections of its RAM changed in every way that MEASURE knows, for counting what that takes.
//!
//! Arguments: `pages=` (4096), the largest range, in pages of 4 KiB; `rounds=` (1), times that all is done, ranges of more than 4096 pages every other time; `block=` 1 if RAM
//! is populated by blocks (`--blocks`): then ranges begin at 512 pages; `write=` 1 has the other vCPUs write into the range all the
//! time. Else they are started and sit still, in WFI.
//!
//! Each round goes through the sizes, and for each size through the ways, one after the other: so those that are
//! compared are close in time. A range is write-protected, then everything is allowed again, then its dirty state is harvested twice.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm::wfi;
use guest_rt::smp::{self, Vcpu};
use guest_rt::{MIB2, Machine, PAGE, call, check, check_eq, fail, say};
use hyp_abi::call::{INVALID_PARAMETER, SUCCESS};
use hyp_abi::measure::{MEASURE, METHODS, SIZES, Way, Work};
use smccc::Hvc;

guest_rt::guest!("bench-prot", bench);

/// Larger ranges, in bytes, are measured in every other round.
const OFTEN: usize = 4096 * PAGE;

/// Other vCPUs that are there.
static HERE: AtomicUsize = AtomicUsize::new(0);
/// Bytes of the range that is measured.
static BYTES: AtomicUsize = AtomicUsize::new(PAGE);

fn bench(machine: &Machine) {
    let args = machine.args(&["pages", "rounds", "block", "write"]);
    let (pages, rounds) = (args.number("pages", 4096), args.number("rounds", 1));
    let leaf = if args.number("block", 0) == 0 { PAGE } else { MIB2 };
    let write = args.number("write", 0) != 0;
    let bytes = pages * PAGE;
    check!(pages > 0 && bytes.is_multiple_of(leaf), "pages={pages}: not a number of leaves");
    let start = machine.arena().take(bytes.next_multiple_of(MIB2), MIB2);
    (start..start + bytes).step_by(leaf).for_each(touch);
    refusals(start, machine.ram.end);
    let sizes = SIZES.iter().map(|&pages| pages as usize * PAGE);
    let sizes = sizes.filter(|&size| size <= bytes && size.is_multiple_of(leaf));
    let count = machine.vcpus().len();
    smp::run(machine, count, &|me: Vcpu| {
        if me.index != 0 {
            HERE.fetch_add(1, Ordering::Release);
            // For good: the verdict ends the VM.
            loop {
                if write { write_all(start, me.index) } else { wfi() }
            }
        }
        while HERE.load(Ordering::Acquire) != count - 1 {
            smp::relax();
        }
        for round in 0..rounds {
            let due = |&size: &usize| size <= OFTEN || round % 2 == 0;
            for size in sizes.clone().filter(due) {
                BYTES.store(size, Ordering::Relaxed);
                all_ways(start, size);
            }
        }
        say!("bench-prot: {rounds} rounds up to {pages} pages, {count} vCPUs");
        call::pass();
    });
}

/// Writes into each page of the range; the vCPUs that do so begin in different places.
fn write_all(start: usize, index: usize) {
    let pages = BYTES.load(Ordering::Relaxed) / PAGE;
    for page in 0..pages {
        touch(start + (page + index * pages / 4) % pages * PAGE);
    }
}

/// One store.
fn touch(at: usize) {
    // SAFETY: 1. the arena gave this to nobody else; 2. mapped read-write by the identity map; 3. other vCPUs only write
    // the same value.
    unsafe { (at as *mut usize).write_volatile(at) };
}

/// All that is done to one range. All of it is written between the two harvests, so that all is dirty.
fn all_ways(start: usize, bytes: usize) {
    for method in METHODS {
        for work in Work::ALL {
            if work == Work::Harvest {
                (start..start + bytes).step_by(PAGE).for_each(touch);
            }
            measure(start, bytes, method.way(work));
        }
    }
}

fn measure(start: usize, bytes: usize, way: Way) {
    let status = ask(start, bytes, way.to_word());
    if status != SUCCESS {
        fail!("{way:?} of {bytes:#x} bytes from {start:#x}: {status}");
    }
}

/// What is refused, and leaves nothing in the list of what was measured.
fn refusals(start: usize, end: usize) {
    let word = METHODS[0].way(Work::WriteProtect).to_word();
    check_eq!(ask(start, PAGE, u64::MAX), INVALID_PARAMETER, "a word that says nothing");
    check_eq!(ask(start + 8, PAGE, word), INVALID_PARAMETER, "a range that is not of pages");
    check_eq!(ask(start, 0, word), INVALID_PARAMETER, "no range");
    check_eq!(ask(end - PAGE, 2 * PAGE, word), INVALID_PARAMETER, "a range that leaves RAM");
    check_eq!(ask(0, PAGE, word), INVALID_PARAMETER, "a range that is not RAM");
    let harvest = METHODS[0].way(Work::Harvest).to_word();
    check_eq!(ask(start, PAGE, harvest), INVALID_PARAMETER, "a harvest without a first one");
}

fn ask(start: usize, bytes: usize, word: u64) -> i64 {
    let [status, ..] = call::raw::<Hvc>(MEASURE, [start as u64, bytes as u64, word]);
    status as i64
}
