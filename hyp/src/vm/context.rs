//! The registers of a vCPU that an exit moves to memory. The layout is known to `exception/vectors.rs`.

/// `SPSR_EL2.BTYPE`: the kind of branch that led here; an emulated instruction is none.
const BTYPE: u64 = 0b11 << 10;
/// `SPSR_EL2.SS`: single step, pending.
const SINGLE_STEP: u64 = 1 << 21;

/// General registers, program counter, processor state.
#[derive(Clone, Debug)]
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

impl Context {
    /// All zero: not a state to enter a guest with.
    pub(crate) const fn new() -> Self {
        Self { x: [0; 31], pc: 0, pstate: 0, entered: 0, left: 0 }
    }

    /// A general register; 31 is the zero register.
    pub(crate) fn x(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Writes a general register; 31 is the zero register.
    pub(crate) fn set_x(&mut self, number: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    /// The Exception level that it runs at, 0 or 1: `SPSR_EL2.M`, bits 3:2.
    #[inline]
    pub(crate) const fn exception_level(&self) -> u8 {
        (self.pstate >> 2 & 0b11) as u8
    }

    /// Steps over the instruction that was emulated.
    pub(crate) fn advance(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.pstate &= !(BTYPE | SINGLE_STEP);
    }
}
