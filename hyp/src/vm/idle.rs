//! What a CPU does that has nothing to run: its vCPU is off, or in WFI, or it has none.
//!
//! ```text
//!  no work for idle CPUs    WFI, until a start request, the VM's end, or whatever ends the guest's WFI
//!  word `churn`             a part of what the manager does (`churning`), on CPUs without a vCPU if there are any;
//!                           then WFI, until the next part is due at the latest
//!  option `scan`            a part of a scan (`scan`), at the most so often for all CPUs together;
//!                           then WFI, until the next part is due at the latest
//! ```
//!
//! A part is short, and ends after the span at hand if there is something to run. The caller looks after each. Nothing is held
//! while the CPU waits.
//!
//! A guest's WFI traps: the CPU waits until there is an interrupt for its vCPU, whether it is the hardware's or another vCPU's, which
//! kicks this CPU.

use alloc::boxed::Box;

use aarch64_cpu::asm;
use hyp_core::diagnosis::Diagnosis;

use super::outcome::Refused;
use super::run::{Env, Step};
use super::stop::Reason;
use super::vcpu::{Mailbox, Vcpu};
use super::{NUMBER, churning, interrupts, life, scan};
use crate::device;
use crate::event::counters::Own;
use crate::event::violations;
use crate::platform::timer;

/// What a vCPU's WFI and CPU_SUSPEND do: its registers are as they are to be when it goes on.
///
/// They end for an interrupt of the vCPU's; and whenever the VM's CPUs are asked for something, which they may: the guest
/// looks what it was, and waits again.
pub(crate) fn wait_for_interrupt(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    while !interrupts::has_pending(env, vcpu) && !life::is_asked() {
        if let Err(reason) = once(env) {
            return Step::Stop(reason);
        }
        interrupts::taken(env, vcpu);
    }
    Step::Resume
}

/// Works a little if there is work, then waits for an interrupt, or for more work. Called at a safe point.
///
/// # Errors
/// The VM cannot go on.
pub(super) fn once(env: Env<'_>) -> Result<(), Reason> {
    // What was recorded is told before a wait, however long that is.
    violations::drain(env.cpu);
    device::input(env);
    churning::when_due(env)?;
    if !env.vm.plan.scan {
        match churning::next_part(env) {
            u64::MAX => asm::wfi(),
            next => timer::wait(env.cpu, next),
        }
        return Ok(());
    }
    let mailbox = env.vm.mailboxes.get(env.cpu.number);
    let has_work = || life::is_asked() || mailbox.is_some_and(Mailbox::is_full);
    match scan::when_due(env, has_work) {
        Ok(None) => {}
        Ok(Some(_)) => env.cpu.counters.bump_own(Own::IdleScans),
        Err(Refused::Broken(why)) => {
            let diagnosis = Diagnosis::new(NUMBER, env.cpu.number as u32, 0, 0).with_hint(why);
            return Err(Reason::Diagnosis(Box::new(diagnosis)));
        }
        // Somebody else is at it, or the guest's RAM has no room for a block.
        Err(_) => {}
    }
    timer::wait(env.cpu, scan::next_part().min(churning::next_part(env)));
    Ok(())
}
