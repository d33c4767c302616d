//! EL2's own writes to a VM's memory, and their records.

use super::dirty::{Maps, NON_OWNED, UPDATES, VALID_LEAF};
use super::prot::{ACCESSED, DIRTY, DIRTY_MODIFIER, GIB, MIB2, page, vm_with};
use super::unmap::range;
use super::*;
use crate::descriptor::Note;
use crate::space::{LogBlocks, WriteError};

/// Whatever the leaf said before: afterwards it is dirty, and accessed if it was clean.
#[test]
fn a_write_of_el2s_is_recorded_in_the_leaf() {
    for hw_update in UPDATES {
        let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
        let vm = vm_with(hw_update, &pages, &epochs);
        vm.lay(range(GIB, MIB2), Level::L3);
        vm.lay(range(GIB + MIB2, MIB2), Level::L2);
        let guard = vm.cpu.enter();
        for (ipa, target) in [(page(3), page(3)), (GIB + MIB2, GIB + MIB2 + 0x12_3456)] {
            for (bits, after) in [
                (DIRTY, DIRTY),
                (DIRTY | DIRTY_MODIFIER, DIRTY | DIRTY_MODIFIER),
                (DIRTY_MODIFIER, DIRTY | DIRTY_MODIFIER | ACCESSED),
                (DIRTY_MODIFIER | ACCESSED, DIRTY | DIRTY_MODIFIER | ACCESSED),
            ] {
                vm.alter(ipa, DIRTY | DIRTY_MODIFIER | ACCESSED, bits);
                let before = vm.held(ipa);
                let mut at = None;
                let done = vm.space.write_through(&guard, Ipa::new(target), |pa| {
                    assert_eq!(vm.held(ipa), before, "the bytes first");
                    at = Some(pa.get());
                    7
                });
                assert_eq!((done, at), (Ok(7), Some(target + 7 * GIB)));
                assert_eq!(vm.held(ipa) & (DIRTY | DIRTY_MODIFIER | ACCESSED), after);
            }
        }
    }
}

#[test]
fn a_write_of_el2s_is_refused_where_a_guest_could_not_write_and_repeated_if_the_page_changes() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::AccessAndDirty, &pages, &epochs);
    vm.lay(range(GIB, MIB2), Level::L3);
    let live = Descriptor::from_bits(vm.held(page(3)));
    let (guard, ipa) = (vm.cpu.enter(), Ipa::new(page(3)));
    let refused = |held: u64| {
        vm.put(page(3), Descriptor::from_bits(held));
        let result = vm.space.write_through(&guard, ipa, |_| panic!("nothing is to be written"));
        assert_eq!(vm.held(page(3)), held);
        result.map(|_: ()| ()).unwrap_err()
    };
    let note = Descriptor::note(Note::new(DIRTY).unwrap());
    assert_eq!(refused(0), WriteError::NotMapped { ipa });
    assert_eq!(refused(note.bits()), WriteError::NotMapped { ipa });
    assert_eq!(refused(live.bits() & !DIRTY), WriteError::ReadOnly { ipa });
    assert_eq!(refused(live.bits() | NON_OWNED), WriteError::NotOwned { ipa });
    let others = live.bits() & !DIRTY | NON_OWNED;
    assert_eq!(refused(others), WriteError::ReadOnly { ipa }, "NotOwned says that it is writable");
    let level = Level::L3;
    let busy = live.bits() & !VALID_LEAF;
    let drain = live.to_drain(level).unwrap();
    for held in [Descriptor::from_bits(busy), drain, Descriptor::DEAD] {
        assert_eq!(refused(held.bits()), WriteError::Again { level, seen: held });
    }
    let beyond = Ipa::new(1 << 40);
    let outside = vm.space.write_through(&guard, beyond, |_| ());
    assert_eq!(outside, Err(WriteError::NotMapped { ipa: beyond }));

    // Meanwhile something becomes of it.
    let elsewhere = live.bits() ^ (1 << 40);
    for (held, again) in [
        (busy, true),
        (drain.bits(), true),
        (0, true),
        (elsewhere, true),
        (live.bits() & !DIRTY, true),
        (live.bits() & !DIRTY | DIRTY_MODIFIER, false),
        (live.bits() & !ACCESSED, false),
    ] {
        vm.put(page(3), live);
        let done = vm.space.write_through(&guard, ipa, |_| {
            vm.put(page(3), Descriptor::from_bits(held));
        });
        let seen = Descriptor::from_bits(held);
        let wanted = if again { Err(WriteError::Again { level, seen }) } else { Ok(()) };
        assert_eq!(done, wanted, "{held:#x}");
        assert_eq!(vm.held(page(3)) & DIRTY == 0, again && held & DIRTY == 0, "{held:#x}");
    }
}

/// Bytes that were written before the page was write-protected are in it, and its record was taken: whatever becomes of
/// the call, the log has them.
#[test]
fn a_write_of_el2s_that_is_not_recorded_in_the_leaf_is_in_the_log() {
    let (pages, epochs) = (Pages::new(usize::MAX), Epochs::<1>::new());
    let vm = vm_with(HwUpdate::Off, &pages, &epochs);
    let at = range(GIB, MIB2);
    let maps = Maps::of(at);
    vm.lay(at, Level::L3);
    vm.start(&maps, LogBlocks::Keep).unwrap();
    vm.harvest(at, 4096);
    assert_eq!(maps.take().len(), 512);
    let live = Descriptor::from_bits(vm.held(page(3)) | DIRTY | ACCESSED);
    let read_only = live.bits() & !(DIRTY | DIRTY_MODIFIER);
    for held in [read_only, live.to_busy().unwrap().bits()] {
        vm.put(page(3), live);
        let done = vm.space.write_through(&vm.cpu.enter(), Ipa::new(page(3) + 8), |_| {
            // Somebody takes the record, reports it, and it is copied, before the bytes are there.
            vm.put(page(3), Descriptor::from_bits(held));
        });
        let seen = Descriptor::from_bits(held);
        assert_eq!(done, Err(WriteError::Again { level: Level::L3, seen }));
        assert_eq!(maps.take(), [3], "{held:#x}: nothing else will tell of it");
    }
}
