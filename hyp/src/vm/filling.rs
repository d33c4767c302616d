//! A page of the VM's that EL2 reaches for, and that is not there: it is put there as for a fault of the guest's.
//!
//! | place | what happens |
//! | --- | --- |
//! | RAM | a page or a block is installed, as by a fault |
//! | RAM that is being moved or released | [`Retry`](WindowError::Retry): it is on its way |
//! | anything else | [`NotMapped`](WindowError::NotMapped) |

use hyp_core::violation::Sighting;
use stage2::{Guard, Ipa};

use super::blocks;
use super::fault::Populate;
use super::run::Env;
use crate::window::WindowError;

/// Fills the slot of stage 2 at `page`, which was Empty under this guard. Runs in a fault handler, under any lock: takes none, and
/// allocates nothing but from the CPU's stock.
///
/// # Errors
/// [`WindowError`]: nothing was filled.
pub(crate) fn fill(
    env: Env<'_>,
    guard: &Guard<'_>,
    page: Ipa,
    _sighting: impl FnOnce() -> Sighting,
) -> Result<(), WindowError> {
    let policy = env.vm.policy(guard);
    // Who moves memory has its pages, and wants no blocks.
    if policy.moving.is_some() {
        return Err(WindowError::Retry);
    }
    if !policy.main.contains(page) {
        return Err(WindowError::NotMapped);
    }
    match blocks::fault(env, guard, policy, page.get()) {
        Populate::Done | Populate::Present { .. } => Ok(()),
        Populate::Again => Err(WindowError::Retry),
        Populate::Failed(_) => Err(WindowError::NotMapped),
    }
}
