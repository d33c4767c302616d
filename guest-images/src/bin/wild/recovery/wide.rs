//! Accesses that reach over an edge.

use core::arch::asm;

use guest_rt::exception::{FSC_EXTERNAL, probe_read};
use guest_rt::{Args, GIB, Machine, PAGE, check_eq, fail, mmu};

use super::{Hole, PATTERN, injects, recovers};
use crate::devices::load;

/// From a page of the window to the next: one instruction, two violations.
pub(crate) fn pages(machine: &Machine, _: Args) {
    let mut hole = Hole::of(machine);
    let [loaded, stored, pair] = [(); 3].map(|()| hole.take(2) + PAGE - 4);
    let found = recovers("a load from two pages", 2, || load(loaded, 8));
    check_eq!(found, PATTERN, "a load from two pages");
    recovers("a store to two pages", 2, || {
        // SAFETY: the window holds nothing.
        unsafe { asm!("str {v}, [{a}]", v = in(reg) !0u64, a = in(reg) stored, options(nostack)) };
    });
    // All pages are one: its end and its beginning were written.
    check_eq!((load(stored, 4), load(stored + 4, 4)), (0xffff_ffff, 0xffff_ffff), "the store");
    recovers("a pair from two pages", 2, || {
        // SAFETY: a load of the window.
        unsafe {
            asm!("ldp {v}, {w}, [{a}]", v = out(reg) _, w = out(reg) _, a = in(reg) pair, options(nostack));
        }
    });
}

/// From the end of RAM to the window behind it.
pub(crate) fn ram(machine: &Machine, _: Args) {
    let end = machine.ram.end;
    let found = recovers("a load from RAM and the window", 1, || load(end - 4, 8));
    check_eq!(found, PATTERN << 32, "four bytes of each");
    // SAFETY: the last bytes of RAM are nobody's, nor is the window.
    recovers("a store to RAM and the window", 0, || unsafe {
        asm!("str {v}, [{a}]", v = in(reg) 0x1122_3344_5566_7788_u64, a = in(reg) end - 4, options(nostack));
    });
    check_eq!([load(end - 4, 4), load(end, 4)], [0x5566_7788, 0x1122_3344], "the two halves");
}

/// Addresses that the guest's tables name and no VM of this size has. They have no scratch page: not one slot of
/// stage 2 is theirs.
pub(crate) fn beyond(_: &Machine, _: Args) {
    // 40 bits for the output of stage 1, whatever the ID registers promise.
    // SAFETY: only more addresses are let through than before; nothing that is mapped changes.
    unsafe {
        asm!("mrs {t}, tcr_el1", "bic {t}, {t}, #(7 << 32)", "orr {t}, {t}, #(2 << 32)", "msr tcr_el1, {t}",
             "isb", t = out(reg) _, options(nostack));
    }
    mmu::invalidate();
    for at in [4 * GIB, 31 * GIB + 0x1238] {
        match injects("a load beyond the VM's addresses", 1, || probe_read(at)) {
            Err(fault) => {
                check_eq!(
                    (fault.fsc(), fault.far),
                    (FSC_EXTERNAL, at as u64),
                    "status and address"
                );
            }
            Ok(value) => fail!("a load from {at:#x} gave {value:#x}"),
        }
    }
}
