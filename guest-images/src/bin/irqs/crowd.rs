//! Interrupts between vCPUs. Whoever waits sleeps, so one that is lost is a guest that never ends.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU64, AtomicUsize};

use guest_rt::gic::{self, Interrupt};
use guest_rt::rng::mix;
use guest_rt::smp::{self, Rendezvous, Vcpu};
use guest_rt::{Machine, check_eq, start};
use hyp_abi::MAX_VCPUS;

use crate::delivery::{SPI, sgi, spi};
use crate::handler::{begin, count, expect, linger, mask, unmask, until, with_body};
use crate::sleep::until_so;

/// A vCPU's interface, its SGIs enabled.
fn join(machine: &Machine, me: Vcpu) {
    if me.index > 0 {
        gic::init(machine.vcpus().len());
    }
    begin();
    for intid in 0..16 {
        sgi(intid, 0x80);
    }
}

fn leave() {
    (0..16).for_each(|intid| Interrupt::new(intid).enable(false));
    begin();
}

/// An SGI to each, to all but the sender, and to a list with the sender in it.
pub(crate) fn others(machine: &Machine, _: usize) {
    let meet = Rendezvous::new();
    let vcpus = machine.vcpus().len();
    smp::run(machine, vcpus, &|me| {
        join(machine, me);
        let mut nth = 0;
        let mut step = || {
            meet.meet(me, nth);
            nth += 1;
        };
        for sender in 0..vcpus {
            for target in 0..vcpus {
                step();
                if me.index == sender {
                    gic::send(target as u32, 1 << target);
                }
                let wanted: &[u32] = &[target as u32];
                expect("an SGI to one", if me.index == target { wanted } else { &[] });
            }
            step();
            if me.index == sender {
                gic::send_to_others(9);
            }
            expect("an SGI to all but the sender", if me.index == sender { &[] } else { &[9] });
            step();
            if me.index == sender {
                // Those that are not there are none.
                gic::send(10, 0xffff);
            }
            expect("an SGI to a list of all", &[10]);
            step();
        }
        leave();
    });
}

/// Interrupts of SPIs that all vCPUs have served.
static SERVED: AtomicUsize = AtomicUsize::new(0);

/// An SPI is served once, by whom it goes to, wherever that is meanwhile.
pub(crate) fn routes(machine: &Machine, rounds: usize) {
    let meet = Rendezvous::new();
    SERVED.store(0, SeqCst);
    smp::run(machine, machine.vcpus().len(), &|me| {
        join(machine, me);
        with_body(|intid| {
            SERVED.fetch_add(usize::from(intid == SPI), SeqCst);
        });
        meet.meet(me, 0);
        if me.index > 0 {
            unmask();
            until_so(|| SERVED.load(SeqCst) == rounds);
            leave();
            return;
        }
        let one = spi(machine, SPI, 0x80);
        let somebody = |seed: usize| machine.vcpus()[mix(seed as u64) as usize % me.count];
        unmask();
        for round in 0..rounds {
            one.route(somebody(2 * round));
            one.pend(true);
            // It may be on its way already, or not.
            one.route(somebody(2 * round + 1));
            until("an SPI that was routed elsewhere", || SERVED.load(SeqCst) > round);
        }
        linger();
        mask();
        check_eq!(SERVED.load(SeqCst), rounds, "interrupts of an SPI");
        one.enable(false);
        // Who sleeps looks once more.
        gic::send_to_others(0);
        leave();
    });
}

/// Messages to a vCPU: how many were sent, and seen.
struct Inbox {
    sent: AtomicU64,
    seen: AtomicU64,
}

static INBOXES: [Inbox; MAX_VCPUS] =
    [const { Inbox { sent: AtomicU64::new(0), seen: AtomicU64::new(0) } }; MAX_VCPUS];
/// vCPUs that have sent all that they will.
static THROUGH: AtomicUsize = AtomicUsize::new(0);

fn reset() {
    THROUGH.store(0, SeqCst);
    for inbox in &INBOXES {
        inbox.sent.store(0, SeqCst);
        inbox.seen.store(0, SeqCst);
    }
}

/// Takes what has come.
fn look(_: u32) {
    let mine = &INBOXES[start::vcpu()];
    mine.seen.fetch_max(mine.sent.load(SeqCst), SeqCst);
}

/// A message to a vCPU, with its SGI: its number.
fn post(target: usize, intid: u32) -> u64 {
    let number = INBOXES[target].sent.fetch_add(1, SeqCst) + 1;
    gic::send(intid, 1 << target);
    number
}

/// Two and two send a message to and fro, asleep in between.
pub(crate) fn ping(machine: &Machine, rounds: usize) {
    let meet = Rendezvous::new();
    reset();
    smp::run(machine, machine.vcpus().len(), &|me| {
        join(machine, me);
        with_body(look);
        meet.meet(me, 0);
        let other = me.index ^ 1;
        if other < me.count {
            for round in 0..rounds as u64 {
                if me.index < other {
                    post(other, 1);
                }
                until_so(|| INBOXES[me.index].seen.load(SeqCst) > round);
                if me.index > other {
                    post(other, 2);
                }
            }
        }
        leave();
    });
}

/// All send to all, of all SGIs, and nobody goes on before the one that it sent was seen.
pub(crate) fn crowd(machine: &Machine, rounds: usize) {
    let meet = Rendezvous::new();
    reset();
    smp::run(machine, machine.vcpus().len(), &|me| {
        join(machine, me);
        with_body(look);
        meet.meet(me, 0);
        unmask();
        for round in 0..rounds {
            let dice = mix((me.index << 32 | round) as u64) as usize;
            let target = dice % me.count;
            let number = post(target, (dice >> 32) as u32 % 16);
            until("a message is seen", || INBOXES[target].seen.load(SeqCst) >= number);
        }
        THROUGH.fetch_add(1, SeqCst);
        // The last to come wakes all.
        if THROUGH.load(SeqCst) == me.count {
            gic::send_to_others(0);
        }
        until_so(|| THROUGH.load(SeqCst) == me.count);
        let mine = &INBOXES[me.index];
        check_eq!(mine.seen.load(SeqCst), mine.sent.load(SeqCst), "messages to vCPU {}", me.index);
        check_eq!(
            count() > 0 || mine.sent.load(SeqCst) == 0,
            true,
            "interrupts of vCPU {}",
            me.index
        );
        leave();
    });
}
