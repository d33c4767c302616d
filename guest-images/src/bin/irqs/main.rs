//! Judges the interrupt controller from inside: what its registers say, what is delivered when, in which order, how often, to whom.
//!
//! Everything here holds for any GICv3 with one security state, so the guest passes without a hypervisor, too. Nothing
//! depends on time: an interrupt that has to come is waited for, and one that must not come has every chance to. `part=NAME` runs one
//! part; `rounds=` is how often the vCPUs of `crowd` and `routes` do what they do.

#![no_std]
#![no_main]

mod crowd;
mod delivery;
mod handler;
mod identity;
mod levels;
mod sleep;
mod states;
mod timers;

use guest_rt::exception::on_interrupt;
use guest_rt::{Machine, fail, gic, say};

guest_rt::guest!("irqs", irqs);

/// A part: a name, and what it does on vCPU 0.
type Part = (&'static str, fn(&Machine, usize));

#[rustfmt::skip]
static PARTS: &[Part] = &[
    ("identity", identity::identity),
    ("registers", identity::registers),
    ("self", delivery::to_itself),
    ("order", delivery::order),
    ("overflow", delivery::overflow),
    ("masks", delivery::masks),
    ("preemption", delivery::preemption),
    ("group0", delivery::group0),
    ("pending", states::pending),
    ("active", states::active),
    ("split-end", states::split_end),
    ("many-active", states::many_active),
    ("uart", levels::uart),
    ("timers", timers::timers),
    ("wfi", sleep::wfi),
    ("suspend", sleep::suspend),
    ("others", crowd::others),
    ("routes", crowd::routes),
    ("ping", crowd::ping),
    ("crowd", crowd::crowd),
];

/// Not part of all: somebody has to type.
const KEYS: Part = ("keys", levels::keys);

fn irqs(machine: &Machine) {
    let args = machine.args(&["part", "rounds"]);
    let rounds = args.number("rounds", 200);
    let wanted = args.get("part");
    on_interrupt(handler::handler);
    gic::init(machine.vcpus().len());
    let mut ran = 0;
    let all = PARTS.iter().filter(|part| wanted.is_none_or(|wanted| wanted == part.0));
    for (name, part) in all.chain([&KEYS].into_iter().filter(|keys| wanted == Some(keys.0))) {
        handler::begin();
        part(machine, rounds);
        say!("irqs: {name}: as it should be");
        ran += 1;
    }
    if ran == 0 {
        fail!("no part of this name");
    }
    say!("irqs: {ran} parts, {} vCPUs", machine.vcpus().len());
}
