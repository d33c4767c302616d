//! What a person reads when a VM was stopped.

use std::string::ToString;

use proptest::prelude::*;

use super::*;

fn regions() -> [(&'static str, IpaRange); 3] {
    [
        ("flash", IpaRange { start: 0, end: 0x800_0000 }),
        ("UART", IpaRange { start: 0x900_0000, end: 0x900_1000 }),
        ("RAM", IpaRange { start: 0x4000_0000, end: 0x4400_0000 }),
    ]
}

#[test]
fn a_wild_write_is_told_in_full() {
    let (va, ipa) = (0xffff_0000_dead_0000, 0x4400_0008);
    let diagnosis = Diagnosis::new(0, 2, 0x4020_1234, 0x9381_0047)
        .with_va(va)
        .with_ipa(ipa)
        .with_region(locate(ipa, &regions()));
    let expected = "\
VM 0 stopped
  vCPU    2
  PC      0x0000000040201234
  ESR     0x93810047: data abort from the guest: write of 4 bytes from w1, translation fault, level 3
  VA      0xffff0000dead0000
  IPA     0x0000000044000008
  region  none; nearest is RAM (0x40000000-0x43ffffff), which ended 0x8 bytes before
  hint    nothing is mapped here: check the guest's memory size and device addresses against its device tree";
    assert_eq!(diagnosis.to_string(), expected);
}

#[test]
fn regions_are_found_or_the_nearest_is_named() {
    assert_eq!(locate(0x900_0ffc, &regions()), "UART (0x9000000-0x9000fff)");
    assert_eq!(
        locate(0x8ff_ffff, &regions()),
        "none; nearest is UART (0x9000000-0x9000fff), 0x1 bytes further up"
    );
    assert_eq!(
        locate(0x900_1000, &regions()),
        "none; nearest is UART (0x9000000-0x9000fff), which ended 0x0 bytes before"
    );
    assert_eq!(locate(0, &[]), "none");
}

#[test]
fn an_address_that_hardware_does_not_vouch_for_is_left_out() {
    let diagnosis = Diagnosis::new(0, 0, 0, 0x9200_0410).with_va(0x1234);
    assert_eq!(diagnosis.va, None, "FnV");
}

#[test]
fn hints_fit_the_cause() {
    let hint = |esr| Diagnosis::new(0, 0, 0, esr).hint;
    assert!(hint(0x8200_0006).contains("jumped"), "instruction abort");
    assert!(hint(0x9200_0086).contains("translation tables"), "stage-1 walk");
    assert!(hint(0x6230_0001).contains("ID registers"), "system register");
    assert!(hint(0x0200_0000).contains("instruction"), "undefined");
    let own = Diagnosis::new(0, 0, 0, 0).with_hint("all vCPUs are off");
    assert_eq!(own.hint, "all vCPUs are off");
}

proptest! {
    #[test]
    fn every_exit_has_a_diagnosis(vm: u32, vcpu: u32, pc: u64, esr: u64, va: u64, ipa: u64) {
        let diagnosis = Diagnosis::new(vm, vcpu, pc, esr)
            .with_va(va)
            .with_ipa(ipa)
            .with_region(locate(ipa, &regions()));
        prop_assert!(diagnosis.to_string().lines().count() >= 6);
        prop_assert!(!diagnosis.hint.is_empty());
    }
}
