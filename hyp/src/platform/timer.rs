//! EL2's physical timer, for two purposes that share it: a WFI that ends by itself, and an [`Alarm`] that makes its CPU
//! come to its safe point.
//!
//! | who | sets | when the time comes |
//! | --- | --- | --- |
//! | [`wait`] | the earlier of its own time and the alarm's | the WFI ends; the alarm stays set |
//! | [`arm`] | the alarm | a WFI ends, or the CPU leaves its guest: the interrupt is taken, and [`disarm`]s |
//!
//! So none of the two can lose the other's time. The timer is off where neither wants it, and takes no CPU out of its guest
//! for nothing.

use core::cell::Cell;

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};

use crate::cpu::PerCpu;
use crate::sysreg;

/// When a CPU wants to be taken out of its guest, in ticks of the counter. Reached by its CPU alone.
#[derive(Debug)]
pub(crate) struct Alarm(Cell<u64>);

/// Not before the counter's end.
const NEVER: u64 = u64::MAX;

impl Alarm {
    /// Not set.
    pub(crate) const fn none() -> Self {
        Self(Cell::new(NEVER))
    }
}

/// Turns it off on this CPU. The effect is there after the next ISB.
pub(crate) fn stop() {
    CNTHP_CTL_EL2.set(0);
}

/// Has the executing CPU, whose block `cpu` is, leave its guest when the counter reaches `at`. Waits for nothing, not even
/// for the timer: the return to the guest does, which is a context synchronization.
#[inline]
pub(crate) fn arm(cpu: &PerCpu, at: u64) {
    cpu.alarm.0.set(at);
    sysreg::write!("cnthp_cval_el2", at);
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
}

/// Takes the executing CPU's alarm back. The effect is there after the next ISB or return.
pub(crate) fn disarm(cpu: &PerCpu) {
    cpu.alarm.0.set(NEVER);
    stop();
}

/// The physical counter, in ticks, as it was at some time about now: what stands before in the program need not be over.
#[inline]
pub(crate) fn ticks() -> u64 {
    CNTPCT_EL0.get()
}

/// The physical counter, in ticks.
pub(crate) fn now() -> u64 {
    barrier::isb(barrier::SY);
    CNTPCT_EL0.get()
}

/// Ticks a second, as firmware says.
pub(crate) fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// Waits in WFI until the counter reaches `until`, or for an interrupt, the alarm's among them. One that is pending already ends
/// it at once. Interrupts stay masked: the caller looks what there is.
pub(crate) fn wait(cpu: &PerCpu, until: u64) {
    let alarm = cpu.alarm.0.get();
    sysreg::write!("cnthp_cval_el2", until.min(alarm));
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    barrier::isb(barrier::SY);
    asm::wfi();
    match alarm {
        NEVER => stop(),
        alarm => arm(cpu, alarm),
    }
    barrier::isb(barrier::SY);
}
