//! What is decided about a fault, and what the operations find in the slot: each slot state, both ways.
//!
//! A fault handler that installs without having looked at the slot relies on it: where `decide` says something else than to
//! install, the install must not.

use super::prot::{DIRTY, GIB, MIB2, page, vm_with};
use super::scratch::scratch;
use super::unmap::range;
use super::*;
use crate::fault::{Action, Fault, Place, Recovery, Seen, Why, decide};
use crate::space::{RelaxError, Relaxed};

const NO_TRANSLATION: u64 = 1 << 16;
/// The leaf's memory is not the VM's.
const NON_OWNED: u64 = 1 << 57;
/// A data abort of EL1, with its status and WnR.
const STORE: u64 = 0x24 << 26 | 1 << 25 | 1 << 6;

fn fault(status: u64) -> Fault {
    Fault::new(STORE | status, 0b0101).unwrap()
}

/// Every state of the slot of a page, made of a live one.
fn states(live: Descriptor, scratch: Descriptor) -> Vec<Descriptor> {
    vec![
        Descriptor::EMPTY,
        live,
        scratch,
        live.to_busy().unwrap(),
        scratch.to_busy().unwrap(),
        live.to_drain(Level::L3).unwrap(),
        Descriptor::DEAD,
        Descriptor::note(Note::new(7).unwrap()),
        Descriptor::from_bits(live.bits() & !(1 << 56)),
    ]
}

/// What an install that was not asked to look came to, in the words of a decision.
fn outcome(install: Result<Install, InstallError>, done: Action) -> Action {
    match install {
        Ok(Install::Installed(_)) => done,
        Ok(Install::Present(_)) | Err(InstallError::Retry { .. }) => Action::Retry,
        Err(InstallError::Note { note, .. }) => Action::Note(note),
        Err(InstallError::Occupied { .. }) => Action::Stop(Why::Tables),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_install_finds_in_the_slot_what_would_have_been_decided() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = vm_with(HwUpdate::Off, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    let shown = scratch(&vm.space);
    let live = Descriptor::from_bits(vm.held(page(0)));
    let ram = Place::Ram { allowed: Prot::RWX };
    let hole = Place::Nothing(Recovery::Scratch);
    let guard = vm.cpu.enter();
    for state in states(live, shown.descriptor()) {
        let seen = Seen::new(Level::L3, state);
        let (mapping, at) = (at(&vm.space, PAGE), Ipa::new(page(0)));
        vm.put(page(0), state);
        let result = vm.space.install(&guard, at, &mapping, &mut vm.frames, &mut Tally::default());
        let decided = decide(fault(0x07), seen, ram);
        assert_eq!(outcome(result, Action::Install), decided, "{seen:?}");
        assert_eq!(vm.held(page(0)) == state.bits(), decided != Action::Install, "{seen:?}");

        vm.put(page(0), state);
        let result = vm.space.install_scratch(&guard, at, &shown, &mut Tally::default());
        let decided = decide(fault(0x07), seen, hole);
        // A note in a hole is no place for scratch: the guest hears of it.
        let found = match outcome(result, Action::Scratch) {
            Action::Note(_) => Action::Inject,
            other => other,
        };
        assert_eq!(found, decided, "{seen:?}");
        assert_eq!(vm.held(page(0)) == state.bits(), decided != Action::Scratch, "{seen:?}");
    }
}

#[test]
fn a_leaf_becomes_what_would_have_been_decided() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    let shown = scratch(&vm.space);
    let live = Descriptor::from_bits(vm.held(page(0)) & !DIRTY);
    let guard = vm.cpu.enter();
    for state in states(live, shown.descriptor()) {
        for allowed in [Prot::RWX, Prot::RX] {
            vm.put(page(0), state);
            let seen = Seen::new(Level::L3, state);
            let decided = decide(fault(0x0f), seen, Place::Ram { allowed });
            // What is allowed of memory says nothing of the scratch page.
            let place = Place::Ram { allowed };
            let told = place.allows(seen).unwrap_or(allowed);
            let relaxed = vm.space.relax(&guard, Ipa::new(page(0)), Prot::WRITE, told);
            let found = match relaxed {
                Ok(Relaxed::Granted(_) | Relaxed::Spurious(_)) => Action::Relax(Prot::WRITE),
                Err(RelaxError::Denied { .. }) => Action::Inject,
                Err(RelaxError::Nothing { seen, .. })
                    if Seen::new(Level::L3, seen) == Seen::Foreign =>
                {
                    Action::Stop(Why::Tables)
                }
                Err(_) => Action::Retry,
            };
            assert_eq!(found, decided, "{seen:?}, {allowed}");
            let granted = seen == Seen::Owned && decided == Action::Relax(Prot::WRITE);
            assert_eq!(vm.held(page(0)) != state.bits(), granted, "{seen:?}, {allowed}");
        }
    }
}

/// A block that is being split is seen as that by both.
#[test]
fn a_block_on_its_way_to_another_size_is_left_alone() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let mut vm = vm_with(HwUpdate::Off, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L2);
    let live = vm.held(GIB);
    let guard = vm.cpu.enter();
    for state in [live, live | NO_TRANSLATION, live & !1] {
        let state = Descriptor::from_bits(state);
        vm.put(GIB, state);
        let (mapping, at) = (at(&vm.space, PAGE), Ipa::new(GIB + 0x5000));
        let lookup = vm.space.lookup(&guard, at).unwrap();
        let seen = Seen::new(lookup.level, lookup.descriptor);
        let result = vm.space.install(&guard, at, &mapping, &mut vm.frames, &mut Tally::default());
        let ram = Place::Ram { allowed: Prot::RWX };
        assert_eq!(outcome(result, Action::Install), decide(fault(0x06), seen, ram), "{seen:?}");
        assert_eq!(vm.held(GIB), state.bits());
    }
    // Others' on its way, too: it is no spurious fault.
    let seen = Descriptor::from_bits(live | NON_OWNED | NO_TRANSLATION);
    assert_eq!(Seen::new(Level::L2, seen), Seen::Changing);
    vm.put(GIB, seen);
    let fault = vm.space.relax(&guard, Ipa::new(GIB + 0x5000), Prot::READ, Prot::RWX);
    assert_eq!(fault, Err(RelaxError::Retry { level: Level::L2, seen }));
}
