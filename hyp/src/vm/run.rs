//! The run loop: enter the guest, handle the exit, again; and what a CPU does between the turns of its vCPUs
//! (`schedule`).
//!
//! ```text
//!  run        a life of the VM on this CPU: load a vCPU, save it when another one is to be loaded     a switch
//!  loaded     wait until a vCPU is ready; if it is the one that is loaded, its turn                   a turn
//!  turn       its instructions, until it waits, is off, or has had its time                           an interrupt
//!  resume     enter the guest, handle the exit, again                                                 an exit
//! ```
//!
//! The top of the innermost loop is the safe point: no lock, no guard, nothing of ours in transition. There the stock
//! of frames is refilled, and the CPU stops or stands still if it is asked to. If it is asked later, it is in the
//! guest, and the SGI takes it out: interrupts go to EL2 whatever the guest masks. An interrupt leaves the innermost loop, so
//! what comes with interrupts costs other exits nothing.

use alloc::boxed::Box;

use aarch64_cpu::registers::{ESR_EL2, Readable};
use hyp_core::diagnosis::Diagnosis;
use hyp_core::standstill::Asked;
use hyp_core::syndrome::{Class, Syndrome};
use stage2::epoch::Cpu as Guards;
use stage2::fault::{Fault, is_translation};
use stage2::vmid::{self, EntryError};

use super::payload::Payload;
use super::schedule::Queue;
use super::stop::Reason;
use super::vcpu::{Entry, State, Vcpu};
use super::{NUMBER, Vm, churning, control, fault, idle, interrupts, life, pause, relaxing, trap};
use crate::cpu::PerCpu;
#[cfg(feature = "measure")]
use crate::event::measure::Timing;
use crate::event::{trace, violations};
use crate::exception::vectors::{Exit, guest_enter};
use crate::platform::gic;
use crate::{device, hypercall};

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

/// What an exit leads to. A plain number of a whole register, so that the most frequent is told with one instruction.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Step {
    /// Back to the guest.
    Resume,
    /// Back to the guest, with a block in the stock again.
    Restock,
    /// The vCPU waits for an interrupt, and goes on behind the instruction when there is one.
    Wait,
    /// The vCPU is off now.
    Off,
    /// The VM ends: [`Vcpu::stop`] has made this.
    Stop,
}

/// The VM ends: with the reason, if it is this CPU's.
#[derive(Debug)]
struct Over(Option<Reason>);

/// Runs this CPU's vCPUs, through any number of CPU_OFF and CPU_ON, until the VM ends: with this
/// CPU's reason for it, or `None` if another had one. Then the CPU has left the VM.
pub(super) fn run(env: Env<'_>, place: &mut vmid::Cpu<'_>) -> Option<Reason> {
    let Env { vm, cpu, .. } = env;
    let mut queue = match Queue::new(env) {
        Ok(queue) => queue,
        Err(reason) => return Some(reason),
    };
    control::load(vm);
    #[cfg(feature = "measure")]
    if vm.plan.measure {
        cpu.timing.start();
    }
    #[cfg(feature = "selftest")]
    crate::selftest::leave_held(env);
    if vm.plan.blocks && queue.current().is_some() {
        cpu.stock.refill_block();
    }
    churning::begin(env);
    if cpu.number == 0 {
        let Payload { entry, tree, .. } = vm.plan.payload;
        vm.mailboxes[0].post(Entry { pc: entry, argument: tree });
    }
    let mut is_its_turn = false;
    loop {
        // A CPU without a vCPU enters the VM, too: it works on its tables.
        let number = queue.current().map_or(cpu.number, |vcpu| vcpu.number);
        let running = match control::enter(vm, place, number) {
            Ok(running) => running,
            Err(error) => return Some(cannot_enter(number, error)),
        };
        queue.load(env);
        let next = loaded(env, &mut queue, is_its_turn);
        queue.save(env);
        drop(running);
        match next {
            Ok(next) => queue.begin(next),
            Err(Over(reason)) => return reason,
        }
        is_its_turn = true;
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

/// The turns of the vCPU that is loaded, until it is another one's: of which, as a number in the queue.
fn loaded(env: Env<'_>, queue: &mut Queue, is_its_turn: bool) -> Result<usize, Over> {
    if is_its_turn {
        turn(env, queue)?;
    }
    loop {
        let next = wait_for_turn(env, queue)?;
        if !queue.is_current(next) {
            return Ok(next);
        }
        queue.begin(next);
        turn(env, queue)?;
    }
}

/// Waits until a vCPU of this CPU is ready: whose turn it is then. Meanwhile the CPU does what idle CPUs do. What may make one ready
/// is looked at after the interrupt has been taken: one that comes in between stays pending and ends the WFI.
fn wait_for_turn(env: Env<'_>, queue: &mut Queue) -> Result<usize, Over> {
    loop {
        nothing_held(env);
        interrupted(env, queue.current());
        if life::still().is_asked() {
            match pause::obey(env) {
                Asked::Leave => return Err(Over(None)),
                Asked::LookAgain => stood_still(env, queue.current()),
            }
        }
        if let Some(next) = queue.next(env) {
            return Ok(next);
        }
        idle::once(env, queue.wake_at(env)).map_err(|reason| Over(Some(reason)))?;
    }
}

/// The turn of the current vCPU, which is loaded, and ready unless somebody else was faster.
fn turn(env: Env<'_>, queue: &mut Queue) -> Result<(), Over> {
    if !queue.start(env) {
        return Ok(());
    }
    // The interrupt that said when may have been taken while nobody was ready.
    churning::when_due(env).map_err(|reason| Over(Some(reason)))?;
    while !queue.is_over(env) {
        let Some(vcpu) = queue.current() else { break };
        match resume(env, vcpu) {
            End::Interrupted => {
                interrupted(env, Some(vcpu));
                // Or it is the time to change the guest's memory.
                churning::when_due(env).map_err(|reason| Over(Some(reason)))?;
            }
            End::Not(state) => {
                vcpu.state = state;
                break;
            }
            End::Vm(over) => return Err(over),
        }
    }
    queue.ended(env);
    Ok(())
}

/// Takes an interrupt, for the vCPU that is loaded or for EL2, which may be the time to tell of violations. Nothing is held: this is
/// the safe point.
#[inline(never)]
fn interrupted(env: Env<'_>, loaded: Option<&mut Vcpu>) {
    match loaded {
        Some(vcpu) => interrupts::taken(env, vcpu),
        None => {
            gic::acknowledge();
            device::input(env);
        }
    }
    violations::drain(env.cpu);
}

/// While this CPU stood still it took interrupts, of the vCPU that is loaded and of the machine's UART.
#[cold]
fn stood_still(env: Env<'_>, loaded: Option<&mut Vcpu>) {
    device::input(env);
    if let Some(vcpu) = loaded {
        interrupts::refresh(env, vcpu);
    }
}

/// The safe point: what is held here would be held while another vCPU runs. An open guard would keep every grace period from ending,
/// a lock or a slot in transition might keep others waiting. Builds with the feature `selftest` look each time.
#[inline]
fn nothing_held(_env: Env<'_>) {
    #[cfg(feature = "selftest")]
    {
        let cpu = _env.cpu;
        assert!(_env.guards.is_quiescent(), "CPU {} is inside a guard for good", cpu.number);
        let held = cpu.held.get();
        assert!(held == 0, "CPU {} holds {held} locks at the safe point", cpu.number);
        let moving = cpu.in_transition.get();
        assert!(
            moving == 0,
            "CPU {} has {moving} slots in transition at the safe point",
            cpu.number
        );
    }
}

/// Why a vCPU does not go on by itself.
enum End {
    /// An interrupt took it out of the guest.
    Interrupted,
    /// It is not ready any more.
    Not(State),
    /// The VM ends.
    Vm(Over),
}

// A function of its own: what its callers keep in registers would be loaded anew at each exit. The frequent faults are handled in line: an
// exit leaves nothing in registers, so none has to be saved for them.
#[inline(never)]
fn resume(env: Env<'_>, vcpu: &mut Vcpu) -> End {
    let cpu = env.cpu;
    loop {
        nothing_held(env);
        if cpu.stock.is_low() {
            // If RAM is used up the fault comes back, and is counted.
            #[cfg(feature = "measure")]
            let since = Timing::now();
            cpu.stock.refill();
            #[cfg(feature = "measure")]
            cpu.timing.refilled(since);
        }
        if life::still().is_asked() {
            return match pause::obey(env) {
                Asked::Leave => End::Vm(Over(None)),
                // What came while the CPU stood still was taken, times that were set among it: who is next, and when this CPU has to
                // look, is found out anew.
                Asked::LookAgain => {
                    #[cfg(feature = "measure")]
                    cpu.timing.disturbed();
                    End::Interrupted
                }
            };
        }
        // The return to the guest, and its next exit, are context synchronizations.
        trace::synchronized();
        // SAFETY: (1) `control` and `Queue::load` have set this CPU up for this vCPU and nobody else runs here. (2) `pstate`
        // starts as EL1 and then comes from SPSR_EL2 or `inject`.
        let exit = unsafe { guest_enter(&raw mut vcpu.context) };
        trace::synchronized();
        #[cfg(feature = "measure")]
        cpu.timing.entered_again(exit, &vcpu.context);
        let exit = Exit::from_raw(exit);
        let step = match exit {
            Exit::Sync => synchronous(env, vcpu),
            Exit::Irq => return End::Interrupted,
            Exit::Fiq | Exit::SError | Exit::AArch32 => unexpected(vcpu, exit),
        };
        if let Step::Resume = step {
            continue;
        }
        if let Some(end) = otherwise(env, vcpu, step) {
            return end;
        }
    }
}

/// What an exit leads to that is not just a return to the guest. At a safe point.
#[inline(never)]
fn otherwise(env: Env<'_>, vcpu: &mut Vcpu, step: Step) -> Option<End> {
    match step {
        Step::Resume => None,
        Step::Restock => {
            env.cpu.stock.refill_block();
            None
        }
        Step::Wait => Some(End::Not(State::Waits)),
        Step::Off => Some(End::Not(State::Off)),
        Step::Stop => Some(End::Vm(Over(vcpu.reason.take()))),
    }
}

#[inline]
fn synchronous(env: Env<'_>, vcpu: &mut Vcpu) -> Step {
    let esr = ESR_EL2.get();
    #[cfg(feature = "selftest")]
    let esr = crate::selftest::as_conflict(esr);
    if is_translation(esr) {
        return fault::translation(env, vcpu);
    }
    relaxing::or_else(env, vcpu, esr)
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
            Step::Wait
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
fn unexpected(vcpu: &mut Vcpu, exit: Exit) -> Step {
    let diagnosis = Diagnosis::new(NUMBER, vcpu.number as u32, vcpu.context.pc, ESR_EL2.get());
    let diagnosis = match exit {
        Exit::Fiq => {
            diagnosis.with_hint("an FIQ reached EL2: group 0 interrupts belong to firmware")
        }
        Exit::AArch32 => diagnosis
            .with_hint("the guest ran AArch32 code at EL0, which its ID registers do not offer"),
        Exit::Sync | Exit::Irq | Exit::SError => diagnosis,
    };
    vcpu.stop(Reason::Diagnosis(Box::new(diagnosis)))
}
