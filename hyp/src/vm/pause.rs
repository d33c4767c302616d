//! All other CPUs of the VM stand still for a moment: the protocol is crate `hyp-core`'s (`standstill`), this is its machine. An SGI is the kick,
//! WFI the rest.
//!
//! At its safe point a CPU has nothing in transition: no lock, no guard, no slot of its that is Busy or Drain, no flush
//! that it owes. The DSB there completes what its guest has done, with the accessed and dirty state that the hardware
//! keeps of it: whoever reads descriptors now misses nothing.
//!
//! Nobody pauses with a lock or a guard that another CPU waits for.
//!
//! Each of the two waits is bounded by 10 s, like that for the end of the VM: what others do at EL2 takes milliseconds, a host that does not
//! run them takes longer. Meanwhile the CPU that pauses is at no safe point of its own; who ends the VM waits for it.

use aarch64_cpu::asm::{self, barrier};
use hyp_core::standstill::{self, Around, Asked};

use super::life;
use super::run::Env;
use crate::event::violations;
use crate::platform::gic;

/// The VM's other CPUs stand still, until this is dropped.
pub(super) type Pause<'a> = standstill::Pause<'static, Env<'a>>;

impl Around for Env<'_> {
    fn kick_others(&self) {
        life::kick_others(self.vm, self.cpu);
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        life::wait_for_cpus(done);
    }

    fn take_kick(&self) {
        gic::acknowledge();
    }

    fn rest(&self) {
        asm::wfi();
    }
}

/// Has all other CPUs of the VM stand still. Called at a safe point. `None` if another CPU pauses or ends the VM,
/// or if one does not come to its safe point in time; then they run on.
pub(super) fn pause(env: Env<'_>) -> Option<Pause<'_>> {
    let pause = life::still().pause(env.vm.plan.cpus as u64 - 1, env);
    // What the guest has done on this CPU.
    barrier::dsb(barrier::ISH);
    pause
}

/// Does what this CPU is asked for, at its safe point.
#[cold]
pub(super) fn obey(env: Env<'_>) -> Asked {
    barrier::dsb(barrier::ISH);
    let asked = life::still().obey(&env);
    // Meanwhile their time may have come.
    violations::drain(env.cpu);
    asked
}
