//! The hypervisor's calls on memory, until they are done.

use guest_rt::{call, fail, smp};
use hyp_abi::call::{BUSY, SUCCESS};
use smccc::Hvc;

/// `x1` and `x2` of a call, or why it did nothing. While another vCPU's call is in the way it is made again.
pub(crate) fn try_call(function: u32, arguments: [u64; 3]) -> Result<[u64; 2], i64> {
    loop {
        let [status, done, count, _] = call::raw::<Hvc>(function, arguments);
        match status as i64 {
            SUCCESS => return Ok([done, count]),
            BUSY => smp::relax(),
            other => return Err(other),
        }
    }
}

/// The same for a call that has to be served.
pub(crate) fn call(function: u32, arguments: [u64; 3]) -> [u64; 2] {
    match try_call(function, arguments) {
        Ok(answer) => answer,
        Err(status) => fail!("{function:#x} with {arguments:#x?} answered {status}"),
    }
}

/// A call on all of a range, part by part; returns the sum of what the parts counted.
pub(crate) fn on_range(function: u32, start: usize, bytes: usize, more: u64) -> u64 {
    let (mut done, mut count) = (0, 0);
    while done < bytes as u64 {
        let [part, counted] = call(function, [start as u64 + done, bytes as u64 - done, more]);
        if part == 0 {
            fail!("{function:#x} did nothing of {:#x} bytes from {start:#x}", bytes as u64 - done);
        }
        done += part;
        count += counted;
    }
    count
}
