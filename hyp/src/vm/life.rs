//! The VM's lives, one after another, and how the CPUs agree on where one ends and the next begins.
//!
//! ```text
//!  CPU that has a reason to end the VM          the other CPUs of the VM
//!  claim: still <- END                          out of the guest, by SGI; or out of WFI
//!  leave the VM                                 leave the VM: VTTBR_EL2 away, stock of frames given back
//!  wait until all others have parked  ◀──────── parked + 1
//!  take the VM down: nobody uses it             wait for the next life in WFI
//!  make the next, publish it  ────────────────▶ run it
//! ```
//!
//! One word, [`Lives::still`], says what the VM's CPUs are asked for at their safe points: to leave it, or to stand still
//! for a moment (`pause`). They look there each time before they enter the guest.
//!
//! The VM is a box that [`LIVES`] points to. A CPU borrows it from the moment that it sees the life begin
//! until it parks; the one CPU that does not park, because it claimed the end, may free it then.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use hyp_core::standstill::Standstill;

use super::create::{self, Plan};
use super::run::{self, Env};
use super::stop::Reason;
use super::{EPOCHS, Vm, churning, stop, takedown};
use crate::boot::Refusal;
use crate::cpu::{self, PerCpu};
use crate::event::violations;
use crate::lock::relax;
use crate::platform::{gic, power};
use crate::{end, say};

/// Seconds to wait for the others: the longest that a call takes is milliseconds.
const PATIENCE: u64 = 10;

struct Lives {
    /// Of the life that goes on, or that is about to begin.
    vm: AtomicPtr<Vm>,
    /// Lives that have begun.
    begun: AtomicU32,
    /// What its CPUs are asked for.
    still: Standstill,
    /// CPUs that have left it.
    parked: AtomicUsize,
}

static LIVES: Lives = Lives {
    vm: AtomicPtr::new(ptr::null_mut()),
    begun: AtomicU32::new(0),
    still: Standstill::new(),
    parked: AtomicUsize::new(0),
};

/// What the CPUs of the VM are asked for at their safe points.
#[inline(always)]
pub(super) fn still() -> &'static Standstill {
    &LIVES.still
}

/// Has the VM's other CPUs come to their safe points.
pub(super) fn kick_others(vm: &Vm, cpu: &PerCpu) {
    let all = cpu::all().iter().take(vm.plan.cpus);
    for other in all.filter(|other| other.number != cpu.number) {
        gic::kick(other.mpidr.load(Ordering::Relaxed));
    }
}

/// Waits for the VM's CPUs; returns whether `done` has become true in time.
pub(super) fn wait_for_cpus(done: impl Fn() -> bool) -> bool {
    let deadline = CNTPCT_EL0.get().saturating_add(PATIENCE * CNTFRQ_EL0.get());
    while !done() {
        if CNTPCT_EL0.get() > deadline {
            return false;
        }
        relax();
    }
    true
}

/// Makes the VM for its first life, on the boot CPU.
pub(super) fn first(plan: &'static Plan) -> Result<(), Refusal> {
    takedown::remember();
    begin(create::create(plan)?);
    Ok(())
}

/// Publishes a VM to the CPUs that wait for one.
fn begin(vm: Vm) {
    LIVES.vm.store(Box::into_raw(Box::new(vm)), Ordering::Relaxed);
    LIVES.parked.store(0, Ordering::Relaxed);
    LIVES.still.begin();
    LIVES.begun.fetch_add(1, Ordering::Release);
    // The others look after the event, which is not ordered after earlier stores by itself.
    barrier::dsb(barrier::ISHST);
    asm::sev();
}

/// Runs this CPU's vCPU in every life of the VM.
pub(super) fn serve(cpu: &'static PerCpu) -> ! {
    // Each CPU comes here once, so the right to open guards is there.
    let Some(guards) = EPOCHS.join(cpu.number) else { power::stay() };
    let mut lived = 0;
    loop {
        while LIVES.begun.load(Ordering::Acquire) == lived {
            // Of the end of the last life: one kick may still be pending.
            gic::acknowledge();
            asm::wfe();
        }
        lived += 1;
        // SAFETY: (1) from `begin`, whose release the acquire above has seen; (2) freed only when this
        // CPU has parked, or by this CPU, below.
        let vm = unsafe { &*LIVES.vm.load(Ordering::Relaxed) };
        if cpu.number >= vm.plan.cpus {
            power::stay();
        }
        // Each CPU is here once, so the right to run guests is there.
        let Some(mut place) = vm.plan.vmids.join(cpu.number) else { power::stay() };
        let mine = run::run(Env { vm, cpu, guards: &guards }, &mut place);
        // Whoever comes second has no reason that counts.
        let mine = mine.filter(|_| LIVES.still.end());
        if mine.is_some() {
            kick_others(vm, cpu);
        }
        cpu.stock.empty();
        violations::drain(cpu);
        match mine {
            Some(reason) => bury(vm.plan, cpu, &guards, reason),
            None => {
                LIVES.parked.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// Ends a life, and begins the next if the guest asked for one and may have it.
fn bury(plan: &'static Plan, cpu: &PerCpu, guards: &stage2::epoch::Cpu<'static>, reason: Reason) {
    if !all_parked(plan.cpus) {
        say!("not all CPUs have stopped within {PATIENCE} s: the VM is not taken down");
        end::finish(&stop::report(plan, reason, (lives(), 0), None));
    }
    let compared = {
        // SAFETY: (1) from `begin`; (2) only this CPU frees it, and does so below.
        let vm = unsafe { &*LIVES.vm.load(Ordering::Acquire) };
        churning::at_the_end(Env { vm, cpu, guards })
    };
    let reason = match (compared, reason) {
        (Err(differs), reason) if !matches!(reason, Reason::Diagnosis(_)) => differs,
        (_, reason) => reason,
    };
    // SAFETY: (1) from `begin`; (2) all others have parked, and this CPU has no other reference.
    let vm = unsafe { *Box::from_raw(LIVES.vm.load(Ordering::Acquire)) };
    let began = vm.epoch;
    // SAFETY: (1) all have left it before they parked, this CPU before it came here.
    let down = unsafe { takedown::take_down(vm, guards, &reason) };
    let may = plan.restarts.is_none_or(|most| lives() <= most);
    let again = may && matches!(reason, Reason::Reset);
    if again && down.complaint().is_none() {
        match create::create(plan) {
            Ok(vm) => {
                say!("the guest asked for a reset: restart {}", lives());
                return begin(vm);
            }
            Err(refusal) => end::refuse(refusal),
        }
    }
    end::finish(&stop::report(plan, reason, (lives(), began), Some(down)))
}

fn lives() -> u32 {
    LIVES.begun.load(Ordering::Relaxed)
}

fn all_parked(cpus: usize) -> bool {
    wait_for_cpus(|| LIVES.parked.load(Ordering::Acquire) + 1 >= cpus)
}
