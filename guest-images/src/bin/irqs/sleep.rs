//! WFI and CPU_SUSPEND end when there is something to do.

use aarch64_cpu::asm;
use guest_rt::gic::{self, Interrupt};
use guest_rt::{Machine, check, check_eq, cpu, smp};
use smccc::{Hvc, psci};

use crate::delivery::sgi;
use crate::handler::{begin, count, expect, mask, unmask};
use crate::timers::Timer;

/// A sleep ends for what it waits for, and perhaps a few times more; one that is none ends thousands of times.
const MOST_WOKEN: u32 = 16;

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
            for milliseconds in [0, 1, 5, 50] {
                let at = timer.start(milliseconds * cpu::tick_rate() / 1000);
                let mut woken = 0;
                while timer.control() & 4 == 0 {
                    // Once its time has come QEMU's ISTATUS may be late, and each further sleep ends at once.
                    woken += u32::from(timer.now() < at);
                    sleep();
                }
                check!(
                    woken <= MOST_WOKEN,
                    "vCPU {} slept {woken} times until INTID {}, {milliseconds} ms",
                    me.index,
                    timer.intid()
                );
                check!(timer.now() >= at, "vCPU {}: its timer's time has come", me.index);
                check_eq!(count(), 0, "interrupts of vCPU {}, which are masked", me.index);
                timer.set_control(0);
                // A list register knows nothing of the line, and would end the next sleep: looking at the controller takes it back.
                check!(!line.is_pending(), "vCPU {}: a timer that was switched off", me.index);
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
