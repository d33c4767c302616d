//! What belongs to one CPU: its number, its stock of frames, its counters.
//!
//! CPU *n* is the *n*-th of the device tree's, the boot CPU is 0. Which virtual CPUs run on it is `vm/schedule.rs`. `TPIDR_EL2` points at the block. Fields that other CPUs read are atomics; the rest are
//! cells, which only the owner reaches: [`current`] is the only way to a block's cells.

use core::arch::asm;
#[cfg(feature = "selftest")]
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::registers::{CurrentEL, MPIDR_EL1, Readable, TPIDR_EL2, Writeable};
use hyp_abi::MAX_VCPUS;
use spin::Once;
use stage2::Features;
use stage2::arch::aarch64::Aarch64;

use crate::boot::stack;
use crate::event::counters::Counters;
#[cfg(feature = "measure")]
use crate::event::measure::Timing;
use crate::event::violations;
use crate::mem::cache::Stock;
use crate::mem::clean;
use crate::platform::gic::Forwarded;
use crate::platform::timer::Times;
use crate::vm::idregs::IdRegisters;
use crate::window;

/// Affinity fields of `MPIDR_EL1`: Aff3 in bits 39:32, Aff2 to Aff0 in 23:0.
pub(crate) const AFFINITY: u64 = 0xff_00ff_ffff;

/// One CPU's block. The first field is known to `exception/vectors.rs`.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct PerCpu {
    /// Top of the emergency stack.
    pub(crate) emergency_top: AtomicU64,
    /// The CPU's number.
    pub(crate) number: usize,
    /// Affinity fields of its `MPIDR_EL1`.
    pub(crate) mpidr: AtomicU64,
    /// The CPU has reached the hypervisor.
    pub(crate) online: AtomicBool,
    /// What its stage 2 can do.
    pub(crate) features: Once<Features>,
    /// What a guest would see in its ID registers.
    pub(crate) ids: Once<IdRegisters>,
    /// Crashes taken on this CPU: the second one does not try a dump.
    pub(crate) crashes: AtomicU64,
    /// What has been counted here.
    pub(crate) counters: Counters,
    /// Frames for the fault path.
    pub(crate) stock: Stock,
    /// The virtual CPU that is loaded, or was last.
    pub(crate) vcpu: AtomicU32,
    /// What that one reached for in vain.
    pub(crate) violations: violations::Ring,
    /// When EL2's timer takes this CPU out of its guest: see `platform/timer.rs`.
    pub(crate) alarms: Times,
    /// Whether the virtual timer's interrupt was taken: see `platform/gic.rs`.
    pub(crate) forwarded: Forwarded,
    /// Where the session is in which this CPU reaches the VM's memory.
    pub(crate) session: window::SessionCell,
    /// How long populate faults take.
    #[cfg(feature = "measure")]
    pub(crate) timing: Timing,
    /// Fault paths that this CPU is on: see `lock`.
    #[cfg(feature = "selftest")]
    pub(crate) faulting: Cell<u32>,
    /// Locks that this CPU holds: see `lock`.
    #[cfg(feature = "selftest")]
    pub(crate) held: Cell<u32>,
    /// Slots that this CPU has made Busy or Drain, and nothing else since.
    #[cfg(feature = "selftest")]
    pub(crate) in_transition: Cell<i64>,
}

// SAFETY: (1) atomics are shared; (2) the cells, and those in `stock`, `alarms`, `forwarded` and `timing`, are reached through `current` only,
// by the CPU that owns the block, in one context: EL2 runs with every exception masked, and a fault that it takes itself finds
// it in a routine that reaches no cell (`window`).
unsafe impl Sync for PerCpu {}

static BLOCKS: [PerCpu; MAX_VCPUS] = {
    let mut number = 0;
    let mut blocks = [const { PerCpu::new() }; MAX_VCPUS];
    while number < MAX_VCPUS {
        blocks[number].number = number;
        number += 1;
    }
    blocks
};

impl PerCpu {
    /// The executing CPU is up and reachable.
    pub(crate) fn came_up(&self) {
        self.features.call_once(|| Features::from_id_registers(&Aarch64::id_registers()));
        self.ids.call_once(IdRegisters::read);
        clean::join();
        self.online.store(true, Ordering::Release);
    }

    const fn new() -> Self {
        Self {
            emergency_top: AtomicU64::new(0),
            number: 0,
            mpidr: AtomicU64::new(0),
            online: AtomicBool::new(false),
            features: Once::new(),
            ids: Once::new(),
            crashes: AtomicU64::new(0),
            counters: Counters::new(),
            stock: Stock::new(),
            vcpu: AtomicU32::new(0),
            violations: violations::Ring::new(),
            alarms: Times::none(),
            forwarded: Forwarded::no(),
            session: window::SessionCell::new(ptr::null()),
            #[cfg(feature = "measure")]
            timing: Timing::new(),
            #[cfg(feature = "selftest")]
            faulting: Cell::new(0),
            #[cfg(feature = "selftest")]
            held: Cell::new(0),
            #[cfg(feature = "selftest")]
            in_transition: Cell::new(0),
        }
    }
}

/// All blocks, for what other CPUs may read of them.
pub(crate) fn all() -> &'static [PerCpu; MAX_VCPUS] {
    &BLOCKS
}

/// The affinity of the executing CPU.
pub(crate) fn affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

/// Makes block `number` the executing CPU's.
///
/// # Safety
/// 1. No other CPU has or gets this number.
#[inline(never)]
pub(crate) unsafe fn adopt(number: usize) -> &'static PerCpu {
    let block = &BLOCKS[number % MAX_VCPUS];
    let emergency = stack::mapped(block.number)[0].end;
    block.emergency_top.store(emergency, Ordering::Relaxed);
    block.mpidr.store(affinity(), Ordering::Relaxed);
    TPIDR_EL2.set(core::ptr::from_ref(block).expose_provenance() as u64);
    block
}

/// The executing CPU's block; `None` before [`adopt`], and at EL1.
pub(crate) fn try_current() -> Option<&'static PerCpu> {
    (CurrentEL.read(CurrentEL::EL) == 2 && TPIDR_EL2.get() != 0).then(current)
}

/// The executing CPU's block. Only after [`adopt`], which is the first thing a CPU does at EL2.
#[inline]
pub(crate) fn current() -> &'static PerCpu {
    let block: u64;
    // SAFETY: (1) the read has no effect. It need not be repeated while no memory is written, and is not made before
    // `adopt`, which writes some.
    unsafe {
        asm!("mrs {}, tpidr_el2", out(reg) block, options(pure, readonly, nostack, preserves_flags));
    }
    let block = core::ptr::with_exposed_provenance::<PerCpu>(block as usize);
    // SAFETY: (1) `adopt` stored the address of an element of BLOCKS, which is immutable and static.
    unsafe { &*block }
}
