//! Pending and active, as registers say and as registers set them; EOImode 1.

use guest_rt::gic::{self, Interrupt};
use guest_rt::{Machine, check, check_eq};

use crate::delivery::{SPI, sgi, spi};
use crate::handler::{begin, count, deactivates, expect, linger, mask, unmask, with_body};

/// An interrupt that comes up again while it is active is served again.
pub(crate) fn pending(machine: &Machine, _: usize) {
    let one = spi(machine, SPI, 0x80);
    with_body(|intid| {
        let one = Interrupt::new(intid);
        check!(one.is_active() && !one.is_pending(), "active, and not pending any more");
        if count() == 1 {
            one.pend(true);
            check!(one.is_active() && one.is_pending(), "active and pending");
        }
    });
    one.pend(true);
    expect("pending again while it was active", &[SPI, SPI]);
    begin();
    // … unless that is taken back.
    with_body(|intid| {
        let one = Interrupt::new(intid);
        one.pend(true);
        one.pend(false);
        check!(one.is_active() && !one.is_pending(), "active, taken back");
    });
    one.pend(true);
    expect("taken back while it was active", &[SPI]);
    begin();
    // One that is level-sensitive stays pending by the register alone, until it is acknowledged.
    one.set_edge(false);
    one.pend(true);
    check!(one.is_pending(), "level-sensitive, made pending");
    expect("level-sensitive, made pending", &[SPI]);
    check!(!one.is_pending(), "and not pending any more");
    one.enable(false);
}

/// An interrupt that a register has made active does not come before it is made inactive.
pub(crate) fn active(machine: &Machine, _: usize) {
    for one in [spi(machine, SPI, 0x80), sgi(5, 0x80)] {
        one.activate(true);
        check!(one.is_active(), "INTID {}: made active", one.intid);
        one.pend(true);
        unmask();
        linger();
        mask();
        check_eq!(count(), 0, "interrupts while INTID {} is active", one.intid);
        one.activate(false);
        check!(!one.is_active() && one.is_pending(), "INTID {}: made inactive", one.intid);
        expect("it is inactive", &[one.intid]);
        one.enable(false);
    }
}

/// With EOImode 1 the end drops the priority, and the interrupt stays active until it is deactivated.
pub(crate) fn split_end(machine: &Machine, _: usize) {
    gic::set_split_end(true);
    let (one, other) = (spi(machine, SPI, 0x40), spi(machine, SPI + 1, 0x80));
    one.pend(true);
    expect("the first", &[SPI]);
    check!(one.is_active(), "it is active after its end");
    check_eq!(gic::running_priority(), 0xff, "ICC_RPR_EL1 after its end");
    one.pend(true);
    other.pend(true);
    expect("the second, though it is less urgent", &[SPI + 1]);
    gic::deactivate(SPI);
    expect("the first again, which was pending", &[SPI]);
    gic::deactivate(SPI + 1);
    gic::deactivate(SPI);
    check!(!one.is_active() && !other.is_active(), "both are deactivated");
    // What is not active cannot be deactivated, and nothing comes of trying.
    gic::deactivate(SPI + 2);
    deactivates(true);
    one.pend(true);
    expect("end and deactivation in the handler", &[SPI]);
    check!(!one.is_active(), "it is inactive");
    begin();
    gic::set_split_end(false);
    one.enable(false);
    other.enable(false);
}

/// Many are active at once, and are deactivated in any order.
pub(crate) fn many_active(machine: &Machine, _: usize) {
    const MANY: u32 = 16;
    gic::set_split_end(true);
    for nth in 0..MANY {
        spi(machine, SPI + nth, 8 * nth as u8).pend(true);
    }
    let mut wanted = [0; MANY as usize];
    (0..MANY).for_each(|nth| wanted[nth as usize] = SPI + nth);
    expect("16 that stay active", &wanted);
    let is_active = |nth: u32| Interrupt::new(SPI + nth).is_active();
    check!((0..MANY).all(is_active), "all are active");
    // One more, beside them.
    spi(machine, SPI + MANY, 0xf0).pend(true);
    expect("one beside 16 that are active", &[SPI + MANY]);
    gic::deactivate(SPI + MANY);
    // 7 and 16 have no common factor: each once, far from any order.
    for step in 0..MANY {
        let nth = step * 7 % MANY;
        check!(is_active(nth), "INTID {} is active until it is deactivated", SPI + nth);
        gic::deactivate(SPI + nth);
        check!(!is_active(nth), "INTID {} is deactivated", SPI + nth);
        let left = (0..MANY).filter(|&other| is_active(other)).count();
        check_eq!(left, (MANY - 1 - step) as usize, "how many are active yet");
        // It can come again at once.
        if step % 4 == 0 {
            Interrupt::new(SPI + nth).pend(true);
            expect("one that was deactivated", &[SPI + nth]);
            gic::deactivate(SPI + nth);
        }
    }
    gic::set_split_end(false);
    (0..=MANY).for_each(|nth| Interrupt::new(SPI + nth).enable(false));
}
