//! What the calls PROTECT, POPULATE, RELEASE and AGE promise, one after the other.
//!
//! | file | what |
//! | --- | --- |
//! | `aborts.rs` | what is not allowed is an abort, with the right syndrome, from EL1, from EL0 and on a walk of stage 1; and at once on all vCPUs |
//! | `keeps.rs` | it stays so, whatever else is done to the memory |
//! | `ranges.rs` | what is populated and released, counted page by page |
//! | `ages.rs` | which pages were accessed |
//! | `wrong.rs` | what the calls refuse, and that nothing changes then |
//!
//! Arguments (`key=value`): `blocks=1` if RAM is populated by blocks.

#![no_std]
#![no_main]

mod aborts;
mod ages;
mod calls;
mod keeps;
mod ranges;
mod wrong;

use guest_rt::{Arena, Machine, el0, say};

guest_rt::guest!("protects", protects);

/// What all parts work with.
struct Scene<'m> {
    machine: &'m Machine,
    arena: Arena,
    /// RAM is populated by blocks.
    blocks: bool,
}

fn protects(machine: &Machine) {
    let blocks = machine.args(&["blocks"]).number("blocks", 0) != 0;
    el0::prepare();
    let mut scene = Scene { machine, arena: machine.arena(), blocks };
    wrong::check(&mut scene);
    aborts::check(&mut scene);
    keeps::check(&mut scene);
    ranges::check(&mut scene);
    ages::check(&mut scene);
    say!("protects: all as promised");
}
