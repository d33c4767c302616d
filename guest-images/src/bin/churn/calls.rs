//! What is asked of the hypervisor: to move memory, and to change the size of its mappings.

use guest_rt::{Machine, PAGE, call, check, check_eq, fail};
use hyp_abi::call::{
    self as vendor, BUSY, COLLAPSE, CONTIGUOUS, COPY, DISSOLVE, INVALID_PARAMETER, NO_MEMORY,
    NOT_SUPPORTED, SPLIT, SUCCESS,
};
use smccc::Hvc;

/// The calls that change the size of mappings.
pub(crate) const RESIZES: [u32; 5] = [SPLIT, COLLAPSE, COPY, CONTIGUOUS, DISSOLVE];
/// Pages of a block that may be missing, for [`COPY`]: all but one.
const HOLES: u64 = 511;

/// What a call of [`RESIZES`] answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// So many bytes are done.
    Done(usize),
    /// Somebody else moves or resizes something.
    Busy,
    /// No 2 MiB are free side by side.
    NoMemory,
    /// An argument is wrong.
    Invalid,
    /// RAM is populated by pages.
    Unsupported,
}

/// Moves `bytes` bytes from `start`; says how many pages there were, or that it is to be tried again.
pub(crate) fn move_memory(start: usize, bytes: usize) -> Option<u64> {
    let [status, pages, ..] = call::raw::<Hvc>(vendor::MOVE, [start as u64, bytes as u64, 0]);
    match status as i64 {
        SUCCESS => Some(pages),
        BUSY => None,
        other => fail!("MOVE of {bytes:#x} bytes from {start:#x} answered {other}"),
    }
}

/// Changes the size of the first mappings of a range.
pub(crate) fn resize(call: u32, start: usize, bytes: usize) -> Resize {
    let [status, done, ..] = call::raw::<Hvc>(call, [start as u64, bytes as u64, HOLES]);
    match status as i64 {
        SUCCESS => Resize::Done(done as usize),
        BUSY => Resize::Busy,
        NO_MEMORY => Resize::NoMemory,
        INVALID_PARAMETER => Resize::Invalid,
        NOT_SUPPORTED => Resize::Unsupported,
        other => fail!("{call:#x} of {bytes:#x} bytes from {start:#x} answered {other}"),
    }
}

/// Changes the size of a whole range's mappings, a part at a time. Memory that lies in pieces stays as it is.
pub(crate) fn resize_all(call: u32, start: usize, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        match resize(call, start + done, bytes - done) {
            Resize::Done(more) if more != 0 => done += more,
            Resize::Busy => {}
            Resize::NoMemory if call == COPY => return,
            other => fail!("{call:#x} from {:#x}: {other:?}", start + done),
        }
    }
}

/// A call's first result, made again while others have the turn: who has it may be answered before what was asked for is looked at.
fn settled(call: u32, args: [u64; 3]) -> i64 {
    loop {
        let [status, ..] = call::raw::<Hvc>(call, args);
        if status as i64 != BUSY {
            return status as i64;
        }
    }
}

/// What is no RAM, too large or unaligned is refused, and changes nothing.
pub(crate) fn refusals(machine: &Machine, resizes: bool) {
    let (start, end) = (machine.ram.start as u64, machine.ram.end as u64);
    let page = PAGE as u64;
    for (from, bytes) in [
        (start, 0),
        (start + 8, page),
        (start, page + 8),
        (start - page, page),
        (end, page),
        (end - page, 2 * page),
        (start, vendor::MOVE_MAX + page),
        (u64::MAX - page + 1, page),
        (0, !(page - 1)),
    ] {
        let status = settled(vendor::MOVE, [from, bytes, 0]);
        check!(
            status == INVALID_PARAMETER,
            "MOVE of {bytes:#x} bytes from {from:#x} answered {status}"
        );
    }
    let block = vendor::BLOCK;
    for (from, bytes) in [
        (start, 0),
        (start + page, block),
        (start, page),
        (start - block, block),
        (end.next_multiple_of(block), block),
        (start, vendor::RESIZE_MAX + block),
        (u64::MAX - block + 1, block),
        (0, !(block - 1)),
    ] {
        for call in RESIZES {
            let answer = settled(call, [from, bytes, HOLES]);
            let wanted = if resizes { INVALID_PARAMETER } else { NOT_SUPPORTED };
            check!(answer == wanted, "{call:#x} of {bytes:#x} bytes from {from:#x}: {answer}");
        }
    }
    for holes in [HOLES + 1, u64::MAX] {
        let wanted = if resizes { INVALID_PARAMETER } else { NOT_SUPPORTED };
        check_eq!(settled(COPY, [start, block, holes]), wanted, "COPY that may fill {holes} holes");
    }
}
