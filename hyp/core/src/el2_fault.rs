//! Aborts that EL2 takes itself: which of them are an access to a VM's memory through EL2's window, where nothing is mapped.
//!
//! A slot of the window is Empty, a page that is read and written, or on its way between the two, so a Translation fault is all
//! that may come of a touch. Everything else is a mistake of the hypervisor's or the machine's.

/// `ESR_EL2.EC` of a data abort taken without a change of the Exception level.
const DATA_ABORT: u64 = 0x25;
/// `ESR_EL2.ISS`, data aborts: WnR.
const WRITE: u64 = 1 << 6;
/// `ESR_EL2.ISS`, data aborts: DFSC, but for the level, which is 0 to 3.
const STATUS: u64 = 0b11_1100;
/// Of that: a Translation fault.
const TRANSLATION: u64 = 0b00_0100;
/// `ESR_EL2.ISS`, data aborts: CM, an instruction that maintains a cache or translates an address.
const MAINTENANCE: u64 = 1 << 8;

/// An access of EL2 to a VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Which byte, as the VM counts.
    pub ipa: u64,
    /// It was a write.
    pub is_write: bool,
}

/// What EL2 has touched, by its syndrome and FAR_EL2, if that is in its window: `bytes` bytes from the address `base` on.
/// `None` for all that is no load or store there, or no Translation fault.
#[must_use]
pub const fn touched(esr: u64, far: u64, base: u64, bytes: u64) -> Option<Touch> {
    let class = esr >> 26 & 0x3f;
    let is_missing = esr & STATUS == TRANSLATION && esr & MAINTENANCE == 0;
    match far.checked_sub(base) {
        Some(ipa) if class == DATA_ABORT && is_missing && ipa < bytes => {
            Some(Touch { ipa, is_write: esr & WRITE != 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 1 << 47;
    const BYTES: u64 = 1 << 39;

    fn esr(class: u64, iss: u64) -> u64 {
        class << 26 | 1 << 25 | iss
    }

    fn at(far: u64, esr: u64) -> Option<Touch> {
        touched(esr, far, BASE, BYTES)
    }

    #[test]
    fn loads_and_stores_are_told_by_the_address_in_the_vm() {
        for level in 0..4 {
            let read = at(BASE + 0x4000_1238, esr(0x25, 0b00_0100 | level));
            assert_eq!(read, Some(Touch { ipa: 0x4000_1238, is_write: false }));
            let write = at(BASE + 0x4000_1238, esr(0x25, 1 << 6 | 0b00_0100 | level));
            assert_eq!(write, Some(Touch { ipa: 0x4000_1238, is_write: true }));
        }
    }

    #[test]
    fn the_window_ends_where_it_ends() {
        let translation = esr(0x25, 0b00_0111);
        assert_eq!(at(BASE, translation).map(|it| it.ipa), Some(0));
        assert_eq!(at(BASE + BYTES - 1, translation).map(|it| it.ipa), Some(BYTES - 1));
        for outside in [0, BASE - 1, BASE + BYTES, u64::MAX] {
            assert_eq!(at(outside, translation), None, "{outside:#x}");
        }
    }

    /// Every class and every status: only the four Translation faults of EL2's own data aborts.
    #[test]
    fn nothing_else_is_a_touch() {
        for class in 0..0x40 {
            for status in 0..0x40 {
                let expected = class == 0x25 && (0b00_0100..=0b00_0111).contains(&status);
                assert_eq!(
                    at(BASE, esr(class, status)).is_some(),
                    expected,
                    "{class:#x} {status:#x}"
                );
            }
        }
        assert_eq!(
            at(BASE, esr(0x25, 1 << 8 | 1 << 6 | 0b00_0111)),
            None,
            "maintenance by address"
        );
    }
}
