//! The calls, and what they answer.

pub(crate) use guest_rt::ranges::{all, part};
use guest_rt::{call, fail};
use hyp_abi::call::{self as vendor, PROT_EXEC_EL0, PROT_EXEC_EL1, PROT_READ, PROT_WRITE, Stat};

/// Permissions of PROTECT.
pub(crate) const NOTHING: u64 = 0;
pub(crate) const READ: u64 = PROT_READ;
pub(crate) const READ_EXEC: u64 = PROT_READ | PROT_EXEC_EL1 | PROT_EXEC_EL0;
pub(crate) const READ_WRITE: u64 = PROT_READ | PROT_WRITE;
pub(crate) const ALL: u64 = READ_WRITE | READ_EXEC;

/// Permissions of a range.
pub(crate) fn protect(start: usize, bytes: usize, prot: u64) -> u64 {
    all(vendor::PROTECT, start, bytes, prot)
}

/// A counter.
pub(crate) fn stat(stat: Stat) -> u64 {
    call::stat(stat).unwrap_or_else(|| fail!("no hypervisor"))
}
