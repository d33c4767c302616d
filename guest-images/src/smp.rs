//! The other vCPUs: started by PSCI for one job at a time, switched off after it.
//!
//! [`run`] starts the vCPUs, runs the job on all of them, and returns when every other vCPU has done
//! it and is off again as PSCI sees it (off alone would not do: a firmware may say "off" of a CPU
//! whose start is still under way). A job that has to give up ends the VM (`fail!`), so nobody waits for a
//! vCPU that is gone. [`Barrier`] is sense-reversing: the last to arrive turns the sense over and
//! everybody leaves, and it can be used again at once.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use smccc::{Hvc, psci};

use crate::{Machine, call, fail, start};

/// What a job knows: which vCPU it runs on and how many take part.
#[derive(Clone, Copy)]
pub struct Vcpu {
    /// This vCPU, from 0.
    pub index: usize,
    /// How many run the job.
    pub count: usize,
}

/// A job: the same function on every vCPU.
pub type Job<'a> = &'a (dyn Fn(Vcpu) + Sync);

/// The job under way: a pointer to the `Job` on vCPU 0's stack.
static JOB: AtomicPtr<Job<'static>> = AtomicPtr::new(core::ptr::null_mut());
/// How many vCPUs run it, and how many of the others are through.
static COUNT: AtomicUsize = AtomicUsize::new(1);
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Looks away between two questions to PSCI.
const PAUSE: usize = 1 << 10;

/// A hint that this vCPU waits for another; never sleeps.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Runs `job` on the first `count` vCPUs, the caller included, and waits until all are done.
pub fn run(machine: &Machine, count: usize, job: Job<'_>) {
    let count = count.clamp(1, machine.vcpus().len().max(1));
    run_on(machine, 1..count, job);
}

/// Runs `job` on the caller, vCPU 0, and on `others`, and waits until all are done.
pub fn run_on(machine: &Machine, others: Range<usize>, job: Job<'_>) {
    let count = others.len() + 1;
    let others = machine.vcpus().iter().enumerate().take(others.end).skip(others.start);
    let mut job = job;
    COUNT.store(count, Ordering::Relaxed);
    DONE.store(0, Ordering::Relaxed);
    JOB.store((&raw mut job).cast(), Ordering::Release);
    for (index, &mpidr) in others.clone() {
        if let Err(error) = call::cpu_on(mpidr, index) {
            fail!("PSCI CPU_ON of vCPU {index} (MPIDR {mpidr:#x}): {error}");
        }
    }
    job(Vcpu { index: 0, count });
    while DONE.load(Ordering::Acquire) != count - 1 {
        relax();
    }
    for (_, &mpidr) in others {
        // Asking all the time would slow down those that are on their way out.
        while !call::is_off(mpidr) {
            (0..PAUSE).for_each(|_| relax());
        }
    }
    JOB.store(core::ptr::null_mut(), Ordering::Relaxed);
}

/// Where a started vCPU goes.
pub(crate) fn secondary() -> ! {
    let job = JOB.load(Ordering::Acquire);
    let me = Vcpu { index: start::vcpu(), count: COUNT.load(Ordering::Relaxed) };
    // SAFETY: 1. not null and live: `run` stored it before it started this vCPU and does not return
    // before this vCPU is off; 2. the erased lifetime ends with `run` for the same reason.
    match unsafe { job.as_ref() } {
        Some(job) => job(me),
        None => fail!("vCPU {} was started without a job", me.index),
    }
    DONE.fetch_add(1, Ordering::Release);
    let refused = psci::cpu_off::<Hvc>();
    fail!("PSCI CPU_OFF of vCPU {} returned: {refused:?}", me.index)
}

/// A sense-reversing barrier.
pub struct Barrier {
    arrived: AtomicUsize,
    sense: AtomicBool,
}

impl Barrier {
    /// A barrier that nobody waits at.
    pub const fn new() -> Self {
        Self { arrived: AtomicUsize::new(0), sense: AtomicBool::new(false) }
    }

    /// Waits until all `me.count` vCPUs are here; what they wrote before is visible after.
    pub fn wait(&self, me: Vcpu) {
        let sense = self.sense.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == me.count {
            self.arrived.store(0, Ordering::Relaxed);
            self.sense.store(!sense, Ordering::Release);
            return;
        }
        while self.sense.load(Ordering::Acquire) == sense {
            relax();
        }
    }
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
}

/// Meets all vCPUs of a job, time after time; everybody leaves as soon as the last is there.
pub struct Rendezvous(AtomicUsize);

impl Rendezvous {
    /// A rendezvous that nobody is at.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Meets all `me.count` vCPUs for the `nth` time, counted from 0 without gaps.
    pub fn meet(&self, me: Vcpu, nth: usize) {
        self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < (nth + 1) * me.count {
            relax();
        }
    }
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self::new()
    }
}
