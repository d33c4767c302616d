//! The machine's devices that EL2 itself uses: console, firmware, interrupt controller.

pub(crate) mod console;
pub(crate) mod gic;
pub(crate) mod power;
pub(crate) mod timer;
