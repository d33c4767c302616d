//! Decoding, checked against the field tables of the Arm ARM (D24.2, ESR_EL2).

use std::string::ToString;

use proptest::prelude::*;

use super::*;

/// A data abort from the guest with this ISS; IL set.
fn data_abort(iss: u64) -> Syndrome {
    Syndrome(0x24 << 26 | 1 << 25 | iss)
}

#[test]
fn a_decoded_store_reads_as_a_sentence() {
    // ISV, SAS=2, SRT=1, WnR, translation fault level 3.
    let syndrome = data_abort(1 << 24 | 2 << 22 | 1 << 16 | 1 << 6 | 0x07);
    assert_eq!(
        syndrome.to_string(),
        "0x93810047: data abort from the guest: write of 4 bytes from w1, translation fault, level 3"
    );
}

#[test]
fn every_field_of_a_decoded_load_is_told() {
    let syndrome = data_abort(1 << 24 | 1 << 21 | 31 << 16 | 1 << 15 | 1 << 14 | 0x06);
    let access = syndrome.abort().unwrap().access().unwrap();
    let expected = LoadStore {
        size: 1,
        sign_extend: true,
        register: 31,
        is_64_bit: true,
        acquire_release: true,
        is_write: false,
    };
    assert_eq!(access, expected);
    assert_eq!(access.to_string(), "read of 1 byte to xzr, sign-extended, acquire/release");
}

#[test]
fn an_access_that_hardware_did_not_decode_is_not_guessed() {
    let abort = data_abort(0x00ff_c047).abort().unwrap();
    assert_eq!(abort.access(), None);
    assert!(abort.is_write());
    assert_eq!(abort.to_string(), "write (not decoded, ISV=0), translation fault, level 3");
}

#[test]
fn an_instruction_abort_is_never_a_write() {
    let abort = Syndrome(0x20 << 26 | 1 << 24 | 1 << 8 | 1 << 6 | 0x0f).abort().unwrap();
    assert!(abort.is_instruction());
    assert!(!abort.is_write() && !abort.is_cache_maintenance());
    assert_eq!(abort.access(), None);
    assert_eq!(abort.to_string(), "fetch, permission fault, level 3");
}

#[test]
fn walks_maintenance_and_invalid_addresses_are_named() {
    let walk = data_abort(1 << 7 | 0x05).to_string();
    assert!(walk.ends_with("on a stage-1 table walk (S1PTW)"), "{walk}");
    let maintenance = data_abort(1 << 8 | 1 << 6 | 0x05).to_string();
    assert!(maintenance.contains("cache maintenance"), "{maintenance}");
    let external = data_abort(1 << 10 | 0x10).to_string();
    assert!(external.ends_with("synchronous external abort, FAR not valid (FnV)"), "{external}");
}

#[test]
fn fault_levels_follow_the_table() {
    let table = [
        (0x00, Status::AddressSize(0)),
        (0x04, Status::Translation(0)),
        (0x07, Status::Translation(3)),
        (0x0b, Status::AccessFlag(3)),
        (0x0c, Status::Permission(0)),
        (0x0f, Status::Permission(3)),
        (0x10, Status::External),
        (0x12, Status::ExternalOnWalk(-2)),
        (0x13, Status::ExternalOnWalk(-1)),
        (0x14, Status::ExternalOnWalk(0)),
        (0x1f, Status::ParityOnWalk(3)),
        (0x21, Status::Alignment),
        (0x24, Status::GranuleProtectionOnWalk(0)),
        (0x28, Status::GranuleProtection),
        (0x29, Status::AddressSize(-1)),
        (0x2a, Status::Translation(-2)),
        (0x2b, Status::Translation(-1)),
        (0x30, Status::TlbConflict),
        (0x31, Status::UnsupportedAtomicUpdate),
        (0x35, Status::UnsupportedExclusive),
        (0x3f, Status::Other(0x3f)),
    ];
    for (code, status) in table {
        assert_eq!(Status::new(code), status, "{code:#x}");
    }
}

#[test]
fn a_trapped_register_is_named_in_numbers() {
    // MRS x3, ID_AA64MMFR0_EL1 = S3_0_C0_C7_0.
    let syndrome = Syndrome(0x18 << 26 | 1 << 25 | 3 << 20 | 3 << 5 | 7 << 1 | 1);
    let register = syndrome.system_register().unwrap();
    assert_eq!(register.encoding(), (3, 0, 0, 7, 0));
    assert_eq!((register.register(), register.is_read()), (3, true));
    assert_eq!(register.to_string(), "read of S3_0_C0_C7_0");
    // MSR OSLAR_EL1, x31 = S2_0_C1_C0_4.
    let syndrome = Syndrome(0x18 << 26 | 1 << 25 | 2 << 20 | 4 << 17 | 1 << 10 | 31 << 5);
    let register = syndrome.system_register().unwrap();
    assert_eq!(register.encoding(), (2, 0, 1, 0, 4));
    assert_eq!(register.to_string(), "write of S2_0_C1_C0_4");
}

#[test]
fn reads_in_the_id_register_space_have_a_number_and_nothing_else_has() {
    // Every register, read and written, into x0 and from xzr.
    for iss in (0..1_u64 << 22).filter(|iss| matches!(iss >> 5 & 31, 0 | 31)) {
        let register = Syndrome(0x18 << 26 | 1 << 25 | iss).system_register().unwrap();
        let (.., crm, op2) = register.encoding();
        let there = register.is_read() && crate::idreg::is_id_register(register.encoding());
        let number = usize::from(crm) * 8 + usize::from(op2);
        assert_eq!(register.id_register(), there.then_some(number), "{register}");
    }
}

#[test]
fn calls_show_their_immediate() {
    assert_eq!(Syndrome(0x5a00_0012).to_string(), "0x5a000012: HVC #0x12");
    assert_eq!(
        Syndrome(0).to_string(),
        "0x00000000: unknown reason (most often an undefined instruction)"
    );
}

#[test]
fn loads_extend_as_the_instruction_says() {
    let load = |size, sign_extend, is_64_bit| LoadStore {
        size,
        sign_extend,
        register: 0,
        is_64_bit,
        acquire_release: false,
        is_write: false,
    };
    assert_eq!(load(1, false, false).extend(0xfff0), 0xf0, "LDRB");
    assert_eq!(load(1, true, false).extend(0x80), 0xffff_ff80, "LDRSB Wt");
    assert_eq!(load(2, true, true).extend(0x8000), 0xffff_ffff_ffff_8000, "LDRSH Xt");
    assert_eq!(load(4, true, true).extend(0x8000_0000), 0xffff_ffff_8000_0000, "LDRSW");
    assert_eq!(load(8, false, true).extend(u64::MAX), u64::MAX, "LDR Xt");
}

proptest! {
    #[test]
    fn every_value_has_words(esr: u64) {
        prop_assert!(!Syndrome(esr).to_string().is_empty());
    }

    #[test]
    fn a_store_gives_the_device_its_low_bytes_only(esr: u64, value: u64) {
        if let Some(access) = Syndrome(esr).abort().and_then(Abort::access) {
            prop_assert!([1, 2, 4, 8].contains(&access.size));
            let bytes = value.to_le_bytes();
            let (low, _) = bytes.split_at(usize::from(access.size));
            let mut expected = [0; 8];
            expected[..low.len()].copy_from_slice(low);
            prop_assert_eq!(access.truncate(value), u64::from_le_bytes(expected));
        }
    }
}
