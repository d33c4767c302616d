//! Which vCPU a CPU runs, and what is done when it is another one's turn.
//!
//! vCPU *v* has a *home*, CPU *v* modulo the number of CPUs that serve the VM, and runs nowhere else. Where there are no more vCPUs than
//! CPUs, each CPU has one at the most, and nothing here ever happens twice in a life of the VM: EL1's registers stay live in the
//! hardware. A CPU that is home to several runs them round robin (crate `hyp-core`, `turns`).
//!
//! ```text
//!                    its slice is over, another one is ready
//!         ┌───────────────────────────────────────────────────┐
//!         ▼            turn                                    │
//!       ready ───────────────────▶ runs ───────────────────────┤
//!         ▲                         │ │ WFI, CPU_SUSPEND        │
//!         │ an interrupt for it,    │ └──────────▶ waits ──────┤
//!         │ or its timer's time     │ CPU_OFF                   │ in each case the CPU looks
//!         └─────────────────────────┼───────────────┘           ▼ who is ready, and may be idle
//!                CPU_ON             └──────────▶ off
//! ```
//!
//! # Where a turn ends
//!
//! At the safe point of the run loop and nowhere else: there the CPU holds no lock and no guard, owes no flush, and no slot of its is
//! Busy or Drain. So who waits for one of these never waits for a vCPU that does not run, whatever the guest does: EL2 itself is not
//! scheduled, only guests are. Builds with the feature `selftest` count what a CPU holds and assert that it is nothing, each time it
//! passes there.
//!
//! The time slice is 10 ms. EL2's timer ends it, which takes the CPU out of its guest whatever that masks; it is set only while another
//! vCPU of this CPU could run. What changes that (an interrupt, CPU_ON) comes with an SGI, at which the CPU looks again. For a
//! vCPU that waits and is not in the hardware, the timer is set to the time at which its own timers fire.
//!
//! # What is in the hardware
//!
//! The registers of one vCPU, *loaded*, also while it waits or is off: they change only when another one is to run. So a vCPU that
//! is alone on its CPU goes into WFI and out of it without any register being moved. A switch is, in this order: interrupts and
//! timers saved (`interrupts`), EL1's registers saved (`el1`), the VM left and entered for the other vCPU, which ends what
//! this CPU's TLB has of the first one's stage 1 ([`Space::enter`](stage2::Space::enter)), EL1's registers loaded,
//! interrupts loaded.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hyp_core::alarms::NEVER;
use hyp_core::diagnosis::Diagnosis;
use hyp_core::turns::{Turns, Verdict};

use super::create::Plan;
use super::run::Env;
use super::stop::Reason;
use super::vcpu::{State, Vcpu};
use super::{NUMBER, Vm, caches, el1, interrupts};
use crate::cpu;
use crate::event::violations;
use crate::platform::gic;
use crate::platform::timer::{self, Why};

/// Time slices in a second.
const SLICES: u64 = 100;

/// The number of the CPU that a vCPU runs on.
pub(super) const fn home(plan: &Plan, vcpu: usize) -> usize {
    vcpu % plan.cpus
}

/// The numbers of the vCPUs that a CPU is home to.
pub(super) fn vcpus_of(plan: &Plan, cpu: usize) -> impl Iterator<Item = usize> + Clone + use<> {
    (cpu..plan.vcpus).step_by(plan.cpus.max(1))
}

/// Has the home of a vCPU look at it.
pub(crate) fn kick(vm: &Vm, vcpu: usize) {
    if let Some(home) = cpu::all().get(home(vm.plan, vcpu)) {
        gic::kick(home.mpidr.load(Ordering::Relaxed));
    }
}

/// The vCPUs that a CPU is home to. One of them is *current*: it runs, or was the last that did, and is the one that is
/// loaded while any is.
#[derive(Debug)]
pub(super) struct Queue {
    vcpus: Vec<Vcpu>,
    turns: Turns,
    /// Ticks of a time slice.
    slice: u64,
}

impl Queue {
    /// The executing CPU's, all off.
    ///
    /// # Errors
    /// There is no memory for their registers.
    pub(super) fn new(env: Env<'_>) -> Result<Self, Reason> {
        let numbers = vcpus_of(env.vm.plan, env.cpu.number);
        let mut vcpus = Vec::new();
        if vcpus.try_reserve_exact(numbers.clone().count()).is_err() {
            let diagnosis = Diagnosis::new(NUMBER, env.cpu.number as u32, 0, 0)
                .with_hint("no memory is left for the registers of this CPU's vCPUs");
            return Err(Reason::Diagnosis(Box::new(diagnosis)));
        }
        vcpus.extend(numbers.map(|number| Vcpu::new(number, caches::begins_trapped(env.vm))));
        let turns = Turns::new(vcpus.len());
        Ok(Self { vcpus, turns, slice: timer::frequency() / SLICES })
    }

    /// The current vCPU; `None` if this CPU has none.
    #[inline]
    pub(super) fn current(&mut self) -> Option<&mut Vcpu> {
        self.vcpus.get_mut(self.turns.current())
    }

    /// Loads the current vCPU's registers. The VM was entered for it.
    pub(super) fn load(&mut self, env: Env<'_>) {
        let Some(vcpu) = self.current() else { return };
        env.cpu.vcpu.store(vcpu.number as u32, Ordering::Relaxed);
        vcpu.el1.load();
        interrupts::load(env, vcpu);
    }

    /// Saves them. The VM is still entered.
    pub(super) fn save(&mut self, env: Env<'_>) {
        // They are told as this vCPU's.
        violations::drain(env.cpu);
        let Some(vcpu) = self.current() else { return };
        interrupts::save(env, vcpu);
        vcpu.el1.save();
    }

    /// Starts the current vCPU, which is loaded and off, if there is a request for that. Returns whether it is on now.
    pub(super) fn start(&mut self, env: Env<'_>) -> bool {
        let Some(vcpu) = self.current() else { return false };
        if vcpu.state != State::Off {
            vcpu.state = State::Ready;
            return true;
        }
        let mailbox = env.vm.mailboxes.get(vcpu.number);
        let Some(entry) = mailbox.and_then(|mailbox| mailbox.take()) else { return false };
        // What of its interrupts is in the hardware belongs to the life before.
        interrupts::save(env, vcpu);
        vcpu.switch_on(entry, caches::begins_trapped(env.vm));
        interrupts::reset(vcpu);
        vcpu.el1.load();
        el1::forget_translations();
        interrupts::load(env, vcpu);
        env.vm.psci.started(vcpu.number);
        true
    }

    /// Whose turn it is: the number in this queue of the first vCPU that is ready, after the current one. `None` if none is.
    pub(super) fn next(&mut self, env: Env<'_>) -> Option<usize> {
        let (turns, now) = (self.turns, timer::now());
        turns.next(|vcpu| self.is_ready(env, vcpu, now))
    }

    /// Whether this is the number of the current one.
    pub(super) const fn is_current(&self, vcpu: usize) -> bool {
        self.turns.current() == vcpu
    }

    /// A vCPU of this queue becomes the current one, and its turn begins.
    pub(super) fn begin(&mut self, vcpu: usize) {
        self.turns.begin(vcpu, timer::now(), self.slice);
    }

    /// Whether the turn of the current vCPU, which runs, is over. If not, EL2's timer has this CPU look again when it may be.
    pub(super) fn is_over(&mut self, env: Env<'_>) -> bool {
        if self.turns.is_alone() {
            return false;
        }
        let (turns, now) = (self.turns, timer::now());
        let is_wanted = turns.others().any(|vcpu| self.is_ready(env, vcpu, now));
        match turns.verdict(now, is_wanted) {
            Verdict::GoOn => {
                timer::disarm(env.cpu, Why::Slice);
                timer::arm(env.cpu, Why::Sleeper, self.wake_at(env));
                false
            }
            Verdict::Until(end) => {
                timer::arm(env.cpu, Why::Slice, end);
                timer::disarm(env.cpu, Why::Sleeper);
                false
            }
            Verdict::Over => true,
        }
    }

    /// Nobody runs any more: this CPU is not taken out of its guest for a turn.
    pub(super) fn ended(&self, env: Env<'_>) {
        if !self.turns.is_alone() {
            timer::disarm(env.cpu, Why::Slice);
            timer::disarm(env.cpu, Why::Sleeper);
        }
    }

    /// When the first of the vCPUs that wait may be ready by its timers; [`NEVER`] if none waits for them.
    pub(super) fn wake_at(&self, env: Env<'_>) -> u64 {
        let waiting = self.vcpus.iter().filter(|vcpu| vcpu.state == State::Waits);
        waiting.filter_map(|vcpu| interrupts::wake_at(env.vm, vcpu)).min().unwrap_or(NEVER)
    }

    fn is_ready(&mut self, env: Env<'_>, vcpu: usize, now: u64) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(vcpu) else { return false };
        match vcpu.state {
            State::Ready => true,
            State::Off => {
                env.vm.mailboxes.get(vcpu.number).is_some_and(|mailbox| mailbox.is_full())
            }
            State::Waits => {
                interrupts::wake_at(env.vm, vcpu).is_some_and(|at| at <= now)
                    || interrupts::has_pending(env, vcpu)
            }
        }
    }
}
