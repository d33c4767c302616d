//! The policy `inject`: a synchronous external abort, which the guest's own handler checks field by field.

use core::arch::asm;

use guest_rt::access::{Access, load};
use guest_rt::exception::{FSC_EXTERNAL, Resume, catch};
use guest_rt::mmu::{self, ALIAS_SLOT, Table};
use guest_rt::{Args, Machine, PAGE, cache, check_eq, el0, fail};

use super::{Hole, injects};

/// A root slot of its own.
const SLOT: usize = ALIAS_SLOT + 110;
/// Fault status of an external abort on a walk, level 0.
const FSC_EXTERNAL_ON_WALK: u64 = 0x14;
/// ESR_EL1: write, walk of stage 1 for stage 2, cache maintenance, FAR not valid.
const WNR: u64 = 1 << 6;
const S1PTW: u64 = 1 << 7;
const FNV: u64 = 1 << 10;

/// Loads, stores and fetches at EL1: ESR, FAR, ELR, SPSR.
pub(crate) fn el1(machine: &Machine, _: Args) {
    let at = Hole::of(machine).take(1) + 0x120;
    injects("accesses at EL1", 3, || {
        [Access::Load, Access::Store, Access::Fetch].map(|access| access.expect(at, false))
    });
}

/// The same at EL0.
pub(crate) fn at_el0(machine: &Machine, _: Args) {
    el0::prepare();
    let at = Hole::of(machine).take(1) + 0x120;
    injects("accesses at EL0", 3, || {
        [Access::LoadEl0, Access::StoreEl0, Access::FetchEl0].map(|access| access.expect(at, false))
    });
}

/// Accesses that hardware does not describe, and DC ZVA, which counts as a write.
pub(crate) fn others(machine: &Machine, _: Args) {
    let at = Hole::of(machine).take(2) + 0x400;
    let mut base = at;
    let result = injects("LDP with its base behind", 1, || {
        catch(Resume::Next, || {
            // SAFETY: a load that faults.
            unsafe {
                asm!("ldp {v}, {w}, [{a}], #16", v = out(reg) _, w = out(reg) _, a = inout(reg) base,
                     options(nostack));
            }
        })
    });
    expect("LDP", result, at, false);
    check_eq!(base, at, "the base of an LDP that was an abort");
    let result = injects("a SIMD store", 1, || {
        catch(Resume::Next, || {
            // SAFETY: a store that faults.
            unsafe {
                asm!(".arch_extension simd", "str q0, [{a}]", a = in(reg) at, options(nostack));
            }
        })
    });
    expect("a SIMD store", result, at, true);
    let result = injects("LDXR", 1, || {
        catch(Resume::Next, || {
            // SAFETY: a load that faults.
            unsafe {
                asm!("ldxr {v}, [{a}]", v = out(reg) _, a = in(reg) at, options(nostack));
            }
        })
    });
    expect("LDXR", result, at, false);
    if cache::zva_block().is_some() {
        let result = injects("DC ZVA", 1, || {
            catch(Resume::Next, || {
                // SAFETY: a store that faults.
                unsafe { asm!("dc zva, {}", in(reg) at, options(nostack)) };
            })
        });
        expect("DC ZVA", result, at, true);
    }
}

fn expect<T>(what: &str, result: Result<T, guest_rt::exception::Fault>, at: usize, write: bool) {
    match result {
        Ok(_) => fail!("{what} in the window was no abort"),
        Err(fault) => {
            check_eq!(
                (fault.fsc(), fault.far),
                (FSC_EXTERNAL, at as u64),
                "status and FAR of {what}"
            );
            check_eq!(
                fault.esr & (WNR | S1PTW | FNV),
                if write { WNR } else { 0 },
                "flags of {what}"
            );
        }
    }
}

/// A table of stage 1 in the window: an abort on a walk, at the level that the walk had come to.
pub(crate) fn walk(machine: &Machine, _: Args) {
    let (mut hole, mut arena) = (Hole::of(machine), machine.arena());
    let va = mmu::slot_va(SLOT) + 3 * 0x20_0000 + 5 * PAGE + 0x10;
    let l2 = arena.take(PAGE, PAGE);
    // SAFETY: 1. a page of the arena, inside the identity map; 2. a table only.
    unsafe { Table::at(l2) }.set(3, mmu::table(hole.take(1)));
    for (level, table) in [(2, hole.take(1)), (3, l2)] {
        mmu::ROOT.set(SLOT, 0);
        mmu::invalidate();
        mmu::ROOT.set(SLOT, mmu::table(table));
        mmu::publish();
        let Err(fault) = injects("a walk", 1, || load(va)) else {
            fail!("a walk by a table of level {level} in the window")
        };
        let found = (fault.fsc(), fault.far);
        check_eq!(found, (FSC_EXTERNAL_ON_WALK + level, va as u64), "status and FAR of a walk");
        check_eq!(fault.esr & (WNR | S1PTW | FNV), 0, "flags of a walk");
    }
}
