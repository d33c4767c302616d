//! The log step by step, on one vCPU: after each step it is known which pages were written.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{MIB2, Machine, PAGE, check, check_eq};
use hyp_abi::call::{
    DIRTY_HARVEST, DIRTY_START, DIRTY_STOP, INVALID_PARAMETER, MOVE, PROT_READ, PROTECT, RELEASE,
    SHADOW, SHADOW_BEGIN, SHADOW_DROP, SHADOW_END, SHADOW_MAX, SHADOW_ROUND,
};

use super::calls::{call, on_range, try_call};
use super::drive::ALL;
use super::page::Page;

/// Pages of the range.
const PAGES: usize = MIB2 / PAGE;
/// Words of its bitmap.
const WORDS: usize = PAGES / 64;

/// The range that is logged, with a place for its bitmap outside.
struct Log {
    start: usize,
    bitmap: usize,
}

impl Log {
    const fn page(&self, page: usize) -> usize {
        self.start + page * PAGE
    }

    fn write(&self, page: usize) {
        Page::new(self.page(page)).rewrite();
    }

    /// Harvests all of the range.
    fn harvest(&self) -> [u64; WORDS] {
        for word in 0..WORDS {
            // SAFETY: 1. RAM of the arena in the identity map, this vCPU's alone but for the hypervisor.
            unsafe { (self.bitmap as *mut u64).add(word).write_volatile(!0) };
        }
        self.harvest_to(self.bitmap)
    }

    /// The same, with the bitmap somewhere.
    fn harvest_to(&self, bitmap: usize) -> [u64; WORDS] {
        let [bytes, count] = call(DIRTY_HARVEST, [self.start as u64, MIB2 as u64, bitmap as u64]);
        check_eq!(bytes, MIB2 as u64, "bytes that were harvested at once");
        let found: [u64; WORDS] = core::array::from_fn(|word| {
            // SAFETY: 1. RAM of the arena in the identity map; any bits are a u64.
            unsafe { (bitmap as *const u64).add(word).read_volatile() }
        });
        let bits: u32 = found.iter().map(|word| word.count_ones()).sum();
        check_eq!(count, u64::from(bits), "pages that the harvest counted, by its bitmap");
        found
    }

    /// Harvests, and expects these pages and no other.
    fn expect(&self, what: &str, pages: &[usize]) {
        let mut wanted = [0; WORDS];
        pages.iter().for_each(|page| wanted[page / 64] |= 1 << (page % 64));
        let found = self.harvest();
        for (word, (found, wanted)) in found.into_iter().zip(wanted).enumerate() {
            check_eq!(
                found,
                wanted,
                "{what}: the bits of pages {} to {}",
                word * 64,
                word * 64 + 63
            );
        }
    }
}

/// Ends the log of so many bytes; returns the blocks that were made again.
pub(crate) fn stop(bytes: usize) -> u64 {
    let mut made = 0;
    loop {
        let [done, blocks] = call(DIRTY_STOP, [0; 3]);
        made += blocks;
        if done == bytes as u64 {
            return made;
        }
    }
}

/// Takes the log through its steps, in the first of two blocks from `start` on.
pub(crate) fn run(start: usize, machine: &Machine) {
    let log = Log { start, bitmap: start + MIB2 };
    let range = [start as u64, MIB2 as u64];
    refused(&log, "without a session");
    let calls = [(DIRTY_START, 1), (DIRTY_HARVEST, log.bitmap as u64), (DIRTY_STOP, 0)];
    for (function, more) in calls.into_iter().skip(1) {
        let answer = try_call(function, [range[0], range[1], more]);
        check_eq!(answer, Err(INVALID_PARAMETER), "{function:#x} without a session");
    }
    [3, 64, 511].into_iter().for_each(|page| log.write(page));
    call(DIRTY_START, [range[0], range[1], 1]);
    let again = try_call(DIRTY_START, [range[0], range[1], 1]);
    check_eq!(again, Err(INVALID_PARAMETER), "a second session");

    // All that is mapped counts as written, which are all pages if they were a block.
    let first = log.harvest();
    for page in [3, 64, 511] {
        check!(first[page / 64] >> (page % 64) & 1 == 1, "page {page} is mapped, and not reported");
    }
    log.expect("nothing was written", &[]);

    log.write(3);
    // EL2 writes the bitmap into the range: bits of this page are in it, and then one for the page itself.
    check_eq!(log.harvest_to(log.page(70))[0], 1 << 3, "the first word of a bitmap in the range");
    log.expect("EL2 wrote its bitmap to a page that was not there", &[70]);
    check_eq!(log.harvest_to(log.page(70)), [0; WORDS], "a bitmap in the range");
    log.expect("EL2 wrote its bitmap to a page that was clean", &[70]);

    log.write(3);
    call(MOVE, [log.page(64) as u64, PAGE as u64, 0]);
    on_range(RELEASE, log.page(511), PAGE, 0);
    log.write(100);
    log.expect("written, moved, released, new", &[3, 64, 511, 100]);

    // SAFETY: 1. RAM of the arena in the identity map, aligned, this vCPU's alone.
    unsafe { AtomicU64::from_ptr(log.page(3) as *mut u64) }.fetch_add(1, Ordering::Relaxed);
    Page::new(log.page(64)).zero();
    // SAFETY: 1. as above; both pages are the vCPU's.
    unsafe { ((log.page(101) - 4) as *mut u64).write_unaligned(!0) };
    log.expect("an atomic, DC ZVA, a store across two pages", &[3, 64, 100, 101]);

    log.write(110);
    on_range(PROTECT, log.page(110), PAGE, PROT_READ);
    log.expect("write-protected since it was written", &[110]);
    log.expect("still write-protected", &[]);
    on_range(PROTECT, log.page(110), PAGE, ALL);
    log.harvest();

    // SAFETY: 1. as above; any bits are a u64.
    let _ = unsafe { (log.page(100) as *const u64).read_volatile() };
    log.expect("one was read", &[]);
    log.write(100);
    log.expect("written again after it was read", &[100]);

    refused(&log, "without a shadow");
    wrong_shadows(&log, machine);
    let [made, _] = call(SHADOW, [SHADOW_BEGIN, range[0], range[1]]);
    check_eq!(made, range[1], "bytes of the shadow");
    let second = try_call(SHADOW, [SHADOW_BEGIN, range[0], range[1]]);
    check_eq!(second, Err(INVALID_PARAMETER), "a second shadow");
    for (from, bytes) in [(range[0] + range[1], range[1]), (range[0], 2 * range[1]), (range[0], 1)]
    {
        let answer = try_call(SHADOW, [SHADOW_ROUND, from, bytes]);
        check_eq!(answer, Err(INVALID_PARAMETER), "a round of {bytes:#x} bytes at {from:#x}");
    }
    // What was harvested before it has not heard of: it must say so.
    let [_, differs] = call(SHADOW, [SHADOW_END, 0, 0]);
    check_eq!(differs, log.page(3) as u64, "the first page that the shadow was never told of");

    call(SHADOW, [SHADOW_BEGIN, range[0], range[1]]);
    call(SHADOW, [SHADOW_DROP, 0, 0]);
    refused(&log, "after it was given up");

    stop(MIB2);
    let over = try_call(DIRTY_HARVEST, [range[0], range[1], log.bitmap as u64]);
    check_eq!(over, Err(INVALID_PARAMETER), "a harvest after the session");
}

/// The same for a block, which nobody has touched: kept, it is written as a whole; split, by the page, and it is a block again
/// when the log ends.
pub(crate) fn block(start: usize, bitmap: usize) {
    let log = Log { start, bitmap };
    let begin = |split| call(DIRTY_START, [start as u64, MIB2 as u64, split]);
    let all: [usize; PAGES] = core::array::from_fn(|page| page);
    let mut page = Page::new(log.page(7));
    page.rewrite();
    for (split, written, blocks) in [(0, &all[..], 0), (1, &[7], 1), (0, &all[..], 0)] {
        begin(split);
        log.expect("the block is mapped", &all);
        log.expect("it was not written", &[]);
        page.verify();
        page.poke(split as usize);
        log.expect("a page of it was written", written);
        check_eq!(stop(MIB2), blocks, "blocks that were made again");
    }
    page.verify();
}

/// Operations that need a shadow.
fn refused(log: &Log, when: &str) {
    for operation in [SHADOW_ROUND, SHADOW_END, SHADOW_DROP, SHADOW_DROP + 1, u64::MAX] {
        let answer = try_call(SHADOW, [operation, log.start as u64, MIB2 as u64]);
        check_eq!(answer, Err(INVALID_PARAMETER), "SHADOW {operation} {when}");
    }
}

/// Ranges that no shadow is made of.
fn wrong_shadows(log: &Log, machine: &Machine) {
    let (start, block) = (log.start as u64, MIB2 as u64);
    for (from, bytes) in [
        (start, 0),
        (start, block + block),
        (start + PAGE as u64, block / 2),
        (start, PAGE as u64),
        (start, SHADOW_MAX + block),
        (machine.ram.end as u64, block),
        (u64::MAX - block + 1, block),
        (0, block),
    ] {
        let answer = try_call(SHADOW, [SHADOW_BEGIN, from, bytes]);
        check_eq!(answer, Err(INVALID_PARAMETER), "a shadow of {bytes:#x} bytes at {from:#x}");
    }
}
