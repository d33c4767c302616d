//! Stage-1 tables in RAM that nobody has touched.
//!
//! The walker is the first to read such a table, so stage 2 faults on a walk (S1PTW). The hypervisor
//! populates the page, the walk goes on and finds zero, which is the guest's own translation fault:
//! the level in it proves how far the walk got. Each table lies in a 2 MiB block of its own, so that
//! its stage-2 table is missing too.

use core::arch::asm;

use guest_rt::exception::{
    EC_DATA_ABORT, EC_INSTRUCTION_ABORT, fsc_translation, probe_call, probe_read, probe_write,
};
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size, Table};
use guest_rt::{Arena, GIB, MIB2, PAGE, check_eq, fail};

use crate::MARK;

/// Starts a walk for a VA that translates to nothing, and gives the status of its fault.
type Start = fn(usize) -> u64;

/// How a walk is started.
const STARTERS: [(&str, Start); 4] =
    [("load", by_load), ("store", by_store), ("fetch", by_fetch), ("AT S1E1R", by_at)];

/// Root slots that this file uses, one for each starter.
pub(crate) const SLOTS: usize = STARTERS.len();

/// For each starter: two levels of never-touched tables, a fault at each, then a mapping.
pub(crate) fn check(arena: &mut Arena) {
    for (index, (name, start)) in STARTERS.into_iter().enumerate() {
        let (slot, va) = (ALIAS_SLOT + index, mmu::slot_va(ALIAS_SLOT + index));
        let [level2, level3, page] = [(); 3].map(|()| arena.take(PAGE, MIB2));
        // The last slots of both tables, where a wrong page size would show.
        let target = va + GIB - PAGE;

        mmu::ROOT.set(slot, mmu::table(level2));
        mmu::publish();
        check_eq!(start(target), fsc_translation(2), "{name}: level-2 table never touched");

        // SAFETY: 1. arena RAM, in the identity map; 2. used as a table only.
        unsafe { Table::at(level2) }.set(511, mmu::table(level3));
        mmu::publish();
        check_eq!(start(target), fsc_translation(3), "{name}: level-3 table never touched");

        // SAFETY: as above.
        unsafe { Table::at(level3) }.set(511, mmu::leaf(page, Size::Page, Attr::WriteBack, true));
        mmu::publish();
        check_eq!(probe_read(target), Ok(0), "{name}: the page behind the tables");
        // SAFETY: the page is this file's.
        let wrote = unsafe { probe_write(target, MARK) };
        check_eq!(wrote, Ok(()), "{name}: writing it");
        check_eq!(probe_read(page), Ok(MARK), "{name}: through the identity map");
    }
}

fn by_load(va: usize) -> u64 {
    match probe_read(va) {
        Err(fault) if fault.ec() == EC_DATA_ABORT && fault.far == va as u64 => fault.fsc(),
        other => fail!("a load through an empty table: {other:x?}"),
    }
}

fn by_store(va: usize) -> u64 {
    // SAFETY: nothing is mapped there.
    match unsafe { probe_write(va, MARK) } {
        Err(fault) if fault.ec() == EC_DATA_ABORT && fault.far == va as u64 => fault.fsc(),
        other => fail!("a store through an empty table: {other:x?}"),
    }
}

fn by_fetch(va: usize) -> u64 {
    // SAFETY: nothing is mapped there.
    match unsafe { probe_call(va) } {
        Err(fault) if fault.ec() == EC_INSTRUCTION_ABORT && fault.elr == va as u64 => fault.fsc(),
        other => fail!("a fetch through an empty table: {other:x?}"),
    }
}

/// The walk of an address translation instruction: its fault is reported in PAR_EL1.
fn by_at(va: usize) -> u64 {
    let par: u64;
    // SAFETY: translates an address; changes PAR_EL1 only.
    unsafe {
        asm!("at s1e1r, {va}", "isb", "mrs {par}, par_el1", va = in(reg) va, par = out(reg) par,
             options(nostack, preserves_flags));
    }
    if par & 1 == 0 {
        fail!("AT through an empty table translates: PAR_EL1 {par:#x}");
    }
    par >> 1 & 0x3f
}
