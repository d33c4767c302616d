//! Instruction fetch from pages that nobody has touched, and from pages that were just written.
//!
//! A never-touched page reads as zero, and the word zero is UDF: fetching from it must end in the
//! guest's own vectors, at the very instruction, on every vCPU. Code that a vCPU wrote runs after the
//! maintenance that the architecture wants (clean data, invalidate instructions), on all of them.

use core::sync::atomic::{AtomicU32, Ordering};

use guest_rt::cache::sync_code;
use guest_rt::exception::{EC_UNKNOWN, Fault, probe_call};
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size};
use guest_rt::{Arena, GIB, MIB2, Machine, PAGE, check_eq, fail, smp};

const RET: u32 = 0xd65f_03c0;
const NOP: u32 = 0xd503_201f;

/// MOV X0, #value.
const fn mov_x0(value: u16) -> u32 {
    0xd280_0000 | (value as u32) << 5
}

/// A root slot behind those of `walk` and `alias`.
const SLOT: usize = ALIAS_SLOT + 32;

pub(crate) fn check(machine: &Machine, arena: &mut Arena) {
    let [never, written, uncached] = [(); 3].map(|()| arena.take(PAGE, MIB2));

    expect_undefined(never, never, "a page that was never touched");

    // Written through the cache, run, rewritten, run again.
    for value in [42, 43] {
        put(written, &[mov_x0(value), RET]);
        sync_code(written, 8);
        expect_result(written, value, "code written through the cache");
    }

    // Written past the cache: the alias is non-cacheable, and its first touch is this store.
    mmu::ROOT.set(SLOT, mmu::leaf(uncached & !(GIB - 1), Size::Block1G, Attr::NonCacheable, false));
    mmu::publish();
    put(mmu::slot_va(SLOT) + uncached % GIB, &[mov_x0(44), RET]);
    sync_code(uncached, 8);
    expect_result(uncached, 44, "code written past the cache");

    // Running off the end of a page into one that was never touched.
    let edge = arena.take(2 * PAGE, PAGE) + PAGE;
    put(edge - 4, &[NOP]);
    sync_code(edge - 4, 4);
    expect_undefined(edge - 4, edge, "running into a never-touched page");

    // All vCPUs: the same fresh page at once, then code that vCPU 0 wrote and they have not seen.
    let (fresh, shared) = (arena.take(PAGE, MIB2), arena.take(PAGE, MIB2));
    put(shared, &[mov_x0(45), RET]);
    sync_code(shared, 8);
    let point = smp::Rendezvous::new();
    smp::run(machine, machine.vcpus().len(), &|me| {
        point.meet(me, 0);
        expect_undefined(fresh, fresh, "a page that all vCPUs fetch from first");
        expect_result(shared, 45, "code that vCPU 0 wrote");
    });
}

/// Writes instructions.
fn put(va: usize, words: &[u32]) {
    for (index, &word) in words.iter().enumerate() {
        // SAFETY: 1. mapped, and given by the arena to this file; 2. nobody fetches from there now.
        let slot = unsafe { &*((va + 4 * index) as *const AtomicU32) };
        slot.store(word, Ordering::Relaxed);
    }
}

fn expect_result(va: usize, value: u16, what: &str) {
    // SAFETY: the two instructions there keep to x0.
    let result = unsafe { probe_call(va) };
    check_eq!(result, Ok(value.into()), "{what}");
}

fn expect_undefined(va: usize, at: usize, what: &str) {
    // SAFETY: what is there falls into zeroes, which are UDF #0.
    match unsafe { probe_call(va) } {
        Err(fault @ Fault { elr, .. }) if fault.ec() == EC_UNKNOWN && elr == at as u64 => {}
        other => fail!("{what}: UDF at {at:#x} expected, not {other:x?}"),
    }
}
