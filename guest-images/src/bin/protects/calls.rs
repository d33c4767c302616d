//! The calls, and what they answer.

use guest_rt::{call, fail};
use hyp_abi::call::{
    self as vendor, BUSY, PROT_EXEC_EL0, PROT_EXEC_EL1, PROT_READ, PROT_WRITE, SUCCESS, Stat,
};
use smccc::Hvc;

/// Permissions of PROTECT.
pub(crate) const NOTHING: u64 = 0;
pub(crate) const READ: u64 = PROT_READ;
pub(crate) const READ_EXEC: u64 = PROT_READ | PROT_EXEC_EL1 | PROT_EXEC_EL0;
pub(crate) const READ_WRITE: u64 = PROT_READ | PROT_WRITE;
pub(crate) const ALL: u64 = READ_WRITE | READ_EXEC;

/// One call: how many bytes are done, and the count; or the status. Busy is no answer: idle CPUs may be at work.
pub(crate) fn part(function: u32, start: u64, bytes: u64, more: u64) -> Result<(u64, u64), i64> {
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
pub(crate) fn all(function: u32, start: usize, bytes: usize, more: u64) -> u64 {
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

/// Permissions of a range.
pub(crate) fn protect(start: usize, bytes: usize, prot: u64) -> u64 {
    all(vendor::PROTECT, start, bytes, prot)
}

/// A counter.
pub(crate) fn stat(stat: Stat) -> u64 {
    call::stat(stat).unwrap_or_else(|| fail!("no hypervisor"))
}
