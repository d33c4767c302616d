//! An AArch64 EL2 hypervisor for QEMU's `virt` that puts crate `stage2` to use.
//!
//! ```text
//!  boot ──▶ mem, platform ──▶ vm::start ──▶ run loop on each CPU ──▶ end: summary, power off
//!                                             │  ▲
//!                              guest_enter    ▼  │ exit
//!                                            guest at EL1
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `boot` | from the first instruction to all CPUs in EL2's final map |
//! | `exception` | vectors, the way into and out of the guest, the crash dump |
//! | `platform` | console, firmware, interrupt controller |
//! | `mem` | frames, per-CPU stocks, heap, EL2's own map |
//! | `vm` | the VM: its regions, vCPUs, run loop, exits |
//! | `window` | how EL2 reaches the VM's memory, and what it does about its own faults there |
//! | `device`, `hypercall` | what the guest believes to be a machine |
//! | `event` | counters; in builds for that, every step of table maintenance |
//! | `selftest` | in builds for that, how EL2 is made to fail on purpose |
//! | `end` | how a run is told to people and programs |
//!
//! Decisions that need no machine are in crate `hyp-core`, tested on the host.
//!
//! EL2 runs with every exception masked, on one stack a CPU, and is never preempted. What a guest can
//! make it do is bounded: no loop whose length the guest chooses, no panic, and no allocation but
//! bounded ones: by `MOVE`, one call at a time, for one diagnosis a CPU when the VM ends, and for a VM that starts anew.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod cpu;
mod device;
mod end;
mod event;
mod exception;
mod hypercall;
mod lock;
mod mem;
mod platform;
#[cfg(feature = "selftest")]
mod selftest;
mod sysreg;
mod vm;
mod window;

/// The boot CPU's first Rust with the early map on: `tree` is the device tree's address or 0, `level` the
/// exception level.
#[unsafe(no_mangle)]
extern "C" fn hyp_main(tree: u64, level: u64) -> ! {
    mem::heap::init();
    if level == 2 {
        // SAFETY: (1) number 0 is the boot CPU's.
        unsafe { cpu::adopt(0) };
    }
    match boot::bring_up(tree, level).and_then(vm::start) {
        Ok(never) => match never {},
        Err(refusal) => end::refuse(refusal),
    }
}
