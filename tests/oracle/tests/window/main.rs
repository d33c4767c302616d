//! EL2's window on the oracle's machine: what EL2's own stage 1 may hold of a VM's memory, and for how long.
//!
//! EL2's root is a page of the machine's, which the model is told of; every PE may walk from there at any time. A page that is
//! released or copied counts as freed from that moment on: whoever can still reach it, a guest or EL2, could write to
//! what is somebody else's.

mod moves;
mod rig;
mod tables;

use std::sync::atomic::{AtomicUsize, Ordering};

use mmu_oracle::{Event, Model};
use stage2::space::{Batch, Extent, Progress};
use stage2::window::Recovered;
use stage2::{Arch, Attributes, Caps, Ipa, Level, MemType, Note, Prot, Write};

use crate::rig::*;

#[test]
fn el2_reaches_what_stage_2_holds_page_by_page() {
    for level in [Level::L2, Level::L3] {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(level));
        assert_eq!(rig.el2_reaches(BASE), None, "nothing is there before it is touched");
        for at in [0, 0x7000, 0x1f_e000] {
            assert_eq!(rig.touch(&vm, 1, BASE + at + 0x123, true), Recovered::Mapped);
            assert_eq!(rig.el2_reaches(BASE + at + 0x123), Some(MEMORY + at + 0x123));
            // A neighbour is not there with it, and a second fault finds it done.
            assert_eq!(rig.el2_reaches(BASE + at + 0x1000), None);
            assert_eq!(rig.touch(&vm, 0, BASE + at, false), Recovered::Mapped);
        }
        let (_, bits) = rig.el2_walk(WINDOW + BASE).unwrap();
        // Page, AttrIndx 1, AP RES1 and writable, Inner Shareable, AF; XN.
        assert_eq!(bits & !0x0000_ffff_ffff_f000, 1 << 54 | 0x747, "EL2's page is {bits:#x}");
        assert_eq!(rig.el2_tlbis(), 0, "what faulted is not cached");
        rig.assert_sound(&level);
    }
}

#[test]
fn what_el2_cannot_reach_is_an_answer() {
    let rig = Rig::new(Caps::empty());
    let vm = rig.vm();
    let touch = |at, write| rig.touch(&vm, 0, at, write);
    let read_only =
        Extent { attributes: Attributes::new(Prot::RO, MemType::Normal), ..ram(Level::L3) };
    let device =
        Extent { attributes: Attributes::new(Prot::RW, MemType::Device), ..ram(Level::L3) };
    let clean = Attributes { write: Write::Clean, ..Attributes::new(Prot::RW, MemType::Normal) };
    map(&rig, &vm, range(BASE + 0x1000, 0x1000), &read_only);
    map(&rig, &vm, range(BASE + 0x2000, 0x1000), &device);
    map(&rig, &vm, range(BASE + 0x3000, 0x1000), &Extent { attributes: clean, ..ram(Level::L3) });
    map(&rig, &vm, range(BASE + COVERED, 0x1000), &ram(Level::L3));
    {
        let cpu = rig.epochs.join(0).unwrap();
        let mut claim = vm.claim(range(BASE + 0x4000, 0x1000)).unwrap();
        let (all, note) = (Batch::all_of(&claim), Note::new(7).unwrap());
        assert_eq!(vm.annotate(&cpu, &mut claim, all, note), Ok(Progress::Done));
    }
    assert_eq!(touch(BASE, false), Recovered::Fill);
    assert_eq!(touch(BASE + 0x1000, true), Recovered::ReadOnly);
    assert_eq!(touch(BASE + 0x1000, false), Recovered::Mapped);
    assert_eq!(touch(BASE + 0x1000, true), Recovered::ReadOnly, "though its slot is there");
    assert_eq!(touch(BASE + 0x2000, false), Recovered::NotCovered, "a device");
    assert_eq!(
        touch(BASE + 0x3000, true),
        Recovered::Mapped,
        "the write is recorded by who makes it"
    );
    assert_eq!(touch(BASE + 0x4000, false), Recovered::NotCovered, "a note");
    assert_eq!(touch(BASE + COVERED, false), Recovered::NotCovered, "beyond what was opened");
    assert_eq!(touch(1 << 40, false), Recovered::NotCovered, "beyond the IPA size");
    rig.assert_sound(&"answers");
}

/// EL2's window is 512 GiB, and a VM may have more: its tables have no place for what lies beyond, and the indices of an address
/// there are those of another, below.
#[test]
fn what_lies_beyond_the_window_is_not_taken_for_what_lies_below() {
    let far = BASE + (1 << 39);
    for level in [Level::L2, Level::L3] {
        let rig = Rig::of_bits(40, Caps::TTL);
        let vm = rig.vm();
        map(&rig, &vm, range(BASE, MIB2), &ram(level));
        map(&rig, &vm, range(far, MIB2), &ram(level));
        let answer = rig.touch(&vm, 1, far + 0x3000, true);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None, "a fault beyond fills nothing below");
        assert_eq!(answer, Recovered::NotCovered);
        assert_eq!(rig.touch(&vm, 1, BASE + 0x3000, true), Recovered::Mapped);
        unmap(&rig, &vm, range(far, MIB2));
        assert_eq!(rig.el2_reaches(BASE + 0x3000), Some(MEMORY + 0x3000), "it stays");
        rig.assert_sound(&level);
        unmap(&rig, &vm, range(BASE, MIB2));
        rig.assert_sound(&level);
        assert_eq!(rig.el2_reaches(BASE + 0x3000), None);
    }
}

/// The steps of EL2's own maintenance, each left out in turn: then something is wrong.
#[test]
fn each_step_of_a_revocation_is_needed() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    map(&rig, &vm, range(BASE, 0x1000), &ram(Level::L3));
    assert_eq!(rig.touch(&vm, 1, BASE, true), Recovered::Mapped);
    unmap(&rig, &vm, range(BASE, 0x1000));
    let trace = rig.machine.trace();
    let slot = trace.iter().rev().find_map(|event| match *event {
        Event::Write { slot, new: 0, .. } => Some(slot),
        _ => None,
    });
    let last = slot.expect("the window's slot is emptied last");
    let from = trace
        .iter()
        .position(|e| matches!(*e, Event::Write { slot, new: 2, .. } if slot == last))
        .expect("it was in Drain before");
    let (mut model, mut needed) = (Model::new(rig.machine.setup()), vec![]);
    for (at, event) in trace.iter().enumerate() {
        let revoked =
            trace[from..at.max(from)].iter().any(|e| matches!(e, Event::El2Flushed { .. }));
        if at > from && !revoked && !matches!(event, Event::El2Flushed { .. }) {
            let mut without = model.clone();
            let shows = |event| {
                without.apply(event);
                !without.verdicts().is_empty()
            };
            assert!(trace[at + 1..].iter().any(shows), "event {at} is not needed: {event}");
            needed.push(event.to_string());
        }
        model.apply(event);
    }
    assert_eq!(
        needed,
        ["0 dsb ishst", "0 tlbi vae2is 0x800040000000 ttl=0b0111", "0 dsb ish", "0 isb"]
    );
}

/// EL2 of another PE touches a page before every exchange by which an unmap gives the table back: the page, or nothing.
#[test]
fn an_access_of_el2_at_any_step_of_an_unmap_leaves_nothing_behind() {
    let met = AtomicUsize::new(0);
    for n in (1..).step_by(9) {
        let rig = Rig::new(Caps::TTL);
        let vm = rig.vm();
        // Every other page, so that there is something to exchange: Empty for Dead.
        let pages = (0..8).map(|n| BASE + n * 0x2000);
        pages.clone().for_each(|at| map(&rig, &vm, range(at, 0x1000), &ram(Level::L3)));
        let touch = || {
            let here = pages.clone().map(|at| rig.touch(&vm, 1, at, true));
            let here = here.filter(|it| *it == Recovered::Mapped).count();
            met.fetch_max(here, Ordering::Relaxed);
        };
        let ((), came) = rig.machine.race_at(n, touch, || _ = unmap(&rig, &vm, range(BASE, MIB2)));
        rig.assert_sound(&n);
        rig.assert_agrees(&vm);
        assert!(
            pages.clone().all(|at| rig.el2_reaches(at).is_none()),
            "{n}: released, and reached"
        );
        if !came {
            assert!(n > 500, "{n} exchanges");
            break;
        }
    }
    assert_eq!(met.into_inner(), 7, "at the first exchange one page is in Drain");
}

/// The handler takes no lock: with that of the very table held by the same CPU, it does what it does.
#[test]
fn a_fault_under_the_lock_of_its_own_table_is_recovered() {
    let rig = Rig::new(Caps::TTL);
    let vm = rig.vm();
    map(&rig, &vm, range(BASE, 0x2000), &ram(Level::L3));
    let cpu = rig.epochs.join(0).unwrap();
    let guard = cpu.enter();
    let locked = vm.lookup_rw(&guard, Ipa::new(BASE)).unwrap().lock().unwrap();
    let nested = cpu.enter();
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE), true), Recovered::Mapped);
    // A slot in transition under that lock is no reason to wait.
    let slot = locked.slot(Ipa::new(BASE + 0x1000)).unwrap();
    let live = slot.load(&&rig.machine);
    // SAFETY: (1) the table's lock is held; (2) live may become Busy, and be what it was again.
    let busy = |bits: u64| unsafe { (&rig.machine).swap(slot, bits) };
    let _ = busy(live.to_busy().unwrap().bits());
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE + 0x1000), true), Recovered::Retry);
    let _ = busy(live.bits());
    assert_eq!(vm.recover_window(&nested, Ipa::new(BASE + 0x1000), true), Recovered::Mapped);
    drop((nested, locked));
}
