//! Accesses to IPAs where there is nothing, and to every IPA where there is RAM.

use guest_rt::exception::{Fault, probe_call, probe_read, probe_write};
use guest_rt::mmu::{self, ALIAS_SLOT, Attr, Size};
use guest_rt::{Args, GIB, Machine, PAGE, check, check_eq, fail, say};

/// An IPA behind RAM, 1 MiB and 8 bytes, or `at=`.
fn nowhere(machine: &Machine, args: Args) -> usize {
    args.number("at", machine.ram.end + (1 << 20) + 8)
}

/// An executable write-back alias of an IPA, wherever it is.
pub(crate) fn alias(ipa: usize) -> usize {
    let leaf = mmu::leaf(ipa & !(GIB - 1), Size::Block1G, Attr::WriteBack, true);
    mmu::ROOT.set(ALIAS_SLOT, leaf);
    mmu::publish();
    mmu::slot_va(ALIAS_SLOT) + ipa % GIB
}

/// Survived: says what the access came to.
pub(crate) fn survived(what: &str, ipa: usize, result: Result<u64, Fault>) {
    match result {
        Ok(value) => fail!("{what} IPA {ipa:#x} gave {value:#x}"),
        Err(fault) => fail!("{what} IPA {ipa:#x} gave the guest an exception: {fault}"),
    }
}

pub(crate) fn read(machine: &Machine, args: Args) {
    let ipa = nowhere(machine, args);
    survived("loading from", ipa, probe_read(alias(ipa)));
}

pub(crate) fn write(machine: &Machine, args: Args) {
    let ipa = nowhere(machine, args);
    // SAFETY: no RAM of this guest, unless the command line says so.
    let result = unsafe { probe_write(alias(ipa), 0xbad) };
    survived("storing to", ipa, result.map(|()| 0));
}

pub(crate) fn exec(machine: &Machine, args: Args) {
    let ipa = nowhere(machine, args) & !3;
    // SAFETY: no code is there; what follows is this case's subject.
    survived("executing at", ipa, unsafe { probe_call(alias(ipa)) });
}

pub(crate) fn walk(machine: &Machine, args: Args) {
    let table = nowhere(machine, args) & !(PAGE - 1);
    mmu::ROOT.set(ALIAS_SLOT, mmu::table(table));
    mmu::publish();
    survived("walking a table at", table, probe_read(mmu::slot_va(ALIAS_SLOT)));
}

/// The hypervisor promised all of it: no page may be missing.
pub(crate) fn fill(machine: &Machine, _: Args) {
    let mut arena = machine.arena();
    let pages = arena.left() / PAGE;
    let base = arena.take(pages * PAGE, PAGE);
    let at = |page: usize| (base + page * PAGE) as *mut usize;
    for page in 0..pages {
        // SAFETY: 1. arena RAM, in the identity map; 2. nobody else uses it.
        unsafe {
            check_eq!(at(page).read_volatile(), 0, "page {page} of {pages}, first seen");
            at(page).write_volatile(!page);
        }
    }
    for page in 0..pages {
        // SAFETY: as above.
        let found = unsafe { at(page).read_volatile() };
        check_eq!(found, !page, "page {page} of {pages}");
    }
    let last = machine.ram.end - 8;
    check!(probe_read(last).is_ok(), "the last 8 bytes of RAM, at {last:#x}");
    say!("wild: {pages} pages filled and verified");
}
