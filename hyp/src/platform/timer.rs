//! EL2's physical timer, which several share: each has a time of its own ([`Why`]), and the timer the earliest of
//! them (crate `hyp-core`, `alarms`).
//!
//! | who | wants its CPU to look |
//! | --- | --- |
//! | [`Why::Violations`] | when violations that were recorded are to be told |
//! | [`Why::GuestTimer`] | when the physical timer of the guest, which is emulated, is due |
//! | [`Why::Churn`] | when the manager in the background has something to do, where there is no CPU without a vCPU |
//! | [`Why::Slice`] | when the vCPU that runs has had its time, and another one of this CPU could run |
//! | [`Why::Sleeper`] | when a timer is due of a vCPU that this CPU does not run at the moment |
//! | [`wait`] | at a time that is its argument: no interrupt is taken for it |
//!
//! When a time has come the CPU leaves its guest, or its WFI; the interrupt is taken, the times that are over are gone
//! ([`came`]), and whoever has set one looks whether there is something to do. So none of them can lose
//! another's time. The timer is off where none wants it, and takes no CPU out of its guest for nothing.

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};
use hyp_core::alarms::{Alarms, NEVER};

use crate::cpu::PerCpu;
#[cfg(feature = "measure")]
use crate::event::measure::Timing;
use crate::sysreg;

/// Who wants a CPU to come to its safe point at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Why {
    /// What was recorded of violations is told.
    Violations,
    /// The guest's physical timer is due.
    GuestTimer,
    /// The guest's memory is changed.
    Churn,
    /// The time slice is over of the vCPU that runs (`vm/schedule.rs`).
    Slice,
    /// A timer is due of a vCPU that waits, while another one runs.
    Sleeper,
}

/// How many there are.
const REASONS: usize = 5;

/// When a CPU wants to be taken out of its guest, in ticks of the counter. Reached by its CPU alone.
pub(crate) type Times = Alarms<REASONS>;

/// Turns it off on this CPU. The effect is there after the next ISB.
pub(crate) fn stop() {
    CNTHP_CTL_EL2.set(0);
}

/// Has the executing CPU, whose block `cpu` is, leave its guest when the counter reaches `at`, whatever time it was for the same
/// reason before. Waits for nothing, not even for the timer: the return to the guest does, which is a context
/// synchronization.
#[inline]
pub(crate) fn arm(cpu: &PerCpu, why: Why, at: u64) {
    if let Some(earliest) = cpu.alarms.set(why as usize, at) {
        set(earliest);
    }
}

/// Takes the executing CPU's time for this reason back. The effect is there after the next ISB or return.
#[inline]
pub(crate) fn disarm(cpu: &PerCpu, why: Why) {
    arm(cpu, why, NEVER);
}

/// The timer has interrupted this CPU, whose block `cpu` is. It is pending for as long as a time is past: the effect is there
/// after the next ISB.
pub(crate) fn came(cpu: &PerCpu) {
    set(cpu.alarms.came(now()));
}

/// Sets the timer.
#[inline]
fn set(at: u64) {
    if at == NEVER {
        stop();
    } else {
        sysreg::write!("cnthp_cval_el2", at);
        CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    }
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

/// Waits in WFI until the counter reaches `until`, or for an interrupt, that of a time which is set among them. One that is
/// pending already ends it at once. Interrupts stay masked: the caller looks what there is.
pub(crate) fn wait(cpu: &PerCpu, until: u64) {
    let earliest = cpu.alarms.earliest();
    set(until.min(earliest));
    barrier::isb(barrier::SY);
    #[cfg(feature = "measure")]
    let since = Timing::now();
    asm::wfi();
    #[cfg(feature = "measure")]
    cpu.timing.apart(since);
    set(earliest);
    barrier::isb(barrier::SY);
}
