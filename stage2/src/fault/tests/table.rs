//! The tables of the module's documentation and the Arm ARM's, written out once more over the bits of ESR_EL2.

use super::*;

/// The fields of a syndrome, by their bits.
#[derive(Clone, Copy, Debug)]
struct Fields {
    fetch: bool,
    walk: bool,
    maintenance: bool,
    write: bool,
    /// ISV, and LST says a general register.
    decoded: bool,
    status: u64,
    el0: bool,
}

fn fields(esr: u64, el0: bool) -> Fields {
    let bit = |n: u32| esr >> n & 1 != 0;
    let fetch = esr >> 26 == 0x20;
    let status = esr & 0x3f;
    let has_lst = matches!(status, 0b000100..=0b001111 | 0b101010 | 0b101011);
    Fields {
        fetch,
        walk: bit(7),
        maintenance: !fetch && bit(8),
        write: !fetch && bit(6),
        decoded: !fetch && bit(24) && !(has_lst && (bit(11) || bit(12))),
        status,
        el0,
    }
}

/// The rows by status, D24.2.46.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Translation,
    AccessFlag,
    Permission,
    AddressSize,
    Conflict,
    OwnMistake,
    Stop(Why),
}

fn row(of: Fields) -> Row {
    match of.status {
        0b000000..=0b000011 | 0b101001 | 0b101100 => Row::AddressSize,
        0b000100..=0b000111 | 0b101010 | 0b101011 => Row::Translation,
        0b001000..=0b001011 => Row::AccessFlag,
        0b001100..=0b001111 => Row::Permission,
        // External aborts and, without FEAT_RAS, parity errors; each alone and on a walk.
        0b010000 | 0b010010..=0b010111 => Row::Stop(Why::Memory),
        0b011000 | 0b011011..=0b011111 => Row::Stop(Why::Memory),
        0b100010..=0b101000 => Row::Stop(Why::Protected),
        0b110000 => Row::Conflict,
        0b110001 => Row::Stop(Why::HardwareUpdate),
        // Reserved for fetches.
        0b100001 | 0b110101 if !of.fetch => Row::OwnMistake,
        _ => Row::Stop(Why::Unknown),
    }
}

/// `None`: a device model performs the access that the syndrome describes.
fn expected(of: Fields, seen: Seen, place: Place) -> Option<Action> {
    use Action::{FlushVm, Ignore, Inject, Install, Relax, Retry, Stop};
    let row = row(of);
    // What stands in a slot that no address beyond the IPA size has.
    let seen = match place {
        Place::BeyondIpaSize(_) if row != Row::AccessFlag && row != Row::Permission => None,
        _ => Some(seen),
    };
    match row {
        Row::Stop(why) => return Some(Stop(why)),
        Row::Conflict => return Some(FlushVm),
        Row::OwnMistake => return Some(Inject),
        Row::AddressSize if !matches!(place, Place::BeyondIpaSize(_)) => {
            return Some(Stop(Why::Tables));
        }
        Row::AddressSize | Row::Translation | Row::AccessFlag | Row::Permission => {}
    }
    if matches!(row, Row::AccessFlag | Row::Permission) {
        let (Some(Seen::Owned | Seen::Others), false) = (seen, seen == Some(Seen::Foreign)) else {
            return Some(if seen == Some(Seen::Foreign) { Stop(Why::Tables) } else { Retry });
        };
        let allowed = match (seen, place) {
            (Some(Seen::Others), _) => Prot::RW,
            (_, Place::Ram { allowed } | Place::Recovery { ram: Some(allowed), .. }) => allowed,
            _ => return Some(Retry),
        };
        let needs = if of.walk || of.maintenance {
            let write = row == Row::Permission && allowed.contains(Prot::WRITE);
            if write { Prot::RW } else { Prot::READ }
        } else if of.fetch {
            if of.el0 { Prot::EXEC_EL0 } else { Prot::EXEC_EL1 }
        } else if of.write {
            Prot::WRITE
        } else {
            Prot::READ
        };
        return Some(if allowed.contains(needs) { Relax(needs) } else { Inject });
    }
    if place == Place::Emulated {
        return match of {
            Fields { walk: true, .. } => Some(Stop(Why::WalkInDevice)),
            Fields { fetch: true, .. } => Some(Stop(Why::FetchFromDevice)),
            Fields { maintenance: true, .. } => Some(Ignore),
            Fields { decoded: false, .. } => Some(Stop(Why::NotDecoded)),
            _ => None,
        };
    }
    match seen {
        Some(Seen::Changing | Seen::Owned | Seen::Others) => return Some(Retry),
        Some(Seen::Foreign) => return Some(Stop(Why::Tables)),
        _ => {}
    }
    let policy = match (place, seen) {
        (Place::Ram { .. }, Some(Seen::Note(note))) => return Some(Action::Note(note)),
        (Place::Ram { .. }, _) => return Some(Install),
        (Place::Recovery { policy, .. }, _) => policy,
        (Place::Nothing(policy) | Place::BeyondIpaSize(policy), _) => policy,
        (Place::Emulated, _) => panic!("above"),
    };
    Some(match policy {
        Recovery::Stop => Stop(Why::Nothing),
        Recovery::Inject => Inject,
        Recovery::Scratch if of.fetch && !of.walk => Inject,
        Recovery::Scratch if seen == Some(Seen::Empty) => Action::Scratch,
        Recovery::Scratch => Inject,
    })
}

/// Seven million of them.
#[test]
fn every_abort_is_decided_as_the_table_says() {
    let places = places();
    for esr in syndromes() {
        for (el, el0) in [(El::El1, false), (El::El0, true)] {
            let of = fields(esr, el0);
            let fault = Fault { abort: Abort::new(esr).unwrap(), el };
            for &place in &places {
                for seen in SEEN {
                    let action = decide(fault, seen, place);
                    match expected(of, seen, place) {
                        Some(expected) => {
                            assert_eq!(action, expected, "decided for {of:?}, {seen:?}, {place:?}");
                        }
                        None => {
                            let access = LoadStore {
                                size: 1 << (esr >> 22 & 3),
                                sign_extend: esr >> 21 & 1 != 0,
                                register: (esr >> 16 & 31) as u8,
                                is_64_bit: esr >> 15 & 1 != 0,
                                acquire_release: esr >> 14 & 1 != 0,
                                is_write: of.write,
                            };
                            assert_eq!(action, Action::Emulate(access), "decided for {of:?}");
                        }
                    }
                }
            }
        }
    }
}

/// As the function `IPAValid` of chapter J1.3 has it, and D24.2.76 in words; and nothing needs an address that is not known.
#[test]
fn hpfar_is_read_where_it_is_valid_and_nowhere_else() {
    for esr in syndromes() {
        let of = fields(esr, false);
        let fault = Fault::new(esr, 0b0101).unwrap();
        let row = row(of);
        let valid = match row {
            Row::Translation | Row::AccessFlag | Row::AddressSize => true,
            Row::Permission => of.walk,
            Row::Conflict | Row::OwnMistake | Row::Stop(_) => false,
        };
        let address = fault.abort.address();
        assert_eq!(address == Address::Reported, valid, "whether HPFAR_EL2 is valid: {of:?}");
        match fault.first() {
            First::Reported => {
                assert_eq!(address, Address::Reported, "HPFAR_EL2 is UNKNOWN: {of:?}");
            }
            First::Translate => {
                assert_eq!(address, Address::Translate, "{of:?}");
                assert!(row == Row::Permission && !of.walk, "{of:?}");
            }
            First::Act(action) => {
                assert_eq!(address, Address::Unknown, "{of:?}");
                let somewhere = Place::Ram { allowed: Prot::RWX };
                assert_eq!(action, decide(fault, Seen::Empty, somewhere), "{of:?}");
            }
        }
    }
}

#[test]
fn an_address_is_made_of_what_the_registers_hold() {
    // FIPA is bits 47:4 for IPA[55:12]; NS is bit 63.
    assert_eq!(
        reported(1 << 63 | 0x4_0000 << 4 | 0b1111),
        Ipa::new(0x4000_0000),
        "FIPA and no more"
    );
    assert_eq!(reported(u64::MAX), Ipa::new(0x00ff_ffff_ffff_f000), "FIPA and no more");
    // F is bit 0; PA is bits 51:12 between attributes.
    assert_eq!(translated(0xff00_0000_4000_5b80), Some(Ipa::new(0x4000_5000)));
    assert_eq!(translated(0xff00_0000_4000_5b81), None);
    let far = 0xffff_0000_1234_5abc;
    let page = Ipa::new(0x4000_5000);
    let load = Abort::new(0x24 << 26 | 0x07).unwrap();
    assert_eq!(load.ipa_in(page, far), Ipa::new(0x4000_5abc));
    let walk = Abort::new(0x24 << 26 | 1 << 7 | 0x07).unwrap();
    assert_eq!(walk.ipa_in(page, far), page, "FAR is what was being translated");
}

/// One spurious fault may come of what a TLB held. A second one where nothing may be written was a write.
#[test]
fn a_write_that_hardware_does_not_call_one_is_found_out_by_the_second_fault() {
    for esr in syndromes() {
        let of = fields(esr, false);
        let fault = Fault::new(esr, 0b0101).unwrap();
        for allowed in (0..16).map(Prot::from_bits_truncate) {
            for again in [false, true] {
                let unclear = row(of) == Row::Permission && (of.walk || of.maintenance);
                let inject = unclear && again && !allowed.contains(Prot::WRITE);
                let expected = if inject { Action::Inject } else { Action::Retry };
                assert_eq!(
                    fault.spurious(allowed, again),
                    expected,
                    "again {again}: {of:?}, {allowed}"
                );
            }
        }
    }
}

#[test]
fn what_kind_of_access_it_was_is_never_guessed() {
    for esr in syndromes() {
        let of = fields(esr, false);
        let expected = match of {
            Fields { walk: true, .. } => Access::Walk,
            Fields { fetch: true, .. } => Access::Fetch,
            Fields { maintenance: true, .. } => Access::Maintenance,
            Fields { status: 0x31 | 0x35, .. } => Access::Data,
            Fields { write: true, .. } => Access::Write,
            _ => Access::Read,
        };
        let abort = Abort::new(esr).unwrap();
        assert_eq!(abort.kind(), expected, "the kind of access: {of:?}");
        assert_eq!(abort.access().is_some(), of.decoded, "{of:?}: eight bytes of 64 are a guess");
    }
}
