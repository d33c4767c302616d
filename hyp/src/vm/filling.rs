//! A page of the VM's that EL2 reaches for, and that is not there: it is put there as for a fault of the guest's.
//!
//! | place | what happens |
//! | --- | --- |
//! | RAM | a page or a block is installed, as by a fault |
//! | RAM that is being moved or released | [`Retry`](TouchError::Retry): it is on its way |
//! | a recovery window of the policy `scratch` | the VM's scratch page is installed, within the same bound on tables, counted as the guest's violation, and recorded as one of EL2 |
//! | anything else | [`NotMapped`](TouchError::NotMapped) |
//!
//! Where EL2's window has no tables, as in holes by default, nothing is filled: [`NotCovered`](TouchError::NotCovered).

use hyp_abi::call::Stat;
use hyp_core::recovery::Past;
use hyp_core::violation::{Outcome, Sighting};
use stage2::fault::{Place, Recovery};
use stage2::{Guard, InstallError, Ipa};

use super::blocks;
use super::fault::Populate;
use super::recovery::{self, NotShown};
use super::run::Env;
use crate::event::violations;
use crate::window::TouchError;

/// Fills the slot of stage 2 at `page`, which was Empty under this guard. Runs in a fault handler, under any lock: takes none, and
/// allocates nothing but from the CPU's stock. `sighting` is what is recorded of a violation, but for what comes of it.
///
/// # Errors
/// [`TouchError`]: nothing was filled, but past a limit: then the VM is to end.
pub(crate) fn fill(
    env: Env<'_>,
    guard: &Guard<'_>,
    page: Ipa,
    sighting: &Sighting,
) -> Result<(), TouchError> {
    #[cfg(feature = "selftest")]
    if crate::selftest::is_wanted("locked-install")
        && let Some(table) = env.vm.space.lookup_rw(guard, page)
    {
        drop(table.lock());
    }
    let policy = env.vm.policy(guard);
    // Who moves memory has its pages, and wants no blocks.
    if policy.moving.is_some() {
        return Err(TouchError::Retry);
    }
    match policy.place(page) {
        Place::Ram { .. } => match blocks::fault(env, guard, policy, page.get()) {
            Populate::Done | Populate::Present { .. } => Ok(()),
            Populate::Again => Err(TouchError::Retry),
            Populate::Failed(_) => Err(TouchError::NotMapped),
        },
        Place::Recovery { policy: Recovery::Scratch, .. } => scratch(env, guard, page, sighting),
        _ => Err(TouchError::NotMapped),
    }
}

/// Puts the scratch page there.
fn scratch(
    env: Env<'_>,
    guard: &Guard<'_>,
    page: Ipa,
    sighting: &Sighting,
) -> Result<(), TouchError> {
    let Env { vm, cpu, .. } = env;
    match recovery::show(env, guard, page) {
        Ok(()) => {}
        Err(NotShown::Memory) => return Ok(()),
        Err(NotShown::Error(InstallError::Retry { .. } | InstallError::OutOfTables)) => {
            return Err(TouchError::Retry);
        }
        Err(NotShown::Full | NotShown::Error(_)) => return Err(TouchError::NotMapped),
    }
    let seconds = sighting.ticks / vm.plan.frequency;
    let (end, outcome) = match vm.meter.count(&vm.plan.quota, seconds) {
        Ok(()) => {
            cpu.counters.bump(Stat::Recovered);
            (Ok(()), Outcome::Scratch)
        }
        Err(Past::Limit(_)) => (Err(TouchError::PastLimit), Outcome::Stopped),
        Err(Past::Rate(_)) => (Err(TouchError::PastRate), Outcome::Stopped),
    };
    violations::record(cpu, &Sighting { outcome, ..*sighting });
    end
}
