//! What is told of a syndrome without decoding it, against what decoding says.

use super::*;

/// Classes that are no abort of a guest: HVC, an abort of EL2's own, and what differs from an abort in one bit.
const OTHERS: [u64; 12] = [0x00, 0x04, 0x16, 0x18, 0x21, 0x22, 0x25, 0x26, 0x28, 0x30, 0x2c, 0x3c];

#[test]
fn the_questions_are_answered_as_by_decoding() {
    for esr in syndromes() {
        let abort = Abort::new(esr).unwrap();
        let level = |level: i8| (0..=3).contains(&level);
        let (translation, leaf, permission) = match abort.status() {
            Status::Translation(at) => (level(at), false, false),
            Status::AccessFlag(at) => (false, level(at), false),
            Status::Permission(at) => (false, level(at), true),
            _ => (false, false, false),
        };
        assert_eq!(is_translation(esr), translation, "{abort}");
        if translation {
            assert_eq!(is_no_fetch(esr), abort.kind() != Access::Fetch, "{abort}");
        }
        assert_eq!(is_leaf_fault(esr), leaf, "{abort}");
        let store = permission && abort.kind() == Access::Write;
        assert_eq!(is_plain_store(esr), store, "{abort}");
    }
}

#[test]
fn what_is_no_abort_of_a_guest_is_none_of_them() {
    for class in OTHERS {
        // Bits above EC are ISS2.
        for esr in (0..1 << 9).flat_map(|iss| [0, 1 << 36].map(|high| high | class << 26 | iss)) {
            assert!(
                !is_translation(esr) && !is_leaf_fault(esr) && !is_plain_store(esr),
                "no abort of a guest: {esr:#x}"
            );
        }
    }
}

/// What these answers lead to at once: RAM that allows what the access needs is populated, or given it.
#[test]
fn what_is_done_at_once_is_what_is_decided() {
    for esr in syndromes() {
        for spsr in [0b0000, 0b0101] {
            let fault = Fault::new(esr, spsr).unwrap();
            let ram = |allowed| Place::Ram { allowed };
            if is_translation(esr) {
                assert_eq!(fault.first(), First::Reported);
                assert_eq!(decide(fault, Seen::Empty, ram(Prot::RWX)), Action::Install);
                // A hole, in a window or not.
                for hole in [
                    Place::Recovery { policy: Recovery::Scratch, ram: None },
                    Place::Nothing(Recovery::Scratch),
                ] {
                    let action = if is_no_fetch(esr) { Action::Scratch } else { Action::Inject };
                    assert_eq!(decide(fault, Seen::Empty, hole), action);
                }
                for seen in SEEN {
                    for place in places() {
                        assert_eq!(missing(fault, seen, place), decide(fault, seen, place));
                    }
                }
            }
            if is_plain_store(esr) {
                assert_eq!(fault.first(), First::Translate);
                for seen in [Seen::Owned, Seen::Others] {
                    let action = decide(fault, seen, ram(Prot::RWX));
                    assert_eq!(action, Action::Relax(Prot::WRITE));
                }
            }
            if is_leaf_fault(esr) {
                assert!(
                    matches!(fault.first(), First::Reported | First::Translate),
                    "the page is asked for: {esr:#x}"
                );
            }
        }
    }
}
