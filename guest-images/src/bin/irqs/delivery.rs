//! What one vCPU gets: each once, the more urgent first, and nothing that is held back.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;

use guest_rt::gic::{self, Interface, Interrupt, gicd, set_gicd};
use guest_rt::{Machine, check, check_eq};

use crate::handler::{FIQ, begin, count, expect, linger, mask, unmask, until, with_body};

/// The first of the SPIs that nobody else uses here: after the UART's.
pub(crate) const SPI: u32 = 40;

/// An SPI of this test: edge-triggered, to vCPU 0, of this priority.
pub(crate) fn spi(machine: &Machine, intid: u32, priority: u8) -> Interrupt {
    let one = Interrupt::new(intid);
    one.enable(false);
    one.pend(false);
    one.set_edge(true);
    one.set_priority(priority);
    one.route(machine.vcpus()[0]);
    one.enable(true);
    one
}

/// An SGI of this vCPU, of this priority.
pub(crate) fn sgi(intid: u32, priority: u8) -> Interrupt {
    let one = Interrupt::new(intid);
    one.set_priority(priority);
    one.enable(true);
    one
}

/// Each SGI by itself, and once for all that were sent while it was pending.
pub(crate) fn to_itself(_: &Machine, _: usize) {
    for intid in 0..16 {
        let one = sgi(intid, 0x80);
        gic::send(intid, 1);
        expect("an SGI to itself", &[intid]);
        (0..3).for_each(|_| gic::send(intid, 1));
        check!(one.is_pending(), "SGI {intid} is pending while it is masked");
        expect("an SGI, sent three times while it was masked", &[intid]);
        check!(!one.is_pending() && !one.is_active(), "SGI {intid} is idle again");
        // It was pending from elsewhere: nothing is left of it.
        one.pend(true);
        expect("an SGI that was made pending", &[intid]);
    }
    for intid in 0..16 {
        Interrupt::new(intid).enable(false);
    }
}

/// Whatever the order in which they come up, they are served by priority.
pub(crate) fn order(machine: &Machine, _: usize) {
    let priorities = [0xa0, 0x20, 0xe0, 0x60, 0x80, 0x40, 0xc0, 0x00];
    let mut wanted = [0; 8];
    for (nth, &priority) in priorities.iter().enumerate() {
        let intid = if nth % 2 == 0 { SPI + nth as u32 } else { nth as u32 };
        wanted[usize::from(priority >> 5)] = intid;
        let one = if nth % 2 == 0 { spi(machine, intid, priority) } else { sgi(intid, priority) };
        one.pend(true);
    }
    expect("eight priorities", &wanted);
    wanted.iter().for_each(|&intid| Interrupt::new(intid).enable(false));
}

/// Many more at once than a CPU's interface has places for.
pub(crate) fn overflow(machine: &Machine, _: usize) {
    const MANY: usize = 24;
    for round in 0..4 {
        // The first priorities in the odd rounds come last.
        let priority = |nth: usize| match round % 2 {
            0 => 8 + 8 * nth as u8,
            _ => 8 + 8 * (MANY - 1 - nth) as u8,
        };
        let mut wanted = [0; MANY];
        for nth in 0..MANY {
            let intid = SPI + nth as u32;
            spi(machine, intid, priority(nth)).pend(true);
            wanted[usize::from(priority(nth) / 8 - 1)] = intid;
        }
        for nth in 0..MANY {
            check!(Interrupt::new(SPI + nth as u32).is_pending(), "SPI {nth} of {MANY}");
        }
        expect("more interrupts than list registers", &wanted);
    }
    // SGIs and SPIs of one priority: in any order, each once.
    for intid in 0..16 {
        sgi(intid, 0x80);
        gic::send(intid, 1);
    }
    for nth in 0..MANY as u32 {
        spi(machine, SPI + nth, 0x80).pend(true);
    }
    unmask();
    until("16 SGIs and 24 SPIs", || count() >= 16 + MANY);
    linger();
    mask();
    check_eq!(count(), 16 + MANY, "16 SGIs and 24 SPIs of one priority");
    for intid in (0..16).chain(SPI..SPI + MANY as u32) {
        check_eq!(crate::handler::taken(intid), 1, "INTID {intid}, of 40 at once");
        Interrupt::new(intid).enable(false);
    }
}

/// What is masked, disabled, or of a group that is off does not come, and comes as soon as it may.
pub(crate) fn masks(machine: &Machine, _: usize) {
    let nothing = |why: &str| {
        unmask();
        linger();
        mask();
        check_eq!(count(), 0, "interrupts while {why}");
    };
    let one = spi(machine, SPI, 0x80);
    Interface::set_priority_mask(0x80);
    one.pend(true);
    nothing("ICC_PMR_EL1 is as high as its priority");
    check!(one.is_pending(), "it is pending all the time");
    Interface::set_priority_mask(0x88);
    expect("ICC_PMR_EL1 above its priority", &[SPI]);
    Interface::set_priority_mask(0xff);

    one.enable(false);
    one.pend(true);
    nothing("it is disabled");
    check!(one.is_pending(), "a disabled interrupt stays pending");
    one.enable(true);
    expect("it is enabled while it is pending", &[SPI]);

    Interface::enable_group1(false);
    one.pend(true);
    nothing("ICC_IGRPEN1_EL1 is off");
    Interface::enable_group1(true);
    expect("ICC_IGRPEN1_EL1 is on again", &[SPI]);

    let control: u32 = gicd(0);
    set_gicd::<u32>(0, control & !2);
    one.pend(true);
    nothing("GICD_CTLR.EnableGrp1 is off");
    set_gicd::<u32>(0, control);
    expect("GICD_CTLR.EnableGrp1 is on again", &[SPI]);

    // What was on its way is taken back.
    one.pend(true);
    one.pend(false);
    nothing("it was taken back");
    one.enable(false);
}

/// How deep [`deeper`] goes: more than list registers.
const DEPTH: u32 = 10;

/// How deep it is, and how deep it was.
static NESTED: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);

/// While an interrupt is served one that is less urgent waits, and one that is more urgent does not.
pub(crate) fn preemption(machine: &Machine, _: usize) {
    // Priorities from 0xa8 in steps of 16 up to 0x18: SPI + 0 is the least urgent.
    for nth in 0..=DEPTH {
        spi(machine, SPI + nth, (0xb8 - 16 * nth) as u8);
    }
    let less = spi(machine, SPI + DEPTH + 1, 0xf0);
    less.pend(true);
    with_body(deeper);
    Interrupt::new(SPI).pend(true);
    let mut wanted = [0; DEPTH as usize + 2];
    (0..=DEPTH).for_each(|nth| wanted[nth as usize] = SPI + nth);
    wanted[DEPTH as usize + 1] = SPI + DEPTH + 1;
    expect("interrupts within interrupts", &wanted);
    check_eq!(DEEPEST.load(SeqCst), DEPTH, "how many were being served at once");
    check_eq!(gic::running_priority(), 0xff, "ICC_RPR_EL1 at the end");
    begin();
    (0..=DEPTH + 1).for_each(|nth| Interrupt::new(SPI + nth).enable(false));
}

/// Has the next one come, and sees it served.
fn deeper(intid: u32) {
    if intid > SPI + DEPTH {
        return;
    }
    let mine = u64::from(0xb8 - 16 * (intid - SPI));
    check_eq!(gic::running_priority(), mine, "ICC_RPR_EL1 while INTID {intid} is served");
    check!(Interrupt::new(intid).is_active(), "INTID {intid} is active while it is served");
    if intid == SPI + DEPTH {
        return;
    }
    let (depth, before) = (NESTED.fetch_add(1, SeqCst) + 1, count());
    DEEPEST.fetch_max(depth, SeqCst);
    Interrupt::new(intid + 1).pend(true);
    unmask();
    until("one that is more urgent", || count() > before);
    linger();
    mask();
    NESTED.fetch_sub(1, SeqCst);
}

/// Interrupts of group 0 come as FIQ, by registers of their own.
pub(crate) fn group0(machine: &Machine, _: usize) {
    let control: u32 = gicd(0);
    set_gicd::<u32>(0, control | 1);
    Interface::enable_group0(true);
    let (one, other) = (spi(machine, SPI, 0x80), sgi(3, 0x80));
    one.set_group(0);
    one.pend(true);
    expect("an SPI of group 0", &[SPI + FIQ]);
    // An SGI is sent to a group, and is delivered if it is in that group.
    other.set_group(0);
    gic::send_group0(3, 1);
    expect("an SGI of group 0", &[3 + FIQ]);
    one.set_group(1);
    other.set_group(1);
    one.pend(true);
    expect("it is in group 1 again", &[SPI]);
    Interface::enable_group0(false);
    set_gicd::<u32>(0, control);
    one.enable(false);
    other.enable(false);
}
