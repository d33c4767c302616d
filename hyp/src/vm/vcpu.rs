//! A virtual CPU: its registers, and how it is started.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyp_core::caches::Walk;

use super::context::Context;
use super::el1::El1;
use super::interrupts::VcpuInterrupts;
use super::policy::LastHole;
use super::run::Step;
use super::stop::Reason;

/// `SPSR_EL2` of a vCPU that starts: EL1 with SP_EL1, everything masked.
const START_STATE: u64 = 0x3c5;

/// Where and with what a vCPU starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The first instruction.
    pub(crate) pc: u64,
    /// `x0`.
    pub(crate) argument: u64,
}

/// A start request from one CPU to another. Crate `hyp-core`'s PSCI sees to it that there is one at a
/// time: it has to be taken before the power state says On.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pc: AtomicU64,
    argument: AtomicU64,
    full: AtomicBool,
}

impl Mailbox {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self { pc: AtomicU64::new(0), argument: AtomicU64::new(0), full: AtomicBool::new(false) }
    }

    /// Leaves a request. The receiver still has to be made to look.
    pub(crate) fn post(&self, entry: Entry) {
        self.pc.store(entry.pc, Ordering::Relaxed);
        self.argument.store(entry.argument, Ordering::Relaxed);
        self.full.store(true, Ordering::Release);
    }

    /// Whether there is a request. If this CPU looks away now, it is there later.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Takes the request, if there is one.
    pub(crate) fn take(&self) -> Option<Entry> {
        self.full.swap(false, Ordering::Acquire).then(|| Entry {
            pc: self.pc.load(Ordering::Relaxed),
            argument: self.argument.load(Ordering::Relaxed),
        })
    }
}

/// How often the same fault came back with nothing done about it.
#[derive(Debug, Default)]
struct Repeat {
    pc: u64,
    page: u64,
    count: u32,
}

/// Faults at one instruction and page that change nothing, with none elsewhere between them, before the
/// VM is stopped: a slot in transition becomes stable within microseconds, and a translation in place does not fault.
/// While memory is moved or resized they do not count.
pub(crate) const PATIENCE: u32 = 100_000;

/// What a vCPU is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It does not run before it is started.
    Off,
    /// It runs, or would if it were its turn.
    Ready,
    /// It waits for an interrupt (WFI, CPU_SUSPEND).
    Waits,
}

/// A virtual CPU: its home CPU's alone.
#[derive(Debug)]
pub(crate) struct Vcpu {
    /// Its number.
    pub(crate) number: usize,
    /// Whether it could run.
    pub(super) state: State,
    /// Its registers.
    pub(crate) context: Context,
    /// Those of EL1, while they are not in the hardware.
    pub(super) el1: El1,
    /// Its interrupts and timers.
    pub(crate) interrupts: VcpuInterrupts,
    /// A cleaning of the VM's memory that its instruction has begun.
    pub(crate) cleaning: Walk,
    /// Where it has last reached for nothing.
    pub(super) hole: LastHole,
    /// Why it ends the VM, once it does.
    pub(super) reason: Option<Reason>,
    repeat: Repeat,
    /// Instruction, page and number of the last fault that found nothing to do, of those that are noted.
    spurious: Option<(u64, u64, u64)>,
}

impl Vcpu {
    /// One that is off. EL2 sees its first writes of the virtual memory registers if it `traps` them.
    pub(super) fn new(number: usize, traps: bool) -> Self {
        Self {
            number,
            state: State::Off,
            context: Context::new(),
            el1: El1::reset(traps),
            interrupts: VcpuInterrupts::new(),
            cleaning: Walk::default(),
            hole: LastHole::NONE,
            reason: None,
            repeat: Repeat::default(),
            spurious: None,
        }
    }

    /// It ends the VM, for this reason.
    pub(crate) fn stop(&mut self, reason: Reason) -> Step {
        self.reason = Some(reason);
        Step::Stop
    }

    /// The registers of a CPU that was just switched on, those of its interrupts apart; `traps` as of [`new`](Self::new).
    pub(super) fn switch_on(&mut self, entry: Entry, traps: bool) {
        self.state = State::Ready;
        self.el1 = El1::reset(traps);
        self.context = Context::new();
        self.cleaning = Walk::default();
        self.repeat = Repeat::default();
        self.spurious = None;
        self.context.pc = entry.pc;
        self.context.pstate = START_STATE;
        self.context.set_x(0, entry.argument);
    }

    /// Notes a fault that found nothing to do, the last of so many on this CPU; whether the one before it was the same.
    #[cold]
    pub(crate) fn was_spurious(&mut self, page: u64, faults: u64) -> bool {
        let pc = self.context.pc;
        self.spurious.replace((pc, page, faults)) == Some((pc, page, faults.wrapping_sub(1)))
    }

    /// Notes a fault about which nothing was done; `false` when it has happened too often.
    #[cold]
    pub(crate) fn may_repeat(&mut self, page: u64) -> bool {
        let pc = self.context.pc;
        if (self.repeat.pc, self.repeat.page) != (pc, page) {
            self.repeat = Repeat { pc, page, count: 0 };
        }
        self.repeat.count += 1;
        self.repeat.count < PATIENCE
    }
}
