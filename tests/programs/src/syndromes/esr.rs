//! ESR_EL2 against its tables.

use hyp_core::IpaRange;
use hyp_core::config::Nonce;
use hyp_core::diagnosis::{Diagnosis, locate};
use hyp_core::report::{Outcome, Report};
use hyp_core::syndrome::{Class, LoadStore, Status, Syndrome};

/// Fault status codes, DFSC as in the table of D24.2. What is not listed is reserved; so are the two of
/// data aborts only, for a fetch, but they decode alike.
const STATUS: [Option<Status>; 64] = {
    use Status::*;
    let mut table = [None; 64];
    let mut level = 0;
    while level < 4 {
        table[level] = Some(AddressSize(level as i8));
        table[0b000100 + level] = Some(Translation(level as i8));
        table[0b001000 + level] = Some(AccessFlag(level as i8));
        table[0b001100 + level] = Some(Permission(level as i8));
        table[0b010100 + level] = Some(ExternalOnWalk(level as i8));
        table[0b011100 + level] = Some(ParityOnWalk(level as i8));
        table[0b100100 + level] = Some(GranuleProtectionOnWalk(level as i8));
        level += 1;
    }
    table[0b010000] = Some(External);
    table[0b010001] = Some(TagCheck);
    table[0b010010] = Some(ExternalOnWalk(-2));
    table[0b010011] = Some(ExternalOnWalk(-1));
    table[0b011000] = Some(Parity);
    table[0b011011] = Some(ParityOnWalk(-1));
    table[0b100001] = Some(Alignment);
    table[0b100010] = Some(GranuleProtectionOnWalk(-2));
    table[0b100011] = Some(GranuleProtectionOnWalk(-1));
    table[0b101000] = Some(GranuleProtection);
    table[0b101001] = Some(AddressSize(-1));
    table[0b101010] = Some(Translation(-2));
    table[0b101011] = Some(Translation(-1));
    table[0b101100] = Some(AddressSize(-2));
    table[0b110000] = Some(TlbConflict);
    table[0b110001] = Some(UnsupportedAtomicUpdate);
    table[0b110100] = Some(Lockdown);
    table[0b110101] = Some(UnsupportedExclusive);
    table
};

/// Exception classes that an abort has: (EC, instruction fetch).
const ABORTS: [(u64, bool); 4] = [(0x20, true), (0x21, true), (0x24, false), (0x25, false)];

/// The load or store that a data abort from the guest with this ISS describes, checked.
pub(super) fn decoded(iss: u32) -> Option<LoadStore> {
    let esr = 0x24 << 26 | 1 << 25 | u64::from(iss & 0x1ff_ffff);
    check(esr, 0, 0, 0);
    Syndrome(esr).abort().and_then(|abort| abort.access())
}

/// Everything that holds of any values of the four registers.
pub(super) fn check(esr: u64, far: u64, ipa: u64, pc: u64) {
    let syndrome = Syndrome(esr);
    let bits = |high: u32, low: u32| esr << (63 - high) >> (63 - high + low);
    let bit = |n: u32| bits(n, n) == 1;
    let ec = bits(31, 26);
    assert_eq!(u64::from(syndrome.iss()), bits(24, 0));
    assert_eq!(syndrome.is_32_bit(), bit(25), "IL");
    assert_eq!(u64::from(syndrome.immediate()), bits(15, 0));
    if let Class::Other(number) = syndrome.class() {
        assert_eq!(u64::from(number), ec);
    }
    let text = syndrome.to_string();
    assert!(!text.contains('\n') && text.starts_with(&format!("{esr:#010x}: ")), "{text}");

    let fetch = ABORTS.into_iter().find(|(number, _)| *number == ec).map(|(_, fetch)| fetch);
    assert_eq!(syndrome.abort().map(|abort| abort.is_instruction()), fetch);
    assert_eq!(syndrome.system_register().is_some(), ec == 0x18);
    if let Some(register) = syndrome.system_register() {
        let (op0, op1, crn, crm, op2) = register.encoding();
        let fields = [(op0, 21, 20), (op2, 19, 17), (op1, 16, 14), (crn, 13, 10), (crm, 4, 1)];
        for (value, high, low) in fields {
            assert_eq!(u64::from(value), bits(high, low), "{register}");
        }
        assert_eq!(u64::from(register.register()), bits(9, 5));
        assert_eq!(register.is_read(), bit(0));
        let id = (op0, op1, crn) == (3, 0, 0) && matches!(crm, 1..=7) && bit(0);
        assert_eq!(register.id_register().is_some(), id, "{register}");
    }
    if let (Some(abort), Some(fetch)) = (syndrome.abort(), fetch) {
        let status = STATUS[bits(5, 0) as usize];
        assert_eq!(abort.status(), status.unwrap_or(Status::Other(bits(5, 0) as u8)));
        assert_eq!(abort.is_stage1_walk(), bit(7), "S1PTW");
        assert_eq!(abort.far_not_valid(), bit(10), "FnV");
        assert_eq!(abort.is_cache_maintenance(), !fetch && bit(8), "CM");
        assert_eq!(abort.is_write(), !fetch && bit(6), "WnR");
        // An access exists only where hardware gives one: ISV, and never for a fetch; LST tells of 64 bytes.
        let translated = matches!(
            status,
            Some(Status::Translation(_) | Status::AccessFlag(_) | Status::Permission(_))
        );
        let large = translated && bits(12, 11) != 0;
        let expected = (!fetch && bit(24) && !large).then(|| LoadStore {
            size: [1, 2, 4, 8][bits(23, 22) as usize],
            sign_extend: bit(21),
            register: bits(20, 16) as u8,
            is_64_bit: bit(15),
            acquire_release: bit(14),
            is_write: bit(6),
        });
        assert_eq!(abort.access(), expected);
    }
    diagnosis(esr, far, ipa, pc, fetch.is_some() && bit(10));
}

/// The diagnosis that a stopped VM would get says what the registers say, and survives the report.
fn diagnosis(esr: u64, far: u64, ipa: u64, pc: u64, far_not_valid: bool) {
    let regions = [
        ("flash", IpaRange { start: 0, end: 0x800_0000 }),
        ("nothing", IpaRange { start: 0x900_0000, end: 0x900_0000 }),
        ("ram", IpaRange { start: 0x4000_0000, end: 0x8000_0000 }),
        ("top", IpaRange { start: u64::MAX - 0xfff, end: u64::MAX }),
    ];
    let place = locate(ipa, &regions);
    let inside = regions.iter().find(|(_, range)| range.start <= ipa && ipa < range.end);
    match inside {
        Some((name, range)) => assert_eq!(place, format!("{name} ({range})")),
        None => assert!(place.starts_with("none; nearest is "), "{place}"),
    }
    assert_eq!(locate(ipa, &[]), "none");

    let diagnosis = Diagnosis::new(0, 0, pc, esr).with_va(far).with_ipa(ipa).with_region(place);
    assert_eq!(diagnosis.va, (!far_not_valid).then_some(far), "FAR is shown only when it is valid");
    assert_eq!((diagnosis.pc, diagnosis.esr, diagnosis.ipa), (pc, esr, Some(ipa)));
    assert!(!diagnosis.hint.is_empty() && !diagnosis.hint.contains('\n'));
    let lines = diagnosis.to_string().lines().count();
    assert_eq!(lines, if far_not_valid { 7 } else { 8 }, "{diagnosis}");

    let mut report = Report::new(Outcome::Stopped);
    report.diagnosis = Some(diagnosis);
    let nonce = Nonce::new("0123456789abcdef").expect("16 digits");
    let line = report.to_line(&nonce).expect("a report can be written");
    assert!(!line.contains('\n'));
    let read = Report::from_line(&line, &nonce).and_then(Result::ok);
    assert_eq!(read.as_ref(), Some(&report), "the report comes back as it went");
}
