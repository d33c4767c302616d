//! What SPLIT, COLLAPSE and COPY take in EL2: instructions, TLB invalidations, flushes. In builds with the feature
//! `measure` only.
//!
//! Counted is the work itself, between two reads of PMCCNTR_EL0 around it: without the exit from the guest and the
//! return. Table pages that the CPU's stock had not got are taken and zeroed within. On QEMU with
//! `-icount shift=0` the counter advances by one an instruction. The counter runs on every CPU that runs a
//! vCPU (`measure`).

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_abi::call::{COLLAPSE, COPY, SPLIT};
use hyp_core::report::{Resizing, Work};

use crate::sysreg;
use crate::vm::Vm;
use crate::vm::outcome::Part;

/// The sums of one kind of calls.
struct Sums([AtomicU64; 5]);

static SPLITS: Sums = Sums([const { AtomicU64::new(0) }; 5]);
static COLLAPSES: Sums = Sums([const { AtomicU64::new(0) }; 5]);
static COPIES: Sums = Sums([const { AtomicU64::new(0) }; 5]);

impl Sums {
    fn add(&self, more: [u64; 5]) {
        for (sum, more) in self.0.iter().zip(more) {
            sum.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn get(&self) -> Work {
        let [calls, blocks, instructions, tlbis, flushes] =
            self.0.each_ref().map(|sum| sum.load(Ordering::Relaxed));
        Work { calls, blocks, instructions, tlbis, flushes }
    }
}

/// Does the work of a call and notes what it took. One that is refused is none.
pub(crate) fn noted<E>(
    vm: &Vm,
    call: u32,
    work: impl FnOnce() -> Result<Part, E>,
) -> Result<Part, E> {
    let flushed = || {
        let account = vm.space.account();
        [account.tlbis(), account.flushes + account.whole_flushes]
    };
    let [tlbis, flushes] = flushed();
    let start = sysreg::read!("pmccntr_el0");
    let done = work()?;
    let instructions = sysreg::read!("pmccntr_el0").wrapping_sub(start);
    let [tlbis_after, flushes_after] = flushed();
    let sums = match call {
        SPLIT => &SPLITS,
        COLLAPSE => &COLLAPSES,
        COPY => &COPIES,
        _ => return Ok(done),
    };
    sums.add([1, done.count, instructions, tlbis_after - tlbis, flushes_after - flushes]);
    Ok(done)
}

/// What all of it took; `None` if there was none.
pub(crate) fn result() -> Option<Resizing> {
    let resizing = Resizing { split: SPLITS.get(), collapse: COLLAPSES.get(), copy: COPIES.get() };
    (resizing != Resizing::default()).then_some(resizing)
}
