//! How many instructions EL2 spends, from the vector to the return to the guest: on a populate fault, on one that gives a leaf what a
//! write needs, and on one that is recovered by the scratch page, each; and on whatever else, in all, by cause.
//!
//! The vectors read PMCCNTR_EL0 as early and as late as they can (`exception/vectors.rs`), in builds with the
//! feature `measure` only. On QEMU with `-icount shift=0` the counter advances by one an instruction, and
//! the numbers are the same from run to run; without it they are time and mean little. It counts the instructions of all CPUs there:
//! with more than one the sums mean nothing.
//!
//! A fault is a sample when it installed a page that the payload has no bytes for, and the stock was not
//! refilled before the return: zeroing, copying and cleaning are not counted. Samples go into a histogram of
//! one bucket an instruction, each CPU its own, and every exit into the sum of its cause. That happens after the next exit, and the time it
//! takes is added to that exit's beginning. What remains of the measuring itself, some ten instructions, is
//! counted: the numbers are an upper bound for a build without it.
//!
//! What is refilled is a cause of its own, and no part of the exit that it follows; sleeping in WFI is nobody's.

use alloc::boxed::Box;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::registers::{ESR_EL2, Readable};
use hyp_core::report::{AllSpent, Cause, Measure, Spent};
use hyp_core::syndrome::{Class, Syndrome};
use spin::Once;

use crate::boot::Refusal;
use crate::exception::vectors::Exit;
use crate::vm::context::Context;
use crate::{cpu, sysreg};

/// Buckets; a slower fault counts in the last.
const BUCKETS: usize = 4096;
/// Instructions that the difference of the two reads has not: one before the first read, two after the
/// second and its store.
const OUTSIDE: u64 = 1 + 2;

/// `PMCCFILTR_EL0.NSH`: count at EL2.
const COUNT_AT_EL2: u64 = 1 << 27;
/// `PMCR_EL0`: LC, C, E.
const START: u64 = 1 << 6 | 1 << 2 | 1;
/// `PMCNTENSET_EL0.C`.
const CYCLES: u64 = 1 << 31;

/// What is sampled one by one, in the order of the histograms.
const SAMPLED: [Cause; 3] = [Cause::Populate, Cause::Write, Cause::Recover];
/// Sums that are kept.
const CAUSES: usize = Cause::ALL.len();

/// One CPU's samples and sums.
#[derive(Debug)]
pub(crate) struct Timing {
    /// What the exit being handled is, as far as is known.
    cause: Cell<Cause>,
    /// Something else took time meanwhile: it is no sample.
    is_disturbed: Cell<bool>,
    /// The counter at the exit being handled; 0 before the first. What is counted elsewhere, or not at all, is added.
    entered: Cell<u64>,
    /// In the order of [`SAMPLED`].
    histograms: Once<Box<[AtomicU32]>>,
    /// By [`Cause`]: times, instructions.
    sums: [[AtomicU64; 2]; CAUSES],
}

impl Timing {
    pub(crate) const fn new() -> Self {
        Self {
            cause: Cell::new(Cause::Other),
            is_disturbed: Cell::new(false),
            entered: Cell::new(0),
            histograms: Once::new(),
            sums: [const { [const { AtomicU64::new(0) }; 2] }; CAUSES],
        }
    }

    /// Starts the counter of this CPU, and makes room for samples.
    pub(crate) fn start(&self) {
        sysreg::write!("pmccfiltr_el0", COUNT_AT_EL2);
        sysreg::write!("pmcntenset_el0", CYCLES);
        sysreg::write!("pmcr_el0", sysreg::read!("pmcr_el0") | START);
        self.histograms
            .call_once(|| (0..SAMPLED.len() * BUCKETS).map(|_| AtomicU32::new(0)).collect());
        // What came before was another life's.
        self.entered.set(0);
        self.cause.set(Cause::Other);
        self.is_disturbed.set(false);
    }

    /// A fault installed a page; `filled` says whether the payload's bytes were copied into it.
    #[inline]
    pub(crate) fn populated(&self, filled: bool) {
        self.cause.set(if filled { Cause::Fill } else { Cause::Populate });
    }

    /// What the exit being handled has turned out to be.
    #[inline]
    pub(crate) fn is(&self, cause: Cause) {
        self.cause.set(cause);
    }

    /// Something else took time: no sample.
    pub(crate) fn disturbed(&self) {
        self.is_disturbed.set(true);
    }

    /// The counter.
    pub(crate) fn now() -> u64 {
        sysreg::read!("pmccntr_el0")
    }

    /// The stock was refilled since then, and that is no part of the exit.
    pub(crate) fn refilled(&self, since: u64) {
        self.disturbed();
        self.add(Cause::Refill, self.apart(since));
    }

    /// What the CPU did since then is no part of the exit: how much that was.
    pub(crate) fn apart(&self, since: u64) -> u64 {
        let took = Self::now().wrapping_sub(since);
        // Before the first exit there is nothing that it could be apart from.
        if self.entered.get() != 0 {
            self.entered.set(self.entered.get().wrapping_add(took));
        }
        took
    }

    /// After an exit, of the kind that `guest_enter` has returned: the return before it has left its time in the context, and the exit
    /// its own.
    // What is between the two reads is not counted. So little else is here.
    #[inline]
    pub(crate) fn entered_again(&self, exit: u64, context: &Context) {
        let start = Self::now();
        self.account(exit, context);
        let spent = Self::now().wrapping_sub(start);
        self.entered.set(context.entered.wrapping_add(spent));
    }

    /// Accounts for the exit that ended then, and begins another.
    #[inline(never)]
    fn account(&self, exit: u64, context: &Context) {
        let (entered, cause) = (self.entered.get(), self.cause.get());
        let is_disturbed = self.is_disturbed.take();
        if entered != 0 {
            let took = context.left.wrapping_sub(entered).wrapping_add(OUTSIDE);
            self.add(cause, took);
            if !is_disturbed {
                self.sample(cause, took);
            }
        }
        self.cause.set(at_first(Exit::from_raw(exit)));
    }

    fn add(&self, cause: Cause, took: u64) {
        if let Some([count, sum]) = self.sums.get(cause as usize) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            sum.store(sum.load(Ordering::Relaxed).wrapping_add(took), Ordering::Relaxed);
        }
    }

    fn sample(&self, cause: Cause, took: u64) {
        let Some(first) = SAMPLED.iter().position(|sampled| *sampled == cause) else { return };
        let bucket = usize::try_from(took).unwrap_or(BUCKETS).min(BUCKETS - 1);
        let bucket = first * BUCKETS + bucket;
        if let Some(count) = self.histograms.get().and_then(|all| all.get(bucket)) {
            count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
    }
}

/// What an exit is before it is handled.
fn at_first(exit: Exit) -> Cause {
    match exit {
        Exit::Sync => match Syndrome(ESR_EL2.get()).class() {
            Class::DataAbortLower | Class::InstructionAbortLower => Cause::Abort,
            Class::SystemRegister => Cause::Register,
            Class::Hvc64 | Class::Smc64 => Cause::Call,
            Class::WaitForEvent => Cause::Wait,
            _ => Cause::Other,
        },
        Exit::Irq => Cause::Interrupt,
        Exit::Fiq | Exit::SError | Exit::AArch32 => Cause::Other,
    }
}

/// Whether this CPU has the counter.
pub(crate) fn check() -> Result<(), Refusal> {
    match sysreg::read!("id_aa64dfr0_el1") >> 8 & 0xf {
        0 | 0xf => Err("measure: this CPU has no PMUv3".into()),
        _ => Ok(()),
    }
}

/// What all CPUs measured of populate faults, of faults on leaves, and of recovered ones; `None` without a sample.
pub(crate) fn result() -> [Option<Measure>; SAMPLED.len()] {
    let mut first = 0;
    SAMPLED.map(|_| {
        let measure = of(first);
        first += BUCKETS;
        measure
    })
}

/// What all CPUs spent, by cause.
pub(crate) fn spent() -> AllSpent {
    let sum = |cause: Cause, which: usize| {
        let of_cpus = cpu::all().iter().filter_map(|cpu| cpu.timing.sums.get(cause as usize));
        let all = of_cpus.filter_map(|sums| sums.get(which));
        all.fold(0_u64, |sum, one| sum.wrapping_add(one.load(Ordering::Relaxed)))
    };
    let all = Cause::ALL
        .map(|cause| (cause, Spent { count: sum(cause, 0), instructions: sum(cause, 1) }));
    all.into_iter().filter(|(_, spent)| spent.count != 0).collect()
}

/// Of the histogram that begins there.
fn of(first: usize) -> Option<Measure> {
    let sum = |bucket: usize| -> u64 {
        let histograms = cpu::all().iter().filter_map(|cpu| cpu.timing.histograms.get());
        let counts = histograms.filter_map(|all| all.get(first + bucket));
        counts.map(|count| u64::from(count.load(Ordering::Relaxed))).sum()
    };
    let samples: u64 = (0..BUCKETS).map(sum).sum();
    let at = |rank: u64| {
        let mut below = 0;
        (0..BUCKETS).find(|&bucket| {
            below += sum(bucket);
            below > rank
        })
    };
    let value = |rank: u64| at(rank).map(|bucket| bucket as u64);
    Some(Measure {
        samples,
        min: value(0)?,
        median: value(samples / 2)?,
        max: value(samples.checked_sub(1)?)?,
    })
}
