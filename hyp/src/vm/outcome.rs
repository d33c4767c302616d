//! What becomes of a guest's wish to have its memory changed.

use alloc::string::String;

use stage2::IpaRange;
use stage2::space::Progress;

/// What a part of a call on a range has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Bytes from the first address on that are done.
    pub(crate) bytes: u64,
    /// What the call counts.
    pub(crate) count: u64,
}

impl Part {
    /// As far as `progress` says of a range.
    pub(super) fn of(range: IpaRange, progress: Progress, count: u64) -> Self {
        let bytes = match progress {
            Progress::Done => range.bytes(),
            Progress::Until(next) => next.get() - range.start().get(),
        };
        Self { bytes, count }
    }
}

/// Why nothing was done.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The VM is not made for it.
    Unsupported,
    /// The range is not RAM, is unaligned or too large, or another argument is wrong.
    Invalid,
    /// Another CPU changes the VM's memory.
    Busy,
    /// Not enough free memory.
    NoMemory,
    /// It went wrong half way: the VM cannot go on.
    Broken(String),
}
