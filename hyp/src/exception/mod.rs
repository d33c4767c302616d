//! Exceptions: the vector table, the way in and out of the guest, and the dump when EL2 itself fails.

pub(crate) mod crash;
pub(crate) mod vectors;
