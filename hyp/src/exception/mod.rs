//! Exceptions: the vector table, the way in and out of the guest, what EL2 takes itself, and the dump when it fails.

pub(crate) mod crash;
pub(crate) mod same_level;
pub(crate) mod vectors;
