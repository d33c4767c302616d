//! ID registers: what a field promises must work, or the field does not promise it.

use hyp_core::idreg::{is_id_register, needs_raw, sanitise};

/// Fields that no guest is ever shown, whatever the hardware has: (CRm, op2, lowest bit, what it would promise).
const HIDDEN: [(u8, u8, u32, &str); 24] = [
    (4, 0, 8, "EL2"),
    (4, 0, 12, "EL3"),
    (4, 0, 28, "RAS"),
    (4, 0, 32, "SVE"),
    (4, 0, 36, "Secure EL2"),
    (4, 0, 40, "MPAM"),
    (4, 0, 44, "AMU"),
    (4, 0, 52, "RME"),
    (4, 1, 8, "MTE"),
    (4, 1, 24, "SME"),
    (4, 1, 36, "NMI"),
    (4, 1, 44, "GCS"),
    (5, 0, 4, "trace"),
    (5, 0, 8, "PMU"),
    (5, 0, 32, "SPE"),
    (5, 0, 44, "TRBE"),
    (5, 0, 52, "BRBE"),
    (6, 1, 60, "LS64"),
    (6, 2, 0, "WFxT"),
    (6, 2, 16, "MOPS"),
    (7, 1, 4, "VMIDBits"),
    (7, 1, 8, "VHE"),
    (7, 2, 8, "LSM"),
    (7, 2, 24, "nested virtualisation"),
];

/// 4-bit fields whose value 8 to 15 means "absent": FP, AdvSIMD, DoubleLock, TGran64, TGran4.
const SIGNED: [(u8, u8, u32); 5] = [(4, 0, 16), (4, 0, 20), (5, 0, 36), (7, 0, 24), (7, 0, 28)];

pub(super) fn check(encoding: u16, in_id_space: bool, raw: u64, ipa_bits: u32) {
    let field = |low: u32, bits: u32| (u32::from(encoding) >> low & ((1 << bits) - 1)) as u8;
    let (crm, op2) = (field(3, 4), field(0, 3));
    let register = match in_id_space {
        true => (3, 0, 0, 1 + crm % 7, op2),
        false => (field(14, 2), field(11, 3), field(7, 4), crm, op2),
    };
    let shown = sanitise(register, raw, ipa_bits);
    let (op0, op1, crn, crm, op2) = register;
    let inside = (op0, op1, crn) == (3, 0, 0) && (1..=7).contains(&crm);
    assert_eq!(is_id_register(register), inside);
    assert_eq!(shown.is_some(), inside);
    let Some(shown) = shown else {
        assert!(!needs_raw(register));
        return;
    };
    if !needs_raw(register) {
        assert_eq!(shown, 0);
    }
    if crm <= 3 {
        assert_eq!(shown, 0, "AArch32 does not exist");
    }
    for low in (0..64).step_by(4) {
        let (have, show) = (raw >> low & 0xf, shown >> low & 0xf);
        let signed = SIGNED.contains(&(crm, op2, low));
        if signed && have >= 8 {
            assert_eq!(show, have, "what hardware lacks is said to be lacking: bit {low}");
        } else {
            assert!(show <= have, "bit {low} of {register:?}: {show:#x} of {have:#x}");
        }
        if let Some((.., what)) = HIDDEN.iter().find(|(m, o, l, _)| (*m, *o, *l) == (crm, op2, low))
        {
            assert_eq!(show, 0, "{what} must not be promised");
        }
    }
    if (crm, op2) == (4, 0) {
        assert!(shown >> 24 & 0xf <= 1, "the GIC's system registers are those of GICv3");
    }
    // The size of physical addresses, never above the VM's or LPA2's.
    if (crm, op2) == (7, 0) {
        let bits = [32, 36, 40, 42, 44, 48][(shown & 0xf).min(5) as usize];
        assert!(shown & 0xf <= 5 && (bits <= ipa_bits || shown & 0xf == 0));
    }
    assert_eq!(sanitise(register, shown, ipa_bits), Some(shown), "nothing is left to hide");
}
