//! When a violation is told.

use guest_rt::access::load;
use guest_rt::{Args, Machine, check_eq, cpu, say};

use super::{Hole, PATTERN};

/// One violation, and then a second in which this vCPU does not leave for EL2 by itself: no call, no device, no WFI.
pub(crate) fn spin(machine: &Machine, _: Args) {
    check_eq!(load(Hole::of(machine).take(1)), Ok(PATTERN), "the window");
    let until = cpu::ticks() + cpu::tick_rate();
    while cpu::ticks() < until {
        core::hint::spin_loop();
    }
    say!("wild: a second later");
}
