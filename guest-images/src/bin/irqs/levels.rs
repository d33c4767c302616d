//! A device whose line stays up until somebody sees to it: the PL011.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;

use guest_rt::gic::Interrupt;
use guest_rt::{Machine, check, console, fail, say};
use hyp_abi::interrupt;

use crate::handler::{begin, count, expect, linger, mask, unmask, with_body};
use crate::sleep;

/// Bits of the UART's interrupt registers.
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RX_TIMEOUT: u32 = 1 << 6;

/// How often it is served before its cause is taken away.
const TIMES: usize = 3;

/// It is served again and again, on any vCPU that it is routed to, until the cause is taken away.
pub(crate) fn uart(machine: &Machine, _: usize) {
    let line = Interrupt::new(interrupt::UART);
    line.set_edge(false);
    line.set_priority(0x80);
    line.route(machine.vcpus()[0]);
    console::set_interrupts(0);
    console::clear_interrupts(!0);
    check!(!line.is_pending(), "the UART's line is down");
    line.enable(true);
    // It has said something: a character is raised as sent.
    say!("irqs: the UART says that it is ready to send");
    check!(!line.is_pending(), "the UART's line while nothing is unmasked");
    console::set_interrupts(TX);
    check!(line.is_pending(), "the UART's line is up");
    with_body(|_| {
        if count() == TIMES {
            console::clear_interrupts(TX);
        }
    });
    expect("the UART, until it is seen to", &[interrupt::UART; TIMES]);
    check!(!line.is_pending(), "the UART's line is down again");
    begin();
    // Its line goes up and down while nobody takes it.
    say!("irqs: and once more");
    check!(line.is_pending(), "the UART's line is up once more");
    console::set_interrupts(0);
    check!(!line.is_pending(), "the UART's line follows its mask");
    unmask();
    linger();
    mask();
    check!(count() == 0, "what was down before it was taken has come");
    line.enable(false);
}

/// Keys that have come.
static KEYS: AtomicU32 = AtomicU32::new(0);

/// Repeats what is typed, up to a `q`, asleep in between.
pub(crate) fn keys(machine: &Machine, _: usize) {
    let line = Interrupt::new(interrupt::UART);
    line.set_edge(false);
    line.set_priority(0x80);
    line.route(machine.vcpus()[0]);
    with_body(|intid| {
        if intid != interrupt::UART {
            fail!("INTID {intid}");
        }
        while let Some(key) = console::poll_key() {
            say!("irqs: a key: {:?}", char::from(key));
            KEYS.fetch_add(1, SeqCst);
            if key == b'q' {
                console::set_interrupts(0);
            }
        }
    });
    console::clear_interrupts(!0);
    console::set_interrupts(RX | RX_TIMEOUT);
    line.enable(true);
    say!("irqs: type something, then q");
    sleep::until_so(|| console::interrupts() == 0);
    line.enable(false);
    say!("irqs: {} keys", KEYS.load(SeqCst));
}
