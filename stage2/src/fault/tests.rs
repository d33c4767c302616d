//! Every syndrome, slot and place.

mod injected;
mod quick;
mod table;

use std::vec::Vec;

use super::*;
use crate::addr::{Ipa, Level};

/// Bits of ISS that a decision may look at, besides the status: ISV, LST, FnV, CM, S1PTW, WnR.
const FLAGS: [u32; 7] = [24, 12, 11, 10, 8, 7, 6];

/// Every syndrome of an abort from a guest: EC, status, and every mixture of flags, possible or not.
fn syndromes() -> impl Iterator<Item = u64> {
    let mixtures = || {
        (0..1_u64 << FLAGS.len()).map(|n| {
            let set = FLAGS.iter().enumerate().filter(|(bit, _)| n >> bit & 1 != 0);
            set.fold(0, |iss, (_, flag)| iss | 1 << flag)
        })
    };
    let classes = [0x20_u64, 0x24].into_iter();
    let status =
        classes.flat_map(|class| (0..64).map(move |status| class << 26 | 1 << 25 | status));
    // Of the fields of an access some values will do: each bit of them is set and clear.
    status
        .flat_map(move |esr| mixtures().map(move |iss| esr | iss | (iss >> 6 & 1) << 22 | 5 << 16))
}

const SEEN: [Seen; 6] = [
    Seen::Empty,
    Seen::Changing,
    Seen::Owned,
    Seen::Others,
    Seen::Note(Note::new(7).unwrap()),
    Seen::Foreign,
];

const POLICIES: [Recovery; 3] = [Recovery::Scratch, Recovery::Inject, Recovery::Stop];

/// Every place, with every permission.
fn places() -> Vec<Place> {
    let mut places = vec![Place::Emulated];
    places.extend((0..16).map(|bits| Place::Ram { allowed: Prot::from_bits_truncate(bits) }));
    for policy in POLICIES {
        places.extend([Place::Nothing(policy), Place::BeyondIpaSize(policy)]);
        places.push(Place::Recovery { policy, ram: None });
        let ram = [Prot::empty(), Prot::RO, Prot::RX, Prot::RWX];
        places.extend(ram.map(|prot| Place::Recovery { policy, ram: Some(prot) }));
    }
    places
}

#[test]
fn a_slot_is_seen_as_what_the_design_calls_it() {
    const MANAGED: u64 = 1 << 56;
    const SCRATCH: u64 = 1 << 57;
    const NO_TRANSLATION: u64 = 1 << 16;
    // A page, a block, and what they become; S2AP, SH, AF and a memory type.
    let leaf = 0x7fc | MANAGED | 0x4000_0000;
    for (level, kind) in [(Level::L3, 0b11), (Level::L2, 0b01), (Level::L1, 0b01)] {
        let seen = |bits| Seen::new(level, Descriptor::from_bits(bits));
        assert_eq!(seen(0), Seen::Empty);
        assert_eq!(seen(leaf | kind), Seen::Owned);
        assert_eq!(seen(leaf | kind | SCRATCH), Seen::Others, "not the VM's");
        assert_eq!(seen(leaf | kind & !1), Seen::Changing, "Busy");
        assert_eq!(seen(leaf | kind & !1 | SCRATCH), Seen::Changing, "Busy, and scratch");
        assert_eq!(seen(Descriptor::DEAD.bits()), Seen::Changing);
        let drain = Descriptor::from_bits(leaf | kind).to_drain(level).unwrap();
        assert_eq!(Seen::new(level, drain), Seen::Changing);
        for payload in [0, 1, Note::MAX] {
            let note = Note::new(payload).unwrap();
            assert_eq!(Seen::new(level, Descriptor::note(note)), Seen::Note(note));
        }
        for foreign in [1, leaf & !MANAGED | kind, leaf | kind | 1 << 58, 0b1000] {
            assert_eq!(seen(foreign), Seen::Foreign, "{foreign:#x}");
        }
        if level != Level::L3 {
            assert_eq!(seen(leaf | kind | NO_TRANSLATION), Seen::Changing, "nT: being resized");
            assert_eq!(seen(0x5000 | MANAGED | 0b11), Seen::Changing, "a table by now");
        }
    }
}

#[test]
fn a_guest_at_el0_is_told_from_one_at_el1() {
    // M[3:2]: EL0t, EL1t, EL1h, and bits that are none of it.
    for (spsr, el) in [(0, El::El0), (0b0100, El::El1), (0b0101, El::El1), (!0b1100, El::El0)] {
        assert_eq!(El::of_spsr(spsr), el, "{spsr:#x}");
    }
}
