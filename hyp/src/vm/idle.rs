//! What a CPU does that has nothing to run: its vCPUs are off, or wait in WFI, or it has none.
//!
//! ```text
//!  no work for idle CPUs    WFI, until a start request, the VM's end, an interrupt for a vCPU or the time of its timer
//!  word `churn`             a part of what the manager does (`churning`), on CPUs without a vCPU if there are any;
//!                           then WFI, until the next part is due at the latest
//!  option `scan`            a part of a scan (`scan`), at the most so often for all CPUs together;
//!                           then WFI, until the next part is due at the latest
//! ```
//!
//! A part is short, and ends after the span at hand if an interrupt is pending: whatever gives the CPU something to run comes with
//! one. The caller looks after each part and each wait what there is (`run`). Nothing is held while the CPU waits.

use alloc::boxed::Box;

use hyp_core::diagnosis::Diagnosis;

use super::outcome::Refused;
use super::run::Env;
use super::stop::Reason;
use super::{NUMBER, churning, scan};
use crate::event::counters::Own;
use crate::platform::{gic, timer};

/// Works a little if there is work, then waits for an interrupt, for more work, or until the counter reaches `until`. Called at a
/// safe point, where what was recorded has been told.
///
/// # Errors
/// The VM cannot go on.
pub(super) fn once(env: Env<'_>, until: u64) -> Result<(), Reason> {
    churning::when_due(env)?;
    let until = until.min(churning::next_look(env));
    if !env.vm.plan.scan {
        timer::wait(env.cpu, until);
        return Ok(());
    }
    match scan::when_due(env, gic::is_pending) {
        Ok(None) => {}
        Ok(Some(_)) => env.cpu.counters.bump_own(Own::IdleScans),
        Err(Refused::Broken(why)) => {
            let diagnosis = Diagnosis::new(NUMBER, env.cpu.number as u32, 0, 0).with_hint(why);
            return Err(Reason::Diagnosis(Box::new(diagnosis)));
        }
        // Somebody else is at it, or the guest's RAM has no room for a block.
        Err(_) => {}
    }
    timer::wait(env.cpu, until.min(scan::next_part()));
    Ok(())
}
