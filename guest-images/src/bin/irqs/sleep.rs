//! WFI and CPU_SUSPEND end when there is something to do.

use aarch64_cpu::asm;
use guest_rt::gic::{self, Interrupt};
use guest_rt::{Machine, check, check_eq, cpu, smp};
use smccc::{Hvc, psci};

use crate::delivery::sgi;
use crate::handler::{begin, count, expect, mask, unmask};
use crate::timers::Timer;

/// Sleeps until it is so. Interrupts are masked while that is looked at: what comes afterwards ends the WFI, and is taken then.
pub(crate) fn until_so(is_so: impl Fn() -> bool) {
    mask();
    while !is_so() {
        asm::wfi();
        unmask();
        mask();
    }
}

/// A timer ends it though all is masked, on each vCPU at the same time; so does what was pending before.
pub(crate) fn wfi_on_all(machine: &Machine, sleep: fn()) {
    smp::run(machine, machine.vcpus().len(), &|me| {
        if me.index > 0 {
            gic::init(machine.vcpus().len());
        }
        begin();
        for timer in Timer::ALL {
            let line = Interrupt::new(timer.intid());
            line.set_priority(0x80);
            line.enable(true);
            for milliseconds in [0, 1, 5] {
                let at = timer.start(milliseconds * cpu::tick_rate() / 1000);
                while timer.control() & 4 == 0 {
                    sleep();
                }
                check!(timer.now() >= at, "vCPU {}: its timer's time has come", me.index);
                check_eq!(count(), 0, "interrupts of vCPU {}, which are masked", me.index);
                timer.set_control(0);
            }
            line.enable(false);
        }
        // It is pending already.
        let one = sgi(7, 0x80);
        gic::send(7, 1 << me.index);
        while !one.is_pending() {
            smp::relax();
        }
        sleep();
        expect("an SGI that was pending before", &[7]);
        one.enable(false);
    });
}

pub(crate) fn wfi(machine: &Machine, _: usize) {
    wfi_on_all(machine, asm::wfi);
}

pub(crate) fn suspend(machine: &Machine, _: usize) {
    wfi_on_all(machine, || {
        // A standby, whose entry point means nothing.
        let answer = psci::cpu_suspend::<Hvc>(0, 0, 0);
        check!(answer.is_ok(), "CPU_SUSPEND: {answer:?}");
    });
}
