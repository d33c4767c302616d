//! Faults on leaves that are there: what they change, what is flushed for it, and what is left alone.

use super::prot::{ACCESSED, CONTIGUOUS, DIRTY, DIRTY_MODIFIER, GIB, MIB2, RUN, page, vm_with};
use super::unmap::{Vm, range};
use super::*;
use crate::arch::host::Event as Logged;
use crate::space::{Batch, Progress, RelaxError, Relaxed};

const READABLE: u64 = 1 << 6;
const NO_TRANSLATION: u64 = 1 << 16;
const UPDATES: [HwUpdate; 3] = [HwUpdate::Off, HwUpdate::Access, HwUpdate::AccessAndDirty];

impl Vm<'_> {
    /// A fault of the guest, whose RAM allows everything.
    fn relax(&self, ipa: u64, access: Prot) -> Result<Relaxed, RelaxError> {
        self.space.relax(&self.cpu.enter(), Ipa::new(ipa), access, Prot::RWX)
    }

    /// Pages and a block of 2 MiB behind them.
    fn populated(self) -> Self {
        self.lay(range(GIB, MIB2), Level::L3);
        self.lay(range(GIB + MIB2, MIB2), Level::L2);
        let _ = self.space.arch.take_log();
        self
    }

    fn tlbis(&self) -> Vec<Tlbi> {
        let tlbi = |event| match event {
            Logged::Tlbi(tlbi, _) => Some(tlbi),
            _ => None,
        };
        self.space.arch.take_log().into_iter().filter_map(tlbi).collect()
    }
}

/// A write to a page whose writes are logged is recorded by one exchange, which also sets AF; this PE's TLB is rid of what
/// was there, and no other's is asked.
#[test]
fn a_write_makes_writable_clean_writable_dirty_and_accessed() {
    for (hw_update, at) in
        UPDATES.into_iter().flat_map(|hw| [page(3), GIB + MIB2].map(|at| (hw, at)))
    {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs).populated();
        vm.alter(at, DIRTY, DIRTY_MODIFIER);
        let before = vm.held(at);
        let granted = vm.relax(at + 0x123, Prot::WRITE).unwrap();
        let Relaxed::Granted(leaf) = granted else { panic!("a write is recorded: {granted:?}") };
        assert!(leaf.is_dirty() && leaf.is_accessed(), "a write is recorded: {leaf:?}");
        assert_eq!(vm.held(at), before | DIRTY, "and nothing else changes");
        let exchanges = |log: &[Logged]| {
            log.iter().filter(|event| matches!(event, Logged::CompareExchange(_))).count()
        };
        let log = vm.space.arch.take_log();
        assert_eq!(exchanges(&log), 1);
        let tlbis: Vec<_> = log.iter().filter(|event| matches!(event, Logged::Tlbi(..))).collect();
        assert!(
            matches!(
                tlbis[..],
                [Logged::Tlbi(Tlbi::Ipas2e1(_), _), Logged::Tlbi(Tlbi::Vmalle1, _)]
            ),
            "flushed on this PE alone: {tlbis:?}"
        );
        // Once more, from a PE that has not seen it: nothing to do but to flush.
        assert_eq!(vm.relax(at, Prot::WRITE), Ok(Relaxed::Spurious(leaf)));
        let log = vm.space.arch.take_log();
        assert_eq!(exchanges(&log), 0);
        assert!(log.iter().any(|event| matches!(event, Logged::Tlbi(Tlbi::Vmalle1, _))));
    }
}

/// A leaf without AF is in no TLB, so setting it takes a barrier and no flush.
#[test]
fn an_access_flag_is_set_without_a_flush() {
    for hw_update in [HwUpdate::Off, HwUpdate::Access] {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs).populated();
        vm.alter(page(0), ACCESSED | DIRTY, DIRTY_MODIFIER);
        let before = vm.held(page(0));
        let granted = vm.relax(page(0), Prot::READ);
        assert!(matches!(granted, Ok(Relaxed::Granted(_))), "AF is granted: {granted:?}");
        assert_eq!(vm.held(page(0)), before | ACCESSED, "a read dirties nothing");
        let log = vm.space.arch.take_log();
        assert!(
            matches!(log.last(), Some(Logged::Dsb(Dsb::IshSt)),),
            "walks of this PE see it: {log:?}"
        );
        assert!(!log.iter().any(|event| matches!(event, Logged::Tlbi(..))));
    }
}

/// Under dirty management a leaf that hardware may write into is not changed unless all is set that it could set.
#[test]
fn what_hardware_may_write_into_is_settled_or_left_alone() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs).populated();
    vm.alter(page(0), READABLE | DIRTY, DIRTY_MODIFIER);
    let guard = vm.cpu.enter();
    let before = vm.held(page(0));
    let refused = vm.space.relax(&guard, Ipa::new(page(0)), Prot::READ, Prot::RO);
    assert_eq!(refused, Err(RelaxError::Unsettled { level: Level::L3 }));
    assert_eq!(vm.held(page(0)), before);
    let granted = vm.space.relax(&guard, Ipa::new(page(0)), Prot::READ, Prot::RW);
    assert!(matches!(granted, Ok(Relaxed::Granted(_))));
    assert_eq!(vm.held(page(0)), before | READABLE | DIRTY);
}

#[test]
fn what_the_policy_does_not_allow_stays() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs).populated();
    let guard = vm.cpu.enter();
    for (ipa, bits) in [(page(0), DIRTY), (GIB + MIB2, DIRTY)] {
        vm.alter(ipa, bits, 0);
        let before = vm.held(ipa);
        let denied = vm.space.relax(&guard, Ipa::new(ipa), Prot::WRITE, Prot::RX);
        let expected = RelaxError::Denied { access: Prot::WRITE, allowed: Prot::RX };
        assert_eq!(denied, Err(expected));
        assert_eq!(vm.held(ipa), before);
    }
    assert_eq!(vm.tlbis(), []);
}

/// A block in which the policy allows different things is not given what is allowed in the page of the access: that would be
/// everything else's, too.
#[test]
fn a_block_is_given_what_is_allowed_in_all_of_it_or_nothing() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs).populated();
    let (guard, block) = (vm.cpu.enter(), GIB + MIB2);
    vm.alter(block, DIRTY, 0);
    let (before, at) = (vm.held(block), Ipa::new(block + 0x5000));
    let in_page = |level| (level == Level::L3).then_some(Prot::RWX);
    let seen = Descriptor::from_bits(before);
    let mixed = vm.space.relax(&guard, at, Prot::WRITE, &in_page);
    assert_eq!(mixed, Err(RelaxError::Retry { level: Level::L2, seen }));
    let in_block = |level| Some(if level == Level::L3 { Prot::RWX } else { Prot::RX });
    let denied = vm.space.relax(&guard, at, Prot::WRITE, &in_block);
    assert_eq!(denied, Err(RelaxError::Denied { access: Prot::WRITE, allowed: Prot::RX }));
    assert_eq!(vm.held(block), before, "nothing was given");
    // What it has already may be in memory and not in this PE's TLB.
    let _ = vm.space.arch.take_log();
    let spurious = vm.space.relax(&guard, at, Prot::READ, &in_page);
    assert!(matches!(spurious, Ok(Relaxed::Spurious(_))));
    assert_eq!(vm.tlbis().len(), 2, "flushed, or it would fault for ever");
    vm.alter(page(5), DIRTY, 0);
    assert!(matches!(
        vm.space.relax(&guard, Ipa::new(page(5)), Prot::WRITE, &in_page),
        Ok(Relaxed::Granted(_))
    ));
}

/// Who is in the middle of a change is not disturbed, and where there is no leaf there is nothing to grant.
#[test]
fn a_slot_that_is_no_leaf_is_left_to_its_owner() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs).populated();
    let live = Descriptor::from_bits(vm.held(page(0)) & !DIRTY);
    let note = Descriptor::note(Note::new(7).unwrap());
    for (seen, transient) in [
        (live.to_busy().unwrap(), true),
        (live.to_drain(Level::L3).unwrap(), true),
        (Descriptor::DEAD, true),
        (Descriptor::EMPTY, false),
        (note, false),
    ] {
        vm.put(page(0), seen);
        let level = Level::L3;
        let expected = if transient {
            RelaxError::Retry { level, seen }
        } else {
            RelaxError::Nothing { level, seen }
        };
        assert_eq!(vm.relax(page(0), Prot::WRITE), Err(expected), "{seen:?}");
        assert_eq!(vm.held(page(0)), seen.bits());
    }
    let block = GIB + MIB2;
    vm.alter(block, DIRTY, NO_TRANSLATION);
    let seen = Descriptor::from_bits(vm.held(block));
    assert_eq!(vm.relax(block, Prot::WRITE), Err(RelaxError::Retry { level: Level::L2, seen }));
    assert_eq!(vm.tlbis(), []);
}

/// Members of a run speak for each other: none is changed alone. Dissolved, each has its own.
#[test]
fn a_run_is_dissolved_before_one_of_its_members_changes() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs).populated();
    (16..32).for_each(|n| vm.alter(page(n), DIRTY, CONTIGUOUS));
    let before = vm.held(page(20));
    let run = RelaxError::Run { ipa: Ipa::new(page(16)), level: Level::L3 };
    assert_eq!(vm.relax(page(20), Prot::WRITE), Err(run));
    assert!(matches!(vm.relax(page(20), Prot::READ), Ok(Relaxed::Spurious(_))), "this it allows");
    assert_eq!(vm.held(page(20)), before);
    let mut claim = vm.space.claim(range(page(16), RUN)).unwrap();
    let all = Batch::all_of(&claim);
    assert_eq!(vm.space.dissolve(&vm.cpu, &mut claim, all), Ok(Progress::Done));
    assert!(matches!(vm.relax(page(20), Prot::WRITE), Ok(Relaxed::Granted(_))));
    assert_eq!(vm.held(page(20)), before & !CONTIGUOUS | DIRTY);
    assert_eq!(vm.held(page(21)) & (CONTIGUOUS | DIRTY), 0);
}

#[test]
fn a_fault_outside_the_vm_or_under_a_foreign_guard_is_refused() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs).populated();
    let (ipa, bits) = (Ipa::new(1 << 40), 40);
    assert_eq!(vm.relax(1 << 40, Prot::READ), Err(RelaxError::BeyondIpaSize { ipa, bits }));
    let others = Epochs::<1>::new();
    let (cpu, at) = (others.join(0).unwrap(), Ipa::new(page(0)));
    let foreign = vm.space.relax(&cpu.enter(), at, Prot::READ, Prot::RWX);
    assert_eq!(foreign, Err(RelaxError::ForeignGuard));
}
