//! Which locks are asked for, by whom: none in a fault handler.

use super::dirty::Maps;
use super::prot::{GIB, MIB2, page, vm_with};
use super::scratch::scratch;
use super::unmap::{Vm, range};
use super::*;
use crate::arch::Locked;
use crate::space::{LogBlocks, Notes, Relaxed};
use crate::window::{Recovered, Site};

/// Two spans of pages, one of them populated, with a session that has been harvested once.
fn logged<'t>(pages: &'t Pages, epochs: &'t Epochs<1>, maps: &Maps) -> Vm<'t> {
    let vm = vm_with(HwUpdate::Off, pages, epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    vm.space.open_window(Site::new(1 << 47, 1).unwrap(), range(GIB, 2 * MIB2)).unwrap();
    vm.start(maps, LogBlocks::Keep).unwrap();
    vm.harvest(range(GIB, 2 * MIB2), 4096);
    let _ = maps.take();
    let _ = vm.space.arch.take_asked();
    vm
}

/// An install, a write to a clean page, a hole, EL2's own write and its record, a page that is new and cannot say so.
#[test]
fn a_fault_handler_asks_for_no_lock_while_writes_are_logged() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let maps = Maps::of(range(GIB, 2 * MIB2));
    let vm = logged(&pages, &epochs, &maps);
    let (space, guard, mut tally) = (&vm.space, vm.cpu.enter(), Tally::default());
    let ipa = |number| Ipa::new(page(number));
    let mut frames = Counted::new(0x70_0000_0000, PAGE_SIZE, 1);
    let mapping = at(space, PAGE);
    space.install(&guard, ipa(600), &mapping, &mut frames, &mut tally).unwrap();
    space.dirty_mark(&guard, range(page(600), PAGE_SIZE));
    let relaxed = space.relax(&guard, ipa(3), Prot::WRITE, Prot::RWX);
    assert!(matches!(relaxed, Ok(Relaxed::Granted(_))));
    let scratch = scratch(space);
    space.install_scratch(&guard, ipa(601), &scratch, &mut tally).unwrap();
    assert_eq!(space.recover_window(&guard, ipa(4), true), Recovered::Mapped);
    assert_eq!(space.write_through(&guard, ipa(4), |_| ()), Ok(()));
    // The leaf goes while EL2 writes: what it wrote is told by a bit alone.
    let cut = space.write_through(&guard, ipa(5), |_| vm.put(page(5), Descriptor::EMPTY));
    assert!(cut.is_err());
    drop(guard);
    assert_eq!(vm.space.arch.take_asked(), []);
    assert_eq!(maps.take(), [5, 600], "told without a lock");
}

#[test]
fn each_lock_is_announced_by_its_name() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let maps = Maps::of(range(GIB, 2 * MIB2));
    let vm = logged(&pages, &epochs, &maps);
    let asked = || vm.space.arch.take_asked();
    drop(vm.space.claim(range(GIB, PAGE_SIZE)).unwrap());
    assert_eq!(asked(), [Locked::Claims]);
    assert!(vm.space.dirty_range().is_some());
    assert_eq!(asked(), [Locked::Session]);
    vm.unmap(range(page(7), PAGE_SIZE), 99, Notes::Keep).unwrap();
    let taken = asked();
    let [Locked::Claims, Locked::Table(table), Locked::Session] = taken[..] else {
        panic!("the claim, the table of page 7, the session, which is told of it: {taken:?}")
    };
    assert_eq!(maps.take(), [7]);
    assert_eq!(taken[1].to_string(), format!("the lock of the stage-2 table at {table}"));
    let vmids = vmids();
    let fresh = Space::new(geometry(40), vmids, epochs.domain(), &pages, Host::new()).unwrap();
    let mut cpu = vmids.join(0).unwrap();
    // SAFETY: (1, 2) no guest runs.
    drop(unsafe { fresh.enter(&mut cpu, 0) }.unwrap());
    assert_eq!(fresh.arch.take_asked(), [Locked::Vmids], "it had none");
}
