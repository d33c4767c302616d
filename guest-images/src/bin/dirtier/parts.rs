//! Parts of a logged range, and buffers good and bad: what a harvest is not asked for, or cannot tell, it tells later.

use guest_rt::{MIB2, Machine, PAGE, check, check_eq};
use hyp_abi::call::{
    DIRTY_HARVEST, DIRTY_START, DIRTY_STOP, INVALID_PARAMETER, PROT_EXEC_EL0, PROT_EXEC_EL1,
    PROT_READ, PROT_WRITE, PROTECT, RELEASE,
};
use hyp_abi::map;

use super::calls::{call, on_range, try_call};
use super::page::Page;

const ALL: u64 = PROT_READ | PROT_WRITE | PROT_EXEC_EL1 | PROT_EXEC_EL0;

/// The range, and 2 MiB behind it.
struct Parts {
    start: usize,
    other: usize,
}

impl Parts {
    const fn page(&self, page: usize) -> usize {
        self.start + page * PAGE
    }

    fn write(&self, pages: &[usize]) {
        pages.iter().for_each(|page| Page::new(self.page(*page)).rewrite());
    }

    /// Harvests so many pages from one on, and expects these, by their numbers in the range.
    fn expect(&self, first: usize, count: usize, buffer: usize, pages: &[usize], what: &str) {
        let range = [self.page(first) as u64, (count * PAGE) as u64];
        let [bytes, told] = call(DIRTY_HARVEST, [range[0], range[1], buffer as u64]);
        check_eq!((bytes, told), (range[1], pages.len() as u64), "{what}: bytes and pages");
        for word in 0..count.div_ceil(64) {
            let bit = |bits, page: &usize| match (page - first) / 64 == word {
                true => bits | 1 << ((page - first) % 64),
                false => bits,
            };
            let wanted: u64 = pages.iter().fold(0, bit);
            // SAFETY: 1. RAM of the arena in the identity map, this vCPU's alone but for the hypervisor; any bits are a
            // u64.
            let found = unsafe { ((buffer + word * 8) as *const u64).read_volatile() };
            check_eq!(found, wanted, "{what}: word {word}");
        }
    }
}

/// A log that is stopped in parts: nothing is harvested any more, and it comes to its end. In so many blocks from `start` on, more
/// than one part.
pub(crate) fn stopped(start: usize, blocks: usize, buffer: usize) {
    (0..blocks).for_each(|block| Page::new(start + block * MIB2).rewrite());
    let range = [start as u64, (blocks * MIB2) as u64];
    call(DIRTY_START, [range[0], range[1], 1]);
    on_range(DIRTY_HARVEST, start, blocks * MIB2, buffer as u64);
    let mut stopped = call(DIRTY_STOP, [0; 3])[0];
    check!(0 < stopped && stopped < range[1], "{stopped:#x} bytes stopped at once: no part");
    let answer = try_call(DIRTY_HARVEST, [range[0], PAGE as u64, buffer as u64]);
    check_eq!(answer, Err(INVALID_PARAMETER), "a harvest of what is being stopped");
    let answer = try_call(DIRTY_START, [range[0], range[1], 0]);
    check_eq!(answer, Err(INVALID_PARAMETER), "a session beside one that is being stopped");
    while stopped < range[1] {
        let more = call(DIRTY_STOP, [0; 3])[0];
        check!(more > stopped, "{more:#x} bytes stopped, {stopped:#x} before");
        stopped = more;
    }
    check_eq!(try_call(DIRTY_STOP, [0; 3]), Err(INVALID_PARAMETER), "a stop of nothing");
}

/// In the first of two blocks from `start` on.
pub(crate) fn run(start: usize, machine: &Machine) {
    let parts = Parts { start, other: start + MIB2 };
    let all = [start as u64, MIB2 as u64];
    let buffer = parts.other + 5 * PAGE;
    parts.write(&[60, 61, 62, 63, 64, 65, 127, 128, 200, 511]);
    call(DIRTY_START, [all[0], all[1], 1]);
    call(DIRTY_HARVEST, [all[0], all[1], buffer as u64]);

    // From a page in the middle of a word on; what is left out stays.
    parts.write(&[60, 61, 63, 64, 128, 200, 511]);
    parts.expect(61, 4, buffer, &[61, 63, 64], "four pages over the edge of a word");
    parts.expect(61, 4, buffer, &[], "the same again");
    parts.expect(60, 100, buffer, &[60, 128], "a hundred pages");
    parts.expect(0, 512, buffer, &[200, 511], "the rest");

    // Over the edge of two pages, of which nobody has touched the second; and in the range itself.
    on_range(RELEASE, parts.other + 8 * PAGE, PAGE, 0);
    parts.write(&[64]);
    parts.expect(0, 512, parts.other + 8 * PAGE - 16, &[64], "a buffer over the edge of a page");
    parts.expect(0, 512, parts.page(300), &[], "a buffer in the range");
    parts.expect(0, 512, buffer, &[300], "what EL2 has written");

    // Nothing is lost by a harvest that is refused.
    parts.write(&[64, 511]);
    on_range(PROTECT, parts.other + 9 * PAGE, PAGE, PROT_READ);
    let last = machine.ram.end - 8;
    for wrong in [
        buffer + 4,
        0,
        last,
        machine.ram.end,
        usize::MAX & !7,
        map::UART_BASE as usize,
        parts.other + 9 * PAGE,
        parts.other + 9 * PAGE - 16,
    ] {
        let answer = try_call(DIRTY_HARVEST, [all[0], all[1], wrong as u64]);
        check_eq!(answer, Err(INVALID_PARAMETER), "a buffer at {wrong:#x}");
    }
    // SAFETY: 1. as for `Parts::expect`.
    let before = unsafe { ((parts.other + 9 * PAGE - 16) as *const u64).read_volatile() };
    check_eq!(before, 0, "the half of a buffer that could be written");
    on_range(PROTECT, parts.other + 9 * PAGE, PAGE, ALL);
    for (from, bytes) in [
        (all[0], 0),
        (all[0], all[1] + PAGE as u64),
        (all[0] - PAGE as u64, all[1]),
        (all[0] + 1, PAGE as u64),
        (all[0], PAGE as u64 + 1),
        (all[0] + all[1], PAGE as u64),
        (u64::MAX - 0xfff, PAGE as u64),
    ] {
        let answer = try_call(DIRTY_HARVEST, [from, bytes, buffer as u64]);
        check_eq!(answer, Err(INVALID_PARAMETER), "{bytes:#x} bytes at {from:#x}");
    }
    parts.expect(0, 512, buffer, &[64, 511], "after all that was refused");

    // What may not be written has nothing to tell, and what it had is told.
    parts.write(&[64]);
    on_range(PROTECT, parts.page(64), PAGE, PROT_READ);
    parts.expect(0, 512, buffer, &[64], "written, and then write-protected");
    parts.expect(0, 512, buffer, &[], "write-protected");
    on_range(PROTECT, parts.page(64), PAGE, ALL);
    parts.expect(0, 512, buffer, &[64], "writable again: it may have been written");
    while call(DIRTY_STOP, [0; 3])[0] < MIB2 as u64 {}
}
