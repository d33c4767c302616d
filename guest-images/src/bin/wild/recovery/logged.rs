//! Accesses whose records are known beforehand, field by field: `hypctl recover` looks at them.

use core::arch::asm;

use guest_rt::access::load;
use guest_rt::exception::probe_call;
use guest_rt::mmu::{self, ALIAS_SLOT};
use guest_rt::{Args, Machine, check, el0};

use super::{Hole, PATTERN};

/// A root slot of its own.
const SLOT: usize = ALIAS_SLOT + 110;

pub(crate) fn logged(machine: &Machine, _: Args) {
    el0::prepare();
    let mut hole = Hole::of(machine);
    let [byte, word, pair, code, table, el0] = [(); 6].map(|()| hole.take(1));
    // SAFETY: the window holds nothing that this program uses.
    unsafe {
        asm!("ldrb w5, [{a}]", a = in(reg) byte + 0x101, out("x5") _, options(nostack));
        asm!("str x7, [{a}]", a = in(reg) word + 0x208, in("x7") 1u64, options(nostack));
        asm!("ldp x5, x7, [{a}]", a = in(reg) pair + 0x310, out("x5") _, out("x7") _, options(nostack));
    }
    for _ in 0..3 {
        // SAFETY: no code is there.
        check!(unsafe { probe_call(code + 0x40) }.is_err(), "a fetch from the window was no abort");
    }
    mmu::ROOT.set(SLOT, mmu::table(table));
    mmu::publish();
    check!(load(mmu::slot_va(SLOT) + 0x1238).is_err(), "a walk in the window found something");
    check!(el0::read(el0::data(el0 + 0x48)) == Ok(PATTERN), "a load at EL0");
}
