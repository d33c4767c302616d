//! Tests as specifications; see the module.

use proptest::prelude::*;

use super::*;

fn register(crm: u8, op2: u8) -> Encoding {
    (3, 0, 0, crm, op2)
}

fn nibble(value: u64, lsb: u32) -> u8 {
    ((value >> lsb) & 0xf) as u8
}

fn is_signed(crm: u8, op2: u8, lsb: u32) -> bool {
    fields(crm, op2).iter().any(|&(at, rule)| at == lsb && matches!(rule, Signed(_)))
}

/// A processor with everything in ID_AA64PFR0_EL1.
const FULL_PFR0: u64 = 0x1301_1121_3311_1112;

#[test]
fn what_el2_does_not_enable_is_hidden() {
    let pfr0 = sanitise(register(4, 0), FULL_PFR0, 40).unwrap();
    assert_eq!(nibble(pfr0, 0), 1, "EL0 without AArch32");
    assert_eq!(nibble(pfr0, 4), 1, "EL1 without AArch32");
    assert_eq!(nibble(pfr0, 24), 1, "GIC: the virtual CPU interface, not GICv4.1's");
    for (lsb, name) in
        [(8, "EL2"), (12, "EL3"), (28, "RAS"), (32, "SVE"), (40, "MPAM"), (44, "AMU")]
    {
        assert_eq!(nibble(pfr0, lsb), 0, "{name}");
    }
    let all = u64::MAX >> 1;
    assert_eq!(nibble(sanitise(register(4, 1), all, 40).unwrap(), 8), 0, "MTE");
    assert_eq!(nibble(sanitise(register(4, 1), all, 40).unwrap(), 24), 0, "SME");
    assert_eq!(nibble(sanitise(register(5, 0), all, 40).unwrap(), 8), 0, "PMUVer");
    assert_eq!(nibble(sanitise(register(5, 0), all, 40).unwrap(), 32), 0, "PMSVer");
    assert_eq!(nibble(sanitise(register(5, 0), all, 40).unwrap(), 44), 0, "TraceBuffer");
    assert_eq!(nibble(sanitise(register(5, 0), all, 40).unwrap(), 44), 0, "TraceBuffer");
    assert_eq!(nibble(sanitise(register(6, 2), all, 40).unwrap(), 16), 0, "MOPS");
    assert_eq!(nibble(sanitise(register(7, 2), all, 40).unwrap(), 24), 0, "NV");
}

#[test]
fn atomics_and_pointer_authentication_stay() {
    assert_eq!(nibble(sanitise(register(6, 0), 2 << 20, 40).unwrap(), 20), 2);
    assert_eq!(nibble(sanitise(register(6, 1), 5 << 4, 40).unwrap(), 4), 5);
}

#[test]
fn absent_fp_stays_absent() {
    let raw = 0x00ff_0011;
    assert_eq!(sanitise(register(4, 0), raw, 40), Some(raw));
}

#[test]
fn physical_addresses_end_where_the_guest_ends() {
    for (bits, shown) in [(30, 0), (32, 0), (36, 1), (39, 1), (40, 2), (44, 4), (48, 5), (52, 5)] {
        assert_eq!(nibble(sanitise(register(7, 0), 6, bits).unwrap(), 0), shown, "{bits} bits");
    }
    assert_eq!(nibble(sanitise(register(7, 0), 1, 48).unwrap(), 0), 1, "never above the hardware");
}

#[test]
fn aarch32_and_reserved_registers_are_zero() {
    for crm in 1..=7 {
        for op2 in 0..=7 {
            let shown = sanitise(register(crm, op2), u64::MAX, 48).unwrap();
            if !needs_raw(register(crm, op2)) {
                assert_eq!(shown, 0, "CRm={crm} op2={op2}");
            }
            assert!(crm > 3 || shown == 0, "AArch32: CRm={crm} op2={op2}");
        }
    }
}

#[test]
fn other_registers_are_not_answered_for() {
    for other in
        [(3, 0, 0, 0, 0), (3, 0, 0, 8, 0), (3, 0, 1, 4, 0), (2, 0, 0, 4, 0), (3, 3, 0, 4, 0)]
    {
        assert_eq!(sanitise(other, u64::MAX, 48), None);
    }
}

proptest! {
    #[test]
    fn no_field_is_above_the_hardware(crm in 1..=7_u8, op2 in 0..=7_u8, raw: u64, bits in 0..=64_u32) {
        let shown = sanitise(register(crm, op2), raw, bits).unwrap();
        for lsb in (0..64).step_by(4) {
            let (have, got) = (nibble(raw, lsb), nibble(shown, lsb));
            if is_signed(crm, op2, lsb) {
                let sign = |field: u8| (field << 4) as i8 >> 4;
                prop_assert!(sign(got) <= sign(have), "bit {lsb}: {got:#x} of {have:#x}");
            } else {
                prop_assert!(got <= have, "bit {lsb}: {got:#x} of {have:#x}");
            }
        }
    }

    #[test]
    fn hiding_twice_hides_no_more(crm in 1..=7_u8, op2 in 0..=7_u8, raw: u64, bits in 32..=52_u32) {
        let once = sanitise(register(crm, op2), raw, bits).unwrap();
        prop_assert_eq!(sanitise(register(crm, op2), once, bits), Some(once));
    }
}
