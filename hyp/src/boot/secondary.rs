//! The other CPUs: started by PSCI, one after the other.
//!
//! A CPU comes up with its MMU off, so it reads its arguments past the caches: they are cleaned to the
//! point of coherency before `CPU_ON` \[the arm64 boot protocol asks the same of a boot loader\]. It takes
//! its stack, switches to the final map, makes itself reachable by SGI, tells what its ID registers say
//! and waits for a VM.
//!
//! Only CPUs that a VM can use are started: eight at the most. One that does not come up is a reason to
//! refuse: pinning depends on the numbers.

use alloc::format;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use aarch64_cpu::asm;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use hyp_abi::MAX_VCPUS;
use hyp_core::PaRange;
use hyp_core::fdt::{Gic, Platform};
use spin::Once;

use super::entry::secondary_entry;
use super::{Refusal, stack};
use crate::cpu::{self, PerCpu};
use crate::lock::relax;
use crate::mem::{clean, el2_map};
use crate::platform::{gic, power};
use crate::{say, vm};

/// Seconds to wait for a CPU.
const PATIENCE: u64 = 10;

/// What a CPU reads with its MMU off. The order is known to `entry.rs`. A cache line of its own.
#[repr(C, align(128))]
struct Args {
    ttbr: u64,
    tcr: u64,
    mair: u64,
    sctlr: u64,
    stack: u64,
    number: u64,
}

struct Slot(UnsafeCell<Args>);

// SAFETY: (1) written by the boot CPU before it starts the CPU that reads it, and not after.
unsafe impl Sync for Slot {}

static ARGS: [Slot; MAX_VCPUS] = [const {
    Slot(UnsafeCell::new(Args { ttbr: 0, tcr: 0, mair: 0, sctlr: 0, stack: 0, number: 0 }))
}; MAX_VCPUS];

static GIC: Once<Gic> = Once::new();

/// Starts every CPU of the tree but the executing one; returns how many run, this one included.
pub(crate) fn start_all(platform: &Platform, gic: Gic) -> Result<usize, Refusal> {
    GIC.call_once(|| gic);
    cpu::current().came_up();
    let mut running = 1;
    for cpu in platform.cpus.iter().filter(|cpu| cpu.mpidr != cpu::affinity()) {
        if running == MAX_VCPUS {
            say!(
                "{} CPUs stay off: a VM has {MAX_VCPUS} at the most",
                platform.cpus.len() - MAX_VCPUS
            );
            break;
        }
        start(running, cpu.mpidr)?;
        running += 1;
    }
    Ok(running)
}

fn start(number: usize, mpidr: u64) -> Result<(), Refusal> {
    let map = el2_map::registers().ok_or("EL2's map is not on yet")?;
    let args = ARGS[number].0.get();
    // SAFETY: (1) the CPU that reads this has not been started; nobody else writes.
    unsafe {
        args.write(Args {
            ttbr: map.ttbr,
            tcr: map.tcr,
            mair: map.mair,
            sctlr: map.sctlr,
            stack: stack::top(number),
            number: number as u64,
        });
    }
    let start = args.expose_provenance() as u64;
    clean::clean_and_invalidate(PaRange { start, end: start + size_of::<Args>() as u64 });
    let entry = secondary_entry as *const () as u64;
    power::cpu_on(mpidr, entry, start)
        .map_err(|error| format!("CPU {mpidr:#x} does not start: PSCI CPU_ON says {error}"))?;

    let block = &cpu::all()[number];
    let deadline = CNTPCT_EL0.get() + PATIENCE * CNTFRQ_EL0.get();
    while !block.online.load(Ordering::Acquire) {
        if CNTPCT_EL0.get() > deadline {
            return Err(format!("CPU {mpidr:#x} has not come up within {PATIENCE} s").into());
        }
        relax();
    }
    if block.mpidr.load(Ordering::Relaxed) != mpidr {
        return Err(format!("CPU {mpidr:#x} came up with another affinity").into());
    }
    Ok(())
}

/// A secondary's first Rust, on its own stack, with the final map on.
#[unsafe(no_mangle)]
extern "C" fn hyp_secondary(number: u64) -> ! {
    // SAFETY: (1) the boot CPU gives each number once.
    let block = unsafe { cpu::adopt(number as usize) };
    join(block);
    // Before the boot CPU goes on: a crash does not wait for the console.
    #[cfg(feature = "selftest")]
    crate::selftest::run(block.number);
    block.came_up();
    vm::secondary(block)
}

fn join(block: &PerCpu) {
    let mpidr = block.mpidr.load(Ordering::Relaxed);
    let joined = GIC.get().ok_or("no GIC").map(|gic| {
        // SAFETY: (1) the boot CPU has initialised it and the final map has it.
        unsafe { gic::join(gic, mpidr) }
    });
    match joined {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            say!("CPU {mpidr:#x}: {error}");
            // The boot CPU gives up after its patience, and says which CPU is missing.
            loop {
                asm::wfe();
            }
        }
        Err(_) => power::stay(),
    }
}
