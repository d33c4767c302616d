//! Splits a range of RAM into pages and makes blocks of them again, for counting what that takes.
//!
//! Arguments: `mib=` (1024), the size of the range; with `copy=1` what was split is not collapsed but copied into
//! other blocks. One vCPU, in RAM that is populated by blocks (`--blocks`). Every
//! block of the range is populated before it starts; then there is nothing but calls, as many as it takes, for each
//! does a bounded part.

#![no_std]
#![no_main]

use guest_rt::{MIB2, Machine, PAGE, call, check, check_eq, cpu, fail, say};
use hyp_abi::call::{COLLAPSE, COPY, SPLIT, SUCCESS, Stat};
use smccc::Hvc;

guest_rt::guest!("bench-resize", bench);

/// Where in each block the word is that must survive: not in its first page.
const PLACE: usize = 77 * PAGE + 24;

fn bench(machine: &Machine) {
    let args = machine.args(&["mib", "copy"]);
    let mib = args.number("mib", 1024);
    let count = (mib << 20) / MIB2;
    check!(count > 0 && mib <= 1024, "mib={mib}: 2 to 1024 are possible");
    let start = machine.arena().take(count * MIB2, MIB2);
    let before = stat(Stat::Blocks);
    (0..count).for_each(|block| write(start, block));
    check_eq!(stat(Stat::Blocks) - before, count as u64, "blocks populated (is it --blocks?)");
    let back = match args.number("copy", 0) {
        0 => ("collapse", COLLAPSE, Stat::Collapsed),
        _ => ("copy", COPY, Stat::Copied),
    };
    for (name, call, changed) in [("split", SPLIT, Stat::Split), back] {
        let (before, from) = (stat(changed), cpu::ticks());
        let calls = resize(call, start, count * MIB2);
        let (ticks, rate) = (cpu::ticks() - from, cpu::tick_rate());
        say!("bench-resize: {name}: {count} blocks in {calls} calls, {ticks} ticks of {rate} Hz");
        check_eq!(stat(changed) - before, count as u64, "blocks that changed in {name}");
        (0..count).for_each(|block| check_survived(start, block));
    }
}

/// Changes the size of a range's mappings, a part at a time; returns how many parts there were.
fn resize(call: u32, start: usize, bytes: usize) -> usize {
    let (mut done, mut calls) = (0, 0);
    while done < bytes {
        let [status, more, ..] =
            call::raw::<Hvc>(call, [(start + done) as u64, (bytes - done) as u64, 0]);
        if status as i64 != SUCCESS || more == 0 {
            fail!("{call:#x} from {:#x}: {}, {more:#x} bytes", start + done, status as i64);
        }
        done += more as usize;
        calls += 1;
    }
    calls
}

fn stat(which: Stat) -> u64 {
    match call::stat(which) {
        Some(value) => value,
        None => fail!("no hypervisor, so nobody can split anything"),
    }
}

/// The word of a block that must survive.
fn place(start: usize, block: usize) -> *mut usize {
    (start + block * MIB2 + PLACE) as *mut usize
}

fn write(start: usize, block: usize) {
    // SAFETY: 1. the arena gave this block to nobody else; 2. mapped read-write by the identity map.
    unsafe { place(start, block).write_volatile(block) };
}

fn check_survived(start: usize, block: usize) {
    // SAFETY: 1, 2. as above.
    check_eq!(unsafe { place(start, block).read_volatile() }, block, "the word of block {block}");
}
