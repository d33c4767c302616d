//! Tests as specifications; see the module.

mod log;
mod ring;

use alloc::string::ToString;
use core::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;

/// Data abort from the guest, EC 0x24, IL.
const DATA: u64 = 0x24 << 26 | 1 << 25;
/// Instruction abort from the guest, EC 0x20, IL.
const FETCH: u64 = 0x20 << 26 | 1 << 25;
/// Data abort in EL2, EC 0x25, IL.
const OWN: u64 = 0x25 << 26 | 1 << 25;
const ISV: u64 = 1 << 24;
const FNV: u64 = 1 << 10;
const CM: u64 = 1 << 8;
const WALK: u64 = 1 << 7;
const WRITE: u64 = 1 << 6;
/// Translation fault, level 3.
const TRANSLATION: u64 = 0x07;

/// A counter of 1 GHz: ticks are nanoseconds.
const GHZ: u64 = 1_000_000_000;

fn sighting(esr: u64) -> Sighting {
    Sighting {
        ticks: 204_818_999,
        esr,
        pc: 0x4020_3e54,
        va: 0xffff_0000_5fd0_0008,
        ipa: Some(0x5fd0_0008),
        el: 1,
        outcome: Outcome::Scratch,
    }
}

fn decoded(esr: u64) -> Violation {
    Violation::decode(&sighting(esr), 1, 0, 2, GHZ)
}

#[test]
fn a_decoded_store_has_its_size_and_register() {
    let esr = DATA | ISV | 0b10 << 22 | 7 << 16 | WRITE | TRANSLATION;
    let expected = Violation {
        time: 204_818_999,
        vm: 0,
        vcpu: 2,
        el: 1,
        pc: 0x4020_3e54,
        va: Some(0xffff_0000_5fd0_0008),
        ipa: Some(0x5fd0_0008),
        size: Some(4),
        kind: Kind::Write,
        register: Some(7),
        outcome: Outcome::Scratch,
        count: 1,
    };
    assert_eq!(decoded(esr), expected);
    let line = "0.204818 s, VM 0 vCPU 2 at EL1, PC 0x40203e54: write of 4 bytes from register 7, VA 0xffff00005fd00008, \
                IPA 0x5fd00008: scratch page";
    assert_eq!(expected.to_string(), line);
}

#[test]
fn a_byte_for_the_zero_register_reads_well() {
    let violation = Violation { count: 12, ..decoded(DATA | ISV | 31 << 16 | TRANSLATION) };
    let line = violation.to_string();
    assert!(line.contains(": read of 1 byte to the zero register, VA"), "{line}");
    assert!(line.ends_with("IPA 0x5fd00008: scratch page, 12 times"), "{line}");
}

#[test]
fn kinds_are_told_apart_and_a_walk_is_none_of_the_instructions() {
    let kind = |esr| decoded(esr).kind;
    assert_eq!(kind(DATA | TRANSLATION), Kind::Read);
    assert_eq!(kind(DATA | WRITE | TRANSLATION), Kind::Write);
    assert_eq!(kind(FETCH | TRANSLATION), Kind::Fetch);
    // Maintenance always says that it writes.
    assert_eq!(kind(DATA | CM | WRITE | TRANSLATION), Kind::CacheMaintenance);
    for walk in [DATA | WALK, DATA | WALK | WRITE, DATA | WALK | CM | WRITE, FETCH | WALK] {
        assert_eq!(kind(walk | TRANSLATION), Kind::Walk, "a walk is no access: {walk:#x}");
    }
    // For a fetch these bits say nothing.
    assert_eq!(kind(FETCH | CM | WRITE | TRANSLATION), Kind::Fetch);
    assert_eq!(kind(OWN | WRITE | TRANSLATION), Kind::Write);
    assert_eq!(kind(0x16 << 26), Kind::Other);
}

#[test]
fn lines_of_all_kinds() {
    let line = |esr| decoded(esr | TRANSLATION).to_string();
    let part =
        |text: &str| text.split(": ").nth(1).unwrap().split(", VA").next().unwrap().to_string();
    assert_eq!(part(&line(DATA)), "read (not decoded)");
    assert_eq!(part(&line(DATA | WRITE)), "write (not decoded)");
    assert_eq!(part(&line(FETCH)), "fetch");
    assert_eq!(part(&line(DATA | WALK)), "stage-1 table walk");
    assert_eq!(part(&line(DATA | CM | WRITE)), "cache maintenance");
    let own =
        Violation { el: 2, ipa: None, outcome: Outcome::Stopped, ..decoded(OWN | FNV | 0x10) };
    let line = "0.204818 s, VM 0 vCPU 2 at EL2, PC 0x40203e54: read (not decoded): VM stopped";
    assert_eq!(own.to_string(), line);
    let injected = Violation { outcome: Outcome::Injected, ..own };
    assert!(injected.to_string().ends_with(": abort injected"), "{injected}");
}

#[test]
fn an_address_that_is_not_valid_is_not_told() {
    assert_eq!(decoded(DATA | FNV | 0x10).va, None, "FAR_EL2 holds no address");
    assert_eq!(decoded(DATA | 0x10).va, Some(0xffff_0000_5fd0_0008));
    // Of an exception that is no abort FAR_EL2 says nothing.
    assert_eq!(decoded(0x16 << 26).va, None);
}

/// Every combination of class, ISV and the bits beside it.
#[test]
fn what_is_not_decoded_has_no_size_and_no_register() {
    for class in 0..64 {
        for top in 0..1 << 11 {
            for low in [0, WRITE, WALK, CM | WRITE, FNV] {
                let esr = class << 26 | top << 14 | low | TRANSLATION;
                let violation = decoded(esr);
                let decodes = matches!(class, 0x24 | 0x25) && esr & ISV != 0;
                assert_eq!(violation.size.is_some(), decodes, "a guessed size: {esr:#x}");
                assert_eq!(violation.register.is_some(), decodes, "a guessed register: {esr:#x}");
                if let (Some(size), Some(register)) = (violation.size, violation.register) {
                    assert_eq!(u64::from(size), 1 << (top >> 8 & 0b11), "{esr:#x}");
                    assert_eq!(u64::from(register), top >> 2 & 31, "{esr:#x}");
                }
            }
        }
    }
}

#[test]
fn time_is_exact_for_every_counter_and_never_overflows() {
    assert_eq!(nanoseconds(62_500_000, 62_500_000), 1_000_000_000);
    assert_eq!(nanoseconds(1, 62_500_000), 16);
    assert_eq!(nanoseconds(u64::MAX, 1), u64::MAX);
    assert_eq!(nanoseconds(u64::MAX, u64::MAX), 1_000_000_000);
    assert_eq!(nanoseconds(5, 0), 0);
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Scratch), Just(Outcome::Injected), Just(Outcome::Stopped)]
}

prop_compose! {
    fn sightings()(ticks: u64, esr: u64, pc: u64, va: u64, ipa: Option<u64>, el in 0..3_u8, outcome in outcomes()) -> Sighting {
        Sighting { ticks, esr, pc, va, ipa, el, outcome }
    }
}

proptest! {
    #[test]
    fn a_sighting_comes_back_from_its_words(sighting in sightings()) {
        prop_assert_eq!(Sighting::from_words(sighting.words()), sighting);
    }

    /// Time does not tell two apart, nor does the place in a page; everything else does.
    #[test]
    fn the_same_is_what_differs_in_time_and_offset_only(
        sighting in sightings(), ticks: u64, offset in 0..4096_u64, bit in 0..64_u32,
    ) {
        let before = sighting.words().map(AtomicU64::new);
        let same = |other: &Sighting| Sighting::is_same(&other.words(), &Newest::new(&before));
        let later = Sighting { ticks, va: sighting.va ^ offset, ipa: sighting.ipa.map(|ipa| ipa ^ offset), ..sighting };
        prop_assert!(same(&later), "the same page is the same violation");
        let flip = 1_u64 << bit;
        let esr = Sighting { esr: sighting.esr ^ flip, ..sighting };
        prop_assert!(!same(&esr));
        let pc = Sighting { pc: sighting.pc ^ flip, ..sighting };
        prop_assert!(!same(&pc));
        let va = Sighting { va: sighting.va ^ flip, ..sighting };
        prop_assert_eq!(same(&va), bit < 12);
        if let Some(ipa) = sighting.ipa {
            let (other, none) = (Sighting { ipa: Some(ipa ^ flip), ..sighting }, Sighting { ipa: None, ..sighting });
            prop_assert_eq!(same(&other), bit < 12);
            prop_assert!(!same(&none));
        }
        let level = Sighting { el: (sighting.el + 1) % 3, ..sighting };
        prop_assert!(!same(&level));
        let outcome = if sighting.outcome == Outcome::Scratch { Outcome::Injected } else { Outcome::Scratch };
        let answer = Sighting { outcome, ..sighting };
        prop_assert!(!same(&answer));
    }

    /// What a ring counts as one, the log counts as one.
    #[test]
    fn the_same_for_a_ring_is_the_same_for_the_log(one in sightings(), ticks: u64, offset in 0..4096_u64) {
        let two = Sighting { ticks, va: one.va ^ offset, ipa: one.ipa.map(|ipa| ipa ^ offset), ..one };
        let decode = |sighting| Violation::decode(sighting, 1, 0, 0, GHZ);
        prop_assert!(decode(&two).is_again(&decode(&one)));
    }

    #[test]
    fn a_violation_survives_json(sighting in sightings(), count: u64) {
        let violation = Violation::decode(&sighting, count, 1, 3, GHZ);
        let json = serde_json::to_string(&violation).unwrap();
        prop_assert_eq!(serde_json::from_str::<Violation>(&json).unwrap(), violation, "{}", json);
        prop_assert!(!violation.to_string().contains('\n'));
    }
}
