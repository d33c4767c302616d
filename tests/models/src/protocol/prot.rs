//! Protection transactions against those who change the same leaves without a lock, and those who rely on what they read.

use std::sync::Arc;

use mmu_oracle::Event;
use mmu_oracle::descriptor::dirty;
use mmu_oracle::walker::Access as Purpose;
use stage2::space::{Batch, Engine, Modified, Progress, Relax};
use stage2::{Change, HwUpdate, Leaf, Prot, View};

use super::alike::{exchange, map};
use crate::outcome::reached;
use crate::ranges::pages;
use crate::world::{PES, Pe, Shape, World, page};

/// The access flag and the dirty state; without DBM, S2AP\[1\] is the permission to write.
const RECORD: u64 = 1 << 10 | WRITABLE;
const WRITABLE: u64 = 1 << 7;
/// XN\[1\]: what a change of write permission leaves as it is.
const MARK: u64 = 1 << 54;

/// A transaction on the first three pages of table 0, in one batch.
pub(super) fn modify(
    pe: &Pe<'_>,
    mut decide: impl FnMut(u64, &Leaf) -> Option<Change>,
) -> Modified {
    let (space, guard) = (pe.world.space(), pe.cpu.enter());
    let (mut claim, _) = pe.claim(pages(0, 3));
    let all = Batch::all_of(&claim);
    let mut open = space.modify_prot(&guard, &mut claim, all, Relax::Everywhere).expect("claimed");
    open.each(|ipa, leaf| decide(ipa.get() / 4096, leaf)).expect("nothing is in the way");
    let modified = open.finish();
    assert_eq!(modified.progress, Progress::Done);
    modified
}

pub(super) fn bits(world: &World, number: u64) -> u64 {
    world.walk(page(number)).seen.bits()
}

/// The dirty state of pages is taken, and execution from those that have none, while hardware records a guest's write in one and EL2 a write of its own in another. Each
/// is told by the transaction, or the leaf says so afterwards; and none is made up.
pub fn a_harvest_against_records() {
    let world = World::new(Shape { hw_update: HwUpdate::AccessAndDirty, ..Shape::small(2, 1) });
    map(&world);
    assert_eq!(world.space().engine(), Engine::BreakUnsettled);
    // Page 2 is dirty, and a guest may hold it so.
    assert!(world.hardware_accesses(3, page(2), Purpose::Write));
    let recorder = world.spawn(1, &[], |pe| exchange(pe, RECORD));
    let writer = world.thread(|world| world.hardware_accesses(2, page(2), Purpose::Write));
    let told = world.pe(0, &[], |pe| {
        let mut told = [false; 3];
        let rw = Change::protect(Prot::RW, pe.world.space().encoding()).expect("always");
        let modified = modify(pe, |number, leaf| {
            told[number as usize] = leaf.is_dirty();
            Some(if leaf.is_dirty() { Change::CLEAN } else { rw })
        });
        assert_eq!(
            (modified.broken, modified.changed),
            (3, 3),
            "what hardware can write into is broken"
        );
        told
    });
    let (recorded, wrote) = (recorder.join().unwrap(), writer.join().unwrap());
    let known = |number: usize| told[number] || dirty(bits(&world, number as u64));
    assert_eq!((known(0), known(1), told[2]), (false, recorded, true), "a record is lost");
    for number in 0..3 {
        let found = world.walk(page(number));
        assert!(found.seen.is_valid(), "all live again");
        world.oracle().note(|pe| Event::Harvested { pe, slot: found.address, count: 1 });
    }
    reached(if wrote { "wrote" } else { "write faulted" });
    world.settle();
}

/// Pages are write-protected in place, and a fault handler changes one of them by exchange: nobody's change is lost.
pub fn a_write_protect_against_an_exchange() {
    let world = World::new(Shape::small(2, 1));
    map(&world);
    assert_eq!(world.space().engine(), Engine::InPlace);
    let handler = world.spawn(1, &[], |pe| exchange(pe, MARK));
    let modified = world.pe(0, &[], |pe| modify(pe, |_, _| Some(Change::WRITE_PROTECT)));
    assert_eq!((modified.changed, modified.broken), (3, 0));
    let changed = handler.join().unwrap();
    for number in 0..4 {
        let held = bits(&world, number);
        assert_eq!(held & WRITABLE != 0, number == 3, "page {number}");
        assert_eq!(held & MARK != 0, changed && number == 1, "an exchange is lost");
    }
    world.settle();
}

/// Pages are write-protected in place; another PE finds one read-only, and no flush pending: nobody writes to it.
pub fn a_write_protect_against_who_relies_on_it() {
    let world = World::new(Shape::small(2, 1));
    map(&world);
    let reader = {
        let world = Arc::clone(&world);
        world.spawn(1, &[], |pe| {
            let _guard = pe.cpu.enter();
            let found = pe.world.walk(page(1));
            let View::Leaf(_) = found.view() else { panic!("nothing is broken: {found:?}") };
            if found.seen.bits() & WRITABLE != 0 {
                return reached("writable");
            }
            if pe.world.space().pending_flush(page(1)) {
                return reached("pending");
            }
            let writer = pe.world.oracle().with_model(|model| {
                (0..PES).find(|pe| model.writes_by_held(*pe, page(1).get()).is_some())
            });
            assert_eq!(writer, None, "a PE writes to what is read-only, and no flush is pending");
            reached("read-only");
        })
    };
    world.pe(0, &[], |pe| modify(pe, |_, _| Some(Change::WRITE_PROTECT)));
    reader.join().unwrap();
    assert!(!world.space().pending_flush(page(1)));
    world.settle();
}
