//! How many instructions EL2 spends on a populate fault, on one that gives a leaf what a write needs, and on one that is recovered by
//! the scratch page, from the vector to the return to the guest.
//!
//! The vectors read PMCCNTR_EL0 as early and as late as they can (`exception/vectors.rs`), in builds with the
//! feature `measure` only. On QEMU with `-icount shift=0` the counter advances by one an instruction, and
//! the numbers are the same from run to run; without it they are time and mean little.
//!
//! A fault is a sample when it installed a page that the payload has no bytes for, and the stock was not
//! refilled before the return: zeroing, copying and cleaning are not counted. Samples go into a histogram of
//! one bucket an instruction, each CPU its own. That happens after the next exit, and the time it takes is
//! added to that exit's beginning. What remains of the measuring itself, some ten instructions, is
//! counted: the numbers are an upper bound for a build without it.

use alloc::boxed::Box;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

use hyp_core::report::Measure;
use spin::Once;

use crate::boot::Refusal;
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

/// One CPU's samples.
#[derive(Debug)]
pub(crate) struct Timing {
    /// The exit being handled is a sample of this kind so far: a [`Kind`], or 0.
    armed: Cell<u8>,
    /// The counter at the exit being handled.
    entered: Cell<u64>,
    /// In the order of [`Kind`].
    histograms: Once<Box<[AtomicU32]>>,
}

/// What is timed.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Kind {
    Populate = 1,
    Relax = 2,
    Recover = 3,
}

/// How many there are.
const KINDS: usize = 3;

impl Timing {
    pub(crate) const fn new() -> Self {
        Self { armed: Cell::new(0), entered: Cell::new(0), histograms: Once::new() }
    }

    /// Starts the counter of this CPU, and makes room for samples.
    pub(crate) fn start(&self) {
        sysreg::write!("pmccfiltr_el0", COUNT_AT_EL2);
        sysreg::write!("pmcntenset_el0", CYCLES);
        sysreg::write!("pmcr_el0", sysreg::read!("pmcr_el0") | START);
        self.histograms.call_once(|| (0..KINDS * BUCKETS).map(|_| AtomicU32::new(0)).collect());
    }

    /// A fault installed a page; `filled` says whether the payload's bytes were copied into it.
    #[inline]
    pub(crate) fn populated(&self, filled: bool) {
        self.armed.set(u8::from(!filled));
    }

    /// A fault gave a leaf what the access needed.
    #[inline]
    pub(crate) fn relaxed(&self) {
        self.armed.set(Kind::Relax as u8);
    }

    /// A fault was recovered by the scratch page, and recorded.
    #[inline]
    pub(crate) fn recovered(&self) {
        self.armed.set(Kind::Recover as u8);
    }

    /// Something else took time: no sample.
    pub(crate) fn disturbed(&self) {
        self.armed.set(0);
    }

    /// Before the return to the guest.
    #[inline]
    pub(crate) fn leaving(&self, context: &Context) {
        self.entered.set(context.entered);
    }

    /// After the next exit: the return has left its time in the context.
    #[inline]
    pub(crate) fn entered_again(&self, context: &mut Context) {
        let kind = self.armed.take();
        if kind != 0 {
            let start = sysreg::read!("pmccntr_el0");
            self.record(kind, context.left.wrapping_sub(self.entered.get()).wrapping_add(OUTSIDE));
            let spent = sysreg::read!("pmccntr_el0").wrapping_sub(start);
            context.entered = context.entered.wrapping_add(spent);
        }
    }

    #[inline(never)]
    fn record(&self, kind: u8, took: u64) {
        let bucket = usize::try_from(took).unwrap_or(BUCKETS).min(BUCKETS - 1);
        let bucket = usize::from(kind).saturating_sub(1) * BUCKETS + bucket;
        if let Some(count) = self.histograms.get().and_then(|all| all.get(bucket)) {
            count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        }
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
pub(crate) fn result() -> [Option<Measure>; KINDS] {
    [Kind::Populate, Kind::Relax, Kind::Recover].map(of)
}

fn of(kind: Kind) -> Option<Measure> {
    let first = (kind as usize - 1) * BUCKETS;
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
