//! What is decided about an abort, with any slot and place: what must never be, whatever the values.

use stage2::fault::{
    Access, Action, Address, El, Entry, Fault, First, Place, Recovery, Seen, Status, decide,
    missing, reported, translated,
};
use stage2::{Descriptor, Ipa, Level, Prot};

/// From one number: each kind of place, its policy and its permissions.
fn place(bits: u64) -> Place {
    let policy =
        [Recovery::Scratch, Recovery::Inject, Recovery::Stop][(bits >> 4 & 3).min(2) as usize];
    let prot = Prot::from_bits_truncate((bits >> 8) as u8);
    match bits & 7 {
        0 | 1 => Place::Ram { allowed: prot },
        2 => Place::Emulated,
        3 => Place::Recovery { policy, ram: None },
        4 => Place::Recovery { policy, ram: Some(prot) },
        5 => Place::BeyondIpaSize(policy),
        _ => Place::Nothing(policy),
    }
}

/// Everything that holds of any syndrome, processor state, slot and place.
pub(super) fn check(esr: u64, far: u64, ipa: u64, pc: u64) {
    let Some(fault) = Fault::new(esr, pc) else {
        assert!(!matches!(esr >> 26 & 0x3f, 0x20 | 0x21 | 0x24 | 0x25));
        return;
    };
    let level = [Level::L1, Level::L2, Level::L3][(ipa % 3) as usize];
    // Half of all slots hold something that is one.
    let held = if ipa >> 8 & 1 == 0 { Descriptor::from_bits(far) } else { likely(far, level) };
    let (seen, place) = (Seen::new(level, held), place(ipa >> 16));
    let action = decide(fault, seen, place);
    let abort = fault.abort;

    let first = fault.first();
    assert_eq!(first == First::Reported, abort.address() == Address::Reported);
    assert_eq!(first == First::Translate, abort.address() == Address::Translate);
    if let First::Act(known) = first {
        assert_eq!(action, known, "slot and place change nothing");
    }
    let translation = matches!(abort.status(), Status::Translation(_));
    if translation {
        assert_eq!(action, missing(fault, seen, place));
    }
    let empty = held == Descriptor::EMPTY;
    let kind = abort.kind();
    match action {
        Action::Install => {
            assert!(
                translation && empty && matches!(place, Place::Ram { .. }),
                "{seen:?} {place:?}"
            );
        }
        Action::Scratch => {
            assert!(translation && empty && kind != Access::Fetch, "{kind}, {seen:?}");
            let scratch = matches!(
                place,
                Place::Nothing(Recovery::Scratch)
                    | Place::Recovery { policy: Recovery::Scratch, .. }
            );
            assert!(scratch, "{place:?}");
        }
        Action::Relax(access) => {
            assert!(!translation && held.is_valid(), "{seen:?}");
            let allowed = place.allows(seen);
            assert!(seen != Seen::Others || allowed == Some(Prot::RW));
            assert!(allowed.is_some_and(|allowed| allowed.contains(access)), "{place:?} {access}");
            assert!(
                !access.is_empty() && access == abort.needs(fault.el, allowed.unwrap_or(access))
            );
        }
        Action::Emulate(access) => {
            assert!(translation && place == Place::Emulated);
            assert_eq!(abort.access(), Some(access), "never a guess");
            assert!(matches!(kind, Access::Read | Access::Write));
        }
        Action::Ignore => assert!(place == Place::Emulated && kind == Access::Maintenance),
        Action::Note(note) => assert_eq!(seen, Seen::Note(note)),
        Action::FlushVm => assert_eq!(abort.status(), Status::TlbConflict),
        Action::Retry | Action::Inject => {}
        Action::Stop(why) => assert!(!why.to_string().is_empty()),
    }
    injected(fault, far, ipa, pc);

    assert_eq!(reported(far).get() & !0x00ff_ffff_ffff_f000, 0);
    assert_eq!(translated(far).is_none(), far & 1 != 0);
    let page = Ipa::new(ipa & !0xfff);
    assert_eq!(abort.ipa_in(page, far).page(), page.page());
}

/// A leaf of ours, a scratch page, a table, Busy or Drain: from any bits.
fn likely(bits: u64, level: Level) -> Descriptor {
    const MANAGED: u64 = 1 << 56;
    let kind = if level == Level::L3 { 0b11 } else { 0b01 };
    let leaf = bits & (0x7fc | 0xffff_c000_0000) | MANAGED | kind;
    match bits >> 60 & 7 {
        0 => Descriptor::EMPTY,
        1 => Descriptor::DEAD,
        2 => Descriptor::from_bits(leaf & !1),
        3 => Descriptor::from_bits(leaf | 1 << 57),
        4 => Descriptor::from_bits(leaf | 0b11),
        _ => Descriptor::from_bits(leaf),
    }
}

/// The abort that the guest would take instead says what it did, from where, and nothing of stage 2.
fn injected(fault: Fault, vbar: u64, sctlr: u64, spsr: u64) {
    for walk in [None, Some(-1), Some(3)] {
        let esr = fault.abort.injected(fault.el, walk);
        let taken = Fault::new(esr, spsr).expect("an abort");
        assert_eq!(taken.abort.is_instruction(), fault.abort.is_instruction());
        assert_eq!(esr >> 26 & 1 == 0, fault.el == El::El0, "the class says from which level");
        assert!(esr & (1 << 25) != 0 && esr >> 32 == 0 && esr & 0x01ff_feb0 == esr & 0x30);
        if let Some(level) = walk {
            assert_eq!(taken.abort.status(), Status::ExternalOnWalk(level));
        }
    }
    let entry = Entry::synchronous(spsr, vbar, sctlr, true);
    let offset = entry.pc & 0x7ff;
    assert_eq!(entry.pc & !0x7ff, vbar & !0x7ff);
    assert_eq!(offset == 0x400, fault.el == El::El0);
    assert!(matches!(offset, 0 | 0x200 | 0x400));
    assert_eq!(entry.pstate & 0x3ff, 0x3c5, "EL1h, masked");
}
