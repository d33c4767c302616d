//! Tables and code in the window.

use guest_rt::access::{Access, load};
use guest_rt::exception::fsc_translation;
use guest_rt::mmu::{self, ALIAS_SLOT, Table};
use guest_rt::{Args, Machine, PAGE, check_eq, el0, fail};

use super::{Hole, PATTERN, injects, recovers};

/// A root slot of its own.
const SLOT: usize = ALIAS_SLOT + 110;

/// A walk of stage 1 reads the scratch page, in which no word is a valid descriptor: the guest has a translation fault
/// of its own.
pub(crate) fn tables(machine: &Machine, _: Args) {
    let (mut hole, mut arena) = (Hole::of(machine), machine.arena());
    let va = mmu::slot_va(SLOT) + 3 * 0x20_0000 + 5 * PAGE + 0x10;
    // A table of level 2 in the window, then one of level 3 below one in RAM.
    mmu::ROOT.set(SLOT, mmu::table(hole.take(1)));
    walk(va, 2);
    let l2 = arena.take(PAGE, PAGE);
    // SAFETY: 1. a page of the arena, inside the identity map; 2. a table only.
    unsafe { Table::at(l2) }.set(3, mmu::table(hole.take(1)));
    mmu::ROOT.set(SLOT, 0);
    mmu::invalidate();
    mmu::ROOT.set(SLOT, mmu::table(l2));
    walk(va, 3);
}

/// Walks into the window, at this level.
fn walk(va: usize, level: u64) {
    mmu::publish();
    match recovers("a walk", 1, || load(va)) {
        Err(fault) => {
            let found = (fault.fsc(), fault.far);
            check_eq!(found, (fsc_translation(level), va as u64), "status and address of a walk");
        }
        Ok(value) => fail!("a walk by the scratch page gave {value:#x}"),
    }
}

/// What is fetched is never recovered: neither where nothing is yet, nor from the scratch page.
pub(crate) fn code(machine: &Machine, _: Args) {
    el0::prepare();
    let mut hole = Hole::of(machine);
    let [empty, scratch] = [(); 2].map(|()| hole.take(1) + 0x80);
    injects("a fetch", 2, || {
        Access::Fetch.expect(empty, false);
        Access::FetchEl0.expect(empty, false);
    });
    check_eq!(recovers("a load", 1, || load(scratch)), Ok(PATTERN), "a load");
    injects("a fetch from the scratch page", 2, || {
        Access::Fetch.expect(scratch, false);
        Access::FetchEl0.expect(scratch, false);
    });
    check_eq!(recovers("a load where a fetch was", 1, || load(empty)), Ok(PATTERN), "a load");
}
