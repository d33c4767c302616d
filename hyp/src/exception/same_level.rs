//! Exceptions that EL2 takes itself.
//!
//! EL2 runs with everything masked, so they are synchronous, and there is one kind that it expects: an access to guest memory
//! through its window, by one of the routines that are made for that, where nothing is mapped. All others are crashes.

use super::crash;
use crate::window;

/// The registers at the exception, as `vectors.rs` stores them. If EL2 goes on, it does so with x0 to x30, `elr` and
/// `spsr` as the frame has them then.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    /// x0 to x30.
    pub(crate) x: [u64; 31],
    /// The stack pointer.
    pub(crate) sp: u64,
    /// `ELR_EL2`: where it happened, and where EL2 goes on.
    pub(crate) elr: u64,
    /// `SPSR_EL2`.
    pub(crate) spsr: u64,
    /// `ESR_EL2`.
    pub(crate) esr: u64,
    /// `FAR_EL2`.
    pub(crate) far: u64,
    /// `HPFAR_EL2`.
    pub(crate) hpfar: u64,
    /// The vector: 0 to 3 with SP_EL0, 4 to 7 with SP_EL2; synchronous, IRQ, FIQ, SError.
    pub(crate) kind: u64,
}

/// [`Frame::kind`] of a synchronous exception with SP_EL2.
const SYNCHRONOUS: u64 = 4;

/// Called by `vectors.rs` on the stack, while the CPU is on it. Returns if EL2 can go on.
#[unsafe(no_mangle)]
extern "C" fn el2_exception(frame: &mut Frame) {
    if frame.kind != SYNCHRONOUS || !window::resolved(frame) {
        crash::el2_crashed(frame);
    }
}
