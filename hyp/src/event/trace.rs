//! Every step of table maintenance, recorded in memory: builds with the feature `trace` only.
//!
//! The wrappers around `Arch` and `Memory` (`vm/traced.rs`) and the few places that maintain tables or
//! TLBs without them come here. The buffer is a static of the image, so its place is known before
//! anything runs, and what it holds is there however the run ends. Its layout is that of
//! [`hyp_core::trace`]; the host finds it by its symbol.
//!
//! # Two orders
//!
//! *Total*: a step and its record happen under one lock that all CPUs take, so the records' numbers are
//! the order in which the steps took effect. The lock makes the CPUs wait for each other at every
//! step: under `-icount`, where they take turns anyway, that changes little; with real threads it
//! would hide the races that a trace is made for.
//!
//! *Per CPU*: no lock; each step is followed by its record. The numbers keep each CPU's own order, and
//! that is all they say.
//!
//! # What is left out
//!
//! A context synchronization with nothing recorded on this CPU since the last one changes nothing, and
//! is left out: a guest that polls a device exits half a million times. Loads, cache maintenance and
//! its barriers are no steps of table maintenance.

use core::sync::atomic::{AtomicBool, Ordering};

use hyp_abi::MAX_VCPUS;
use hyp_core::config::{Nonce, Trace};
use hyp_core::trace::{Barrier, Buffer, Invalidation, Order, Record, Setup, What};
use spin::Once;
use stage2::geometry::Geometry;
use stage2::{Bbm, Descriptor};

use crate::cpu;
use crate::lock::Unwatched;

/// Records that the buffer holds: 16 MiB.
const RECORDS: usize = 512 << 10;

/// The buffer. The host looks for this name in the image's symbols.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".noinit.trace")]
static HYP_TRACE: Buffer<RECORDS> = Buffer::new();

/// Set when a trace was begun.
static ORDER: Once<Order> = Once::new();
/// Makes a step and its record one.
static ONE_AT_A_TIME: Unwatched<()> = Unwatched::new(());
/// CPUs that have recorded nothing since their last context synchronization.
static SYNCHRONIZED: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];

/// Begins the trace that the user asked for, on the boot CPU, before the first step.
pub(crate) fn start(wanted: Trace, nonce: &Nonce, cpus: usize, geometry: &Geometry) {
    let setup = Setup {
        order: wanted.order,
        cpus: cpus as u64,
        start_level: geometry.start() as u64,
        root_pages: geometry.root_tables() as u64,
        bbm: match geometry.features().bbm {
            Bbm::Level0 => 0,
            Bbm::Level1 => 1,
            Bbm::Level2 => 2,
        },
        vtcr: geometry.vtcr(),
        dead: Descriptor::DEAD.bits(),
    };
    HYP_TRACE.start(&setup, nonce.as_str(), wanted.most);
    ORDER.call_once(|| wanted.order);
}

/// Does a step and records what it says of it.
#[inline]
pub(crate) fn step<T>(work: impl FnOnce() -> (T, Option<What>)) -> T {
    let Some(order) = ORDER.get() else { return work().0 };
    let _held = (*order == Order::Total).then(|| ONE_AT_A_TIME.lock());
    let (result, what) = work();
    if let Some(what) = what {
        record(what);
    }
    result
}

/// Records a step that was done, or is about to be, by this CPU alone.
#[inline]
pub(crate) fn note(what: What) {
    step(|| ((), Some(what)));
}

/// The caller has the order's lock, if it has one.
fn record(what: What) {
    let number = cpu::current().number;
    let synchronized = &SYNCHRONIZED[number % MAX_VCPUS];
    let is_one = what == What::Synchronized;
    if synchronized.swap(is_one, Ordering::Relaxed) && is_one {
        return;
    }
    let _fitted = HYP_TRACE.record(Record { cpu: number as u8, what });
}

/// A context synchronization that is no method of `Arch`: an exception entry or return, an ISB.
#[inline]
pub(crate) fn synchronized() {
    note(What::Synchronized);
}

/// The invalidation that a vCPU starts with.
pub(crate) fn reset_el1() {
    note(What::Tlbi(Invalidation::Vmalle1, 0));
    note(What::Dsb(Barrier::Nsh));
    note(What::Synchronized);
}

/// An install is over: the guest resumes and relies on it.
#[inline]
pub(crate) fn published() {
    note(What::Published);
}

/// A frame that a guest may have had goes back to its stock.
#[inline]
pub(crate) fn frame_given_back(frame: u64, bytes: u64) {
    note(What::FreeFrame { frame, bytes });
}

/// Where EL2's own tables begin, before anything is hung into them; recorded once.
pub(crate) fn el2_root(root: u64) {
    static RECORDED: AtomicBool = AtomicBool::new(false);
    if !RECORDED.swap(true, Ordering::Relaxed) {
        note(What::El2Root { root });
    }
}
