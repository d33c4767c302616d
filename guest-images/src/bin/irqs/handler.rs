//! What interrupts do here: they are logged, and a part may have something done in between.
//!
//! Each vCPU has a log of its own, which it reads with interrupts masked or after it has waited for what should come.

use core::ptr;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};

use guest_rt::exception::Line;
use guest_rt::{cpu, fail, gic, smp, start};
use hyp_abi::MAX_VCPUS;

/// Interrupts that a log holds.
const LOG: usize = 128;

/// Added to the INTID of one that came as FIQ.
pub(crate) const FIQ: u32 = 0x1_0000;

/// Seconds after which what should have come has not.
const PATIENCE: u64 = 30;

struct Cpu {
    log: [AtomicU32; LOG],
    count: AtomicUsize,
    /// Null, or a `fn(u32)`.
    body: AtomicPtr<()>,
    /// With EOImode 1: it is deactivated as well.
    deactivates: AtomicBool,
}

static CPUS: [Cpu; MAX_VCPUS] = [const {
    Cpu {
        log: [const { AtomicU32::new(0) }; LOG],
        count: AtomicUsize::new(0),
        body: AtomicPtr::new(ptr::null_mut()),
        deactivates: AtomicBool::new(false),
    }
}; MAX_VCPUS];

fn mine() -> &'static Cpu {
    &CPUS[start::vcpu()]
}

/// An interrupt.
pub(crate) fn handler(line: Line) {
    if line == Line::Fiq {
        if let Some(intid) = gic::serve_group0() {
            note(intid + FIQ);
        }
        return;
    }
    // One that was taken back meanwhile leaves nothing to acknowledge.
    let Some(intid) = gic::acknowledge() else { return };
    note(intid);
    let body = mine().body.load(SeqCst);
    if !body.is_null() {
        // SAFETY: 1. not null, so it comes from `with_body`, which stores nothing else.
        let body = unsafe { core::mem::transmute::<*mut (), fn(u32)>(body) };
        body(intid);
    }
    gic::end(intid);
    if mine().deactivates.load(SeqCst) {
        gic::deactivate(intid);
    }
}

fn note(intid: u32) {
    let nth = mine().count.fetch_add(1, SeqCst);
    if let Some(place) = mine().log.get(nth) {
        place.store(intid, Relaxed);
    }
}

/// Interrupts that this vCPU has taken since [`begin`].
pub(crate) fn count() -> usize {
    mine().count.load(SeqCst)
}

/// Forgets what was taken, and does nothing in between any more.
pub(crate) fn begin() {
    mask();
    mine().count.store(0, SeqCst);
    mine().body.store(ptr::null_mut(), SeqCst);
    mine().deactivates.store(false, SeqCst);
}

/// Between acknowledgement and end of each interrupt of this vCPU, `body` is called with its INTID.
pub(crate) fn with_body(body: fn(u32)) {
    mine().body.store(body as *mut (), SeqCst);
}

/// Each interrupt is deactivated after its end.
pub(crate) fn deactivates(on: bool) {
    mine().deactivates.store(on, SeqCst);
}

/// IRQ and FIQ come.
pub(crate) fn unmask() {
    // SAFETY: 1. the handler is set, and works at any point of a scenario.
    unsafe { core::arch::asm!("msr daifclr, #3", "isb", options(nostack)) };
}

/// They wait.
pub(crate) fn mask() {
    // SAFETY: 1. nothing is lost by that.
    unsafe { core::arch::asm!("msr daifset, #3", "isb", options(nostack)) };
}

/// Waits until it is so, with interrupts as they are; fails if it never is.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = cpu::ticks() + PATIENCE * cpu::tick_rate();
    while !is_so() {
        if cpu::ticks() > end {
            fail!("not within {PATIENCE} s: {what} ({} interrupts taken)", count());
        }
        smp::relax();
    }
}

/// Gives what must not come a chance.
pub(crate) fn linger() {
    (0..1000).for_each(|_| smp::relax());
}

/// Exactly these are taken, in this order, since [`begin`]. Masks again.
pub(crate) fn expect(what: &str, wanted: &[u32]) {
    unmask();
    until(what, || count() >= wanted.len());
    linger();
    mask();
    let taken = count();
    for (nth, wanted) in wanted.iter().enumerate().take(LOG) {
        let got = mine().log[nth].load(Relaxed);
        if got != *wanted {
            fail!("{what}: interrupt {nth} of {taken} is INTID {got}, should be {wanted}");
        }
    }
    if taken != wanted.len() {
        let next = mine().log.get(wanted.len()).map_or(0, |one| one.load(Relaxed));
        fail!("{what}: {taken} interrupts, should be {}; the next is INTID {next}", wanted.len());
    }
    mine().count.store(0, SeqCst);
}

/// How often an INTID is among what was taken.
pub(crate) fn taken(intid: u32) -> usize {
    let log = mine().log.iter().take(count());
    log.filter(|one| one.load(Relaxed) == intid).count()
}
