//! EL2's physical timer, for one purpose: a WFI that ends by itself.
//!
//! It is on only while its CPU waits here, so it never takes a CPU out of its guest.

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};

use crate::sysreg;

/// Turns it off on this CPU. The effect is there after the next ISB.
pub(crate) fn stop() {
    CNTHP_CTL_EL2.set(0);
}

/// The physical counter, in ticks.
pub(crate) fn now() -> u64 {
    barrier::isb(barrier::SY);
    CNTPCT_EL0.get()
}

/// Waits in WFI until the counter reaches `until`, or for an interrupt. One that is pending already ends it at
/// once. Interrupts stay masked: the caller looks what there is.
pub(crate) fn wait(until: u64) {
    sysreg::write!("cnthp_cval_el2", until);
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    barrier::isb(barrier::SY);
    asm::wfi();
    stop();
    barrier::isb(barrier::SY);
}
