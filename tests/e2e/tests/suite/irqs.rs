//! The guest's interrupt controller, judged by the guest `irqs`, which is judged itself by QEMU's GICv3; and input by interrupt.

use e2e::{Scenario, images, on_every_cpu, plain};

/// Parts that the guest has.
const PARTS: &str = "irqs: 20 parts";

fn irqs(vcpus: u32) -> Scenario {
    Scenario::of("irqs").vcpus(vcpus).append("rounds=20").timeout(180)
}

on_every_cpu!(irqs, |cpu| {
    irqs(2).cpu(cpu).passes().shows(PARTS);
});

/// What the guest asks for is what a real controller does.
#[test]
fn without_the_hypervisor_it_passes_too() {
    let run = plain::guest(&images().guest_bin("irqs"));
    run.shows(PARTS).shows("irqs: no hypervisor: verdict pass");
}

/// Two vCPUs take turns on each CPU: their interrupts are taken while they are not in the hardware, too.
#[test]
fn four_on_two_cpus_interrupt_each_other() {
    irqs(4).with("--smp", 2).passes().shows(PARTS);
}

#[test]
fn three_on_one_cpu_interrupt_each_other() {
    irqs(3).with("--smp", 1).cpu("cortex-a53").passes().shows(PARTS);
}

#[test]
fn alone_there_is_nobody_to_interrupt_but_itself() {
    irqs(1).passes().shows(PARTS);
}

#[test]
fn four_interrupt_each_other() {
    irqs(4).passes().shows(PARTS);
}

/// More at once than the UART's FIFO holds, while the guest sleeps: each is an interrupt, or was there when one came.
#[test]
fn what_is_typed_wakes_a_guest_that_sleeps_and_none_is_lost() {
    let script = "expect type something\nsend-raw a\nexpect a key: 'a'\n\
                  send-raw 0123456789012345678901234567890123456789q\nexpect 42 keys\n";
    let run = Scenario::of("irqs").vcpus(2).append("part=keys").script(script).passes();
    run.shows("irqs: keys: as it should be");
}
