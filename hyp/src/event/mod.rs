//! What happened, in numbers.

pub(crate) mod counters;
#[cfg(feature = "measure")]
pub(crate) mod measure;
