//! The run loop of a vCPU: enter the guest, handle the exit, again.
//!
//! The top of the loop is the safe point: no lock, no guard, nothing of ours in transition. There the stock
//! of frames is refilled, and the CPU stops or stands still if it is asked to. If it is asked later, it is in the
//! guest, and the SGI takes it out: interrupts go to EL2 whatever the guest masks.

use alloc::boxed::Box;

use aarch64_cpu::registers::{ESR_EL2, Readable};
use hyp_core::diagnosis::Diagnosis;
use hyp_core::syndrome::{Class, Syndrome};
use stage2::epoch::Cpu as Guards;
use stage2::fault::{Fault, is_translation};
use stage2::vmid::{self, EntryError};

use super::payload::Payload;
use super::stop::Reason;
use super::vcpu::{Entry, Vcpu};
use super::{NUMBER, Vm, caches, churning, control, fault, idle, interrupts, life, relaxing, trap};
use crate::cpu::PerCpu;
use crate::event::{trace, violations};
use crate::exception::vectors::{Exit, guest_enter};
use crate::hypercall;
use crate::platform::gic;

/// Where exits are handled: the VM, this CPU, and its right to open guards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env<'a> {
    /// The VM.
    pub(crate) vm: &'a Vm,
    /// The executing CPU.
    pub(crate) cpu: &'a PerCpu,
    /// Its guards.
    pub(crate) guards: &'a Guards<'a>,
}

/// What an exit leads to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Back to the guest.
    Resume,
    /// Back to the guest, with a block in the stock again.
    Restock,
    /// The vCPU is off now.
    Off,
    /// The VM ends.
    Stop(Reason),
}

/// Runs this CPU's vCPU, through any number of CPU_OFF and CPU_ON, until the VM ends: with this
/// CPU's reason for it, or `None` if another had one. Then the CPU has left the VM.
pub(super) fn run(env: Env<'_>, place: &mut vmid::Cpu<'_>) -> Option<Reason> {
    let Env { vm, cpu, .. } = env;
    let number = cpu.number;
    let mut vcpu = Vcpu::new(number);
    let _running = match control::load(vm, place, number) {
        Ok(running) => running,
        Err(error) => return Some(cannot_enter(number, error)),
    };
    #[cfg(feature = "measure")]
    if vm.plan.measure {
        cpu.timing.start();
    }
    #[cfg(feature = "selftest")]
    crate::selftest::leave_open(env.guards, number);
    let Payload { entry, tree, .. } = vm.plan.payload;
    if vm.plan.blocks && number < vm.plan.vcpus {
        cpu.stock.refill_block();
    }
    churning::begin(env);
    let mut next = (number == 0).then_some(Entry { pc: entry, argument: tree });
    loop {
        outside_guards(env);
        let entry = match next.take() {
            Some(entry) => entry,
            None => match wait_for_start(env) {
                Wake::Start(entry) => entry,
                Wake::End(reason) => return reason,
            },
        };
        vcpu.switch_on(entry);
        control::reset_el1();
        interrupts::reset(&mut vcpu);
        interrupts::load(env, &mut vcpu);
        caches::switched_on(vm);
        vm.psci.started(number);
        let end = until_off(env, &mut vcpu);
        interrupts::save(env, &mut vcpu);
        match end {
            End::Off => {}
            End::Vm(reason) => return reason,
        }
    }
}

/// There is no VMID for the VM: more would be in use than exist, which the number of CPUs rules out.
#[cold]
fn cannot_enter(number: usize, error: EntryError) -> Reason {
    let hint = match error {
        EntryError::Exhausted { .. } => "no VMID is free",
        EntryError::ForeignCpu => "the CPU's place is of other VMIDs than the VM's",
    };
    let diagnosis = Diagnosis::new(NUMBER, number as u32, 0, 0).with_hint(hint);
    Reason::Diagnosis(Box::new(diagnosis))
}

/// What ends the wait of a CPU whose vCPU is off.
enum Wake {
    /// The vCPU starts.
    Start(Entry),
    /// The VM ends: with the reason, if it is this CPU's.
    End(Option<Reason>),
}

/// Waits in WFI for a start request, or for the VM's end, and does what idle CPUs do. The mailbox is looked at after the
/// interrupt has been taken: one that comes in between stays pending and ends the WFI.
fn wait_for_start(env: Env<'_>) -> Wake {
    loop {
        outside_guards(env);
        gic::acknowledge();
        violations::drain(env.cpu);
        if life::is_asked() && life::obey() {
            return Wake::End(None);
        }
        let mailbox = env.vm.mailboxes.get(env.cpu.number);
        if let Some(entry) = mailbox.and_then(|mailbox| mailbox.take()) {
            return Wake::Start(entry);
        }
        if let Err(reason) = idle::once(env) {
            return Wake::End(Some(reason));
        }
    }
}

/// A guard that is open here would keep every grace period from ending: debug images look, at the safe point and
/// before a CPU waits for work.
#[inline]
fn outside_guards(_env: Env<'_>) {
    #[cfg(feature = "selftest")]
    assert!(_env.guards.is_quiescent(), "CPU {} is inside a guard for good", _env.cpu.number);
}

/// Why a vCPU does not run on.
enum End {
    /// It switched itself off.
    Off,
    /// The VM ends: with the reason, if it is this vCPU's.
    Vm(Option<Reason>),
}

// A function of its own: what its callers keep in registers would be loaded anew at each exit.
#[inline(never)]
fn until_off(env: Env<'_>, vcpu: &mut Vcpu) -> End {
    let cpu = env.cpu;
    loop {
        outside_guards(env);
        if cpu.stock.is_low() {
            // If RAM is used up the fault comes back, and is counted.
            cpu.stock.refill();
            #[cfg(feature = "measure")]
            cpu.timing.disturbed();
        }
        if life::is_asked() {
            if life::obey() {
                return End::Vm(None);
            }
            // Interrupts were taken meanwhile.
            interrupts::refresh(env, vcpu);
        }
        #[cfg(feature = "measure")]
        cpu.timing.leaving(&vcpu.context);
        // The return to the guest, and its next exit, are context synchronizations.
        trace::synchronized();
        // SAFETY: (1) `control` has set this CPU up for this vCPU and nobody else runs here. (2) `pstate`
        // starts as EL1 and then comes from SPSR_EL2 or `inject`.
        let exit = Exit::from_raw(unsafe { guest_enter(&raw mut vcpu.context) });
        trace::synchronized();
        #[cfg(feature = "measure")]
        cpu.timing.entered_again(&mut vcpu.context);
        let step = match exit {
            Exit::Sync => synchronous(env, vcpu),
            Exit::Irq => interrupted(env, vcpu),
            Exit::Fiq | Exit::SError | Exit::AArch32 => unexpected(vcpu, exit),
        };
        match step {
            Step::Resume => {}
            // Nothing is held: this is the safe point.
            Step::Restock => cpu.stock.refill_block(),
            Step::Off => return End::Off,
            Step::Stop(reason) => return End::Vm(Some(reason)),
        }
    }
}

/// An interrupt, of the guest's or of ours, which may be the time to tell of violations, or to change the guest's memory. Nothing is held: this is the safe point.
#[inline(never)]
fn interrupted(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    interrupts::taken(env, vcpu);
    violations::drain(env.cpu);
    churning::when_due(env).map_or_else(Step::Stop, |()| Step::Resume)
}

#[inline]
fn synchronous(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    let esr = ESR_EL2.get();
    #[cfg(feature = "selftest")]
    let esr = crate::selftest::as_conflict(esr);
    if is_translation(esr) {
        return fault::translation(env, vcpu);
    }
    relaxing::or_else(&env, vcpu, esr)
}

/// A synchronous exit that is no fault on a translation or a leaf.
#[inline(never)]
pub(super) fn decoded(env: Env<'_>, vcpu: &mut Vcpu, syndrome: Syndrome) -> Step {
    if let Some(fault) = Fault::new(syndrome.0, vcpu.context.pstate) {
        return fault::other(env, vcpu, fault);
    }
    match syndrome.class() {
        Class::Hvc64 => hypercall::call(env, vcpu, syndrome.immediate(), syndrome.0),
        Class::Smc64 => {
            // A trapped SMC has not been executed: an HVC has.
            vcpu.context.advance();
            hypercall::call(env, vcpu, syndrome.immediate(), syndrome.0)
        }
        Class::SystemRegister => match syndrome.system_register() {
            Some(access) => trap::system_register(env, vcpu, access),
            None => unexpected(vcpu, Exit::Sync),
        },
        Class::WaitForEvent => {
            vcpu.context.advance();
            idle::wait_for_interrupt(env, vcpu)
        }
        Class::FpSimd
        | Class::Sve
        | Class::Sme
        | Class::PointerAuth
        | Class::OtherInstruction
        | Class::SystemRegister128 => trap::hidden_feature(env, vcpu),
        _ => unexpected(vcpu, Exit::Sync),
    }
}

/// An exit that nothing is done about: the VM stops.
#[cold]
fn unexpected(vcpu: &Vcpu, exit: Exit) -> Step {
    let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, ESR_EL2.get());
    let diagnosis = match exit {
        Exit::Fiq => {
            diagnosis.with_hint("an FIQ reached EL2: group 0 interrupts belong to firmware")
        }
        Exit::AArch32 => diagnosis
            .with_hint("the guest ran AArch32 code at EL0, which its ID registers do not offer"),
        Exit::Sync | Exit::Irq | Exit::SError => diagnosis,
    };
    Step::Stop(Reason::Diagnosis(Box::new(diagnosis)))
}
