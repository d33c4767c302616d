//! What happened: in numbers, and in builds for that, step by step.

pub(crate) mod counters;
#[cfg(feature = "measure")]
pub(crate) mod measure;
#[cfg(feature = "measure")]
pub(crate) mod resizing;
#[cfg_attr(not(feature = "trace"), path = "no_trace.rs")]
pub(crate) mod trace;
pub(crate) mod violations;
