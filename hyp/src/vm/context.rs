//! The registers of a vCPU that an exit moves to memory. The layout is known to `exception/vectors.rs`.

/// General registers, program counter, processor state.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Context {
    /// x0-x30.
    pub(crate) x: [u64; 31],
    /// The next instruction: `ELR_EL2`.
    pub(crate) pc: u64,
    /// `SPSR_EL2`.
    pub(crate) pstate: u64,
    /// `PMCCNTR_EL0` at the last exit. Only written in builds with the feature `measure`.
    pub(crate) entered: u64,
    /// `PMCCNTR_EL0` at the last return to the guest. Likewise.
    pub(crate) left: u64,
}
