//! Violations: what a guest, or EL2 for it, reached for in vain.
//!
//! ```text
//!  record    on the fault path       into the CPU's ring: no lock, no allocation, no wait, nothing printed
//!            the ring was empty      the CPU's timer is set (platform/timer.rs)
//!  drain     at a safe point         the ring is emptied into the log of the run; what is new is told, line by line
//!  end       at the VM's end         all rings; what was not told; the list for the report
//! ```
//!
//! A CPU empties its ring when EL2's timer takes it out of its guest, 10 ms after the first record; before it waits for
//! work or loads another vCPU; and when it leaves the VM. Whoever writes the report empties the rings of the others: they have left, or they will never
//! come to a safe point again. The log's lock makes it one at a time.
//!
//! How many lines there can be, and what is kept, is said in [`hyp_core::violation`].

use core::sync::atomic::Ordering;

use hyp_abi::call::Stat;
use hyp_core::violation::{Log, Pushed, Sighting, Summary, Violation, WORDS};

use super::counters;
use crate::cpu::{self, PerCpu};
use crate::lock::Lock;
use crate::platform::timer::{self, Why};
use crate::say;
use crate::vm::NUMBER;

/// Records that a CPU's ring holds.
const RECORDS: usize = 128;
/// A CPU's tellings in a second, at the most: a record is told 1/100 s after it was made.
const TELLINGS_A_SECOND: u64 = 100;

/// A CPU's records.
pub(crate) type Ring = hyp_core::violation::Ring<RECORDS, WORDS>;

/// What came out of the rings.
static LOG: Lock<Log> = Lock::new("the violation log", Log::new());

/// Records a violation on the executing CPU, whose block `cpu` is. May be called in a fault handler, under any lock.
#[inline(always)]
pub(crate) fn record(cpu: &PerCpu, sighting: &Sighting) {
    match cpu.violations.push(sighting.words(), Sighting::is_same) {
        Pushed::First => tell_soon(cpu, sighting.ticks),
        Pushed::Added | Pushed::Counted => {}
        Pushed::Lost => cpu.counters.bump(Stat::ViolationsLost),
    }
}

/// Has this CPU tell, not long after, of what was recorded at `ticks` in an empty ring. Apart from the path of all other records.
#[cold]
#[inline(never)]
fn tell_soon(cpu: &PerCpu, ticks: u64) {
    let delay = timer::frequency() / TELLINGS_A_SECOND;
    timer::arm(cpu, Why::Violations, ticks.wrapping_add(delay));
}

/// Tells of what the executing CPU, whose block `cpu` is, has recorded. At a safe point.
#[inline]
pub(crate) fn drain(cpu: &PerCpu) {
    if !cpu.violations.is_empty() {
        timer::disarm(cpu, Why::Violations);
        tell(&[cpu], false);
    }
}

/// Tells of what is left, at the end of a run; returns what its report says.
pub(crate) fn end() -> Summary {
    tell(&cpu::all().each_ref(), true);
    LOG.lock().summary(lost())
}

#[cold]
#[inline(never)]
fn tell(cpus: &[&PerCpu], is_end: bool) {
    let frequency = timer::frequency();
    let (told, rest) = {
        let mut log = LOG.lock();
        let told = log.add(cpus.iter().flat_map(|cpu| taken(cpu, frequency)));
        (told, log.rest(hyp_core::violation::nanoseconds(timer::now(), frequency), lost(), is_end))
    };
    told.iter().for_each(|violation| say!("violation: {violation}"));
    if let Some(rest) = rest {
        say!("violation: {rest}");
    }
}

/// The records of a ring, of no more than it holds: its CPU may go on adding.
fn taken(cpu: &PerCpu, frequency: u64) -> impl Iterator<Item = Violation> {
    // Before it is another one the ring is emptied.
    let vcpu = cpu.vcpu.load(Ordering::Relaxed);
    let records = core::iter::from_fn(|| cpu.violations.take()).take(RECORDS);
    records.map(move |(words, count)| {
        let sighting = Sighting::from_words(words);
        Violation::decode(&sighting, count, NUMBER, vcpu, frequency)
    })
}

/// Does `work` with the log's lock held.
#[cfg(feature = "selftest")]
pub(crate) fn with_lock(work: &mut dyn FnMut()) {
    let _held = LOG.lock();
    work();
}

/// Violations that found the log of their CPU full.
fn lost() -> u64 {
    counters::sum(Stat::ViolationsLost)
}
