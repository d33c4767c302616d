//! One of EL1's generic timers, as values: its control and its compare value (Arm ARM, D12.2; CNTP_CTL_EL0, CNTP_CVAL_EL0,
//! CNTP_TVAL_EL0 and their virtual counterparts).
//!
//! The timer's output is a level: high for as long as the timer is enabled and not masked and its counter has reached the
//! compare value. Nothing latches it. The counter is the caller's: for the virtual timer it runs behind the
//! physical one by the VM's offset.

#[cfg(test)]
mod tests;

use crate::idreg::Encoding;

/// `CNTx_CTL_EL0.ENABLE`.
const ENABLE: u64 = 1 << 0;
/// `CNTx_CTL_EL0.IMASK`.
const IMASK: u64 = 1 << 1;
/// `CNTx_CTL_EL0.ISTATUS`: the condition is met. Read-only.
const ISTATUS: u64 = 1 << 2;

/// A register of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// `CNTx_TVAL_EL0`: how far the compare value is ahead of the counter, 32 bits, signed.
    Value,
    /// `CNTx_CTL_EL0`.
    Control,
    /// `CNTx_CVAL_EL0`.
    Compare,
}

impl Register {
    /// Which register of the physical timer an MSR or MRS names; `None` if it is another's.
    #[must_use]
    pub const fn of_physical(register: Encoding) -> Option<Self> {
        match register {
            (3, 3, 14, 2, 0) => Some(Self::Value),
            (3, 3, 14, 2, 1) => Some(Self::Control),
            (3, 3, 14, 2, 2) => Some(Self::Compare),
            _ => None,
        }
    }
}

/// A timer. After reset it is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timer {
    control: u64,
    compare: u64,
}

impl Timer {
    /// One whose registers read as these values.
    #[must_use]
    pub const fn from_registers(control: u64, compare: u64) -> Self {
        Self { control: control & (ENABLE | IMASK), compare }
    }

    /// What its control register is to be written with: ENABLE and IMASK.
    #[must_use]
    pub const fn control(&self) -> u64 {
        self.control
    }

    /// Its compare value, in ticks.
    #[must_use]
    pub const fn compare(&self) -> u64 {
        self.compare
    }

    /// What a read gives when the timer's counter is at `now`. ISTATUS of a timer that is not enabled, which is
    /// UNKNOWN, reads as 0.
    #[must_use]
    pub const fn read(&self, register: Register, now: u64) -> u64 {
        match register {
            Register::Value => self.compare.wrapping_sub(now) & 0xffff_ffff,
            Register::Compare => self.compare,
            Register::Control if self.is_met(now) => self.control | ISTATUS,
            Register::Control => self.control,
        }
    }

    /// A write when the timer's counter is at `now`.
    pub const fn write(&mut self, register: Register, value: u64, now: u64) {
        match register {
            Register::Value => self.compare = now.wrapping_add(sign_extended(value)),
            Register::Compare => self.compare = value,
            Register::Control => self.control = value & (ENABLE | IMASK),
        }
    }

    /// The level of its output when its counter is at `now`.
    #[must_use]
    pub const fn output(&self, now: u64) -> bool {
        self.control & IMASK == 0 && self.is_met(now)
    }

    /// What its counter reads when the output becomes high, or became so; `None` for a timer that is off or masked.
    #[must_use]
    pub const fn due(&self) -> Option<u64> {
        if self.control == ENABLE { Some(self.compare) } else { None }
    }

    const fn is_met(&self, now: u64) -> bool {
        self.control & ENABLE != 0 && now >= self.compare
    }
}

/// The lower 32 bits as a signed number, in two's complement.
const fn sign_extended(value: u64) -> u64 {
    let low = value & 0xffff_ffff;
    if low & 1 << 31 == 0 { low } else { low | !0xffff_ffff }
}
