//! All other CPUs of the VM stand still for a moment.
//!
//! ```text
//!  CPU that pauses the VM                       the other CPUs of the VM
//!  wait until nobody stands still
//!  asked <- PAUSE, one SGI each                 out of the guest, or out of WFI, to the safe point
//!  wait until all others stand still  ◀──────── DSB ISH; standing + 1; wait
//!  works: no instruction of the guest runs
//!  asked <- no PAUSE, one SGI each ───────────▶ standing - 1; go on
//! ```
//!
//! At its safe point a CPU has nothing in transition: no lock, no guard, no slot of its that is Busy or Drain, no flush
//! that it owes. The DSB there completes what its guest has done, with the accessed and dirty state that the hardware
//! keeps of it: whoever reads descriptors now misses nothing. Who stands still counts, and not who was asked, so a
//! CPU that is on its way into the VM, or works for a guest's call, is waited for.
//!
//! A CPU that goes on is still counted for a moment. The next pause would take it for one that stands still, and so
//! waits first until there is none.
//!
//! Nobody pauses with a lock or a guard that another CPU waits for. If two pause at the same time, or one while
//! the VM ends, the second is told so: it goes back to its safe point, where it stands still or leaves.
//!
//! The wait is bounded by 10 s, like that for the end of the VM: what others do at EL2 takes milliseconds, a host that does not
//! run them takes longer. Meanwhile the CPU that pauses is at no safe point of its own; who ends the VM waits for it.

use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm::{self, barrier};

use super::life;
use super::run::Env;
use crate::platform::gic;

/// CPUs that stand still, or have not gone on yet.
static STANDING: AtomicUsize = AtomicUsize::new(0);

/// The VM's other CPUs stand still, until this is dropped.
#[derive(Debug)]
pub(super) struct Pause<'a>(Env<'a>);

/// Has all other CPUs of the VM stand still. Called at a safe point. `None` if another CPU pauses or ends the VM,
/// or if one does not come to its safe point in time; then they run on.
pub(super) fn pause(env: Env<'_>) -> Option<Pause<'_>> {
    let stand = |count: usize| STANDING.load(Ordering::Acquire) == count;
    if !life::wait_for_cpus(|| stand(0) || life::is_asked())
        || !life::ask_for_pause(env.vm, env.cpu)
    {
        return None;
    }
    let pause = Pause(env);
    let others = env.vm.plan.cpus - 1;
    life::wait_for_cpus(|| stand(others) || life::is_over());
    // What the guest has done on this CPU.
    barrier::dsb(barrier::ISH);
    (stand(others) && !life::is_over()).then_some(pause)
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        life::take_back_pause(self.0.vm, self.0.cpu);
    }
}

/// Stands still until the CPU that pauses the VM is through, or until the VM's end.
pub(super) fn stand_still() {
    barrier::dsb(barrier::ISH);
    STANDING.fetch_add(1, Ordering::Release);
    loop {
        // One that comes after this look at what is pending ends the WFI.
        gic::acknowledge();
        if !life::is_paused() {
            break;
        }
        asm::wfi();
    }
    STANDING.fetch_sub(1, Ordering::Release);
}
