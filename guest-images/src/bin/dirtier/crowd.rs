//! vCPUs that all want the others to stand still, while they come and go.
//!
//! Round by round three vCPUs are switched on, and all four make a shadow, end it, and go, each when it is through: so one
//! that stops the others finds them in the guest, on their way in or out, off, or about to do the same.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{MIB2, Machine, check, fail, smp};
use hyp_abi::call::{
    DIRTY_START, INVALID_PARAMETER, SHADOW, SHADOW_BEGIN, SHADOW_END, SHADOW_UNIT,
};

use super::calls::{call, try_call};
use super::steps;

/// Times that the vCPUs come and go.
const ROUNDS: u64 = 8;
/// Shadows that each wants to end in a round.
const EACH: usize = 2;

/// Has them come and go, and logs the block at `start` meanwhile.
pub(crate) fn run(machine: &Machine, start: usize) {
    let unit = [start as u64, SHADOW_UNIT];
    call(DIRTY_START, [start as u64, MIB2 as u64, 0]);
    let ended = AtomicU64::new(0);
    for _ in 0..ROUNDS {
        smp::run(machine, machine.vcpus().len(), &|_| {
            for turn in 0..2 * EACH {
                let operation = if turn % 2 == 0 { SHADOW_BEGIN } else { SHADOW_END };
                match try_call(SHADOW, [operation, unit[0], unit[1]]) {
                    Ok(_) if operation == SHADOW_END => _ = ended.fetch_add(1, Ordering::Relaxed),
                    // Another vCPU has made one, or ended it.
                    Ok(_) | Err(INVALID_PARAMETER) => {}
                    Err(status) => fail!("SHADOW {operation} answered {status}"),
                }
            }
        });
    }
    let ended = ended.load(Ordering::Relaxed);
    check!(ended >= ROUNDS, "{ended} shadows were ended in {ROUNDS} rounds");
    // One may be left.
    let _none = try_call(SHADOW, [SHADOW_END, 0, 0]);
    steps::stop(MIB2);
}
