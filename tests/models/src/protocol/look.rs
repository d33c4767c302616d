//! Look-ups while what they find is taken away: a guard keeps tables and frames from being reused, and the
//! lock of a table is given to nobody who would write into one that has left the tree.

use stage2::arch::Dsb;
use stage2::space::Notes;
use stage2::{Arch, Descriptor, Level, View};

use super::clear::populate;
use crate::guest::Access;
use crate::outcome::reached;
use crate::ranges::{note, table};
use crate::sched::atomic::Ordering;
use crate::world::{Pe, RUBBISH, SECRET, Shape, World, page};

/// What a writer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrote {
    /// The note is in the table.
    Yes,
    /// There was no table any more.
    TooLate,
}

/// Puts a note into the Empty slot of page 1, through its table's lock.
fn write(pe: &Pe<'_>) -> Wrote {
    let (space, hardware) = (pe.world.space(), pe.world.hardware());
    loop {
        let guard = pe.cpu.enter();
        let found = space.lookup_rw(&guard, page(1)).expect("inside the IPA size");
        let parent = found.parent();
        let Ok(locked) = found.lock() else {
            reached("Stale");
            continue;
        };
        if locked.level() != Level::L3 {
            return Wrote::TooLate;
        }
        let link = &hardware.slots(pe.world.root(page(1)))[Level::L2.index(page(1))];
        assert_eq!(Some(link.load(hardware)), parent, "a table whose lock is held is in the tree");
        let slot = locked.slot(page(1)).expect("in this table");
        let noted = Descriptor::note(note(7)).bits();
        // SAFETY: (1) Empty may become a note by the holder of the table's lock.
        let made = unsafe { hardware.compare_exchange(slot, 0, noted) };
        assert_eq!(made, Some(Ok(0)), "nobody else has this slot");
        hardware.dsb(Dsb::IshSt);
        return Wrote::Yes;
    }
}

/// One PE writes into a table that it looked up, another unmaps all that the table serves and would
/// give it back: what was written is there afterwards, or was not written.
pub fn a_write_against_unmap() {
    let world = World::new(Shape::small(2, 1));
    let frame = world.pe(0, &[0], |pe| populate(pe, 0));
    let writer = world.spawn(1, &[], write);
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed, [(page(0), frame)]);
    let wrote = writer.join().unwrap();
    let last = world.walk(page(1));
    match wrote {
        Wrote::Yes => {
            assert_eq!(last.view(), View::Note(note(7)), "what was written is in the tree");
            reached("wrote");
        }
        Wrote::TooLate => {
            assert_eq!(last.seen, Descriptor::EMPTY);
            assert_eq!(last.level, Level::L2, "the table was given back");
            reached("too late");
        }
    }
    world.settle();
}

/// EL2 translates an address under a guard and reads there; meanwhile the page is unmapped, and its frame
/// serves somebody else.
pub fn an_access_of_el2_against_unmap() {
    let world = World::new(Shape::small(2, 1));
    let frame = world.pe(0, &[0], |pe| populate(pe, 0));
    let reader = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        let Some(there) = pe.world.space().translate(&guard, page(0)) else {
            return reached("nothing was there");
        };
        let content = pe.world.frame(there.pa).load(Ordering::Relaxed);
        assert_ne!(content, SECRET, "a frame serves somebody else while a guard protects it");
        reached("read");
    });
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed, [(page(0), frame)]);
    reader.join().unwrap();
    world.settle();
}

/// A PE visits a table, with its lock and without, that another gives back.
pub fn a_visit_against_unmap() {
    let world = World::new(Shape::small(2, 2));
    let _ = world.pe(0, &[0, 1], |pe| (populate(pe, 0), populate(pe, 1)));
    let visitor = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        let mut leaves = 0;
        for (_, found) in pe.world.space().visit(&guard, table(0)) {
            assert_ne!(found.descriptor.bits(), RUBBISH, "a visit met a table that was given back");
            leaves += usize::from(matches!(found.view(), View::Leaf(_)));
        }
        let ro = pe.world.space().lookup_ro(&guard, page(1)).expect("inside the IPA size").lock();
        let seen = ro.get(page(1)).expect("in this table").descriptor;
        assert_ne!(seen.bits(), RUBBISH, "a locked table was given back");
        if seen.is_valid() {
            let again = ro.get(page(1)).expect("in this table").descriptor;
            assert_eq!(seen, again, "what is live stays while the lock is held");
        }
        leaves
    });
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed.len(), 2);
    reached(match visitor.join().unwrap() {
        0 => "saw nothing",
        1 => "saw one page",
        _ => "saw both",
    });
    world.settle();
}

/// A PE holds the lock of a table from which another takes out the table below.
pub fn a_locked_parent_against_unmap() {
    let world = World::new(Shape::small(2, 1));
    let _ = world.pe(0, &[0], |pe| populate(pe, 0));
    let looker = world.spawn(1, &[], |pe| {
        let guard = pe.cpu.enter();
        // The walk to the second table's addresses ends in the root, since there is none.
        let root =
            pe.world.space().lookup_ro(&guard, page(512)).expect("inside the IPA size").lock();
        assert_eq!(root.level(), Level::L2);
        let seen = root.get(page(0)).expect("in the root").descriptor;
        if seen.is_valid() {
            let again = root.get(page(0)).expect("in the root").descriptor;
            assert_eq!(seen, again, "a table stays linked while its parent's lock is held");
            return reached("linked");
        }
        reached("unlinked");
    });
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed.len(), 1);
    looker.join().unwrap();
    world.settle();
}

/// A guest reads a page whose table is given back, while another PE populates its neighbour.
pub fn a_guest_in_a_table_that_goes() {
    let world = World::new(Shape::small(3, 2));
    let frame = world.pe(0, &[0], |pe| populate(pe, 0));
    let guest = world.thread(|world| world.guest_reads_meanwhile(page(0)));
    let installer = world.spawn(1, &[1], |pe| super::clear::install(pe, 1));
    let freed = world.pe(0, &[], |pe| pe.unmap_all(table(0), Notes::Keep));
    assert_eq!(freed.first(), Some(&(page(0), frame)));
    let _ = installer.join().unwrap();
    match guest.join().unwrap() {
        Access::Fault => reached("guest faulted"),
        Access::Read(from, _) => {
            assert_eq!(from, frame);
            reached("guest read");
        }
    }
    world.settle();
}
