//! Has the protections of its RAM changed in every way that MEASURE knows, for counting what that takes.
//!
//! Arguments: `pages=` (4096), the largest range, in pages of 4 KiB; `rounds=` (1), times that all is done; `block=` 1 if RAM
//! is populated by blocks (`--blocks`): then ranges begin at 512 pages. The other vCPUs are started and sit still, in WFI.
//!
//! Each round goes through the sizes, and for each size through the ways, one after the other: so those that are
//! compared are close in time. A range is write-protected, and then everything is allowed again.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm::wfi;
use guest_rt::smp::{self, Vcpu};
use guest_rt::{MIB2, Machine, PAGE, call, check, fail, say};
use hyp_abi::call::SUCCESS;
use hyp_abi::measure::{MEASURE, METHODS, SIZES, Way, Work};
use smccc::Hvc;

guest_rt::guest!("bench-prot", bench);

/// Other vCPUs that are there.
static HERE: AtomicUsize = AtomicUsize::new(0);

fn bench(machine: &Machine) {
    let args = machine.args(&["pages", "rounds", "block"]);
    let (pages, rounds) = (args.number("pages", 4096), args.number("rounds", 1));
    let leaf = if args.number("block", 0) == 0 { PAGE } else { MIB2 };
    let bytes = pages * PAGE;
    check!(pages > 0 && bytes.is_multiple_of(leaf), "pages={pages}: not a number of leaves");
    let start = machine.arena().take(bytes.next_multiple_of(MIB2), MIB2);
    for at in (start..start + bytes).step_by(leaf) {
        // SAFETY: 1. the arena gave this to nobody else; 2. mapped read-write by the identity map.
        unsafe { (at as *mut usize).write_volatile(at) };
    }
    let sizes = SIZES.iter().map(|&pages| pages as usize * PAGE);
    let sizes = sizes.filter(|&size| size <= bytes && size.is_multiple_of(leaf));
    let count = machine.vcpus().len();
    smp::run(machine, count, &|me: Vcpu| {
        if me.index != 0 {
            HERE.fetch_add(1, Ordering::Release);
            // For good: the verdict ends the VM.
            loop {
                wfi();
            }
        }
        while HERE.load(Ordering::Acquire) != count - 1 {
            smp::relax();
        }
        for _ in 0..rounds {
            sizes.clone().for_each(|size| all_ways(start, size));
        }
        say!("bench-prot: {rounds} rounds up to {pages} pages, {count} vCPUs");
        call::pass();
    });
}

/// All that is done to one range.
fn all_ways(start: usize, bytes: usize) {
    for method in METHODS {
        for work in Work::ALL {
            measure(start, bytes, method.way(work));
        }
    }
}

fn measure(start: usize, bytes: usize, way: Way) {
    let [status, ..] = call::raw::<Hvc>(MEASURE, [start as u64, bytes as u64, way.to_word()]);
    if status as i64 != SUCCESS {
        fail!("{way:?} of {bytes:#x} bytes from {start:#x}: {}", status as i64);
    }
}
