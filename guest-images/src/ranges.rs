//! Calls on a range of RAM: one at a time, or as many as it takes.

use hyp_abi::call::{BUSY, SUCCESS};
use smccc::Hvc;

use crate::{call, fail};

/// One call: how many bytes are done, and the count; or the status. Busy is no answer: idle CPUs may be at work.
pub fn part(function: u32, start: u64, bytes: u64, more: u64) -> Result<(u64, u64), i64> {
    loop {
        let [status, done, count, _] = call::raw::<Hvc>(function, [start, bytes, more]);
        match status as i64 {
            SUCCESS => return Ok((done, count)),
            BUSY => {}
            other => return Err(other),
        }
    }
}

/// As many calls as it takes for all of a range; the sum of the counts.
pub fn all(function: u32, start: usize, bytes: usize, more: u64) -> u64 {
    let (start, bytes) = (start as u64, bytes as u64);
    let (mut done, mut sum) = (0, 0);
    while done < bytes {
        match part(function, start + done, bytes - done, more) {
            Ok((0, _)) => fail!("{function:#x} from {:#x} does nothing", start + done),
            Ok((now, count)) => (done, sum) = (done + now, sum + count),
            Err(status) => fail!("{function:#x} from {:#x} answered {status}", start + done),
        }
    }
    if done != bytes {
        fail!("{function:#x} of {bytes:#x} bytes from {start:#x} did {done:#x}");
    }
    sum
}
